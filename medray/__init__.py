"""medray: distributed batch processing for medical imaging on Ray."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"


def load_model(uri: Any, *, device: str = "cpu") -> Any:
    """Return a model package ready to predict: see `medray.models.load_model`.

    Example: medray.load_model("/data/train").predict("/data/ct").mask
    """
    # By name: `import medray` must load neither torch nor what lies above it.
    return import_module("medray.models").load_model(uri, device=device)
