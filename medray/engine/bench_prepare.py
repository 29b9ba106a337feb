"""Benchmarks of example making: through Ray Data against a bare loop of the same functions."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medray.datasets.record import Record
from medray.datasets.split import SplitOptions
from medray.engine.bench_measure import Measure
from medray.engine.prepare import PrepareOptions, payload_of, prepare
from medray.engine.prepare_task import Transform, prepare_example
from medray.engine.run import Run
from medray.engine.source_tree import TreeOptions, read_tree
from medray.recipe import Recipe


def rows(work: Path, recipe: Recipe[Any], *, small: bool) -> Iterator[Measure]:
    """Yield the rows of the prepare stage."""
    data = work / f"phantom-{recipe.name}-{small}"
    if not (data / "truth.json").exists():
        recipe.phantom(
            data,
            num_patients=4 if small else 16,
            seed=3,
            defects=False,
            size="tiny" if small else "small",
        )
    fresh = work / f"prepared-{time.time_ns()}"
    options = PrepareOptions(data=str(data), gates="off")
    for name in ("through Ray Data, first run", "through Ray Data, nothing to do"):
        began = time.perf_counter()
        summary = prepare(
            recipe, recipe.tiny_hparams, SplitOptions(), str(fresh), options, quiet=True
        )
        seconds = time.perf_counter() - began
        mapped = summary["stages"]["prepare"]["seconds"]
        number = summary["counts"]["num_done"] + summary["counts"]["skipped_by_reason"].get(
            "already_done", 0
        )
        yield Measure(
            name=f"prepare {number} examples {name}",
            median_s=seconds,
            n=1,
            note=f"{mapped:.2f} s of it in the tasks' stage",
        )
    yield _bare(recipe, work, data)


def _bare(recipe: Recipe[Any], work: Path, data: Path) -> Measure:
    """Run the same task function in a plain loop of one process."""
    out = str(work / f"bare-{time.time_ns()}")
    with Run(verb="prepare", out=out, parameters={}, inputs=(str(data),)) as run:
        tree = read_tree(run, TreeOptions(data=str(data)), quiet=True)
        hparams = recipe.tiny_hparams
        records = [r for r in recipe.records(tree, hparams) if isinstance(r, Record)]
        began = time.perf_counter()
        for record in records:
            prepare_example(
                payload_of(Transform(recipe, hparams), record),
                recipe=recipe,
                hparams=hparams,
                out=out,
                ledger=run.state("ledger"),
            )
        seconds = time.perf_counter() - began
    return Measure(
        name=f"prepare {len(records)} examples, bare loop of one process", median_s=seconds, n=1
    )
