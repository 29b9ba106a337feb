"""One run of one verb on one --out: lock, parameters, ledger, counts, stages, run.json."""

import json
import os
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa

import medray
from medray import storage
from medray.errors import ConfigError

STATE_DIR = ".medray"
_REPORTED_PACKAGES = (
    "ray", "torch", "monai", "pydicom", "imagecodecs", "SimpleITK", "numpy", "pyarrow",
)  # fmt: skip


@dataclass(slots=True)
class Counts:
    """What became of every input; the four numbers always add up."""

    num_inputs: int = 0
    num_done: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)

    def add(self, status: str, reason: str, number: int = 1) -> None:
        """Count inputs that ended as `done`, `skipped` or `rejected`."""
        self.num_inputs += number
        if status == "done":
            self.num_done += number
        elif status == "skipped":
            self.skipped[reason] += number
        else:
            self.rejected[reason] += number

    def as_json(self) -> dict[str, Any]:
        """Return the `counts` object of run.json."""
        num_skipped, num_rejected = self.skipped.total(), self.rejected.total()
        if self.num_inputs != self.num_done + num_skipped + num_rejected:
            raise AssertionError("inputs were lost: counts do not add up")
        return {
            "num_inputs": self.num_inputs,
            "num_done": self.num_done,
            "num_skipped": num_skipped,
            "num_rejected": num_rejected,
            "rejected_by_reason": dict(sorted(self.rejected.items())),
            "skipped_by_reason": dict(sorted(self.skipped.items())),
        }


@dataclass(slots=True)
class Stage:
    """Seconds, bytes and memory of one part of a run."""

    seconds: float = 0.0
    bytes: int = 0
    peak_memory_bytes: int = 0
    gpu_seconds: float = 0.0

    def saw(self, *, bytes_read: int = 0, peak_memory_bytes: int = 0) -> None:
        """Add what one task reported."""
        self.bytes += bytes_read
        self.peak_memory_bytes = max(self.peak_memory_bytes, peak_memory_bytes)


@dataclass(slots=True, kw_only=True)
class Run:
    """Context of one run; everything that other runs may see goes through it."""

    verb: str
    out: str
    parameters: Mapping[str, Any]
    inputs: tuple[str, ...]
    task: str = ""
    counts: Counts = field(default_factory=Counts)
    stages: dict[str, Stage] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    _lock: AbstractContextManager[Any] | None = None

    def __enter__(self) -> "Run":
        self._lock = storage.OutputLock(self.out)
        self._lock.__enter__()
        try:
            self._claim()
        except BaseException:
            self._lock.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._lock is not None:
            self._lock.__exit__(kind, error, trace)

    def _claim(self) -> None:
        """Refuse an output of another run; sweep what a killed run left half written."""
        where = storage.join(self.out, STATE_DIR, "parameters.json")
        mine = {
            "verb": self.verb, "task": self.task, "inputs": list(self.inputs), **self.parameters,
        }  # fmt: skip
        mine = json.loads(json.dumps(mine))
        if storage.exists(where):
            theirs = storage.read_json(where)
            differing = [
                name for name in _by_weight(mine, theirs) if mine.get(name) != theirs.get(name)
            ]
            if differing and self._is_untouched():
                storage.write_json(where, mine)  # that run failed before it made anything
            elif differing and differing[0] == "verb":
                raise ConfigError(
                    f"{self.out} is an output of `medray {theirs.get('verb')}`; choose a new --out"
                )
            elif differing:
                raise ConfigError(
                    f"{self.out} was made with another value of {differing[0]}; "
                    "choose a new --out, or run with the same parameters"
                )
            storage.sweep_temps(self.out)
            done = storage.join(self.out, "run.json")
            if storage.exists(done):
                storage.remove(done)
        else:
            storage.write_json(where, mine)

    def _is_untouched(self) -> bool:
        """Tell whether the earlier run left nothing but its claim."""
        made = ("run.json", "instances", f"{STATE_DIR}/ledger", f"{STATE_DIR}/index")
        return not any(storage.exists(storage.join(self.out, name)) for name in made)

    def state(self, *names: str) -> str:
        """Return a URI below the run's own state folder."""
        return storage.join(self.out, STATE_DIR, *names)

    def write_table(self, name: str, rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> None:
        """Write rows as a table; columns that a row lacks are null, others are left out."""
        plain = [{column: row.get(column) for column in schema.names} for row in rows]
        storage.write_parquet(
            storage.join(self.out, name), pa.Table.from_pylist(plain, schema=schema)
        )

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """Time a part of the run."""
        stage = self.stages.setdefault(name, Stage())
        began = time.perf_counter()
        try:
            yield stage
        finally:
            stage.seconds += time.perf_counter() - began
            stage.saw(peak_memory_bytes=peak_memory_bytes())

    def finish(self, status: str = "") -> dict[str, Any]:
        """Write run.json, the last file of a run, and return it."""
        counts = self.counts.as_json()
        # A worker that was killed while it wrote left its temporary file; its task was done again.
        storage.sweep_temps(self.out)
        if not status:
            status = "done_with_rejects" if counts["num_rejected"] else "done"
        summary = {
            "verb": self.verb,
            "task": self.task,
            "version": medray.__version__,
            "commit": source_commit(),
            "hyperparameters": dict(self.parameters),
            "inputs": list(self.inputs),
            "status": status,
            "counts": counts,
            "stages": {
                name: {
                    "seconds": round(stage.seconds, 3),
                    "bytes": stage.bytes,
                    "peak_memory_bytes": stage.peak_memory_bytes,
                    "gpu_seconds": stage.gpu_seconds,
                }
                for name, stage in self.stages.items()
            },
            "versions": package_versions(),
            **self.extra,
        }
        storage.write_json(storage.join(self.out, "run.json"), summary)
        return summary


def _by_weight(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Return parameter names, those first that say most about a wrong --out."""
    first = ("verb", "task", "inputs")
    return [*first, *sorted((set(mine) | set(theirs)) - set(first))]


def peak_memory_bytes() -> int:
    """Return this process's largest resident size so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def package_versions() -> dict[str, str]:
    """Return the versions that decide about results."""
    found = {"python": ".".join(map(str, sys.version_info[:3])), "medray": medray.__version__}
    for name in _REPORTED_PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def source_commit() -> str:
    """Return the commit that runs, from the environment or the checkout; empty if unknown."""
    known = os.environ.get("MEDRAY_COMMIT")
    root = Path(medray.__file__).parent.parent
    if known or not (root / ".git").exists():
        return known or ""
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    return done.stdout.strip()
