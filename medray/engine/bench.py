"""`medray bench`: stages measured on this machine, beside peers in the same run."""

import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from medray import storage
from medray.engine import bench_convert, bench_index, bench_prepare, bench_train
from medray.engine.run import package_versions, source_commit
from medray.recipe import Recipe

STAGES = ("index", "convert", "prepare", "train")


def bench(
    stages: Sequence[str], out: str, *, recipe: Recipe[Any], small: bool, use_gpu: bool = False
) -> dict[str, Any]:
    """Measure stages; write bench.json below `out`; needs a running `ray_session`.

    Args:
        recipe: whose phantom, transform and network prepare and train are measured with.
        use_gpu: train the full preset on a GPU, else the small one on the CPUs.
    """
    work = Path(out) / "data"
    work.mkdir(parents=True, exist_ok=True)
    sections = {
        "index": lambda: bench_index.rows(work, small=small),
        "convert": lambda: bench_convert.rows(work, small=small),
        "prepare": lambda: bench_prepare.rows(work, recipe, small=small),
        "train": lambda: bench_train.rows(work, recipe, small=small, use_gpu=use_gpu),
    }
    rows = [row for stage in stages for row in sections[stage]()]
    summary = {
        "machine": machine(),
        "commit": source_commit(),
        "versions": package_versions(),
        "rows": [row.as_json() for row in rows],
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
