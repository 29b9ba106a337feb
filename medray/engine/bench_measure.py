"""What a benchmark row is, and how times are taken."""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any


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
