"""Models that a task needs first: their part of a sample is made before the task's own prepare."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from medray import storage
from medray.datasets.record import Sample
from medray.engine.case import Answers, Question, Steps, answered, ask_of, bare_sample, judged
from medray.engine.interpreter import Interpreter
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


def upstream_steps(sample: Sample, chain: Sequence[Upstream]) -> Steps[Sample]:
    """Give the sample the parts that the models make, in place of what it had.

    Raises:
        DataError: the first reason why a model cannot take this image.
    """
    for model in chain:
        interpreter = _interpreter(model)
        bare = Sample(image=sample.image, meta=sample.meta)
        prepared = [model.recipe.prepare(bare, interpreter.hparams)]
        answers = yield ask_of(model.part, prepared)
        (prediction,) = judged(interpreter, prepared, answers)
        sample = _MAKERS[model.part](sample, prediction)
    return sample


def with_upstream(sample: Sample, chain: Sequence[Upstream]) -> Sample:
    """Return the sample with the parts that the models make, computed here.

    Raises:
        DataError: as `upstream_steps`.
    """
    return answered(upstream_steps(sample, chain), upstream_network(chain))


def upstream_network(chain: Sequence[Upstream]) -> Callable[[Question], Answers]:
    """Return what answers for the models of a chain in this process, each loaded once."""
    models = {model.part: model for model in chain}
    return lambda question: _loaded(models[question.model]).answer(question.examples)


def predict_steps(
    interpreter: Interpreter, samples: Sequence[Sample], chain: Sequence[Upstream] = ()
) -> Steps[list[Prediction]]:
    """Say what a model makes of a few samples of one size; their labels are not looked at.

    Args:
        interpreter: of the model.
        samples: decoded images.
        chain: models of the package that make parts of each sample first.

    Raises:
        DataError: why the task cannot take the first of these images that it refuses.
        ConfigError: the network needs a part that no model makes.
    """
    found = []
    for sample in samples:
        whole = yield from upstream_steps(bare_sample(sample), chain)
        found.append(interpreter.recipe.prepare(whole, interpreter.hparams))
    answers = yield ask_of("", found)
    return judged(interpreter, found, answers)


def network_of(
    predictor: "Predictor", chain: Sequence[Upstream] = ()
) -> Callable[[Question], Answers]:
    """Return what answers for a model and those before it in this process."""
    upstream = upstream_network(chain)
    return lambda asked: upstream(asked) if asked.model else predictor.answer(asked.examples)


def predict_sample(
    predictor: "Predictor", sample: Sample, chain: Sequence[Upstream] = ()
) -> Prediction:
    """Return what a loaded model says of a sample.

    Raises:
        DataError, ConfigError: as `predict_steps`.
    """
    steps = predict_steps(predictor.interpreter, [sample], chain)
    return answered(steps, network_of(predictor, chain))[0]


def _with_mask(sample: Sample, found: Prediction) -> Sample:
    image = sample.image
    if not isinstance(image, Volume):
        raise DataError("wrong_modality", "a mask needs a volume to lie on")
    if found.mask is None or found.mask.shape != image.array.shape:
        raise DataError("model_output_invalid", "the upstream model gave no mask of this grid")
    return dataclasses.replace(sample, mask=image.with_array(found.mask))


def _with_boxes(sample: Sample, found: Prediction) -> Sample:
    """Return the sample with the found boxes, best first; there may be none."""
    if found.boxes_xyxy_px is None:
        raise DataError("model_output_invalid", "the upstream model gave no boxes")
    return dataclasses.replace(
        sample,
        boxes_xyxy_px=np.asarray(found.boxes_xyxy_px, dtype=np.float64).reshape(-1, 4),
        box_labels=np.asarray(found.box_labels, dtype=np.int64),
    )


_MAKERS: dict[str, Callable[[Sample, Prediction], Sample]] = {
    "mask": _with_mask,
    "boxes": _with_boxes,
}

# Kept in a process, newest last: descriptions by address and hash, and networks.
_READ: dict[tuple[str, str], Interpreter] = {}
_LOADED: "dict[tuple[str, str], Predictor]" = {}


def _interpreter(model: Upstream) -> Interpreter:
    key = (model.uri, model.weights_sha256)
    if key not in _READ:
        _make_room(_READ)
        _READ[key] = Interpreter(model.recipe, model.uri)
    return _READ[key]


def _loaded(model: Upstream) -> "Predictor":
    from medray.engine.predictor import Predictor

    key = (model.uri, model.weights_sha256)
    if key not in _LOADED:
        _make_room(_LOADED)
        _LOADED[key] = Predictor(model.recipe, model.uri)
    return _LOADED[key]


def _make_room(kept: dict[tuple[str, str], Any]) -> None:
    while len(kept) >= _KEPT_IN_A_PROCESS:
        del kept[next(iter(kept))]


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
