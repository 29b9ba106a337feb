"""Benchmarks of a whole CT through a network of masks: stage by stage, and through the service."""

import importlib
import os
import statistics
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medray import storage
from medray.datasets.conformity import conformity
from medray.datasets.loading import load_sample
from medray.dicom.decoder import process_decoder
from medray.engine.bench_load import Load, loaded
from medray.engine.bench_measure import Measure
from medray.engine.bench_series import series_on_disk
from medray.engine.bench_service import ServeBench, load_now, predict_url, service
from medray.engine.bench_stub import untrained_package
from medray.engine.case import ask_of, bare_sample, judged
from medray.engine.case_listing import one_record
from medray.engine.convert_task import write_volume
from medray.engine.predictor import Predictor
from medray.engine.prepare_task import CountingReader
from medray.recipe import Recipe
from medray.volume import Volume

_SHAPE = (200, 512, 512)
_SMALL_SHAPE = (24, 72, 88)
_READ, _COMPARE, _PREPARE = "read and decode", "compare with the training images", "prepare"
_NETWORK, _BACK, _WRITE = "network", "back to the CT's grid", "write and read back"


def volume_rows(bench: ServeBench) -> Iterator[Measure]:
    """Yield seconds of a CT end to end, each stage's share, other ways of the network, and HTTP."""
    shape = _SMALL_SHAPE if bench.small else _SHAPE
    folder = bench.work / "x".join(["ct", *map(str, shape)])
    series_on_disk(folder, shape)
    size = "x".join(map(str, shape))
    for title, hparams in bench.volume_hparams.items():
        package = untrained_package(
            str(bench.work / f"volume-{len(title)}"), bench.volumes, hparams, modalities=("CT",)
        )
        what = f"CT of {size}, {title}"
        staged = _staged(bench, package, folder)
        yield from _stage_rows(what, staged)
        yield _one_line(what, package, folder, repeats=1 if bench.small else 2)
        if not bench.small:
            yield from _ways(what, bench.volumes, package, folder, staged)
        yield from _served(bench, what, package, folder)


@dataclass(slots=True)
class StageSeconds:
    """Seconds of each stage of some cases.

    Attributes:
        found: stage to one number a case.
        cpu_s: of this process in all of them; on a machine that does other work it says more.
    """

    found: dict[str, list[float]] = field(default_factory=dict)
    cpu_s: float = 0.0

    def timed(self, stage: str, action: Callable[[], Any]) -> Any:
        """Return what an action gives, and keep what it took."""
        began, cpu_began = time.perf_counter(), time.process_time()
        result = action()
        self.found.setdefault(stage, []).append(time.perf_counter() - began)
        self.cpu_s += time.process_time() - cpu_began
        return result

    def medians(self) -> dict[str, float]:
        """Return each stage's median."""
        return {stage: statistics.median(seconds) for stage, seconds in self.found.items()}

    def shares(self) -> str:
        """Return the stages with seconds and shares of their sum in one line."""
        medians = self.medians()
        total = sum(medians.values())
        return ", ".join(
            f"{stage} {seconds:.2f} s ({seconds / total:.0%})" for stage, seconds in medians.items()
        )


def staged_case(predictor: Predictor, source: Path, target: str, seconds: StageSeconds) -> None:
    """Answer one volume as `predict` does, every stage timed.

    Args:
        predictor: loaded, without upstream models.
        source: folder, zip or file with one volume.
        target: of the mask.
        seconds: gets the stages' times.
    """
    planar = predictor.interpreter.recipe.is_planar

    def read() -> Any:
        record = one_record(str(source), planar=planar)
        return load_sample(record, CountingReader(process_decoder()))

    sample = seconds.timed(_READ, read)
    known = predictor.interpreter.facts["fingerprint"]
    seconds.timed(_COMPARE, lambda: conformity(sample, known))
    prepared = seconds.timed(
        _PREPARE,
        lambda: predictor.interpreter.recipe.prepare(
            bare_sample(sample), predictor.interpreter.hparams
        ),
    )
    question = ask_of("", [prepared])
    answers = seconds.timed(_NETWORK, lambda: predictor.answer(question.examples))
    (found,) = seconds.timed(_BACK, lambda: judged(predictor.interpreter, [prepared], answers))
    if found.mask is not None:
        mask = Volume(array=found.mask, affine_lps=found.affine_lps)
        seconds.timed(_WRITE, lambda: write_volume(target, mask, gz=True, proof=True))


def _staged(bench: ServeBench, package: str, folder: Path) -> StageSeconds:
    predictor = Predictor(bench.volumes, package)
    target = str(bench.work / "mask.nii.gz")
    staged_case(predictor, folder, target, StageSeconds())
    seconds = StageSeconds()
    for _ in range(1 if bench.small else 2):
        staged_case(predictor, folder, target, seconds)
    return seconds


def _stage_rows(what: str, staged: StageSeconds) -> Iterator[Measure]:
    import torch

    medians = staged.medians()
    number = len(next(iter(staged.found.values())))
    yield Measure(
        name=f"{what}, fp32, folder to written mask",
        median_s=sum(medians.values()),
        n=number,
        note=f"{staged.shares()}; {torch.get_num_threads()} threads, "
        f"{staged.cpu_s / number:.2f} s of CPU; {load_now()}",
    )


def _one_line(what: str, package: str, folder: Path, *, repeats: int) -> Measure:
    """Measure medray.load_model(...).predict(...), the model loaded before."""
    # By name: the engine does not know what lies above it.
    model = importlib.import_module("medray").load_model(package)
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        model.predict(folder)
        times.append(time.perf_counter() - began)
    return Measure(
        name=f"{what}, medray.load_model().predict(folder)",
        median_s=statistics.median(times),
        n=repeats,
        note=f"no file is written; {load_now()}",
    )


def _ways(
    what: str, recipe: Recipe[Any], package: str, folder: Path, staged: StageSeconds
) -> Iterator[Measure]:
    """Yield the network's pass in other ways, beside plain fp32, and what end to end would be."""
    import torch

    predictor = Predictor(recipe, package)
    record = one_record(str(folder), planar=False)
    sample = bare_sample(load_sample(record, CountingReader(process_decoder())))
    examples = ask_of("", [recipe.prepare(sample, predictor.interpreter.hparams)]).examples
    plain_s = staged.medians()[_NETWORK]
    rest_s = sum(staged.medians().values()) - plain_s
    module = predictor.module
    ways: dict[str, Callable[[], Any]] = {
        "channels last": lambda: module.to(memory_format=torch.channels_last_3d),
        "compiled": lambda: torch.compile(module.to(memory_format=torch.contiguous_format)),
    }
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        ways["bf16"] = lambda: module
    for name, make in ways.items():
        predictor.module = make()
        predictor.precision = "bf16" if name == "bf16" else "fp32"
        predictor.answer(examples)
        times, cpu_began = [], time.process_time()
        for _ in range(2):
            began = time.perf_counter()
            predictor.answer(examples)
            times.append(time.perf_counter() - began)
        seconds, cpu_s = min(times), (time.process_time() - cpu_began) / len(times)
        yield Measure(
            name=f"{what}, network alone, {name}",
            peer="fp32 as it is",
            median_s=seconds,
            peer_median_s=plain_s,
            n=2,
            note=f"with the other stages {rest_s + seconds:.1f} s; {cpu_s:.1f} s of CPU; "
            f"{load_now()}",
        )


def _served(bench: ServeBench, what: str, package: str, folder: Path) -> Iterator[Measure]:
    """Yield seconds of the same CT as a zip over HTTP, for JSON and for the mask."""
    archive = bench.work / f"{folder.name}.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for path in sorted(folder.glob("*.dcm")):
            packed.write(path, path.name)
    sizes = {"max_replicas": 1, "num_threads": os.cpu_count() or 1}
    number = 1 if bench.small else 2
    with service(bench, {"volume": package}, **sizes) as url:
        loaded(Load(url=predict_url(url, "volume"), file=str(archive), clients=1, requests=1))
        for accept in ("application/json", "application/gzip"):
            load = Load(
                url=predict_url(url, "volume"),
                file=str(archive),
                accept=accept,
                clients=1,
                requests=number,
            )
            found = loaded(load)
            yield Measure(
                name=f"{what}, zip of {archive.stat().st_size >> 20} MiB over HTTP, {accept}",
                median_s=found.median_s,
                n=len(found.latencies_s),
                note=f"{found.failed} failed; {load_now()}",
            )
    storage.remove(str(archive))
