"""What a service bears: kills, a rolling update, too many requests, malformed ones, a long run.

    python -m tests.benchmarks.service --out numbers-out/serve-trials [--small]

Each trial is a row of trials.json: requests, failed ones, what was done meanwhile, latencies.
"""

import argparse
import dataclasses
import http.client
import json
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

from medray.engine.run import source_commit
from medray.engine.serve import update
from medray.engine.serve_options import described_models
from medray.formats.images import write_png
from medray.tasks import get_recipe
from tests.ray.service import Service, detector, replica_pids, running_service
from tests.ray.test_serve_fuzz import broken_request, form

_LONG = {"requests": 2000, "torch": 400, "roll": 500, "flood": 1000, "broken": 10_000, "soak": 5000}
_SHORT = {"requests": 100, "torch": 40, "roll": 40, "flood": 100, "broken": 200, "soak": 100}


class Clients:
    """Clients with kept connections that send a number of requests together."""

    def __init__(self, service: Service, body: bytes, *, num_clients: int) -> None:
        self.service, self.body, self.num_clients = service, body, num_clients
        self.codes: Counter[int] = Counter()
        self.seconds: list[float] = []
        self.retry_after = 0
        self._left, self._lock = 0, threading.Lock()

    def send(self, number: int) -> None:
        self._left = number
        threads = [threading.Thread(target=self._run) for _ in range(self.num_clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _run(self) -> None:
        host = self.service.url.removeprefix("http://")
        line = http.client.HTTPConnection(host, timeout=120)
        headers = {
            "X-API-Key": self.service.key,
            "Content-Type": "multipart/form-data; boundary=b",
        }
        while True:
            with self._lock:
                if not self._left:
                    return
                self._left -= 1
            began = time.perf_counter()
            try:
                line.request("POST", "/v1/models/breast/predict", self.body, headers)
                answer = line.getresponse()
                answer.read()
                code = answer.status
                self.retry_after += code == 429 and answer.headers.get("retry-after") is not None
            except (OSError, http.client.HTTPException):
                line.close()
                line, code = http.client.HTTPConnection(host, timeout=120), 0
            with self._lock:
                self.codes[code] += 1
                self.seconds.append(time.perf_counter() - began)

    def row(self, name: str, **more: Any) -> dict[str, Any]:
        done = np.array(self.seconds)
        p50, p95, p99 = (round(1000 * float(np.quantile(done, q)), 1) for q in (0.5, 0.95, 0.99))
        total = sum(self.codes.values())
        row = {"trial": name, "requests": total, "codes": dict(sorted(self.codes.items()))}
        row |= {"failed": total - self.codes[200], "p50_ms": p50, "p95_ms": p95, "p99_ms": p99}
        sys.stdout.write(json.dumps({**row, **more}) + "\n")
        sys.stdout.flush()
        return {**row, **more}


@contextmanager
def meanwhile(action: Callable[[], None], *, every_s: float) -> Iterator[list[float]]:
    """Do something again and again while the block runs; yields when it was done."""
    end, times = threading.Event(), []

    def run() -> None:
        while not end.wait(every_s):
            action()
            times.append(time.time())

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield times
    finally:
        end.set()
        thread.join()


def kill_one() -> None:
    """Kill a replica that holds the network; the service's own, by Ray's state API."""
    pids = replica_pids("model-breast")
    if pids:
        psutil.Process(min(pids)).kill()


def trials(service: Service, body: bytes, sizes: dict[str, int]) -> Iterator[dict[str, Any]]:
    def clients(number: int = 8) -> Clients:
        return Clients(service, body, num_clients=number)

    calm = clients()
    calm.send(sizes["torch"])
    yield calm.row("nothing happens")
    for name, every_s, number in (("every 4 s", 4.0, "requests"), ("every 20 s", 20.0, "torch")):
        killed = clients()
        with meanwhile(kill_one, every_s=every_s) as kills:
            killed.send(sizes[number])
        yield killed.row(f"a replica of the network killed {name}", kills=len(kills))
    rolled, options = clients(), service.options
    changed = dataclasses.replace(options, inference={"breast": {"threshold": 0.9}})
    both = [described_models(one, get_recipe) for one in (changed, options)]
    with meanwhile(
        lambda: [update(models, options, get_recipe) for models in both], every_s=1.0
    ) as updates:
        rolled.send(sizes["roll"])
    yield rolled.row("another threshold, and back", updates=2 * len(updates))
    flood = clients(100)
    flood.send(sizes["flood"])
    yield flood.row("100 clients at once", retry_after=flood.retry_after)


def malformed(service: Service, number: int) -> dict[str, Any]:
    rng = np.random.default_rng(7)
    whole = write_png(rng.integers(0, 255, (64, 48), np.uint8))
    before = set(replica_pids("cases") + replica_pids("ingress") + replica_pids("model-breast"))
    sender = Clients(service, b"", num_clients=1)
    host = service.url.removeprefix("http://")
    line = http.client.HTTPConnection(host, timeout=120)
    for _ in range(number):
        path, headers, body = broken_request(rng, whole)
        began = time.perf_counter()
        try:
            line.request("POST", path, body, {**headers, "X-API-Key": service.key})
            answer = line.getresponse()
            answer.read()
            sender.codes[answer.status] += 1
        except (OSError, http.client.HTTPException):
            line.close()
            line = http.client.HTTPConnection(host, timeout=120)
            sender.codes[0] += 1
        sender.seconds.append(time.perf_counter() - began)
    after = set(replica_pids("cases") + replica_pids("ingress") + replica_pids("model-breast"))
    worst = sum(count for code, count in sender.codes.items() if code >= 500)
    return sender.row("malformed requests", answers_5xx=worst, deaths=len(before - after))


def soak(service: Service, body: bytes, number: int) -> dict[str, Any]:
    def memory() -> int:
        names = ("ingress", "cases", "model-breast")
        pids = [pid for name in names for pid in replica_pids(name)]
        return sum(psutil.Process(pid).memory_info().rss for pid in pids)

    warm = Clients(service, body, num_clients=4)
    warm.send(max(50, number // 5))
    before = memory()
    long = Clients(service, body, num_clients=4)
    long.send(number)
    growth = round(100 * (memory() / before - 1), 2)
    return long.row("a long run", memory_mib=before >> 20, memory_growth_percent=growth)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--json", action="store_true", help="the summary is the last line")
    parser.add_argument("--quiet", action="store_true", help="taken like the verbs take it")
    options = parser.parse_args()
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    sizes = _SHORT if options.small else _LONG
    rng = np.random.default_rng(0)
    body = form(write_png(rng.integers(0, 255, (200, 160), np.uint8)))
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="medray-trials-") as folder:
        root = Path(folder)
        models = {"breast": detector(root / "breast"), "pancreas": str(root / "none")}
        with running_service(root, models, min_replicas=2, max_replicas=2) as service:
            rows += trials(service, body, sizes)
            rows.append(malformed(service, sizes["broken"]))
        with running_service(root, models, min_replicas=1, max_replicas=1) as service:
            rows.append(soak(service, body, sizes["soak"]))
    summary = {"rows": rows, "cores": os.cpu_count(), "commit": source_commit()}
    (out / "trials.json").write_text(json.dumps(summary, indent=1) + "\n")
    if options.json:
        sys.stdout.write(json.dumps(summary) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
