"""Models that a task needs first: their part of a sample is made before the task's own prepare."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from medray import storage
from medray.datasets.record import Sample
from medray.engine.examples import example_facts
from medray.engine.weights import package_uri, read_checked_weights, read_model_json
from medray.errors import ConfigError, DataError
from medray.learning import Prediction
from medray.recipe import Recipe
from medray.volume import Volume

if TYPE_CHECKING:
    from medray.engine.predictor import Predictor

FOLDER = "upstream"
_PACKAGE_FILES = ("weights.safetensors", "README.md", "model.json")
_KEPT_IN_A_PROCESS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    """One model that runs before the task's own.

    Attributes:
        part: what it makes of a sample: `mask`.
        recipe: of its task.
        uri: its package.
        weights_sha256: of its weights, part of the identity of all that comes after.
    """

    part: str
    recipe: Recipe[Any]
    uri: str
    weights_sha256: str

    def facts(self) -> dict[str, Any]:
        """Return what run.json and model.json say of it."""
        return {
            "name": self.part,
            "task": self.recipe.name,
            "uri": self.uri,
            "sha256": self.weights_sha256,
        }


def chosen_upstream(
    recipe: Recipe[Any], hparams: Any, recipe_of: Callable[[str], Recipe[Any]]
) -> tuple[Upstream, ...]:
    """Return the models that hyperparameters such as `mask_model` name.

    Raises:
        ConfigError: a model of a kind that does not make the part.
        DataError: model_missing or model_hash_mismatch.
    """
    found = []
    for name, part in recipe.upstream.items():
        uri = getattr(hparams, part.setting)
        if uri:
            model = _upstream(name, uri, recipe_of)
            if model.recipe.kind != part.kind:
                raise ConfigError(
                    f"{part.setting} must be a model that makes the {name}, "
                    f"{model.recipe.name} does not"
                )
            found.append(model)
    return tuple(found)


def packed_upstream(
    uri: str, facts: Mapping[str, Any], recipe_of: Callable[[str], Recipe[Any]]
) -> tuple[Upstream, ...]:
    """Return the models that lie in a package, in the order in which they run."""
    where = package_uri(uri)
    return tuple(
        _upstream(item["name"], storage.join(where, item["uri"]), recipe_of)
        for item in facts.get("upstream", ())
    )


def _upstream(part: str, uri: str, recipe_of: Callable[[str], Recipe[Any]]) -> Upstream:
    facts = read_model_json(uri)
    recipe = recipe_of(str(facts.get("task")))
    read_checked_weights(uri)
    return Upstream(part=part, recipe=recipe, uri=uri, weights_sha256=facts["weights_sha256"])


def with_upstream(sample: Sample, chain: Sequence[Upstream]) -> Sample:
    """Return the sample with the parts that the models make, in place of what it had.

    Raises:
        DataError: the first reason why a model cannot take this image.
    """
    for model in chain:
        sample = _MAKERS[model.part](sample, model)
    return sample


def _with_mask(sample: Sample, model: Upstream) -> Sample:
    image = sample.image
    if not isinstance(image, Volume):
        raise DataError("wrong_modality", "a mask needs a volume to lie on")
    mask = _predicted(sample, model).mask
    if mask is None or mask.shape != image.array.shape:
        raise DataError("model_output_invalid", "the upstream model gave no mask of this grid")
    return dataclasses.replace(sample, mask=image.with_array(mask))


def _with_boxes(sample: Sample, model: Upstream) -> Sample:
    """Return the sample with the found boxes, best first; there may be none."""
    found = _predicted(sample, model)
    if found.boxes_xyxy_px is None:
        raise DataError("model_output_invalid", "the upstream model gave no boxes")
    return dataclasses.replace(
        sample,
        boxes_xyxy_px=np.asarray(found.boxes_xyxy_px, dtype=np.float64).reshape(-1, 4),
        box_labels=np.asarray(found.box_labels, dtype=np.int64),
    )


_MAKERS: dict[str, Callable[[Sample, Upstream], Sample]] = {
    "mask": _with_mask,
    "boxes": _with_boxes,
}


def _predicted(sample: Sample, model: Upstream) -> Prediction:
    predictor = _loaded(model)
    bare = Sample(image=sample.image, meta=sample.meta)
    prepared = model.recipe.prepare(bare, predictor.hparams)
    probabilities = predictor.probabilities([prepared.arrays])[0]
    return predictor.decode(probabilities, example_facts(prepared, key=""))


# Loaded once in a process, newest last.
_LOADED: "dict[tuple[str, str], Predictor]" = {}


def _loaded(model: Upstream) -> "Predictor":
    from medray.engine.predictor import Predictor

    key = (model.uri, model.weights_sha256)
    if key not in _LOADED:
        while len(_LOADED) >= _KEPT_IN_A_PROCESS:
            del _LOADED[next(iter(_LOADED))]
        _LOADED[key] = Predictor(model.recipe, model.uri)
    return _LOADED[key]


def pack_upstream(out: str, chain: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Copy the models into a package; return what its model.json says of them.

    Raises:
        DataError: model_missing or model_hash_mismatch: not the model that the data were made by.
    """
    packed = []
    for item in chain:
        weights = read_checked_weights(item["uri"])
        if read_model_json(item["uri"])["weights_sha256"] != item["sha256"]:
            raise DataError(
                "model_hash_mismatch", f"the {item['name']} model has changed since prepare"
            )
        source = package_uri(item["uri"])
        place = f"{FOLDER}/{item['name']}"
        for name in _PACKAGE_FILES:
            data = weights if name.startswith("weights") else None
            storage.write_atomic(
                storage.join(out, place, name),
                data or storage.read_bytes(storage.join(source, name)),
            )
        packed.append({**item, "uri": place})
    return packed
