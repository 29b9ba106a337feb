"""A load generator in a process of its own: threads that keep their connections and count.

`python -m medray.engine.bench_load` reads a `Load` as JSON from stdin and writes a `Loaded` to
stdout, so that the requests' own cost is not that of whoever measures.
"""

import http.client
import itertools
import json
import secrets
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

_TIMEOUT_S = 300.0
_OK = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is asked, and how often.

    Attributes:
        url: of the POST.
        file: path of the file that every request sends.
        accept: media type of the answer; empty: whatever is the default.
        clients: threads, each with one connection.
        requests: of all clients together.
        seconds: after this long no further request begins; 0: no limit.
    """

    url: str
    file: str
    accept: str = ""
    clients: int
    requests: int
    seconds: float = 0.0


@dataclass(slots=True)
class Loaded:
    """What came back.

    Attributes:
        latencies_s: of the answers of status 200, in no order.
        wall_s: from the first request to the last answer.
        statuses: status to number; `error` where a connection broke.
    """

    latencies_s: list[float] = field(default_factory=list)
    wall_s: float = 0.0
    statuses: dict[str, int] = field(default_factory=dict)

    @property
    def failed(self) -> int:
        """Number of requests without a result."""
        return sum(n for status, n in self.statuses.items() if status != str(_OK))

    @property
    def per_s(self) -> float:
        """Results a second."""
        return len(self.latencies_s) / self.wall_s if self.wall_s else 0.0

    def quantile_s(self, share: float) -> float:
        """Return the latency that this share of the answers stayed within."""
        ordered = sorted(self.latencies_s)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    @property
    def median_s(self) -> float:
        """Median latency."""
        return statistics.median(self.latencies_s)

    def add(self, other: "Loaded") -> None:
        """Take another run of the same load in."""
        self.latencies_s += other.latencies_s
        self.wall_s += other.wall_s
        self.statuses = dict(Counter(self.statuses) + Counter(other.statuses))


def generate(load: Load) -> Loaded:
    """Send a load from this process."""
    kind, body = _form(Path(load.file))
    numbers = itertools.count()
    found: list[tuple[float, str]] = []
    ready = threading.Barrier(load.clients + 1)
    end = time.monotonic() + load.seconds if load.seconds else float("inf")
    turn = _Turn(load, numbers, end)
    arguments = (turn, kind, body, ready, found)
    threads = [threading.Thread(target=_client, args=arguments) for _ in range(load.clients)]
    for thread in threads:
        thread.start()
    ready.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    wall_s = time.perf_counter() - began
    return Loaded(
        latencies_s=[seconds for seconds, status in found if status == str(_OK)],
        wall_s=wall_s,
        statuses=dict(Counter(status for _, status in found)),
    )


@dataclass(frozen=True, slots=True)
class _Turn:
    """Whose requests they are, and which number comes next."""

    load: Load
    numbers: "itertools.count[int]"
    end: float

    def is_on(self) -> bool:
        return next(self.numbers) < self.load.requests and time.monotonic() < self.end


def _client(
    turn: _Turn,
    kind: str,
    body: bytes,
    ready: threading.Barrier,
    found: list[tuple[float, str]],
) -> None:
    load = turn.load
    parts = urlsplit(load.url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=_TIMEOUT_S)
    connection.connect()
    headers = {"Content-Type": kind, **({"Accept": load.accept} if load.accept else {})}
    ready.wait()
    while turn.is_on():
        began = time.perf_counter()
        try:
            connection.request("POST", parts.path, body, headers)
            answer = connection.getresponse()
            answer.read()
            status = str(answer.status)
        except (OSError, http.client.HTTPException):
            status = "error"
            connection.close()
        found.append((time.perf_counter() - began, status))
    connection.close()


def _form(file: Path) -> tuple[str, bytes]:
    """Return the content type and the body of a form with one file."""
    boundary = secrets.token_hex(16)
    head = (
        f"--{boundary}\r\n"
        f'Content-Disposition: form-data; name="file"; filename="input{file.suffix}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    )
    body = head.encode() + file.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
    return f"multipart/form-data; boundary={boundary}", body


def loaded(load: Load) -> Loaded:
    """Send a load from a process of its own and wait for its end."""
    with loading(load) as process:
        return result_of(process)


def loading(load: Load) -> "subprocess.Popen[str]":
    """Start sending a load; `result_of` waits for its end."""
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(asdict(load)))
    process.stdin.close()
    return process


def result_of(process: "subprocess.Popen[str]") -> Loaded:
    """Wait for a load that `loading` started.

    Raises:
        RuntimeError: not one request got a result.
    """
    assert process.stdout is not None
    text = process.stdout.read()
    if process.wait():
        raise RuntimeError("the load generator failed")
    found = Loaded(**json.loads(text))
    if not found.latencies_s:
        raise RuntimeError(f"no request got a result: {found.statuses}")
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asdict(generate(Load(**json.load(sys.stdin))))))
