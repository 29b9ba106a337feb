"""A task whose network does nothing, or only waits: what remains of a request is the service."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from medray.engine.checkpoint import WEIGHTS, Checkpoint
from medray.engine.package import Training, write_package
from medray.engine.prepared import PreparedData
from medray.engine.train_options import TrainOptions, Workers
from medray.learning import Learning, Objective, Prediction, Schedule
from medray.recipe import Prepared, Recipe

if TYPE_CHECKING:
    from torch import Tensor, nn

NAME = "bench_stub"
_SIDE_PX = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Hparams:
    """Numbers of the stub.

    Attributes:
        pause_s: what a pass through the network takes, whatever the batch.
        epochs, batch_size, seed: never used, every task has them.
    """

    pause_s: float = 0.0
    epochs: int = 1
    batch_size: int = 1
    seed: int = 0


def stub_recipe() -> Recipe[Hparams]:
    """Return the stub's recipe: it can be served, not trained."""
    return Recipe(
        name=NAME,
        kind="score2d",
        transform_version=1,
        hparams=Hparams(),
        tiny_hparams=Hparams(),
        prepare_fields=(),
        records=_never,
        prepare=prepare,
        class_names=("no", "yes"),
        phantom=_never,
        phantom_baseline=_never,
        learning=Learning(
            model=model,
            augment=_never,
            inputs=inputs,
            loss_sums=_never,
            loss_value=_never,
            optimizer=_never,
            schedule=lambda hp: Schedule(),  # noqa: ARG005
            probabilities=probabilities,
            measure=_never,
            metrics=_never,
            choose=_never,
            baseline=_never,
            objective=Objective("auroc"),
            decode=decode,
        ),
    )


def recipe_of(name: str, others: Callable[[str], Recipe[Any]]) -> Recipe[Any]:
    """Return the stub's recipe by its name, else another task's."""
    return stub_recipe() if name == NAME else others(name)


def with_stub(others: Callable[[str], Recipe[Any]]) -> Callable[[str], Recipe[Any]]:
    """Return a registry that knows the stub beside other tasks."""
    return partial(recipe_of, others=others)


def _never(*_: Any, **__: Any) -> Any:
    raise NotImplementedError("the stub is only served")


def prepare(sample: Any, hp: Hparams) -> Prepared:
    """Return the image's first 8 x 8 pixels."""
    del hp
    small = np.zeros((_SIDE_PX, _SIDE_PX), dtype=np.uint8)
    corner = sample.image.array[:_SIDE_PX, :_SIDE_PX]
    small[: corner.shape[0], : corner.shape[1]] = corner
    return Prepared(arrays={"image": small[None]})


def model(hp: Hparams) -> "nn.Module":
    """Return a network that says the same of every image."""
    import time

    import torch

    class Stub(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.logit = torch.nn.Parameter(torch.zeros(1))

        def forward(self, image: "Tensor") -> "Tensor":
            if hp.pause_s:
                time.sleep(hp.pause_s)
            return self.logit.expand(image.shape[0], 1)

    return Stub()


def inputs(batch: Mapping[str, Any], hp: Hparams) -> Any:
    """Return (B, 1, 8, 8) uint8 as it comes."""
    del hp
    return batch["image"]


def probabilities(outputs: Any, hp: Hparams) -> dict[str, Any]:
    """Return `class` (B, 1)."""
    del hp
    return {"class": outputs.sigmoid()}


def decode(
    probs: Mapping[str, np.ndarray],
    facts: Mapping[str, Any],
    hp: Hparams,
    inference: Mapping[str, Any],
) -> Prediction:
    """Return the score and the class that the threshold makes of it."""
    del facts, hp
    score = float(probs["class"][0])
    label = int(score >= inference["threshold"])
    return Prediction(scores=(1 - score, score), label=label, score=score)


def untrained_package(
    out: str,
    recipe: Recipe[Any],
    hparams: Any,
    *,
    inference: Mapping[str, Any] | None = None,
    modalities: Sequence[str] = (),
) -> str:
    """Write the package of a network as it is before training; return the URI of its run.

    Args:
        out: folder above `model/`.
        recipe: of the task.
        hparams: of the network.
        inference: parameters of the operating point; default: threshold 0.5.
        modalities: of the images that it is said to have been trained on.
    """
    import torch
    from safetensors.torch import save

    torch.manual_seed(0)
    weights = save({n: t.contiguous() for n, t in recipe.model(hparams).state_dict().items()})
    best = {"inference": dict(inference or {"threshold": 0.5}), "metrics": {}, "value": None}
    checkpoint = Checkpoint(
        name="epoch-000001", blobs={WEIGHTS: weights}, state={"epoch": 1, "best": best}
    )
    prepared = PreparedData(
        uri=out,
        rows=(),
        facts={"hyperparameters": {}},
        fingerprint={"num_examples": 0, "modalities": dict.fromkeys(modalities, 1)},
    )
    training = Training(
        recipe=recipe,
        hparams=hparams,
        options=TrainOptions(),
        workers=Workers(num_workers=0),
        prepared=prepared,
        gates="on",
    )
    write_package(out, training, checkpoint)
    return out
