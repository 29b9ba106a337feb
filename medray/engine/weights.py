"""Reading weights: safetensors alone, checked by hash, loaded strictly."""

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from medray import storage
from medray.engine.checkpoint import WEIGHTS
from medray.errors import ConfigError, DataError
from medray.recipe import Recipe

if TYPE_CHECKING:
    from torch import Tensor, nn

MODEL_JSON = "model.json"
_NUM_NAMED = 3
_FILE_SUFFIXES = frozenset(
    {"safetensors", "pt", "pth", "ckpt", "bin", "pkl", "pickle", "h5", "tar"}
)


def package_uri(uri: str) -> str:
    """Return the `model/` folder that a MODEL argument means: itself, or below an --out.

    Raises:
        DataError: model_missing.
    """
    for place in (uri, storage.join(uri, "model"), storage.join(uri, "train", "model")):
        if storage.exists(storage.join(place, MODEL_JSON)):
            return place
    raise DataError("model_missing", f"{uri} holds no model (no {MODEL_JSON})")


def read_model_json(uri: str) -> dict[str, Any]:
    """Return the description of a model package.

    Raises:
        DataError: model_missing.
    """
    facts: dict[str, Any] = storage.read_json(storage.join(package_uri(uri), MODEL_JSON))
    return facts


def read_checked_weights(uri: str) -> bytes:
    """Return the weights file of a model package, its hash checked.

    Raises:
        DataError: model_missing or model_hash_mismatch.
    """
    facts = read_model_json(uri)
    data = storage.read_bytes(storage.join(package_uri(uri), WEIGHTS))
    if hashlib.sha256(data).hexdigest() != facts.get("weights_sha256"):
        raise DataError("model_hash_mismatch", f"{WEIGHTS} has changed since the model was written")
    return data


def read_weights(uri: str, *, task: str = "") -> "dict[str, Tensor]":
    """Return the tensors of a model package or of one .safetensors file.

    Raises:
        DataError: model_missing, model_hash_mismatch, or weights_refused for any other format.
        ConfigError: a package of another task than `task`.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    is_file = _is_file(uri)
    if is_file and not uri.lower().endswith(".safetensors"):
        raise DataError(
            "weights_refused", "only .safetensors and model packages are read, nothing pickled is"
        )
    if is_file:
        data = storage.read_bytes(uri)
    else:
        found = read_model_json(uri).get("task")
        if task and found != task:
            raise ConfigError(f"{uri} is a model of {found}, not of {task}")
        data = read_checked_weights(uri)
    try:
        tensors: dict[str, Tensor] = load(data)
    except (SafetensorError, ValueError) as error:
        raise DataError("weights_refused", "the file is no safetensors file") from error
    return tensors


def start_from(recipe: Recipe[Any], module: "nn.Module", uri: str) -> str:
    """Set a fresh network's weights from a package, or from a file of ours or another library.

    Returns:
        What was left out of another library's file; empty where everything was taken.

    Raises:
        ConfigError, DataError: as `load_weights`; weights_refused for a file that does not fit.
    """
    adopt = recipe.learning.adopt
    if adopt is None or not _is_file(uri):
        load_weights(module, uri, task=recipe.name)
        return ""
    if uri.lower().endswith(".safetensors"):
        try:
            load_weights(module, uri)
        except ConfigError:
            pass  # not a file of ours: its names are the other library's
        else:
            return ""
    return adopt(module, storage.read_bytes(uri))


def _is_file(uri: str) -> bool:
    return uri.rpartition("/")[2].rpartition(".")[2].lower() in _FILE_SUFFIXES


def require_fit(expected: "Mapping[str, Tensor]", found: "Mapping[str, Tensor]", uri: str) -> None:
    """Refuse weights of another network.

    Raises:
        ConfigError: names that are missing, left over or of another shape.
    """
    missing = sorted(set(expected) - set(found))
    extra = sorted(set(found) - set(expected))
    shapes = [n for n in expected if n in found and expected[n].shape != found[n].shape]
    problems = [
        f"{what} {', '.join(names[:_NUM_NAMED])}" + (" and more" if len(names) > _NUM_NAMED else "")
        for what, names in (("missing", missing), ("left over", extra), ("another shape", shapes))
        if names
    ]
    if problems:
        raise ConfigError(f"{uri} holds weights of another network: {'; '.join(problems)}")


def load_weights(module: "nn.Module", uri: str, *, task: str = "") -> None:
    """Load weights strictly into a network.

    Raises:
        ConfigError, DataError: as `read_weights` and `require_fit`.
    """
    tensors = read_weights(uri, task=task)
    require_fit(module.state_dict(), tensors, uri)
    module.load_state_dict(tensors)
