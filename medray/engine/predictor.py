"""A model package as something that can be called: the same in evaluate, predict and serve."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from medray.engine.examples import batch_arrays
from medray.engine.train_step import autocast, use_precision
from medray.engine.weights import load_weights, read_model_json
from medray.errors import ConfigError, DataError
from medray.learning import Batch, Prediction
from medray.recipe import Recipe


class Predictor:
    """One loaded model.

    Attributes:
        recipe, hparams: of the task, as they were in training.
        inference: parameters chosen on validation, e.g. the threshold.
        facts: content of model.json.
    """

    def __init__(
        self,
        recipe: Recipe[Any],
        uri: str,
        *,
        device: str = "cpu",
        inference: Mapping[str, Any] | None = None,
    ) -> None:
        """Load weights strictly, their hash checked.

        Args:
            recipe: of the model's task.
            uri: of the package.
            device: of torch.
            inference: parameters in place of the package's own.

        Raises:
            ConfigError: a model of another task or version.
            DataError: model_missing or model_hash_mismatch.
        """
        self.facts = read_model_json(uri)
        self.recipe = recipe
        self.inference: Mapping[str, Any] = {**self.facts["inference"], **(inference or {})}
        self.hparams = inferred_hparams(recipe, model_hparams(recipe, self.facts), self.inference)
        self.device = torch.device(device)
        self.precision = "bf16" if self.device.type == "cuda" else "fp32"
        use_precision(self.precision)
        self.module = recipe.model(self.hparams)
        load_weights(self.module, uri, task=recipe.name)
        self.module.to(self.device).eval()

    def probabilities(
        self, examples: Sequence[Mapping[str, np.ndarray]]
    ) -> list[dict[str, np.ndarray]]:
        """Return each example's named probabilities.

        Args:
            examples: arrays as `prepare` makes them; labels are not needed.

        Raises:
            DataError: model_output_invalid where the network gives NaN or infinity.
        """
        learning = self.recipe.learning
        arrays = learning.collate([batch_arrays(example) for example in examples])
        batch: Batch = {n: torch.from_numpy(a).to(self.device) for n, a in arrays.items()}
        with torch.no_grad():
            inputs = learning.inputs(batch, self.hparams)
            with autocast(self.device, self.precision):
                outputs = self.module(inputs)
            found = {
                name: value.float().cpu().numpy()
                for name, value in learning.probabilities(outputs, self.hparams).items()
            }
        if not all(np.isfinite(value).all() for value in found.values()):
            raise DataError("model_output_invalid", "the network gave NaN or infinite values")
        each = [{n: value[i] for n, value in found.items()} for i in range(len(examples))]
        settle = learning.sweep.settle
        return [settle(one, self.inference) for one in each] if settle else each

    def decode(
        self, probabilities: Mapping[str, np.ndarray], facts: Mapping[str, Any]
    ) -> Prediction:
        """Return what the probabilities mean in the terms of the original image."""
        learning = self.recipe.learning
        return learning.decode(probabilities, facts, self.hparams, self.inference)


def model_hparams(recipe: Recipe[Any], facts: Mapping[str, Any]) -> Any:
    """Return the hyperparameters of a model package as the recipe's own type.

    Raises:
        ConfigError: another task, another transform, or names that this version does not know.
    """
    if facts.get("task") != recipe.name:
        raise ConfigError(f"this is a model of {facts.get('task')}, not of {recipe.name}")
    if facts.get("transform_version") != recipe.transform_version:
        raise ConfigError(
            f"the model was trained on version {facts.get('transform_version')} of the transform, "
            f"this is version {recipe.transform_version}; train it again"
        )
    kind = type(recipe.hparams)
    known = {field.name for field in dataclasses.fields(kind)}
    stored = facts["hyperparameters"]
    unknown = sorted(set(stored) - known)
    if unknown:
        raise ConfigError(f"the model has hyperparameters that this version lacks: {unknown[0]}")
    plain = {n: tuple(v) if isinstance(v, list) else v for n, v in stored.items()}
    try:
        return kind(**plain)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the model's hyperparameters do not hold here: {error}") from error


def inferred_hparams(recipe: Recipe[Any], hparams: Any, inference: Mapping[str, Any]) -> Any:
    """Return the hyperparameters with those that a sweep of predictions chose, e.g. of the NMS.

    Raises:
        ConfigError: a value that the task refuses.
    """
    names = {field.name for field in dataclasses.fields(hparams)} & set(inference)
    chosen = {name: inference[name] for name in names & set(recipe.learning.sweep.raw)}
    try:
        return dataclasses.replace(hparams, **chosen)
    except ValueError as error:
        raise ConfigError(f"the model's inference parameters do not hold here: {error}") from error
