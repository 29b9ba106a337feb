"""`medray bench`: stages measured on this machine, beside peers in the same run."""

import os
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import psutil

from medray import storage
from medray.engine import bench_convert, bench_index, bench_predict, bench_prepare, bench_train
from medray.engine.bench_measure import Measure
from medray.engine.run import package_versions, source_commit
from medray.recipe import Recipe

STAGES = ("index", "convert", "prepare", "train")
# Not among those that run when none is named: their Ray is of another size, their data of a task.
PREDICT, SERVE = "predict", "serve"


def bench(
    stages: Sequence[str], out: str, *, recipe: Recipe[Any], small: bool, use_gpu: bool = False
) -> dict[str, Any]:
    """Measure stages; write bench.json below `out`; needs a running `ray_session`.

    The stage `serve` starts a Ray of its own: `bench_serve.rows` with `write_bench`.

    Args:
        recipe: whose phantom, transform and network prepare and train are measured with.
        use_gpu: train the full preset on a GPU, else the small one on the CPUs.
    """
    work = work_folder(out)
    sections = {
        "index": lambda: bench_index.rows(work, small=small),
        "convert": lambda: bench_convert.rows(work, small=small),
        "prepare": lambda: bench_prepare.rows(work, recipe, small=small),
        "train": lambda: bench_train.rows(work, recipe, small=small, use_gpu=use_gpu),
        PREDICT: lambda: bench_predict.rows(work, recipe, small=small),
    }
    return write_bench(out, (row for stage in stages for row in sections[stage]()))


def work_folder(out: str) -> Path:
    """Return the folder below an output in which benchmarks keep their data."""
    work = Path(out).absolute() / "data"
    work.mkdir(parents=True, exist_ok=True)
    return work


def write_bench(out: str, rows: Iterable[Measure]) -> dict[str, Any]:
    """Measure what is still to be measured, and write bench.json below `out`."""
    found = [row.as_json() for row in rows]
    summary = {
        "machine": machine(),
        "commit": source_commit(),
        "versions": package_versions(),
        "rows": found,
    }
    storage.write_json(storage.join(out, "bench.json"), summary)
    return summary


def machine() -> dict[str, Any]:
    """Describe the machine without naming it."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "load_1min": round(os.getloadavg()[0], 2),
    }
