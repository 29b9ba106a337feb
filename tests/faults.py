"""An S3 server in this process, and a proxy that breaks a seeded share of the calls to it."""

import hashlib
import http.client
import logging
import socket
import threading
import time
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

SLOW_DOWN, RESET, TRUNCATED, FLIPPED, SLOW = "slow_down", "reset", "truncated", "flipped", "slow"
ALL_FAULTS = (SLOW_DOWN, RESET, TRUNCATED, FLIPPED, SLOW)

_SLOW_DOWN_BODY = (
    b'<?xml version="1.0"?><Error><Code>SlowDown</Code><Message>Reduce rate</Message></Error>'
)
_SLOW_PIECES, _SLOW_PAUSE_S = 4, 0.02
_HOP_HEADERS = {"connection", "transfer-encoding", "keep-alive", "content-length", "expect"}


class FaultProxy:
    """Forwards HTTP to `host:port`; whether and how a call breaks depends on the seed alone.

    The nth call of one kind to one path always meets the same fault, whatever threads do.
    `log` holds (operation, path, fault or None) of every call; operations are GET, PUT, LIST, ...
    """

    def __init__(self, host, port, *, rate=0.3, seed=0, faults=ALL_FAULTS,
                 operations=("GET", "PUT", "LIST")):  # fmt: skip
        self.target = (host, port)
        self.rate, self.seed, self.faults, self.operations = rate, seed, faults, operations
        self.log = []
        self._counts = Counter()
        self._lock = threading.Lock()
        self._local = threading.local()
        proxy = self

        class Handler(_Handler):
            owner = proxy

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def calls(self, operation, *, fault=...):
        """Count calls by path; `fault` picks those that met it (None: those that went well)."""
        with self._lock:
            return Counter(
                path for op, path, met in self.log if op == operation and fault in (..., met)
            )

    def fault_counts(self):
        with self._lock:
            return Counter(met for _, _, met in self.log)

    def draw(self, operation, path):
        with self._lock:
            self._counts[operation, path] += 1
            nth = self._counts[operation, path]
            text = f"{self.seed}|{operation}|{path}|{nth}".encode()
            number = int.from_bytes(hashlib.sha256(text).digest()[:8], "big")
            fault = None
            if operation in self.operations and number % 10_000 < self.rate * 10_000:
                fault = self.faults[number // 10_000 % len(self.faults)]
                number //= 10_000 * len(self.faults)
            self.log.append((operation, path, fault))
            return fault, number

    def forward(self, method, path, headers, body):
        for attempt in (1, 2):
            link = getattr(self._local, "link", None)
            if link is None:
                link = self._local.link = http.client.HTTPConnection(*self.target, timeout=30)
            try:
                link.request(method, path, body=body, headers=headers)
                answer = link.getresponse()
                return answer.status, answer.getheaders(), answer.read()
            except (http.client.HTTPException, OSError):
                link.close()
                self._local.link = None
                if attempt == 2:
                    raise
        raise AssertionError


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner = None

    def setup(self):
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def log_message(self, *_):
        pass

    def _serve(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        url = urlsplit(self.path)
        is_list = self.command == "GET" and "list-type" in parse_qs(url.query)
        operation = "LIST" if is_list else self.command
        fault, number = self.owner.draw(operation, self.path if is_list else url.path)
        if fault == SLOW_DOWN:
            self._answer(503, [("Content-Type", "application/xml")], _SLOW_DOWN_BODY)
            return
        if self.command == "PUT":
            if fault == RESET and number & 1:
                self._hang_up()
                return
            body = _broken(body, fault, number)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP_HEADERS}
        status, answer_headers, answer = self.owner.forward(self.command, self.path, headers, body)
        if fault == RESET and self.command == "PUT":
            self._hang_up()  # done, but the client never hears of it
        elif fault == RESET:
            self._answer(status, answer_headers, answer, cut=True)
        elif self.command in ("PUT", "HEAD", "DELETE"):
            self._answer(status, answer_headers, answer)
        else:
            self._answer(
                status, answer_headers, _broken(answer, fault, number), pause=fault == SLOW
            )

    def _answer(self, status, headers, body, *, cut=False, pause=False):
        self.send_response_only(status)
        length = str(len(body))
        for name, value in headers:
            if name.lower() == "content-length" and self.command == "HEAD":
                length = value
            if name.lower() not in _HOP_HEADERS:
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        if cut:
            self.wfile.write(body[: len(body) // 2])
            self._hang_up()
        elif pause:
            step = max(1, -(-len(body) // _SLOW_PIECES))
            for start in range(0, len(body), step):
                self.wfile.write(body[start : start + step])
                self.wfile.flush()
                time.sleep(_SLOW_PAUSE_S)
        elif self.command != "HEAD":
            self.wfile.write(body)

    def _hang_up(self):
        self.close_connection = True
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve


def _broken(body, fault, number):
    if fault == TRUNCATED:
        return body[: len(body) // 2]
    if fault == FLIPPED and body:
        place = number % len(body)
        return body[:place] + bytes([body[place] ^ 1 << number % 8]) + body[place + 1 :]
    return body


@contextmanager
def s3_server():
    """Run a threaded S3 server on loopback and yield (host, port)."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        yield server.get_host_and_port()
    finally:
        server.stop()


def set_s3_environment(monkeypatch, url):
    """Point every S3 client of this process at `url`, with credentials for nothing."""
    for name, value in {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    }.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)


def fill_bucket(bucket, objects):
    """Put objects {key: bytes} into the server of this process, without HTTP."""
    from moto.core import DEFAULT_ACCOUNT_ID
    from moto.s3.models import s3_backends

    backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
    if bucket not in backend.buckets:
        backend.create_bucket(bucket, "us-east-1")
    for key, body in objects.items():
        backend.put_object(bucket, key, body)


def stored_object(bucket, key):
    """Return the bytes that the server holds, without HTTP; None where there are none."""
    from moto.core import DEFAULT_ACCOUNT_ID
    from moto.s3.models import s3_backends

    found = s3_backends[DEFAULT_ACCOUNT_ID]["aws"].get_object(bucket, key)
    return None if found is None else found.value
