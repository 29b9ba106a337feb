"""Malformed requests against a real service: no 5xx, and no replica dies of one."""

import http.client
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
from ray.util.state import list_actors

from medray.engine.serve_options import APP
from medray.formats.images import write_png
from tests.ray.service import Service, detector, masker, running_service

pytestmark = [pytest.mark.ray, pytest.mark.slow]

# A tenth of what `make numbers` sends.
NUM_REQUESTS = int(os.environ.get("MEDRAY_FUZZ_REQUESTS", "1000"))
_CHECKS = ",".join(
    ("not_a_server_error", "status_code_conformance", "content_type_conformance",
     "response_schema_conformance")
)  # fmt: skip
_PATHS = (
    "/v1/models/pancreas/predict",
    "/v1/models/breast/predict",
    "/predict",
    "/v1/jobs",
    "/v1/models/%00/predict",
    "/v1/jobs/..%2f..%2fetc/result",
    "//",
)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    root = tmp_path_factory.mktemp("fuzzed")
    models = {"pancreas": masker(root / "pancreas"), "breast": detector(root / "breast")}
    with running_service(root, models, max_replicas=1) as found:
        yield found


def replicas() -> set[int]:
    here = ray.get_runtime_context().gcs_address
    actors = list_actors(here, detail=True, limit=1000, filters=[("state", "=", "ALIVE")])
    return {actor.pid for actor in actors if f"{APP}#" in str(actor.name) and actor.pid}


@pytest.fixture(autouse=True)
def _no_replica_dies(service: Service) -> Iterator[None]:
    del service
    before = replicas()
    assert len(before) >= 5
    yield
    assert before <= replicas()


def form(data: bytes, boundary: bytes = b"b") -> bytes:
    head = b'--%b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n' % boundary
    return head + data + b"\r\n--%b--\r\n" % boundary


def broken_request(rng: np.random.Generator, whole: bytes) -> tuple[str, dict[str, str], bytes]:
    """Return path, headers and body of a request with something wrong in it."""
    body = bytearray(form(whole))
    kind = rng.integers(6)
    if kind == 0:
        body = body[: rng.integers(len(body))]
    elif kind == 1:
        for _ in range(int(rng.integers(1, 40))):
            body[rng.integers(len(body))] = rng.integers(256)
    elif kind == 2:
        body = bytearray(rng.integers(0, 256, int(rng.integers(4096)), np.uint8).tobytes())
    elif kind == 3:
        body = bytearray(form(b"", b"b") + form(whole[:64]))
    elif kind == 4:
        body = bytearray(form(whole[: rng.integers(1, len(whole))]))
    types = (
        "multipart/form-data; boundary=b", "multipart/form-data", "application/json", "",
        "multipart/form-data; boundary=" + "x" * int(rng.integers(1, 300)),
        "text/plain; charset=\xff",
    )  # fmt: skip
    accepts = ("", "*/*", "image/png", "application/gzip;q=nan", "a,b;q=", "application/dicom")
    headers = {
        "Content-Type": types[0] if rng.random() < 0.6 else str(rng.choice(types)),
        "Accept": str(rng.choice(accepts)),
    }
    return str(rng.choice(_PATHS)), headers, bytes(body)


def test_malformed_requests_get_4xx(service: Service) -> None:
    rng = np.random.default_rng(0)
    whole = write_png(rng.integers(0, 255, (64, 48), np.uint8))
    host = service.url.removeprefix("http://")
    codes: Counter[int] = Counter()
    line = http.client.HTTPConnection(host, timeout=60)
    for _ in range(NUM_REQUESTS):
        path, headers, body = broken_request(rng, whole)
        try:
            line.request("POST", path, body, {**headers, "X-API-Key": service.key})
            answer = line.getresponse()
            answer.read()
            codes[answer.status] += 1
        except (http.client.HTTPException, OSError):
            line.close()
            line = http.client.HTTPConnection(host, timeout=60)
            codes[0] += 1
    assert sum(codes.values()) == NUM_REQUESTS
    assert not [code for code in codes if code >= 500], codes
    assert codes[0] < NUM_REQUESTS // 50, codes
    assert sum(codes[code] for code in (400, 404, 406, 415, 422)) > NUM_REQUESTS // 2, codes


def test_broken_files_are_refused_and_the_service_stays(service: Service, real_data: Path) -> None:
    codes: Counter[int] = Counter()
    reasons: Counter[str] = Counter()
    files = sorted(path for path in (real_data / "broken").rglob("*") if path.is_file())
    assert len(files) > 20
    for path in files:
        data = path.read_bytes()
        for model in ("pancreas", "breast"):
            answer = service.predict(model, data)
            codes[answer.status_code] += 1
            if answer.status_code != 200:
                reasons[answer.json()["reason"]] += 1
    assert not [code for code in codes if code >= 500], (codes, reasons)
    assert len(reasons) > 3


def test_what_the_documents_promise(service: Service) -> None:
    """Schemathesis makes requests from /openapi.json and compares the answers with it."""
    found = subprocess.run(
        [
            str(Path(sys.executable).parent / "schemathesis"), "run",
            f"{service.url}/openapi.json", "--header", f"X-API-Key: {service.key}",
            "--checks", _CHECKS,
            "--max-examples", str(max(5, NUM_REQUESTS // 50)), "--seed", "1",
            "--exclude-path", "/health/ready", "--workers", "1",
            "--phases", "examples,coverage,fuzzing",
        ],
        capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout[-6000:] + found.stderr[-1000:]
