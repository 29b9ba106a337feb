"""What a service serves: names, packages and thresholds, as plain data for Serve's user_config."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from medray.config import unknown_name
from medray.engine.interpreter import Interpreter
from medray.engine.upstream import Upstream, packed_upstream
from medray.engine.weights import package_uri, read_checked_weights, read_model_json
from medray.errors import ConfigError, DataError
from medray.recipe import Recipe

RecipeOf = Callable[[str], Recipe[Any]]
_NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789_-")
_MAX_NAME = 64


def parse_models(items: Sequence[str]) -> dict[str, str]:
    """Return name to URI of `NAME=MODEL` arguments.

    Raises:
        ConfigError: no model, a malformed one, or a name twice.
    """
    found: dict[str, str] = {}
    for item in items:
        name, equals, uri = item.partition("=")
        if not equals or not uri:
            raise ConfigError(f"a model is given as NAME=MODEL, got {item!r}")
        if not name or len(name) > _MAX_NAME or set(name) - _NAME_CHARACTERS:
            raise ConfigError(
                f"a model's name has lower-case letters, digits, _ and - alone, got {name!r}"
            )
        if name in found:
            raise ConfigError(f"the name {name} is given twice")
        found[name] = uri
    if not found:
        raise ConfigError("name at least one model: medray serve NAME=MODEL")
    return found


def describe_model(uri: str, inference: Mapping[str, Any], recipe_of: RecipeOf) -> dict[str, Any]:
    """Return one model of the user_config; a package that cannot be used says why.

    Args:
        uri: the package, or the --out above it.
        inference: thresholds in place of the package's own.
        recipe_of: task name to recipe.

    Raises:
        ConfigError: an inference parameter that the task does not know.
    """
    try:
        facts = read_model_json(uri)
        read_checked_weights(uri)
        recipe = recipe_of(str(facts.get("task")))
        _check_inference(recipe, inference)
        Interpreter(recipe, uri, inference=inference)
        chain = packed_upstream(uri, facts, recipe_of)
    except DataError as error:
        return {"uri": uri, "broken": [error.reason, error.detail]}
    return {
        "uri": package_uri(uri),
        "task": recipe.name,
        "weights_sha256": facts["weights_sha256"],
        "inference": dict(inference),
        "upstream": [
            {
                "part": model.part,
                "task": model.recipe.name,
                "uri": package_uri(model.uri),
                "weights_sha256": model.weights_sha256,
            }
            for model in chain
        ],
    }


def _check_inference(recipe: Recipe[Any], inference: Mapping[str, Any]) -> None:
    sweep = recipe.learning.sweep
    fields = {field.name for field in dataclasses.fields(recipe.hparams)}
    known = sorted({*sweep.space, *sweep.on_request} - fields)
    for name, value in inference.items():
        if name not in known:
            raise ConfigError(unknown_name("inference parameter", name, known))
        low, high = sweep.limits.get(name, (float("-inf"), float("inf")))
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not low <= value <= high
        ):
            raise ConfigError(f"{name} of {recipe.name} must be a number in {low:g} to {high:g}")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """One usable model as a replica sees it.

    Attributes:
        name: in the service.
        interpreter: its package.
        upstream: what runs first.
        networks: part (empty for its own) to task, address and weights hash.
    """

    name: str
    interpreter: Interpreter
    upstream: tuple[Upstream, ...]
    networks: Mapping[str, tuple[str, str, str]]


def served_model(name: str, model: Mapping[str, Any], recipe_of: RecipeOf) -> Served:
    """Return a model of the user_config, its package read again.

    Raises:
        DataError: model_missing, or model_hash_mismatch where the package has changed since.
        ConfigError: a package that this version does not know.
    """
    if "broken" in model:
        raise DataError(*model["broken"])
    recipe = recipe_of(model["task"])
    interpreter = Interpreter(recipe, model["uri"], inference=model["inference"])
    if interpreter.facts["weights_sha256"] != model["weights_sha256"]:
        raise DataError("model_hash_mismatch", "the package now holds other weights")
    upstream = tuple(
        Upstream(
            part=one["part"],
            recipe=recipe_of(one["task"]),
            uri=one["uri"],
            weights_sha256=one["weights_sha256"],
        )
        for one in model["upstream"]
    )
    networks = {"": (model["task"], model["uri"], model["weights_sha256"])}
    for one in model["upstream"]:
        networks[one["part"]] = (one["task"], one["uri"], one["weights_sha256"])
    return Served(name=name, interpreter=interpreter, upstream=upstream, networks=networks)


def read_models(config: Mapping[str, Any], recipe_of: RecipeOf) -> dict[str, Served | DataError]:
    """Return the models of a user_config by name; of one that cannot be used, why."""
    models: dict[str, Served | DataError] = {}
    for name, model in config["models"].items():
        try:
            models[name] = served_model(name, model, recipe_of)
        except DataError as error:
            models[name] = error
        except ConfigError as error:
            models[name] = DataError("model_missing", str(error))
    return models


def network_name(model: str, part: str) -> str:
    """Return the name of the deployment that holds a network."""
    return f"model-{model}-{part}" if part else f"model-{model}"


def model_card(model: Served) -> dict[str, Any]:
    """Return what `GET /v1/models/{name}` says."""
    facts, recipe = model.interpreter.facts, model.interpreter.recipe
    takes = ["dicom", "zip", *(["png", "jpeg"] if recipe.is_planar else ["nifti", "nrrd", "mha"])]
    return {
        "name": model.name,
        "task": recipe.name,
        "kind": recipe.kind,
        "version": facts["version"],
        "weights_sha256": facts["weights_sha256"],
        "labels": list(facts["labels"]),
        "inputs": takes,
        "outputs": [
            "application/json",
            "image/png",
            *([] if recipe.is_planar else ["application/gzip", "application/dicom"]),
        ],
        "thresholds": dict(model.interpreter.inference),
        "modalities": sorted(facts["fingerprint"].get("modalities", {})),
        "metrics": facts.get("metrics", {}),
        "upstream": [one.part for one in model.upstream],
    }
