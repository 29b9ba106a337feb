"""What a benchmark row is, and how times are taken."""

import contextlib
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import psutil


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One row of bench.json.

    Attributes:
        name: what was measured.
        peer: who stands beside it, empty for none.
        median_s, peer_median_s: medians of `n` warm runs.
        ratio: ours over the peer's.
        note: what a reader needs to judge it.
    """

    name: str
    peer: str = ""
    median_s: float
    peer_median_s: float | None = None
    n: int
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """Our time over the peer's; below 1 we are faster."""
        return None if not self.peer_median_s else self.median_s / self.peer_median_s

    def as_json(self) -> dict[str, Any]:
        """Return the row with its ratio."""
        return {**asdict(self), "ratio": self.ratio}


def pin_process(cores: Iterable[int]) -> None:
    """Confine this process, its threads and its children to some cores."""
    wanted = set(cores)
    me = psutil.Process()
    for process in (me, *me.children(recursive=True)):
        with contextlib.suppress(psutil.Error, OSError):
            for thread in process.threads():
                os.sched_setaffinity(thread.id, wanted)


@contextmanager
def one_core() -> Iterator[None]:
    """Measure on one core: threads and children that help are paid for like the rest."""
    before = os.sched_getaffinity(0)
    pin_process({min(before)})
    try:
        yield
    finally:
        pin_process(before)


def median_seconds(action: Callable[[], Any], *, repeats: int, warm: int = 1) -> float:
    """Return the median wall time of an action after `warm` untimed runs."""
    for _ in range(warm):
        action()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        action()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def alternating_medians(
    ours: Callable[[], Any], peer: Callable[[], Any], *, repeats: int
) -> tuple[float, float]:
    """Return both medians of runs that take turns, so that a busy machine slows both alike."""
    ours()
    peer()
    mine: list[float] = []
    theirs: list[float] = []
    for _ in range(repeats):
        for action, times in ((ours, mine), (peer, theirs)):
            began = time.perf_counter()
            action()
            times.append(time.perf_counter() - began)
    return statistics.median(mine), statistics.median(theirs)
