"""Benchmarks of the service with a detector on the CPU, beside the bare network."""

import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from medray.datasets.record import Sample
from medray.engine.bench_load import Load, Loaded, loaded
from medray.engine.bench_measure import Measure
from medray.engine.bench_plain import name_of, plain_server
from medray.engine.bench_series import body
from medray.engine.bench_service import PEER, ServeBench, load_now, predict_url, service
from medray.engine.bench_stub import untrained_package
from medray.engine.examples import batch_arrays
from medray.engine.predictor import Predictor
from medray.formats.images import read_image, write_png

_SIDE_PX = 1024
_CLIENTS = 8
_BATCHES = (1, 8)
# An untrained network is sure of nothing: a trained one leaves a few boxes, it leaves none.
_THRESHOLD = 0.5


@dataclass(slots=True)
class _Seen:
    """Throughput of one set-up over the rounds: examples a second."""

    bare: dict[int, list[float]] = field(default_factory=dict)
    ours: Loaded = field(default_factory=Loaded)
    theirs: Loaded = field(default_factory=Loaded)


def network_rows(bench: ServeBench) -> Iterator[Measure]:
    """Yield requests/s at eight clients with one thread in all, and with one a core."""
    file = bench.work / "picture.png"
    plane = body((1, _SIDE_PX, _SIDE_PX), seed=0).array[0]
    file.write_bytes(write_png(np.clip(plane / 8 + 128, 0, 255).astype(np.uint8)))
    package = untrained_package(
        str(bench.work / "detector"),
        bench.detector,
        bench.detector_hparams,
        inference={"threshold": _THRESHOLD},
    )
    for replicas in (1,) if bench.small else (1, os.cpu_count() or 1):
        yield from _rows_of(bench, package, str(file), replicas)


def _rows_of(bench: ServeBench, package: str, file: str, replicas: int) -> Iterator[Measure]:
    number = 16 if bench.small else 120
    sizes = {"min_replicas": replicas, "max_replicas": replicas, "num_threads": 1}
    seen = _Seen(bare={batch: [] for batch in _BATCHES})
    network = _Bare(bench, package, file, num_threads=replicas)
    with (
        service(bench, {"detector": package}, **sizes) as url,
        plain_server(package, name_of(bench.recipe_of)) as plain,
    ):
        ours = Load(url=predict_url(url, "detector"), file=file, clients=_CLIENTS, requests=number)
        theirs = Load(url=plain, file=file, clients=_CLIENTS, requests=number)
        for load in (ours, theirs):
            loaded(Load(url=load.url, file=file, clients=_CLIENTS, requests=2 * _CLIENTS))
        for _ in range(1 if bench.small else 3):
            for batch, speeds in seen.bare.items():
                speeds.append(network.per_s(batch))
            seen.ours.add(loaded(ours))
            seen.theirs.add(loaded(theirs))
    yield from _measures(seen, replicas)


def _measures(seen: _Seen, replicas: int) -> Iterator[Measure]:
    speeds = {batch: statistics.median(found) for batch, found in seen.bare.items()}
    best = max(speeds, key=lambda batch: speeds[batch])
    threads = f"{replicas} network replica{'s' if replicas > 1 else ''} of one thread"
    name = f"detector, {_SIDE_PX} x {_SIDE_PX} PNG, {_CLIENTS} clients, {threads}: s a request"
    failed = seen.ours.failed + seen.theirs.failed
    yield Measure(
        name=name,
        peer=f"bare network, as many threads, batch {best}",
        median_s=1 / seen.ours.per_s,
        peer_median_s=1 / speeds[best],
        n=len(seen.ours.latencies_s),
        note=f"{seen.ours.per_s:.2f} requests/s, {seen.ours.per_s / speeds[best]:.2f} of the bare "
        f"network's throughput; {failed} failed; {load_now()}",
    )
    yield Measure(
        name=name,
        peer=PEER,
        median_s=1 / seen.ours.per_s,
        peer_median_s=1 / seen.theirs.per_s,
        n=len(seen.theirs.latencies_s),
        note=f"p95 {seen.ours.quantile_s(0.95):.2f} and {seen.theirs.quantile_s(0.95):.2f} s",
    )


class _Bare:
    """The forward pass alone, of tensors that are ready."""

    def __init__(self, bench: ServeBench, package: str, file: str, *, num_threads: int) -> None:
        self.predictor = Predictor(bench.detector, package)
        self.num_threads = num_threads
        with open(file, "rb") as stream:  # noqa: PTH123
            image = read_image(stream.read())
        sample = Sample(image=image, meta=dict(image.meta))
        prepared = bench.detector.prepare(sample, self.predictor.interpreter.hparams)
        self.arrays = batch_arrays(prepared.arrays)
        self.passes = 2 if bench.small else 8

    def per_s(self, batch: int) -> float:
        """Return images a second of passes with a batch, for about as long whatever the batch."""
        import torch

        predictor = self.predictor
        learning = predictor.interpreter.recipe.learning
        arrays = learning.collate([self.arrays] * batch)
        tensors: dict[str, Any] = {name: torch.from_numpy(array) for name, array in arrays.items()}
        before = torch.get_num_threads()
        torch.set_num_threads(self.num_threads)
        repeats = max(2, self.passes // batch)
        try:
            with torch.no_grad():
                inputs = learning.inputs(tensors, predictor.interpreter.hparams)
                predictor.module(inputs)
                began = time.perf_counter()
                for _ in range(repeats):
                    predictor.module(inputs)
                return batch * repeats / (time.perf_counter() - began)
        finally:
            torch.set_num_threads(before)
