"""Benchmarks of autoscaling: from nothing to a first answer, from one replica to some and back."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from ray import serve

from medray.engine.bench_load import Load, loaded, loading, result_of
from medray.engine.bench_measure import Measure
from medray.engine.bench_service import ServeBench, load_now, predict_url, service
from medray.engine.bench_stub import Hparams, stub_recipe, untrained_package
from medray.engine.serve_options import APP
from medray.engine.serve_spec import network_name
from medray.formats.images import write_png

_PAUSE_S = 0.2
_CLIENTS = 16
_MOST = 3
_PATIENCE_S = 180.0
_LOADED_S = 40.0
_LOOK_S = 0.1
_DELAYS = {"upscale_delay_s": 1.0, "downscale_delay_s": 2.0, "target_ongoing": 1.0}


def scale_rows(bench: ServeBench) -> Iterator[Measure]:
    """Yield seconds of a cold start, and of scaling up and down under load and after it."""
    package = untrained_package(
        str(bench.work / "scaled"), stub_recipe(), Hparams(pause_s=_PAUSE_S)
    )
    file = bench.work / "small.png"
    rng = np.random.default_rng(0)
    file.write_bytes(write_png(rng.integers(0, 255, (64, 64), np.uint8)))
    most = 2 if bench.small else _MOST
    with service(bench, {"m": package}, min_replicas=0, max_replicas=most, **_DELAYS) as url:
        yield _cold(predict_url(url, "m"), str(file))
        yield from _up_and_down(predict_url(url, "m"), str(file), most)


def _cold(url: str, file: str) -> Measure:
    """Wait until no replica holds the network, then ask once."""
    idle_s = _seconds_until(lambda: _replicas() == 0)
    one = loaded(Load(url=url, file=file, clients=1, requests=1))
    return Measure(
        name="first answer from zero replicas of a network",
        median_s=one.median_s,
        n=1,
        note=f"{one.failed} failed; the last replica went after {idle_s:.1f} s; a new process "
        f"imports torch and reads a package; {load_now()}",
    )


def _up_and_down(url: str, file: str, most: int) -> Iterator[Measure]:
    load = Load(url=url, file=file, clients=_CLIENTS, requests=1 << 20, seconds=_LOADED_S)
    with loading(load) as process:
        up_s = _seconds_until(lambda: _replicas() >= most)
        found = result_of(process)
    down_s = _seconds_until(lambda: _replicas() == 0)
    failed = f"{found.failed} failed of {sum(found.statuses.values())} requests"
    rates = ", ".join(f"{name} {value:g} s" for name, value in _DELAYS.items() if "delay" in name)
    for name, seconds in ((f"from 1 to {most} replicas", up_s), (f"from {most} to none", down_s)):
        yield Measure(
            name=f"{name}, {_CLIENTS} clients" if name.startswith("from 1") else f"{name}, idle",
            median_s=seconds,
            n=1,
            note=f"{failed}; {rates}; {load_now()}",
        )


def _replicas() -> int:
    """Return how many replicas of the network run, as `serve status` says."""
    deployment = serve.status().applications[APP].deployments[network_name("m", "")]
    # Declared as an enumeration, come as text.
    states: dict[Any, int] = dict(deployment.replica_states)
    return sum(n for state, n in states.items() if getattr(state, "value", state) == "RUNNING")


def _seconds_until(reached: Callable[[], bool]) -> float:
    """Return after how long a state was reached.

    Raises:
        RuntimeError: it was not within minutes.
    """
    began = time.monotonic()
    while time.monotonic() - began < _PATIENCE_S:
        with contextlib.suppress(KeyError):
            if reached():
                return time.monotonic() - began
        time.sleep(_LOOK_S)
    raise RuntimeError("the service did not scale within the time that it was given")
