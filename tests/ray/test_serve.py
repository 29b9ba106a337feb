"""The service on a real Ray Serve: routes, results, jobs, and what dies under load."""

import dataclasses
import gzip
import io
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import highdicom
import nibabel
import numpy as np
import pytest
import ray
import requests
from PIL import Image
from ray import serve
from ray.util.state import list_actors

import medray
from medray.client import Client
from medray.engine.serve import update
from medray.engine.serve_options import APP, described_models
from medray.formats.images import write_png
from medray.tasks import get_recipe
from tests.ray.service import Service, detector, masker, running_service, zipped

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    root = tmp_path_factory.mktemp("service")
    get_recipe("pancreas_segmentation").phantom(
        root / "ct", num_patients=2, seed=3, defects=False, size="tiny"
    )
    models = {
        "pancreas": masker(root / "pancreas"),
        "breast": detector(root / "breast"),
        "gone": str(root / "nothing"),
    }
    with running_service(
        root,
        models,
        max_replicas=2,
        max_waiting=8,
        target_ongoing=1.0,
        upscale_delay_s=1.0,
        downscale_delay_s=4.0,
    ) as found:
        yield found


@pytest.fixture(scope="module")
def series(service: Service) -> list[Path]:
    """Return the folders of the two patients' series."""
    found = sorted({path.parent for path in (service.root / "ct").rglob("*.dcm")})
    assert len(found) == 2
    return found


@pytest.fixture(scope="module")
def png() -> bytes:
    rng = np.random.default_rng(0)
    return write_png(rng.integers(0, 255, (200, 160), np.uint8))


def problem(answer: requests.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    found = answer.json()
    assert set(found) == {"type", "title", "status", "detail", "reason", "request_id"}
    assert found["status"] == answer.status_code
    return answer.status_code, found["reason"]


def test_health_models_and_documents(service: Service) -> None:
    assert requests.get(service.url + "/health/live", timeout=10).json() == {"status": "live"}
    ready = requests.get(service.url + "/health/ready", timeout=30)
    assert ready.status_code == 503
    assert ready.json()["models"] == {"pancreas": "", "breast": "", "gone": "model_missing"}
    cards = {card["name"]: card for card in service.get("/v1/models").json()["models"]}
    assert set(cards) == {"pancreas", "breast"}
    assert service.get("/v1/models/breast").json() == cards["breast"]
    assert cards["breast"]["kind"] == "box2d"
    assert cards["pancreas"]["thresholds"]["threshold"] == 0.5
    assert problem(service.get("/v1/models/nobody")) == (404, "model_unknown")
    document = requests.get(service.url + "/openapi.json", timeout=10).json()
    assert set(document["paths"]) == {
        "/health/live", "/health/ready", "/v1/models", "/v1/models/{name}",
        "/v1/models/{name}/predict", "/predict", "/v1/jobs", "/v1/jobs/{job_id}",
        "/v1/jobs/{job_id}/result",
    }  # fmt: skip
    page = requests.get(service.url + "/docs", timeout=10)
    assert page.headers["content-type"].startswith("text/html")
    assert 'id="several_series"' in page.text
    assert "not a medical device" in page.text.lower()


def test_a_result_is_that_of_the_loaded_model(service: Service, series: list[Path]) -> None:
    model = medray.load_model(service.options.models["pancreas"])
    expected = model.predict(str(series[0]))
    answer = service.predict("pancreas", zipped(series[0]))
    assert answer.status_code == 200, answer.text
    document = answer.json()
    assert document["model"] == "pancreas"
    assert document["weights_sha256"] == model.facts["weights_sha256"]
    assert document["request_id"] == answer.headers["x-request-id"]
    assert "research" in document["notice"]
    (result,) = document["results"]
    assert result["status"] == "complete"
    assert result["volume_ml"] == pytest.approx(expected.volume_ml, rel=1e-6)
    assert expected.mask is not None
    packed = service.predict("pancreas", zipped(series[0]), "application/gzip")
    assert packed.headers["content-type"] == "application/gzip"
    mask = nibabel.Nifti1Image.from_bytes(gzip.decompress(packed.content))
    assert np.array_equal(np.asarray(mask.dataobj).T, expected.mask)
    by_uri = service.post("/v1/models/pancreas/predict", json={"uri": str(series[0])})
    assert by_uri.json()["results"][0]["volume_ml"] == result["volume_ml"]


def test_pictures_and_boxes(service: Service, png: bytes) -> None:
    answer = service.predict("breast", png)
    (result,) = answer.json()["results"]
    assert result["boxes"]
    for box in result["boxes"]:
        x0, y0, x1, y1 = box["box_xyxy_px"]
        assert 0 <= x0 < x1 <= 160
        assert 0 <= y0 < y1 <= 200
    picture = service.post("/predict", files={"file": ("a.png", png)})
    assert picture.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(picture.content)).format == "PNG"
    assert picture.content == service.predict("breast", png, "image/png").content


def test_several_series_are_all_answered(service: Service, series: list[Path]) -> None:
    both = zipped(*series)
    results = service.predict("pancreas", both).json()["results"]
    assert [result["status"] for result in results] == ["complete", "complete"]
    assert len({result["key"] for result in results}) == 2
    assert problem(service.predict("pancreas", both, "image/png")) == (409, "several_series")


def test_what_cannot_be_answered_says_why(
    service: Service, series: list[Path], png: bytes, tmp_path: Path
) -> None:
    cut = sorted(series[0].rglob("*.dcm"))
    for path in cut:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / cut[5].name).write_bytes(cut[5].read_bytes()[:-300])
    predict = service.predict
    assert problem(predict("pancreas", zipped(tmp_path)))[0] == 422
    assert problem(predict("pancreas", b"%PDF-1.7 no image")) == (415, "unsupported_type")
    assert problem(predict("pancreas", png))[0] == 422
    assert problem(predict("pancreas", zipped(series[0]), "text/html")) == (406, "not_acceptable")
    assert problem(predict("breast", png, "application/gzip")) == (406, "not_acceptable")
    assert problem(predict("nobody", png)) == (404, "model_unknown")
    assert problem(predict("gone", png)) == (503, "model_missing")
    assert problem(predict("breast", b"x" * (65 << 20))) == (413, "too_large")
    uri = {"uri": "/etc/hostname"}
    where = "/v1/models/pancreas/predict"
    assert problem(service.post(where, json=uri)) == (403, "uri_not_allowed")
    assert problem(service.post(where, json={})) == (422, "file_missing")
    assert problem(service.post(where, data="x")) == (415, "unsupported_type")
    assert problem(service.get("/nowhere")) == (404, "route_unknown")
    assert problem(service.get(where))[0] == 405


def test_nobody_without_a_key_is_read(service: Service, png: bytes) -> None:
    where = service.url + "/v1/models/breast/predict"
    files = {"file": ("a.png", png)}
    assert problem(requests.post(where, files=files, timeout=30)) == (401, "auth_missing")
    wrong = requests.post(where, files=files, headers={"X-API-Key": "wrong"}, timeout=30)
    assert problem(wrong) == (403, "auth_wrong")
    assert b"medray_test_" not in wrong.content
    host, port = service.url.removeprefix("http://").split(":")
    head = (
        "POST /v1/models/breast/predict HTTP/1.1\r\nHost: x\r\nContent-Length: 536870912\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\n\r\n"
    )
    sent = 0
    with socket.create_connection((host, int(port)), timeout=20) as line:
        line.sendall(head.encode())
        try:
            for _ in range(8192):
                sent += line.send(b"x" * 65536)
        except OSError:
            pass
    # What was sent and never read lies in the buffers of both sockets.
    assert sent < 32 << 20


def test_the_readmes_curl_lines_work(service: Service, series: list[Path], tmp_path: Path) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    (block,) = re.findall(r"```sh\n(.*?)```", readme, re.DOTALL)
    lines = [line for line in block.splitlines() if line]
    assert len(lines) == 5
    (tmp_path / "series.zip").write_bytes(zipped(series[0]))
    environment = {"PATH": os.environ["PATH"], "KEY": service.key, "URL": service.url}
    said = []
    for line in lines:
        done = subprocess.run(
            ["bash", "-c", line.replace("curl ", "curl -sS --fail-with-body ")],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, (line, done.stdout, done.stderr)
        said.append(done.stdout)
    assert {card["name"] for card in json.loads(said[0])["models"]} == {"pancreas", "breast"}
    assert json.loads(said[1])["results"][0]["status"] == "complete"
    mask = np.asarray(nibabel.load(tmp_path / "mask.nii.gz").dataobj)
    segmented = highdicom.seg.segread(tmp_path / "mask.dcm").get_volume(combine_segments=True)
    assert (segmented.array > 0).sum() == (mask > 0).sum() > 0
    assert json.loads(said[4])["state"] in {"queued", "running", "done"}


def test_the_client_gets_what_the_service_gives(
    service: Service, series: list[Path], tmp_path: Path
) -> None:
    with Client(service.url, service.key) as client:
        assert {card["name"] for card in client.models()} == {"pancreas", "breast"}
        job = client.submit(series[0], model="pancreas")
        answer = job.wait(timeout_s=120).result()
        assert answer.results[0]["status"] == "complete"
        client.save(answer, tmp_path)
    names = {path.name.partition(".")[2] for path in tmp_path.rglob("*") if path.is_file()}
    assert any(name.endswith("nii.gz") for name in names), names


def wait_for(ready: Callable[[], Any], *, seconds: float = 60.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := ready()):
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.1)
    return found


def job_end(service: Service, job_id: str) -> dict[str, Any]:
    def ended() -> dict[str, Any] | None:
        state: dict[str, Any] = service.get(f"/v1/jobs/{job_id}").json()
        return state if state["state"] in {"done", "failed"} else None

    return dict(wait_for(ended, seconds=120))


def test_the_same_request_is_the_same_job(service: Service, series: list[Path]) -> None:
    form = {"files": {"file": ("a.zip", zipped(*series))}, "data": {"model": "pancreas"}}
    first = service.post("/v1/jobs", **form)
    assert first.status_code == 202, first.text
    job_id = first.json()["id"]
    assert first.headers["location"] == f"/v1/jobs/{job_id}"
    assert service.post("/v1/jobs", **form).json()["id"] == job_id
    state = job_end(service, job_id)
    assert (state["state"], state["attempts"]) == ("done", 1)
    result = service.get(state["result_url"])
    at_once = service.predict("pancreas", form["files"]["file"][1]).json()
    assert result.json()["results"] == at_once["results"]
    picture = service.get(state["result_url"], headers={"Accept": "image/png"})
    assert problem(picture) == (409, "several_series")
    assert problem(service.get("/v1/jobs/" + "0" * 32)) == (404, "job_unknown")
    names = {path.name for path in (service.root / "jobs").rglob("*") if path.is_file()}
    assert "result.json" in names
    assert sum(name.endswith("prediction.nii.gz") for name in names) == 2


def test_a_job_that_cannot_be_done_says_why(service: Service) -> None:
    (service.root / "empty").mkdir()
    asked = {"model": "pancreas", "uri": str(service.root / "empty")}
    job = service.post("/v1/jobs", json=asked).json()
    state = job_end(service, job["id"])
    assert (state["state"], state["reason"]) == ("failed", "no_pixels")
    assert problem(service.get(f"/v1/jobs/{job['id']}/result")) == (422, "no_pixels")


def replica_pids(name: str) -> list[int]:
    """Return the processes of a deployment's replicas, from Ray's state API."""
    here = ray.get_runtime_context().gcs_address
    alive = [("state", "=", "ALIVE")]
    actors = list_actors(here, detail=True, limit=1000, filters=alive)
    return [a.pid for a in actors if f"{APP}#{name}#" in str(a.name) and a.pid]


def test_work_happens_in_replicas_of_their_own(service: Service) -> None:
    del service
    names = ("ingress", "cases", "jobs", "model-pancreas", "model-breast")
    pids = {name: replica_pids(name) for name in names}
    assert all(pids.values()), pids
    all_pids = [pid for found in pids.values() for pid in found]
    assert len(set(all_pids)) == len(all_pids)
    assert os.getpid() not in all_pids


class Load:
    """Clients that ask without pause; every answer is counted."""

    def __init__(self, ask: Callable[[], requests.Response], *, clients: int) -> None:
        self.codes: Counter[int] = Counter()
        self.answers: list[requests.Response] = []
        self._ask = ask
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]

    def _run(self) -> None:
        while not self._end.is_set():
            answer = self._ask()
            self.codes[answer.status_code] += 1
            self.answers.append(answer)

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()


def test_killed_replicas_cost_no_answer(service: Service, png: bytes) -> None:
    killed = 0
    with Load(lambda: service.predict("breast", png), clients=2) as load:
        for name in ("model-breast", "cases", "model-breast"):
            wait_for(lambda: sum(load.codes.values()) > 3)
            before = set(wait_for(lambda: replica_pids(name)))  # noqa: B023
            os.kill(min(before), signal.SIGKILL)
            killed += 1
            wait_for(lambda: set(replica_pids(name)) - before)  # noqa: B023
            done = sum(load.codes.values())
            wait_for(lambda: sum(load.codes.values()) > done + 3)  # noqa: B023
    assert killed == 3
    assert set(load.codes) == {200}, load.codes


def test_a_job_survives_its_workers(service: Service, series: list[Path]) -> None:
    model = {"model": "pancreas", "uri": str(series[1])}
    job = service.post("/v1/jobs", json=model).json()
    for name in ("cases", "jobs"):
        for pid in replica_pids(name):
            os.kill(pid, signal.SIGKILL)
    assert job_end(service, job["id"])["state"] == "done"


def test_another_threshold_and_model_drop_no_request(
    service: Service, png: bytes, tmp_path: Path
) -> None:
    other = detector(tmp_path / "other")
    facts = json.loads((Path(other) / "model" / "model.json").read_text())
    changed = dataclasses.replace(
        service.options,
        models={**service.options.models, "breast": other},
        inference={"breast": {"threshold": 0.9}},
    )
    with Load(lambda: service.predict("breast", png), clients=2) as load:
        wait_for(lambda: sum(load.codes.values()) > 3)
        update(described_models(changed, get_recipe), changed, get_recipe)
        done = len(load.answers)
        wait_for(lambda: len(load.answers) > done + 5)
        update(described_models(service.options, get_recipe), service.options, get_recipe)
    assert set(load.codes) == {200}, load.codes
    seen = {
        (a.json()["results"][0]["threshold"], bool(a.json()["results"][0]["boxes"]))
        for a in load.answers
    }
    assert seen == {(0.001, True), (0.9, False)}
    assert facts["weights_sha256"] in {a.json()["weights_sha256"] for a in load.answers}


def test_too_much_is_told_to_come_again(service: Service, png: bytes) -> None:
    with Load(lambda: service.predict("breast", png), clients=40) as load:
        wait_for(lambda: load.codes[429] > 20)
        wait_for(lambda: load.codes[200] > 5)
    assert set(load.codes) == {200, 429}, load.codes
    refused = [answer for answer in load.answers if answer.status_code == 429]
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    assert {problem(answer)[1] for answer in refused} == {"queue_full"}


def test_replicas_come_and_go_with_the_load(service: Service, png: bytes) -> None:
    def running() -> int:
        state = serve.status().applications[APP].deployments["cases"]
        return int(state.replica_states.get("RUNNING", 0))

    wait_for(lambda: running() == 1, seconds=90)
    with Load(lambda: service.predict("breast", png), clients=6) as load:
        began = time.monotonic()
        wait_for(lambda: running() == 2)
        seconds = time.monotonic() - began
    wait_for(lambda: running() == 1, seconds=90)
    assert set(load.codes) <= {200, 429}
    assert seconds < 60
