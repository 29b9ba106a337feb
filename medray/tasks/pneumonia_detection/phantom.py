"""Synthetic data set of this task."""

from pathlib import Path
from typing import Any


def write_phantom(
    root: Path, *, num_patients: int, seed: int, defects: bool, size: str = "small"
) -> dict[str, Any]:
    """Write the data set."""
    raise NotImplementedError


def baseline(root: Path) -> dict[str, float]:
    """Return the score of a threshold and blobs."""
    raise NotImplementedError
