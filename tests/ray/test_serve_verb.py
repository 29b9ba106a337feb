"""`medray serve` as a process of its own: it ends when asked, and what it accepted outlives it."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from medray.tasks import get_recipe
from tests.ray.service import free_port, masker, zipped

pytestmark = [pytest.mark.ray, pytest.mark.slow]


class Server:
    """A server process and its address."""

    def __init__(self, *arguments: str) -> None:
        self.url = f"http://127.0.0.1:{(port := free_port())}"
        command = [sys.executable, "-m", "medray.cli", "serve", *arguments, "--port", str(port)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("serving pancreas at "), line

    def family(self) -> list[psutil.Process]:
        """Return its descendants but for Ray's agents, which see a killed driver minutes later."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in children if not child.name().endswith("Agent")]


@contextlib.contextmanager
def server(*arguments: str) -> Iterator[Server]:
    found = Server(*arguments)
    try:
        yield found
    finally:
        if found.process.poll() is None:
            found.process.send_signal(signal.SIGTERM)
            found.process.wait(timeout=120)


def state_of(url: str, job_id: str) -> dict[str, Any]:
    deadline = time.monotonic() + 120
    while True:
        state: dict[str, Any] = requests.get(f"{url}/v1/jobs/{job_id}", timeout=60).json()
        if state["state"] in {"done", "failed"}:
            return state
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_accepted_jobs_outlive_their_server_and_sigterm_ends_it(tmp_path: Path) -> None:
    get_recipe("pancreas_segmentation").phantom(
        tmp_path / "ct", num_patients=1, seed=3, defects=False, size="tiny"
    )
    model = f"pancreas={masker(tmp_path / 'm')}"
    arguments = (model, "--no-auth", "--jobs-dir", str(tmp_path / "jobs"))
    with server(*arguments) as first:
        family = first.family()
        form = {"file": ("a.zip", zipped(tmp_path / "ct"))}
        asked = {"files": form, "data": {"model": "pancreas"}, "timeout": 60}
        job = requests.post(first.url + "/v1/jobs", **asked)  # type: ignore[arg-type]
        assert job.status_code == 202, job.text
        os.kill(first.process.pid, signal.SIGKILL)
        first.process.wait()
    job_id = job.json()["id"]
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive
    with server(*arguments) as second:
        family = second.family()
        assert state_of(second.url, job_id)["state"] == "done"
        result = requests.get(f"{second.url}/v1/jobs/{job_id}/result", timeout=60).json()
        assert result["results"][0]["status"] == "complete"
        second.process.send_signal(signal.SIGTERM)
        assert second.process.wait(timeout=120) == 0
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive
