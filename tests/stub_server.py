"""A server of the HTTP contract without models: what it answers is put in by the test."""

import asyncio
import hashlib
import hmac
import json
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from medray.service.page_files import PAGE_HEADERS, page_file

KEY = "stub-key-0123456789"
NOTICE = "For research use only. Not a medical device, not for clinical decisions."
MODELS = [
    {
        "name": "pancreas",
        "task": "pancreas_segmentation",
        "version": "0.1.0",
        "labels": ["background", "pancreas"],
        "kind": "mask3d",
        "inputs": ["dicom", "zip", "nifti", "nrrd", "mha"],
        "outputs": ["application/json", "image/png", "application/gzip", "application/dicom"],
        "thresholds": {"mask_threshold": 0.5},
    },
    {
        "name": "lung-boxes",
        "task": "lung_detection",
        "version": "0.1.0",
        "labels": ["A", "B", "E", "G"],
        "kind": "box2d",
        "inputs": ["dicom", "zip", "png", "jpeg"],
        "outputs": ["application/json", "image/png"],
        "thresholds": {"threshold": 0.25},
    },
]
_REASONS = {401: "auth_missing", 403: "auth_wrong", 404: "model_unknown", 406: "not_acceptable"}


@dataclass
class Stub:
    """What the server knows and has seen.

    Attributes:
        bodies: content of the answer by media type; what is absent gets 406.
        failures: answered in this order before anything else: (status, headers, problem).
        delay_s: of each prediction.
        num_polls: looks at a job before it is done.
        seen: (method, path, accept, sha256 of the file, headers) of each request that got in.
    """

    bodies: dict[str, bytes] = field(default_factory=dict)
    failures: deque[tuple[int, dict[str, str], dict[str, Any]]] = field(default_factory=deque)
    delay_s: float = 0.0
    num_polls: int = 3
    job_failure: str = ""
    job_forms: bool = True
    needs_key: bool = True
    seen: list[dict[str, Any]] = field(default_factory=list)
    files: list[bytes] = field(default_factory=list)
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    url: str = ""

    def count(self, path_end: str, accept: str = "") -> int:
        return sum(r["path"].endswith(path_end) and accept in r["accept"] for r in self.seen)


def result(**changes: Any) -> dict[str, Any]:
    """Return one result object of the contract."""
    return {
        "key": "0123456789abcdef",
        "series_uid": "",
        "sop_uid": None,
        "status": "complete",
        "label": None,
        "score": None,
        "class_scores": {},
        "boxes": [],
        "volume_ml": None,
        "threshold": 0.5,
        "conformity": {"score": 0.93, "flags": []},
        **changes,
    }


def answer(*results: Mapping[str, Any], model: str = "pancreas_segmentation") -> bytes:
    """Return an answer of the contract as JSON."""
    document = {
        "model": model,
        "version": "0.1.0",
        "weights_sha256": hashlib.sha256(b"weights").hexdigest(),
        "notice": NOTICE,
        "request_id": "req-1",
        "results": list(results),
        "timing_ms": {"decode_ms": 412.0, "model_ms": 2210.5},
    }
    return json.dumps(document).encode()


def problem(status: int, reason: str = "", detail: str = "", **headers: str) -> Response:
    content = {
        "type": "about:blank",
        "title": reason or _REASONS.get(status, "error"),
        "status": status,
        "detail": detail or f"the stub says {status}",
        "reason": reason or _REASONS.get(status, "unreadable"),
        "request_id": "req-1",
    }
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return JSONResponse(content, status, headers=names, media_type="application/problem+json")


def _app(stub: Stub) -> Starlette:
    def refusal(request: Request) -> Response | None:
        key = request.headers.get("x-api-key")
        if stub.needs_key and not key:
            return problem(401, detail="an API key is needed")
        if stub.needs_key and not hmac.compare_digest(key, KEY):
            return problem(403, detail="the API key is not known")
        if stub.failures and request.method == "POST":
            status, headers, more = stub.failures.popleft()
            return problem(status, **more, **headers)
        return None

    def note(request: Request, content: bytes = b"") -> None:
        stub.seen.append(
            {
                "method": request.method,
                "path": request.url.path,
                "accept": request.headers.get("accept", ""),
                "key": request.headers.get("idempotency-key", ""),
                "sha256": hashlib.sha256(content).hexdigest(),
                "length": request.headers.get("content-length"),
            }
        )

    def given(accept: str) -> Response:
        if accept not in stub.bodies:
            return problem(406, detail="this model has no result of that form")
        return Response(stub.bodies[accept], media_type=accept)

    async def page(request: Request) -> Response:
        found = page_file(request.url.path)
        if found is None:
            return problem(404)
        headers = {**PAGE_HEADERS, "etag": found.etag, "content-type": found.content_type}
        return Response(found.content, headers=headers)

    async def models(request: Request) -> Response:
        refused = refusal(request)
        return refused or JSONResponse({"models": MODELS})

    async def predict(request: Request) -> Response:
        refused = refusal(request)
        if refused:
            return refused
        if request.path_params["name"] not in {model["name"] for model in MODELS}:
            return problem(404, detail="there is no model of this name")
        async with request.form() as form:
            content = await form["file"].read()
            stub.files.append(content)
            note(request, content)
        if stub.delay_s:
            await asyncio.sleep(stub.delay_s)
        return given(request.headers.get("accept", "application/json"))

    async def submit(request: Request) -> Response:
        refused = refusal(request)
        if refused:
            return refused
        async with request.form() as form:
            content = await form["file"].read()
            stub.files.append(content)
            note(request, content)
            identity = hashlib.sha256(str(form["model"]).encode() + content).hexdigest()[:16]
        job = stub.jobs.setdefault(identity, {"id": identity, "state": "queued", "looks": 0})
        return JSONResponse({"id": identity, "state": job["state"]}, 202)

    async def look(request: Request) -> Response:
        refused = refusal(request)
        if refused:
            return refused
        note(request)
        job = stub.jobs.get(request.path_params["id"])
        if job is None:
            return problem(404, "model_unknown", "there is no such job")
        job["looks"] += 1
        job["state"] = "running" if job["looks"] < stub.num_polls else "done"
        if job["state"] == "done" and stub.job_failure:
            job["state"] = "failed"
        progress = min(1.0, job["looks"] / stub.num_polls)
        return JSONResponse(
            {
                "id": job["id"],
                "state": job["state"],
                "progress": progress,
                "reason": stub.job_failure or None,
                "result_url": f"/v1/jobs/{job['id']}/result",
            }
        )

    async def job_result(request: Request) -> Response:
        refused = refusal(request)
        if refused:
            return refused
        note(request)
        return given(request.headers.get("accept") if stub.job_forms else "application/json")

    return Starlette(
        routes=[
            Route("/", page),
            Route("/page/{name}", page),
            Route("/v1/models", models),
            Route("/v1/models/{name}/predict", predict, methods=["POST"]),
            Route("/v1/jobs", submit, methods=["POST"]),
            Route("/v1/jobs/{id}", look),
            Route("/v1/jobs/{id}/result", job_result),
        ]
    )


@contextmanager
def stub_server() -> Iterator[Stub]:
    """Run a stub on a free port of this machine."""
    stub = Stub()
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(_app(stub), log_level="warning", lifespan="off", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    stub.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        while not server.started:
            time.sleep(0.01)
        yield stub
    finally:
        server.should_exit = True
        server.force_exit = True
        thread.join(timeout=10)
        listener.close()


@contextmanager
def dying_connections(url: str, num_deaths: int, *, after_bytes: int = 0) -> Iterator[str]:
    """Give an address before a server where the first connections are reset.

    Args:
        url: of the server.
        num_deaths: connections that die.
        after_bytes: of the request that are read before.
    """
    host, port = url.removeprefix("http://").split(":")
    listener = socket.create_server(("127.0.0.1", 0))
    left = [num_deaths]

    def serve() -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            if left[0] > 0:
                left[0] -= 1
                if after_bytes:
                    near.recv(after_bytes)
                near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                near.close()
                continue
            far = socket.create_connection((host, int(port)))
            for source, target in ((near, far), (far, near)):
                threading.Thread(target=_pour, args=(source, target), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.close()


def _pour(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        pass
