"""Benchmarks of the engine itself: what Ray Data adds, how workers scale, how memory grows."""

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from medray.dicom.series import Instance
from medray.engine.bench_measure import Measure, median_seconds
from medray.engine.bench_series import series_on_disk
from medray.engine.convert_task import Grid, load_on_grid
from medray.engine.data import Item, map_items
from medray.engine.series_table import unpack_instances

_GIB = 1 << 30


def reduce_series(payload: dict[str, Any], *, grid: Sequence[int]) -> dict[str, Any]:
    """Load one series on a grid and forget it: the work of a convert task without its output."""
    began = time.time()
    volume, _ = load_on_grid(unpack_instances(payload["instances"]), Grid(size_zyx=tuple(grid)))
    return {
        "began": began,
        "ended": time.time(),
        "pid": os.getpid(),
        "mean": float(volume.array.mean()),
    }


def touch_item(payload: dict[str, Any]) -> dict[str, Any]:
    """Do nothing: what remains is the engine."""
    return {"number": payload["number"]}


def through_ray(
    work: Path, *, shape: tuple[int, int, int], grid: tuple[int, ...], num_series: int
) -> Iterator[Measure]:
    """Yield steady-state seconds a series with one worker and with two, and the cost of an item."""
    instances = series_on_disk(work / "x".join(["ct", *map(str, shape)]), shape)
    bare = median_seconds(
        lambda: load_on_grid(instances, Grid(size_zyx=tuple(grid))), repeats=5, warm=2
    )
    alone = _steady(instances, grid, num_series, cpus_each=2)
    yield Measure(
        name="CT to grid through Ray Data, one worker",
        peer="our bare loop",
        median_s=alone,
        peer_median_s=bare,
        n=num_series,
        note="seconds a series after the first two",
    )
    both = _steady(instances, grid, num_series, cpus_each=1)
    yield Measure(
        name="CT to grid through Ray Data, two workers",
        peer="one worker",
        median_s=both,
        peer_median_s=alone,
        n=num_series,
        note=f"{alone / both:.2f} times the throughput of one worker",
    )
    yield _engine_cost()


def _steady(
    instances: Sequence[Instance], grid: Sequence[int], num_series: int, *, cpus_each: int
) -> float:
    """Return seconds a series between the end of each worker's first series and the last end."""
    row = [
        {"uri": i.uri, "bytes": i.bytes, "stamp": i.stamp, "header": i.header.to_json()}
        for i in instances
    ]
    items = [
        Item(key=f"{n:04d}", payload={"instances": row}, work_bytes=_GIB, peak_bytes=_GIB // 2)
        for n in range(num_series)
    ]
    settings = {"grid": list(grid)}
    results = list(
        map_items(items, reduce_series, name="reduce_series", settings=settings, num_cpus=cpus_each)
    )
    results.sort(key=lambda result: result["ended"])
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
