"""Benchmarks of batch prediction: cases a second, how busy the model is, what each stage takes."""

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from medray.engine.actor_pool import Pool, map_with_actors
from medray.engine.bench_measure import Measure
from medray.engine.bench_serve_volume import StageSeconds, staged_case
from medray.engine.bench_service import load_now
from medray.engine.bench_stub import untrained_package
from medray.engine.data import Item
from medray.engine.predict import PredictRequest, predict
from medray.engine.predict_sources import find_cases
from medray.engine.predict_task import PredictActor
from medray.engine.predictor import Predictor
from medray.engine.run import Run
from medray.recipe import Recipe

_PATIENTS, _SMALL_PATIENTS = 16, 3
_ACTOR_BYTES = 1536 << 20


def rows(work: Path, recipe: Recipe[Any], *, small: bool) -> Iterator[Measure]:
    """Yield the rows of the predict stage; needs a running `ray_session`.

    Args:
        work: folder for data and outputs.
        recipe: of a task of volumes; its phantom and small network.
        small: few patients.
    """
    number = _SMALL_PATIENTS if small else _PATIENTS
    data = work / f"phantom-predict-{number}"
    if not (data / "truth.json").exists():
        recipe.phantom(data, num_patients=number, seed=3, defects=False, size="tiny")
    package = untrained_package(
        str(work / "predict-model"), recipe, recipe.tiny_hparams, modalities=("CT", "MG", "DX")
    )
    yield _whole(work, recipe, package, data)
    yield _busy(work, recipe, package, data)
    yield from _stages(work, recipe, package, data)


def _whole(work: Path, recipe: Recipe[Any], package: str, data: Path) -> Measure:
    """Measure `medray predict` as it is, index and start of the actors included."""
    out = str(work / f"predict-{time.time_ns()}")
    request = PredictRequest(recipe=recipe, model=package, sources=(str(data),))
    began = time.perf_counter()
    summary = predict(request, out, quiet=True)
    seconds = time.perf_counter() - began
    number = summary["counts"]["num_done"]
    stages = ", ".join(f"{n} {s['seconds']:.1f} s" for n, s in summary["stages"].items())
    return Measure(
        name=f"medray predict, {number} tiny phantoms of {recipe.name}: s a case",
        median_s=seconds / max(1, number),
        n=number,
        note=f"{number / seconds:.2f} cases/s; stages: {stages}; {load_now()}",
    )


class TimedActor:
    """The actor of `predict` that also says how long its network computed, and when."""

    def __init__(self, **settings: Any) -> None:
        self.inner = PredictActor(**settings)
        self.network_s = 0.0
        predictor: Any = self.inner.predictor
        answer = predictor.answer

        def timed(examples: Any) -> Any:
            began = time.perf_counter()
            try:
                return answer(examples)
            finally:
                self.network_s += time.perf_counter() - began

        predictor.answer = timed

    def __call__(self, table: pa.Table) -> pa.Table:
        """Predict a block; each result has its begin, end and network seconds beside it."""
        self.network_s, began = 0.0, time.time()
        results = self.inner(table).column("result").to_pylist()
        more = {"began": began, "ended": time.time(), "network_s": self.network_s / len(results)}
        return pa.table({"result": [json.dumps({**json.loads(r), **more}) for r in results]})


def _busy(work: Path, recipe: Recipe[Any], package: str, data: Path) -> Measure:
    """Measure how much of the actors' time the network computes."""
    out = str(work / f"busy-{time.time_ns()}")
    parameters: Mapping[str, Any] = {}
    with Run(verb="predict", out=out, parameters=parameters, inputs=(str(data),)) as run:
        found = find_cases(run, (str(data),), planar=recipe.is_planar, quiet=True)
        items = [
            Item(
                key=case.name,
                payload={**case.payload(), "work_key": case.name},
                work_bytes=case.native_bytes,
                peak_bytes=_ACTOR_BYTES,
            )
            for case in found.cases
        ]
        request = PredictRequest(recipe=recipe, model=package, sources=(str(data),))
        settings = {
            "request": request, "out": out, "ledger": run.state("ledger"), "device": "cpu",
        }  # fmt: skip
        results = list(map_with_actors(items, Pool(actor=TimedActor, settings=settings)))
        run.finish()
    network_s = sum(one["network_s"] for one in results)
    inside_s = sum(one["ended"] - one["began"] for one in results)
    wall_s = max(one["ended"] for one in results) - min(one["began"] for one in results)
    return Measure(
        name=f"medray predict, {len(results)} tiny phantoms of {recipe.name}: steady s a case",
        median_s=wall_s / len(results),
        n=len(results),
        note=f"{len(results) / wall_s:.2f} cases/s once the actors run; the network computes for "
        f"{network_s / inside_s:.0%} of an actor's busy time and {network_s / wall_s:.0%} of the "
        f"wall time; {load_now()}",
    )


def _stages(work: Path, recipe: Recipe[Any], package: str, data: Path) -> Iterator[Measure]:
    """Yield the stages of the same cases in one process without Ray."""
    predictor = Predictor(recipe, package)
    folders = sorted({path.parent for path in data.rglob("*.dcm")})
    staged_case(predictor, folders[0], str(work / "mask.nii.gz"), StageSeconds())
    seconds = StageSeconds()
    for folder in folders:
        staged_case(predictor, folder, str(work / "mask.nii.gz"), seconds)
    total = sum(seconds.medians().values())
    yield Measure(
        name=f"one tiny phantom of {recipe.name}, bare loop of one process",
        median_s=total,
        n=len(folders),
        note=f"{seconds.shares()}; {load_now()}",
    )
