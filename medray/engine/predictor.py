"""A model package as something that can be called: the same in evaluate, predict and serve."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from medray.engine.examples import batch_arrays
from medray.engine.interpreter import Interpreter
from medray.engine.train_step import autocast, use_precision
from medray.engine.weights import load_weights
from medray.errors import DataError
from medray.learning import Batch
from medray.recipe import Recipe


class Predictor:
    """One loaded model.

    Attributes:
        interpreter: its recipe and the settings of its package.
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
        self.interpreter = Interpreter(recipe, uri, inference=inference)
        self.device = torch.device(device)
        self.precision = "bf16" if self.device.type == "cuda" else "fp32"
        use_precision(self.precision)
        self.module = recipe.model(self.interpreter.hparams)
        load_weights(self.module, uri, task=recipe.name)
        self.module.to(self.device).eval()

    def probabilities(
        self, examples: Sequence[Mapping[str, np.ndarray]]
    ) -> list[Mapping[str, np.ndarray]]:
        """Return each example's named probabilities, settled.

        Raises:
            DataError: as `answer`.
        """
        return [
            self.interpreter.settle(one)
            for one in self.answer([batch_arrays(one) for one in examples])
        ]

    def answer(self, examples: Sequence[Mapping[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
        """Return what the network says of each example, as it comes out.

        Args:
            examples: arrays as `prepare` makes them, without those for evaluation alone.

        Raises:
            DataError: model_output_invalid where the network gives NaN or infinity.
        """
        learning, hparams = self.interpreter.recipe.learning, self.interpreter.hparams
        arrays = learning.collate(examples)
        batch: Batch = {n: torch.from_numpy(a).to(self.device) for n, a in arrays.items()}
        with torch.no_grad():
            inputs = learning.inputs(batch, hparams)
            with autocast(self.device, self.precision):
                outputs = self.module(inputs)
            found = {
                name: value.float().cpu().numpy()
                for name, value in learning.probabilities(outputs, hparams).items()
            }
        if not all(np.isfinite(value).all() for value in found.values()):
            raise DataError("model_output_invalid", "the network gave NaN or infinite values")
        return [{n: value[i] for n, value in found.items()} for i in range(len(examples))]
