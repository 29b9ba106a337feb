"""A replica that holds networks: arrays in, probabilities out, several requests in one pass."""

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from ray import serve

from medray.engine.case import Answers
from medray.errors import ConfigError, DataError
from medray.recipe import Recipe

if TYPE_CHECKING:
    from medray.engine.predictor import Predictor

# The one that is served and the one that a rolling switch still finishes.
_KEPT_VERSIONS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkAsk:
    """Examples for one version of a network.

    Attributes:
        task: of the model.
        uri: its package.
        weights_sha256: the version; other weights found there are refused.
        examples: arrays of one or several examples.
    """

    task: str
    uri: str
    weights_sha256: str
    examples: tuple[Mapping[str, np.ndarray], ...]

    def fits(self, other: "NetworkAsk") -> bool:
        """Tell whether both can go through the network at once."""
        mine, theirs = self.examples[0], other.examples[0]
        return (self.uri, self.weights_sha256, mine.keys()) == (
            other.uri,
            other.weights_sha256,
            theirs.keys(),
        ) and all(mine[name].shape == theirs[name].shape for name in mine)


NetworkSays = tuple[Answers | None, tuple[str, str] | None]


class Networks:
    """Loaded networks of one process, the newest versions kept."""

    def __init__(self, recipe_of: Callable[[str], Recipe[Any]], device: str) -> None:
        self.recipe_of = recipe_of
        self.device = device
        self._loaded: dict[tuple[str, str], Predictor] = {}
        self._loading = threading.Lock()

    def load(self, task: str, uri: str, weights_sha256: str) -> "Predictor":
        """Return a version's network, loaded once.

        Raises:
            DataError: model_missing or model_hash_mismatch.
            ConfigError: a package that this version of medray does not know.
        """
        from medray.engine.predictor import Predictor

        key = (uri, weights_sha256)
        with self._loading:
            if key in self._loaded:
                return self._loaded[key]
            predictor = Predictor(self.recipe_of(task), uri, device=self.device)
            if predictor.interpreter.facts["weights_sha256"] != weights_sha256:
                raise DataError("model_hash_mismatch", "the package now holds other weights")
            while len(self._loaded) >= _KEPT_VERSIONS:
                del self._loaded[next(iter(self._loaded))]
            self._loaded[key] = predictor
            return predictor

    def versions(self) -> list[tuple[str, str]]:
        """Return address and weights hash of what is loaded, oldest first."""
        return list(self._loaded)

    def answer(self, asks: Sequence[NetworkAsk]) -> list[NetworkSays]:
        """Answer requests; those that fit go through the network together."""
        says: list[NetworkSays | None] = [None] * len(asks)
        while None in says:
            first = says.index(None)
            group = [i for i, ask in enumerate(asks) if says[i] is None and asks[first].fits(ask)]
            for i, found in zip(group, self._together([asks[i] for i in group]), strict=True):
                says[i] = found
        return [one for one in says if one is not None]

    def _together(self, asks: Sequence[NetworkAsk]) -> list[NetworkSays]:
        """Answer requests of one version and shape; where that fails, each by itself."""
        try:
            network = self.load(asks[0].task, asks[0].uri, asks[0].weights_sha256)
            found = network.answer([example for ask in asks for example in ask.examples])
        except DataError as error:
            if len(asks) > 1:
                return [self._together([ask])[0] for ask in asks]
            return [(None, (error.reason, error.detail))]
        except ConfigError as error:
            return [(None, ("model_missing", str(error)))] * len(asks)
        ends = np.cumsum([len(ask.examples) for ask in asks]).tolist()
        return [
            (found[end - len(ask.examples) : end], None)
            for ask, end in zip(asks, ends, strict=True)
        ]


class ModelReplica:
    """Serve's replica of one model; see `Networks`."""

    def __init__(
        self, recipe_of: Callable[[str], Recipe[Any]], device: str, num_threads: int
    ) -> None:
        import torch

        torch.set_num_threads(num_threads)
        self.networks = Networks(recipe_of, device)

    async def reconfigure(self, config: Mapping[str, Any]) -> None:
        """Load the version that will be asked for; what cannot be loaded is said when asked."""
        batched: Any = self.answer
        batched.set_max_batch_size(int(config.get("max_batch_size", 1)))
        for model in config["models"]:
            with contextlib.suppress(DataError, ConfigError):
                await asyncio.to_thread(
                    self.networks.load, model["task"], model["uri"], model["weights_sha256"]
                )

    @serve.batch(max_batch_size=8, batch_wait_timeout_s=0.0)
    async def answer(self, asks: list[NetworkAsk]) -> list[NetworkSays]:
        """Answer whatever has come while the network was busy."""
        return await asyncio.to_thread(self.networks.answer, asks)

    async def state(self) -> dict[str, Any]:
        """Return what a person asks of a replica: the versions it holds, its process."""
        return {"pid": os.getpid(), "versions": [sha for _, sha in self.networks.versions()]}
