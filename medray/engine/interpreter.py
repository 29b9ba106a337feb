"""A model package without its network: what its task makes of an image and of an answer."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from medray.engine.weights import read_model_json
from medray.errors import ConfigError
from medray.learning import Prediction
from medray.recipe import Recipe


class Interpreter:
    """One model's recipe with the settings of its package; cheap, torch is not imported.

    Attributes:
        recipe, hparams: of the task, as they were in training.
        inference: parameters chosen on validation, e.g. the threshold.
        facts: content of model.json.
    """

    def __init__(
        self, recipe: Recipe[Any], uri: str, *, inference: Mapping[str, Any] | None = None
    ) -> None:
        """Read a package's description.

        Args:
            recipe: of the model's task.
            uri: of the package.
            inference: parameters in place of the package's own.

        Raises:
            ConfigError: a model of another task or version.
            DataError: model_missing.
        """
        self.facts = read_model_json(uri)
        self.recipe = recipe
        self.inference: Mapping[str, Any] = {**self.facts["inference"], **(inference or {})}
        self.hparams = inferred_hparams(recipe, model_hparams(recipe, self.facts), self.inference)

    def settle(self, probabilities: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Return the probabilities that are judged, decoded and measured."""
        settle = self.recipe.learning.sweep.settle
        return settle(probabilities, self.inference) if settle else probabilities

    def decode(
        self, probabilities: Mapping[str, np.ndarray], facts: Mapping[str, Any]
    ) -> Prediction:
        """Return what settled probabilities mean in the terms of the original image."""
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
