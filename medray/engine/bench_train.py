"""Benchmarks of training: steps fed by Ray Data against the same steps on resident tensors."""

import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from medray import storage
from medray.datasets.split import SplitOptions
from medray.engine.bench_measure import Measure
from medray.engine.examples import batch_arrays, decode_example
from medray.engine.package import Training
from medray.engine.prepare import PrepareOptions, prepare
from medray.engine.prepared import PreparedData, open_prepared
from medray.engine.train import TrainRequest, train
from medray.engine.train_log import read_metrics
from medray.engine.train_options import Cache, TrainOptions, Workers
from medray.engine.train_step import (
    Stepper,
    precision_of,
    use_precision,
    use_threads,
    wants_channels_last,
    weights_channels_last,
)
from medray.recipe import Recipe

_EPOCHS = 6
# The first epoch compiles, fills caches and starts the stream.
_WARM_EPOCHS = 2
_PATIENTS, _SMALL_PATIENTS = 48, 16
_STEPS, _WARM_STEPS = 10, 4


def rows(work: Path, recipe: Recipe[Any], *, small: bool, use_gpu: bool) -> Iterator[Measure]:
    """Yield the rows of the train stage: one a way of feeding, beside resident tensors.

    On a GPU the full preset runs compiled; on a CPU the small one, eager.
    """
    hparams = replace(
        recipe.hparams if use_gpu and not small else recipe.tiny_hparams, epochs=_EPOCHS
    )
    prepared = _prepared(work, recipe, hparams, small=small)
    caches: tuple[Cache, ...] = ("none", "host", "device") if use_gpu else ("none", "host")
    resident_s, peak_bytes = _resident(recipe, hparams, prepared, use_gpu=use_gpu)
    for cache in caches:
        options = TrainOptions(cache=cache, compile=use_gpu)
        step_s = _fed(work, recipe, hparams, prepared, options, use_gpu=use_gpu)
        yield Measure(
            name=f"training step of {recipe.name}, cache={cache}",
            median_s=step_s,
            peer="the same step on resident tensors",
            peer_median_s=resident_s,
            n=_EPOCHS - _WARM_EPOCHS,
            note=(
                f"{hparams.batch_size / step_s:.1f} examples/s; the device is busy for "
                f"{min(1.0, resident_s / step_s):.0%}; peak device memory "
                f"{peak_bytes / 2**30:.2f} GiB"
            ),
        )


def _prepared(work: Path, recipe: Recipe[Any], hparams: Any, *, small: bool) -> PreparedData:
    data = work / f"phantom-train-{recipe.name}-{small}"
    if not (data / "truth.json").exists():
        patients = _SMALL_PATIENTS if small else _PATIENTS
        recipe.phantom(data, num_patients=patients, seed=3, defects=False, size="tiny")
    out = str(work / f"prepared-train-{recipe.name}-{time.time_ns()}")
    options = PrepareOptions(data=str(data), gates="off")
    prepare(recipe, hparams, SplitOptions(), out, options, quiet=True)
    return open_prepared(out, recipe)


def _fed(
    work: Path,
    recipe: Recipe[Any],
    hparams: Any,
    prepared: PreparedData,
    options: TrainOptions,
    *,
    use_gpu: bool,
) -> float:
    """Train for a few epochs; return the median seconds a step of the warm ones."""
    out = str(work / f"train-{recipe.name}-{options.cache}-{time.time_ns()}")
    training = Training(
        recipe=recipe,
        hparams=hparams,
        options=options,
        workers=Workers(num_workers=1, use_gpu=use_gpu),
        prepared=prepared,
        gates="off",
    )
    train(TrainRequest(training=training), out, quiet=True)
    speeds = [
        row["value"]
        for row in read_metrics(out)
        if row["name"] == "examples_per_s" and row["epoch"] > _WARM_EPOCHS
    ]
    return float(hparams.batch_size / statistics.median(speeds))


def _resident(
    recipe: Recipe[Any], hparams: Any, prepared: PreparedData, *, use_gpu: bool
) -> tuple[float, int]:
    """Return the median seconds of a step on tensors that lie on the device, and peak bytes."""
    import torch

    device = torch.device("cuda" if use_gpu else "cpu")
    use_threads(device, 1, prepared.example_bytes * hparams.batch_size)
    stepper = _stepper(recipe, hparams, device, compiled=use_gpu)
    learning = recipe.learning
    shown = prepared.split("train")[: hparams.batch_size]
    rows = [shown[n % len(shown)] for n in range(hparams.batch_size)]
    arrays = learning.collate([_arrays(prepared.uri, row) for row in rows])
    batch = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
    batch["label"] = torch.tensor([int(row["label"]) for row in rows], device=device)
    rates = [float(group["lr"]) for group in stepper.optimizer.param_groups]
    times = []
    for number in range(_WARM_STEPS + _STEPS):
        began = time.perf_counter()
        stepper.step([(dict(batch), [number + n for n in range(hparams.batch_size)])], rates)
        if use_gpu:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    peak = torch.cuda.max_memory_allocated() if use_gpu else 0
    return statistics.median(times[_WARM_STEPS:]), peak


def _stepper(recipe: Recipe[Any], hparams: Any, device: Any, *, compiled: bool) -> Stepper:
    import torch

    options = TrainOptions(compile=compiled)
    precision = precision_of(options, device)
    use_precision(precision)
    torch.manual_seed(hparams.seed)
    module = recipe.model(hparams).to(device).train()
    channels_last = wants_channels_last(options, device)
    if channels_last:
        weights_channels_last(module)
    learning = recipe.learning
    network: Any = torch.compile(module) if compiled else module
    return Stepper(
        learning=learning,
        hparams=hparams,
        options=options,
        network=network,
        module=module,
        optimizer=learning.optimizer(module, hparams),
        device=device,
        precision=precision,
        channels_last=channels_last,
    )


def _arrays(uri: str, row: dict[str, Any]) -> dict[str, np.ndarray]:
    arrays, _ = decode_example(storage.read_bytes(storage.join(uri, row["uri"])))
    return batch_arrays(arrays)
