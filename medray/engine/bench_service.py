"""The service as benchmarks start it, and loads on it beside its peer, taking turns."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from ray import serve

from medray.engine.bench_load import Load, Loaded, loaded
from medray.engine.bench_measure import Measure
from medray.engine.bench_plain import free_port
from medray.engine.bench_stub import with_stub
from medray.engine.cluster import ray_session
from medray.engine.serve import prepare_environment, running
from medray.engine.serve_ingress import IngressSettings
from medray.engine.serve_options import ServeOptions, described_models
from medray.engine.serve_spec import RecipeOf
from medray.recipe import Recipe

# Replicas wait most of the time; the largest of the benchmarks' applications has so many.
_LOGICAL_CPUS = 16
_HTTP = IngressSettings(no_auth=True)
PEER = "plain FastAPI + uvicorn"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeBench:
    """What the service is measured with.

    Attributes:
        work: folder for data, packages and pictures.
        recipe_of: a module's function, by whose name another process finds it.
        detector: task that finds boxes in a picture of 8 bit.
        detector_hparams: of its network.
        volumes: task of masks in volumes.
        volume_hparams: a title of each network to its hyperparameters.
        small: fewer requests, small networks.
        port: of HTTP; Serve keeps the first one as long as it runs.
    """

    work: Path
    recipe_of: RecipeOf
    detector: Recipe[Any]
    detector_hparams: Any
    volumes: Recipe[Any]
    volume_hparams: Mapping[str, Any]
    small: bool
    port: int = field(default_factory=free_port)


@contextlib.contextmanager
def serve_session(*, debug: bool = False) -> Iterator[None]:
    """Run a local Ray with the environment that the service needs."""
    prepare_environment(ServeOptions(models={}, http=_HTTP), haproxy=False)
    with ray_session(None, debug=debug, num_cpus=_LOGICAL_CPUS):
        try:
            yield
        finally:
            serve.shutdown()  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def service(bench: ServeBench, models: Mapping[str, str], **changes: Any) -> Iterator[str]:
    """Run the service with some packages; the URL is yielded, without a path.

    Serve itself goes on: a controller that is ending is found by whoever starts the next one.

    Args:
        bench: whose tasks are known beside the stub.
        models: name to package.
        changes: of `ServeOptions`.
    """
    options = ServeOptions(models=models, http=_HTTP, **changes)
    registry = with_stub(bench.recipe_of)
    described = described_models(options, registry)
    with running(described, options, registry, port=bench.port, everywhere=True) as url:
        yield url


def predict_url(url: str, model: str) -> str:
    """Return where a model of the service answers."""
    return f"{url}/v1/models/{model}/predict"


@dataclass(slots=True)
class Both:
    """A load on the service and the same on its peer.

    Attributes:
        ours, theirs: what came back.
        our_cpu_s, their_cpu_s: of all processes of each while it was loaded.
    """

    ours: Loaded = field(default_factory=Loaded)
    theirs: Loaded = field(default_factory=Loaded)
    our_cpu_s: float = 0.0
    their_cpu_s: float = 0.0

    def note(self) -> str:
        """Return tails, throughput, CPU and the machine's load in one line."""
        ours, theirs = self.ours, self.theirs
        failed = ours.failed + theirs.failed
        our_ms = 1000 * self.our_cpu_s / max(1, len(ours.latencies_s))
        their_ms = 1000 * self.their_cpu_s / max(1, len(theirs.latencies_s))
        return "; ".join(
            [
                f"p95 {_ms(ours, 0.95)}, p99 {_ms(ours, 0.99)}, {ours.per_s:.1f} requests/s",
                f"plain p95 {_ms(theirs, 0.95)}, p99 {_ms(theirs, 0.99)}, {theirs.per_s:.1f}/s",
                f"CPU a request {our_ms:.1f} and {their_ms:.1f} ms",
                f"{failed} failed",
                load_now(),
            ]
        )


def load_now() -> str:
    """Return how busy the machine is; other work stretches every latency."""
    return f"load {os.getloadavg()[0]:.0f} on {os.cpu_count()} cores"


def _ms(found: Loaded, share: float) -> str:
    return f"{1000 * found.quantile_s(share):.1f} ms"


def turns(ours: Load, theirs: Load, *, rounds: int) -> Both:
    """Send both loads in turns, after a warm-up, so that a busy machine slows both alike."""
    both = Both()
    for load in (ours, theirs):
        loaded(_warm_up(load))
    for _ in range(rounds):
        before = cpu_seconds()
        both.ours.add(loaded(ours))
        between = cpu_seconds()
        both.theirs.add(loaded(theirs))
        after = cpu_seconds()
        both.our_cpu_s += between[0] - before[0]
        both.their_cpu_s += after[1] - between[1]
    return both


def _warm_up(load: Load) -> Load:
    return Load(url=load.url, file=load.file, clients=load.clients, requests=4 * load.clients)


def cpu_seconds() -> tuple[float, float]:
    """Return CPU seconds so far of Ray's processes below this one, and of the plain server."""
    spent = [0.0, 0.0]
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            is_plain = any("bench_plain" in word for word in process.cmdline())
            spent[is_plain] += times.user + times.system
    return spent[0], spent[1]


def measures(name: str, both: Both, *, tail: bool) -> Iterator[Measure]:
    """Yield the row of a load: medians, the rest in the note; with `tail` one of the p95s, too."""
    number = min(len(both.ours.latencies_s), len(both.theirs.latencies_s))
    yield Measure(
        name=name,
        peer=PEER,
        median_s=both.ours.median_s,
        peer_median_s=both.theirs.median_s,
        n=number,
        note=both.note(),
    )
    if tail:
        ours, theirs = both.ours.quantile_s(0.95), both.theirs.quantile_s(0.95)
        yield Measure(
            name=f"{name}, p95",
            peer=f"{PEER}, p95",
            median_s=ours,
            peer_median_s=theirs,
            n=number,
            note=f"{1000 * (ours - theirs):+.1f} ms",
        )
