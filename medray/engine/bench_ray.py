"""Benchmarks of the engine itself: what Ray Data adds, how workers scale, how memory grows."""

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from medray import storage
from medray.dicom.decoder import process_decoder
from medray.dicom.series import Instance
from medray.engine.bench_measure import Measure, median_seconds, one_core, pin_process
from medray.engine.bench_series import series_on_disk
from medray.engine.convert_task import Grid, load_on_grid
from medray.engine.data import Item, map_items
from medray.engine.run import peak_memory_bytes
from medray.engine.series_table import unpack_instances

_GIB = 1 << 30


def reduce_series(payload: dict[str, Any], *, grid: Sequence[int], claims: str) -> dict[str, Any]:
    """Load one series on a grid and forget it: the work of a convert task without its output.

    Args:
        claims: folder in which each worker claims a core of its own; with its child it stays there.
    """
    process_decoder()
    pin_process({_claimed_core(claims)} if claims else range(os.cpu_count() or 1))
    began = time.time()
    volume, _ = load_on_grid(unpack_instances(payload["instances"]), Grid(size_zyx=tuple(grid)))
    return {
        "began": began,
        "ended": time.time(),
        "pid": os.getpid(),
        "mean": float(volume.array.mean()),
    }


@lru_cache(maxsize=8)
def _claimed_core(claims: str) -> int:
    cores = sorted(range(os.cpu_count() or 1))
    for core in cores:
        if storage.create_exclusive(storage.join(claims, str(core)), b""):
            return core
    return cores[-1]


def touch_item(payload: dict[str, Any]) -> dict[str, Any]:
    """Do nothing: what remains is the engine."""
    return {"number": payload["number"]}


@dataclass(frozen=True, slots=True, kw_only=True)
class RaySeries:
    """One series that stands for many: its instances, the grid, and how often it is converted."""

    instances: Sequence[Instance]
    grid: tuple[int, ...]
    number: int


def through_ray(series: RaySeries, *, monai_s: float | None) -> Iterator[Measure]:
    """Yield steady-state seconds a series with one worker and with two, and the cost of an item."""
    grid = Grid(size_zyx=series.grid)
    load_on_grid(series.instances, grid)  # starts the decoding child
    with one_core():
        bare = median_seconds(lambda: load_on_grid(series.instances, grid), repeats=7, warm=2)
    alone = _steady(series, cpus_each=2)
    both = _steady(series, cpus_each=1)
    what = "CT to grid through Ray Data and the decoding child"
    shares = (("our bare loop", bare), ("MONAI LoadImage + Orientation + Resize", monai_s))
    for peer, seconds in shares:
        yield Measure(
            name=f"{what}, one worker",
            peer=peer,
            median_s=alone,
            peer_median_s=seconds,
            n=series.number,
            note="one core a worker; seconds a series after each worker's first",
        )
    yield Measure(
        name=f"{what}, two workers",
        peer="one worker",
        median_s=both,
        peer_median_s=alone,
        n=series.number,
        note=f"{alone / both:.2f} times the throughput of one worker",
    )
    yield _engine_cost()


def memory_growth(work: Path, *, number: int) -> Measure:
    """Convert `number` series, then ten times as many; peak memory must not follow."""
    instances = series_on_disk(work / "ct-memory", (48, 256, 256))
    peaks = []
    began = time.perf_counter()
    for times in (1, 10):
        series = RaySeries(instances=instances, grid=(48, 96, 96), number=number * times)
        results = _run(series, cpus_each=1)
        worker = max(result["cost"]["peak_memory_bytes"] for result in results)
        peaks.append(worker + peak_memory_bytes())
    return Measure(
        name=f"ten times the series, {number} and {10 * number}",
        median_s=time.perf_counter() - began,
        n=2,
        note=f"peak memory of driver and largest worker {peaks[0] >> 20} and {peaks[1] >> 20} MiB, "
        f"{peaks[1] / peaks[0] - 1:+.1%}",
    )


def _run(series: RaySeries, *, cpus_each: int, pinned: bool = False) -> list[dict[str, Any]]:
    row = [
        {"uri": i.uri, "bytes": i.bytes, "stamp": i.stamp, "header": i.header.to_json()}
        for i in series.instances
    ]
    items = [
        Item(key=f"{n:04d}", payload={"instances": row}, work_bytes=_GIB, peak_bytes=_GIB // 2)
        for n in range(series.number)
    ]
    with tempfile.TemporaryDirectory(prefix="medray-cores-") as folder:
        settings = {"grid": list(series.grid), "claims": folder if pinned else ""}
        return list(
            map_items(
                items, reduce_series, name="reduce_series", settings=settings, num_cpus=cpus_each
            )
        )


def _steady(series: RaySeries, *, cpus_each: int) -> float:
    """Return seconds a series between the end of each worker's first series and the last end."""
    results = sorted(
        _run(series, cpus_each=cpus_each, pinned=True), key=lambda result: result["ended"]
    )
    # The first series of a worker starts its decoding child; what follows is the steady state.
    first: dict[int, float] = {}
    for result in results:
        first.setdefault(result["pid"], result["ended"])
    start = max(first.values())
    after = [result for result in results if result["ended"] > start]
    return float(after[-1]["ended"] - start) / len(after)


def _engine_cost() -> Measure:
    """Return what the engine takes for an item whose work is nothing."""
    number = 2_000
    items = [
        Item(key=f"{n:05d}", payload={"number": n}, work_bytes=0, peak_bytes=1 << 20)
        for n in range(number)
    ]

    def run() -> None:
        if sum(1 for _ in map_items(items, touch_item, name="touch_item", settings={})) != number:
            raise AssertionError("items were lost")

    seconds = median_seconds(run, repeats=3)
    return Measure(
        name="engine, per item without work",
        median_s=seconds / number,
        n=number,
        note=f"{seconds / number * 1000:.2f} ms an item",
    )
