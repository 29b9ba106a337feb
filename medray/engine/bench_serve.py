"""Benchmarks of the service: its own cost, beside the same model behind plain FastAPI."""

from collections.abc import Iterator

import numpy as np

from medray.engine.bench_load import Load
from medray.engine.bench_measure import Measure
from medray.engine.bench_plain import name_of, plain_server
from medray.engine.bench_serve_network import network_rows
from medray.engine.bench_serve_scale import scale_rows
from medray.engine.bench_serve_volume import volume_rows
from medray.engine.bench_service import (
    ServeBench,
    measures,
    predict_url,
    serve_session,
    service,
    turns,
)
from medray.engine.bench_stub import Hparams, stub_recipe, untrained_package
from medray.formats.images import write_png

# Noise does not pack: so many pixels are so many bytes.
_SIDES_PX = {"64 KiB": 256, "1 MB": 1000}
_CLIENTS = (1, 8, 32)
_PAUSE_S = 0.1
_LONGEST_S = 30.0


def rows(bench: ServeBench, *, debug: bool = False) -> Iterator[Measure]:
    """Yield the rows of the serve stage; starts a Ray of its own, with its narration if wanted."""
    with serve_session(debug=debug):
        yield from _stub_rows(bench)
        yield from network_rows(bench)
        yield from scale_rows(bench)
        yield from volume_rows(bench)


def _stub_rows(bench: ServeBench) -> Iterator[Measure]:
    """Yield what a request costs when the network does nothing, and when it takes 100 ms."""
    recipe = stub_recipe()
    models = {
        name: untrained_package(str(bench.work / name), recipe, Hparams(pause_s=pause_s))
        for name, pause_s in (("stub", 0.0), ("pause", _PAUSE_S))
    }
    registry = name_of(bench.recipe_of)
    with service(bench, models) as url:
        with plain_server(models["stub"], registry) as plain:
            for size, side in _SIDES_PX.items():
                file = _picture(bench, side)
                for clients in _CLIENTS[: 2 if bench.small else 3]:
                    ours = _load(bench, predict_url(url, "stub"), file, clients)
                    theirs = _load(bench, plain, file, clients)
                    both = turns(ours, theirs, rounds=1 if bench.small else 3)
                    name = f"network that does nothing, PNG of {size}, {_number(clients)}"
                    yield from measures(name, both, tail=clients == 1)
        with plain_server(models["pause"], registry) as plain:
            file = _picture(bench, _SIDES_PX["64 KiB"])
            number = 8 if bench.small else 60
            ours = Load(url=predict_url(url, "pause"), file=file, clients=1, requests=number)
            theirs = Load(url=plain, file=file, clients=1, requests=number)
            both = turns(ours, theirs, rounds=1 if bench.small else 3)
            yield from measures("network of 100 ms, PNG of 64 KiB, 1 client", both, tail=False)


def _load(bench: ServeBench, url: str, file: str, clients: int) -> Load:
    number = 16 if bench.small else 100 if clients == 1 else 200
    return Load(url=url, file=file, clients=clients, requests=number, seconds=_LONGEST_S)


def _number(clients: int) -> str:
    return f"{clients} client{'s' if clients > 1 else ''}"


def _picture(bench: ServeBench, side_px: int) -> str:
    """Write a PNG of noise and return its path."""
    path = bench.work / f"noise-{side_px}.png"
    rng = np.random.default_rng(0)
    path.write_bytes(write_png(rng.integers(0, 255, (side_px, side_px), np.uint8)))
    return str(path)
