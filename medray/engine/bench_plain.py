"""The peer of the service: a model behind plain FastAPI and uvicorn, as one would write it.

`python -m medray.engine.bench_plain PACKAGE REGISTRY PORT` serves one model of single images; per
request it does what the service does: read, prepare, network, decode, JSON.
"""

import contextlib
import hashlib
import importlib
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from medray.datasets.conformity import conformity
from medray.datasets.record import Sample
from medray.engine.bench_stub import with_stub
from medray.engine.predict_output import Answer, case_document, case_result
from medray.engine.predict_planar import PlanarAnswer
from medray.engine.predictor import Predictor
from medray.engine.upstream import predict_sample
from medray.engine.weights import read_model_json
from medray.formats.images import read_image
from medray.recipe import Recipe

_START_S = 120.0


def build(predictor: Predictor) -> Any:
    """Return the application: one route that takes one PNG and answers JSON."""
    from fastapi import FastAPI, UploadFile

    app = FastAPI()

    @app.post("/predict")
    def predict(file: UploadFile) -> dict[str, Any]:
        return answer(predictor, file.file.read())

    @app.get("/live")
    def live() -> dict[str, str]:
        return {"status": "live"}

    return app


def answer(predictor: Predictor, data: bytes) -> dict[str, Any]:
    """Return the result document of an image's bytes."""
    image = read_image(data)
    sample = Sample(image=image, meta=dict(image.meta))
    likeness = conformity(sample, predictor.interpreter.facts["fingerprint"])
    prediction = predict_sample(predictor, sample)
    found = PlanarAnswer()
    found.take(image, prediction, "")
    case = Answer(
        key=hashlib.sha256(data).hexdigest()[:16],
        series_uid="",
        image=image,
        prediction=prediction,
        conformity=likeness,
        boxes=tuple(found.boxes),
    )
    return case_document(
        [case_result(case, predictor.interpreter.facts)], predictor.interpreter.facts
    )


def name_of(registry: Callable[[str], Recipe[Any]]) -> str:
    """Return what another process finds a registry by."""
    return f"{registry.__module__}:{registry.__qualname__}"


@contextlib.contextmanager
def plain_server(package: str, registry: str) -> Iterator[str]:
    """Run the server in a process of its own; the URL of its route is yielded once it answers.

    Args:
        package: URI of the model.
        registry: of `name_of`.
    """
    port = free_port()
    command = [sys.executable, "-m", __name__, package, registry, str(port)]
    process = subprocess.Popen(command)  # noqa: S603
    try:
        _wait_for(port, process)
        yield f"http://127.0.0.1:{port}/predict"
    finally:
        process.terminate()
        process.wait()


def free_port() -> int:
    """Return a port of loopback that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(port: int, process: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + _START_S
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
            return
        time.sleep(0.1)
    raise RuntimeError("the plain server did not start")


def main(package: str, registry: str, port: str) -> None:
    """Serve until the process is ended."""
    import torch
    import uvicorn

    # As a replica of the service: threads that spin for one another cost more than they give.
    torch.set_num_threads(1)
    module, _, name = registry.partition(":")
    recipe_of = with_stub(getattr(importlib.import_module(module), name))
    predictor = Predictor(recipe_of(str(read_model_json(package)["task"])), package)
    uvicorn.run(build(predictor), host="127.0.0.1", port=int(port), log_level="error")


if __name__ == "__main__":
    main(*sys.argv[1:])
