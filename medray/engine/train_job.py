"""What every rank of a training is told; plain values, sent once."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from medray import storage
from medray.engine.example_table import ExampleTable
from medray.engine.order import Order
from medray.engine.train_options import TrainOptions, Workers
from medray.errors import MedrayError
from medray.learning import Case
from medray.recipe import Recipe

_OWNER = ".medray/owner.json"


class TrainStoppedError(MedrayError):
    """The run's --out belongs to a newer run: this rank is an orphan of a killed driver."""


def _drawn(sampler: Any, cases: Sequence[Case], hparams: Any, epoch: int) -> Sequence[int]:
    drawn: Sequence[int] = sampler(cases, epoch, hparams)
    return drawn


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainJob:
    """One training.

    Attributes:
        out: where checkpoints, metrics and the model go.
        recipe, hparams, options, workers: what is trained, how and by whom.
        tables: `train` and `val`.
        cache: `host`, `device` or `none`.
        weights: URI of weights to start from, or empty.
        keep_all: keep every checkpoint, not the best and the last alone.
        batch_bytes: what a rank takes at one step, before augmentation.
        share: of a node's cores that its ranks count on.
        token: names the driver's run; a rank whose token is not the owner's any more stops.
        board: handle of the actor that shows progress, or None.
    """

    out: str
    recipe: Recipe[Any]
    hparams: Any
    options: TrainOptions
    workers: Workers
    tables: dict[str, ExampleTable] = field(repr=False)
    cache: str
    weights: str = ""
    keep_all: bool = False
    batch_bytes: int = 0
    share: float = 1.0
    token: str = ""
    board: Any = None

    @property
    def order(self) -> Order:
        """Return which example goes where."""
        table, sampler = self.tables["train"], self.recipe.learning.sampler
        draw = partial(_drawn, sampler, table.cases(), self.hparams) if sampler else None
        return Order(
            num_examples=len(draw(0)) if draw else len(table),
            batch_size=self.hparams.batch_size,
            num_workers=max(1, self.workers.num_workers),
            seed=self.hparams.seed,
            draw=draw,
        )

    def own(self) -> None:
        """Say that this run is the one that writes; called by the driver."""
        storage.write_json(storage.join(self.out, _OWNER), {"token": self.token})

    def require_owner(self) -> None:
        """Stop a rank whose driver was killed and replaced.

        Raises:
            TrainStoppedError: another run owns the output now.
        """
        owner = storage.read_json(storage.join(self.out, _OWNER))
        if owner.get("token") != self.token:
            raise TrainStoppedError("another run has taken over this output")
