"""What a training says while it runs: metrics.jsonl, TensorBoard events, the progress line."""

import contextlib
import json
import math
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import ray

from medray import storage
from medray.engine.train_job import TrainJob
from medray.errors import DataError

if TYPE_CHECKING:
    import torch

METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"
_PROGRESS_EVERY_S = 1.0


@dataclass(slots=True)
class TrainLog:
    """Writes on rank 0 and is silent on the others."""

    job: TrainJob
    is_writer: bool
    rows: list[dict[str, Any]] = field(default_factory=list)
    _events: Any = None
    _folder: tempfile.TemporaryDirectory[str] | None = None
    _shown: float = 0.0

    def __enter__(self) -> "TrainLog":
        if self.is_writer:
            from torch.utils.tensorboard import SummaryWriter

            # Events grow by appending, which an object store cannot: they are copied from here.
            self._folder = tempfile.TemporaryDirectory(prefix="medray-events-")
            self._events = SummaryWriter(self._folder.name)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._events is not None:
            self._events.close()
            # What ended the run is what matters, not a log that cannot be written.
            with contextlib.suppress(DataError):
                self._copy_events()
        if self._folder is not None:
            self._folder.cleanup()

    def add(self, step: int, epoch: int, split: str, values: Mapping[str, float]) -> None:
        """Note named values of an epoch."""
        if not self.is_writer:
            return
        for name, value in values.items():
            known = None if not math.isfinite(value) else float(value)
            row = {"step": step, "epoch": epoch, "split": split, "name": name, "value": known}
            self.rows.append(row)
            if known is not None:
                self._events.add_scalar(f"{split}/{name}", known, step)

    def keep_until(self, epoch: int) -> None:
        """Take over the rows of an interrupted run up to its last checkpoint."""
        where = storage.join(self.job.out, METRICS)
        if not self.is_writer or not storage.exists(where):
            return
        rows = read_metrics(self.job.out)
        self.rows = [row for row in rows if row["epoch"] <= epoch]

    def write(self) -> None:
        """Bring metrics.jsonl and the events up to date."""
        text = "".join(json.dumps(row, sort_keys=True) + "\n" for row in self.rows)
        storage.write_atomic(storage.join(self.job.out, METRICS), text.encode())
        self._copy_events()

    def _copy_events(self) -> None:
        if self._folder is None:
            return
        self._events.flush()
        for path in Path(self._folder.name).glob("events.*"):
            # torch names the file by host and process; only the start time tells runs apart.
            name = ".".join(path.name.split(".")[:4])
            where = storage.join(self.job.out, TENSORBOARD, name)
            storage.write_atomic(where, path.read_bytes())

    def progress(self, epochs: float, loss: "torch.Tensor", *, examples_per_s: float) -> None:
        """Show how far the training is, once a second at most."""
        now = time.monotonic()
        if self.job.board is None or not self.is_writer or now - self._shown < _PROGRESS_EVERY_S:
            return
        self._shown = now
        metric = self.job.recipe.learning.objective.metric
        facts = {
            "epochs": epochs,
            "loss": float(loss),
            "examples_per_s": examples_per_s,
            "metrics": {metric: self._newest(metric)},
        }
        self.job.board.tell.remote(facts)

    def _newest(self, metric: str) -> float | None:
        """Return the newest validation value; None before the first, or where it is undefined."""
        found = (
            r["value"] for r in reversed(self.rows) if (r["split"], r["name"]) == ("val", metric)
        )
        return next(found, None)


def read_metrics(out: str) -> list[dict[str, Any]]:
    """Return the rows of a training's metrics.jsonl."""
    lines = storage.read_bytes(storage.join(out, METRICS)).decode().splitlines()
    return [json.loads(line) for line in lines]


@ray.remote(num_cpus=0)
class ProgressBoard:
    """Where rank 0, on any node, leaves what the driver shows."""

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {}

    def tell(self, facts: dict[str, Any]) -> None:
        """Take the newest facts."""
        self.facts = facts

    def read(self) -> dict[str, Any]:
        """Return the newest facts."""
        return self.facts
