"""The outermost layer, driven by hand: who comes in, how much is read, what goes out."""

import asyncio
import json
import logging
import random
from datetime import UTC, datetime

import pytest

from medray.errors import REASONS, DataError
from medray.service import problems
from medray.service.body import BodyGate
from medray.service.guard import Guard, GuardOptions
from medray.service.keys import make_key, parse_keys
from medray.service.problems import HTTP_REASONS, STATUS, ProblemError
from medray.service.throttle import BadTries, address_of
from tests.unit.asgi_client import Client, Reply, body_of, call, scope_of

NOW = datetime(2026, 3, 1, tzinfo=UTC)
KEY = make_key(NOW, key_id="one")
OLD = make_key(NOW, key_id="old")
RING = parse_keys(f"{KEY.line}\n{OLD.line}:2026-02-28")
WITH_KEY = [(b"X-API-Key", KEY.key.encode())]
MIB = 1 << 20


class App:
    """Reads the whole body and answers with its size; keeps the scope that it got."""

    def __init__(self, status=200, headers=((b"content-type", b"application/json"),), error=None):
        self.status, self.headers, self.error = status, headers, error
        self.scope, self.num_bytes, self.messages = None, 0, []

    async def __call__(self, scope, receive, send):
        self.scope = scope
        while True:
            message = await receive()
            self.messages.append(message)
            self.num_bytes += len(message.get("body", b""))
            if not message.get("more_body"):
                break
        if self.error is not None:
            raise self.error
        body = json.dumps({"bytes": self.num_bytes}).encode()
        start = {"type": "http.response.start", "status": self.status}
        await send({**start, "headers": list(self.headers)})
        await send({"type": "http.response.body", "body": body})


def guard_of(app=None, *, clock=lambda: 0.0, **options):
    return Guard(
        app or App(), keys=lambda: RING, options=GuardOptions(**options), clock=clock,
        now=lambda: NOW,
    )  # fmt: skip


def length(value):
    return (b"content-length", str(value).encode())


# --- keys


@pytest.mark.parametrize(
    ("headers", "status", "reason"),
    [
        ([], 401, "auth_missing"),
        ([(b"x-api-key", b"")], 401, "auth_missing"),
        ([(b"x-api-key", b"medray_one_no")], 403, "auth_wrong"),
        ([(b"x-api-key", b"\xff" * 900)], 403, "auth_wrong"),
        ([(b"x-api-key", KEY.key.encode())] * 2, 403, "auth_wrong"),
        ([(b"x-api-key", OLD.key.encode())], 403, "auth_expired"),
        ([(b"authorization", b"Bearer " + KEY.key.encode())], 401, "auth_missing"),
    ],
)
def test_without_a_valid_key_nothing_is_reached(headers, status, reason):
    app = App()
    reply = call(guard_of(app), scope_of(headers=headers))
    assert (reply.status, reply.reason, app.scope) == (status, reason, None)
    assert reply.headers[b"connection"] == b"close"
    assert (b"www-authenticate" in reply.headers) == (status == 401)
    assert KEY.key.encode() not in reply.body


def test_a_valid_key_comes_in_and_does_not_go_on():
    app = App()
    headers = [*WITH_KEY, (b"accept", b"*/*"), (b"x-request-id", b"abc-1")]
    reply = call(guard_of(app), scope_of(headers=headers))
    assert (reply.status, json.loads(reply.body)) == (200, {"bytes": 0})
    assert app.scope["state"] == {"request_id": "abc-1", "key_id": "one"}
    assert app.scope["headers"] == [(b"accept", b"*/*"), (b"x-request-id", b"abc-1")]
    assert KEY.key not in repr(app.scope)
    assert b"connection" not in reply.headers


PUBLIC = ["/", "/health/live", "/health/ready", "/docs", "/openapi.json", "/page/a.js",
          "/page/img/b_1.svg"]  # fmt: skip
PRIVATE = ["/v1/models", "/predict", "/page", "/page/", "/page/../v1/models", "/page/.git",
           "/page//a.js", "/page/a.js/../../v1", "/page/a%2e", "/docs/", "/DOCS", "/health", "//",
           "/health/live/", "/health/ready\n", "", "/openapi.json?x", "/page/a\x00",
           "*"]  # fmt: skip


@pytest.mark.parametrize("path", PUBLIC)
def test_public_paths_need_no_key_for_reading_only(path):
    for method in ("GET", "HEAD"):
        reply = call(guard_of(), scope_of(method, path))
        assert reply.status == 200
        assert (reply.body == b"") == (method == "HEAD")
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "get"):
        assert call(guard_of(), scope_of(method, path)).reason == "auth_missing"


@pytest.mark.parametrize("path", PRIVATE)
def test_everything_else_is_closed(path):
    for method in ("GET", "HEAD", "POST", "OPTIONS", "TRACE"):
        app = App()
        assert call(guard_of(app), scope_of(method, path)).status == 401
        assert app.scope is None


def test_a_mount_point_cannot_make_a_route_public():
    scope = {**scope_of(path="/page/v1/models"), "root_path": "/page"}
    assert call(guard_of(), scope).status == 401
    assert call(guard_of(), {**scope_of(path="/api/docs"), "root_path": "/api"}).status == 200


def test_hostile_hosts_change_nothing():
    rng = random.Random(0)
    hosts = [b"localhost/docs?", b"/docs", b"a/health/live#", b"x\x00", b"[::1", b"", b"\xff" * 300]
    hosts += [bytes(rng.randrange(256) for _ in range(rng.randrange(60))) for _ in range(93)]
    for host in hosts:
        extra = [(b"host", host), (b"x-forwarded-host", host), (b"x-original-url", b"/docs")]
        assert call(guard_of(), scope_of(headers=extra)).status == 401
        assert call(guard_of(), scope_of(headers=[*extra, *WITH_KEY])).status == 200


def test_the_query_key_opens_one_route_by_one_switch():
    query = b"api-key=" + KEY.key.encode()
    post = scope_of("POST", "/predict", query=query + b"&x=1&y=%C3%A4")
    app = App()
    assert call(guard_of(app, allow_query_key=True), post).status == 200
    assert app.scope["query_string"] == b"x=1&y=%C3%A4"
    encoded = scope_of("POST", "/predict", query=query.replace(b"api-key", b"api%2Dkey"))
    assert call(guard_of(app, allow_query_key=True), encoded).status == 200
    assert app.scope["query_string"] == b""
    assert call(guard_of(), post).reason == "auth_missing"
    for scope in (
        scope_of("GET", "/predict", query=query),
        scope_of("POST", "/v1/jobs", query=query),
    ):
        assert call(guard_of(allow_query_key=True), scope).reason == "auth_missing"
    wrong = scope_of("POST", "/predict", query=b"api-key=a&api-key=b")
    assert call(guard_of(allow_query_key=True), wrong).reason == "auth_wrong"
    long = scope_of("POST", "/predict", query=query + b"&x=" + b"y" * 9000)
    assert call(guard_of(allow_query_key=True), long).reason == "auth_missing"
    headed = {**long, "headers": WITH_KEY}
    assert call(guard_of(allow_query_key=True), headed).reason == "request_malformed"


def test_no_auth_lets_all_pass():
    app = App()
    reply = call(Guard(app, keys=None, options=GuardOptions(no_auth=True)), scope_of())
    assert (reply.status, app.scope["state"]["key_id"]) == (200, "")
    with pytest.raises(ValueError, match="a guard needs keys unless no_auth is set"):
        Guard(app, keys=None, options=GuardOptions())


# --- wrong keys


def test_ten_bad_tries_a_minute_and_a_valid_key_still_passes():
    now = [0.0]
    guard = guard_of(clock=lambda: now[0])
    bad = [(b"x-api-key", b"guess")]
    for number in range(10):
        now[0] = number
        assert call(guard, scope_of(headers=bad)).reason == "auth_wrong"
    now[0] = 20.5
    reply = call(guard, scope_of(headers=bad))
    assert (reply.status, reply.reason) == (429, "auth_throttled")
    assert reply.headers[b"retry-after"] == b"40"
    assert call(guard, scope_of(headers=WITH_KEY)).status == 200
    assert call(guard, scope_of(headers=[])).reason == "auth_missing"
    assert call(guard, scope_of(headers=bad, client=("10.0.0.2", 1))).reason == "auth_wrong"
    now[0] = 60.0  # the first try is a minute old
    assert call(guard, scope_of(headers=bad)).reason == "auth_wrong"
    assert call(guard, scope_of(headers=bad)).reason == "auth_throttled"


def test_memory_of_tries_is_bounded():
    tries = BadTries(limit=3, max_addresses=100)
    for number in range(1000):
        for _ in range(5):
            tries.count(str(number), 0.0)
    assert len(tries) == 100
    assert tries.wait_s("999", 1.0) == 59.0
    assert tries.wait_s("0", 1.0) == 0.0
    assert tries.wait_s("999", 60.0) == 0.0
    assert len(tries) == 99


@pytest.mark.parametrize(
    ("client", "address"),
    [
        (("10.1.2.3", 4), "10.1.2.3"),
        (("2001:db8:1:2:3:4:5:6", 4), "2001:db8:1:2::/64"),
        (["2001:db8:1:2::9", 4], "2001:db8:1:2::/64"),
        (("::ffff:10.1.2.3", 4), "10.1.2.3"),
        (("fe80::1%eth0", 4), "fe80::/64"),
        (None, "unknown"),
        (("unix", 0), "unknown"),
    ],
)
def test_addresses_are_counted_by_host_or_network(client, address):
    assert address_of(client) == address


# --- bodies


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("headers", [[], [(b"x-api-key", b"wrong")]])
def test_half_a_gigabyte_without_a_key_costs_no_64_kib(declared, headers):
    piece = b"\0" * 65536
    client = Client(piece for _ in range(8192))
    sized = length(512 * MIB) if declared else (b"transfer-encoding", b"chunked")
    app = App()
    reply = call(guard_of(app), scope_of("POST", "/predict", [*headers, sized]), client)
    assert reply.status in {401, 403}
    assert reply.headers[b"connection"] == b"close"
    assert client.num_bytes <= 65536
    assert app.scope is None


def test_a_short_body_without_a_key_is_read_so_that_the_answer_arrives():
    client = Client(body_of(b"x" * 60000, size=4096))
    headers = [length(60000)]
    assert call(guard_of(), scope_of("POST", "/predict", headers), client).status == 401
    assert client.num_bytes == 60000
    liar = Client(b"y" * 1000 for _ in range(10000))
    assert call(guard_of(), scope_of("POST", "/predict", headers), liar).status == 401
    assert liar.num_bytes <= 65536


def test_a_public_route_takes_no_long_body():
    client = Client(b"\0" * 4096 for _ in range(100000))
    reply = call(guard_of(), scope_of("GET", "/docs", [length(MIB)]), client)
    assert (reply.reason, client.num_calls) == ("too_large", 0)
    reply = call(guard_of(), scope_of("GET", "/docs", [(b"transfer-encoding", b"chunked")]), client)
    assert reply.reason == "too_large"
    assert client.num_bytes <= 65536 + 4096


def test_a_declared_size_over_the_limit_is_refused_unread():
    client, app = Client([b"x"]), App()
    guard = guard_of(app, max_body_bytes=1000)
    reply = call(guard, scope_of("POST", "/p", [*WITH_KEY, length(1001)]), client)
    assert (reply.status, reply.reason) == (413, "too_large")
    assert (client.num_calls, app.scope) == (0, None)
    assert reply.headers[b"connection"] == b"close"


def test_a_chunked_body_ends_at_the_first_byte_over():
    chunked = [*WITH_KEY, (b"transfer-encoding", b"chunked")]
    for size, status in ((1000, 200), (1001, 413)):
        client = Client([b"x" * 500, b"x" * (size - 500), *[b"y" * 100] * 50])
        if size == 1000:
            client = Client([b"x" * 500, b"x" * 500])
        reply = call(guard_of(max_body_bytes=1000), scope_of("POST", "/p", chunked), client)
        assert reply.status == status
        assert client.num_bytes == size
    assert reply.reason == "too_large"
    # HTTP/2 needs neither header.
    client = Client([b"x" * 1001])
    assert (
        call(guard_of(max_body_bytes=1000), scope_of("POST", "/p", WITH_KEY), client).status == 413
    )


def test_an_application_that_catches_everything_still_ends_with_413():
    async def app(scope, receive, send):
        try:
            while (await receive()).get("more_body"):
                pass
        except Exception:  # noqa: BLE001
            headers = [(b"content-type", b"application/json")]
            await send({"type": "http.response.start", "status": 400, "headers": headers})
            await send({"type": "http.response.body", "body": b'{"detail": "body"}'})

    client = Client([b"x" * 2000])
    reply = call(guard_of(app, max_body_bytes=1000), scope_of("POST", "/p", WITH_KEY), client)
    assert reply.reason == "too_large"


@pytest.mark.parametrize(
    "headers",
    [
        [length("-1")], [length("+5")], [length("5a")], [length("")], [length("0x10")],
        [length("1_0")], [length("5, 5")], [length("5"), length("5")], [length("5"), length("6")],
        [length("9" * 19)], [length("9" * 5000)], [length("5.0")],
        [(b"content-length", "٣".encode())],
        [length("5"), (b"Transfer-Encoding", b"chunked")],
    ],
)  # fmt: skip
def test_a_length_with_two_readings_is_refused(headers):
    client, app = Client([b"12345"]), App()
    reply = call(guard_of(app), scope_of("POST", "/p", [*WITH_KEY, *headers]), client)
    assert (reply.status, reply.reason) == (400, "request_malformed")
    assert (client.num_calls, app.scope) == (0, None)
    without = call(guard_of(app), scope_of("POST", "/p", headers), client)
    assert (without.status, client.num_calls) == (401, 0)


def test_a_slow_client_gets_408():
    client = Client([b"x"], hang=True)
    headers = [*WITH_KEY, length(1000)]
    reply = call(guard_of(idle_s=0.02), scope_of("POST", "/p", headers), client)
    assert (reply.status, reply.reason) == (408, "request_timeout")
    assert reply.headers[b"connection"] == b"close"


def test_a_body_that_trickles_gets_408_in_the_end():
    class Trickle(Client):
        async def receive(self):
            await asyncio.sleep(0.005)
            return await super().receive()

    client = Trickle(b"x" for _ in range(10**6))
    guard = guard_of(idle_s=1.0, body_s=0.05)
    assert call(guard, scope_of("POST", "/p", [*WITH_KEY, length(10**6)]), client).status == 408
    assert 1 <= client.num_bytes <= 12


def test_time_runs_for_the_body_only():
    async def run():
        async def receive():
            await asyncio.sleep(0.05 if gate.complete else 0)
            return {"type": "http.request", "body": b"x", "more_body": False}

        gate = BodyGate(receive, limit_bytes=10, idle_s=0.01, total_s=0.01)
        await gate()
        assert gate.complete
        return await gate()

    assert asyncio.run(run())["body"] == b"x"


def test_a_client_that_vanishes_ends_the_application(caplog):
    class Left(Exception):
        pass

    ended = []

    async def app(scope, receive, send):
        try:
            while (message := await receive())["type"] == "http.request":
                assert message["more_body"]
            raise Left
        finally:
            ended.append(True)

    client = Client([b"x" * 10], gone=True)
    with caplog.at_level(logging.INFO):
        reply = call(guard_of(app), scope_of("POST", "/p", [*WITH_KEY, length(1000)]), client)
    assert (reply.sent, ended) == ([], [True])
    assert [r.levelname for r in caplog.records] == ["INFO"]


# --- answers


def test_the_request_id_is_echoed_or_made():
    for path, headers in (("/docs", []), ("/v1", WITH_KEY), ("/v1", [])):
        given = [*headers, (b"X-Request-ID", b"a.B_9-z")]
        assert (
            call(guard_of(), scope_of(path=path, headers=given)).headers[b"x-request-id"]
            == b"a.B_9-z"
        )
    for bad in (b"", b"a b", b"x" * 65, b"a\r\nset-cookie: b", b"-a", b"\xc3\xa4", b"a/b"):
        reply = call(guard_of(), scope_of(headers=[(b"x-request-id", bad)]))
        made = reply.headers[b"x-request-id"]
        assert len(made) == 32
        assert reply.problem["request_id"] == made.decode()
    twice = [(b"x-request-id", b"a"), (b"x-request-id", b"b")]
    assert len(call(guard_of(), scope_of(headers=twice)).headers[b"x-request-id"]) == 32


def test_security_headers():
    html = App(headers=[(b"content-type", b"text/html; charset=utf-8")])
    page = call(guard_of(html), scope_of(path="/")).headers
    policy = page[b"content-security-policy"].decode()
    assert "default-src 'self'" in policy
    assert "img-src 'self' blob: data:" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert page[b"cache-control"] == b"no-cache"
    own = App(headers=[(b"Cache-Control", b"max-age=60"), (b"X-Content-Type-Options", b"none")])
    answer = call(guard_of(own), scope_of(path="/page/a.js"))
    assert answer.headers[b"cache-control"] == b"max-age=60"
    api = call(guard_of(own), scope_of(headers=WITH_KEY))
    assert api.headers[b"cache-control"] == b"no-store"
    for reply in (answer, api, call(guard_of(), scope_of())):
        assert reply.headers[b"x-content-type-options"] == b"nosniff"
        assert reply.headers[b"referrer-policy"] == b"no-referrer"
        assert len(reply.headers) == len(reply.raw_headers)


def test_head_is_get_without_a_body():
    app = App(headers=[(b"content-length", b"12")])
    reply = call(guard_of(app), scope_of("HEAD", headers=WITH_KEY))
    assert (reply.status, reply.body, reply.headers[b"content-length"]) == (200, b"", b"12")
    assert app.scope["method"] == "GET"
    denied = call(guard_of(), scope_of("HEAD"))
    assert (denied.status, denied.body) == (401, b"")
    assert int(denied.headers[b"content-length"]) > 0


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (RuntimeError("Jane^Doe"), 500, "internal_error"),
        (DataError("truncated", "the file ends early"), 422, "truncated"),
        (DataError("too_large", "it unpacks to too much"), 413, "too_large"),
        (ProblemError("queue_full", retry_after_s=2.1), 429, "queue_full"),
        (ProblemError("model_unknown"), 404, "model_unknown"),
    ],
)
def test_what_the_application_raises_becomes_a_problem(error, status, reason, caplog):
    reply = call(guard_of(App(error=error)), scope_of(headers=WITH_KEY))
    assert (reply.status, reply.reason) == (status, reason)
    assert set(reply.problem) == {"type", "title", "status", "detail", "reason", "request_id"}
    assert "Jane" not in reply.body.decode() + caplog.text
    assert ("RuntimeError in __call__, line" in caplog.text) == (status == 500)
    assert reply.headers.get(b"retry-after") == (b"3" if status == 429 else None)
    assert b"connection" not in reply.headers


def test_an_error_that_a_framework_answers_and_raises_keeps_its_reason():
    """Starlette's outer layer sends `Internal Server Error` and raises what it caught again."""

    async def app(scope, receive, send):
        await send(
            {
                "type": "http.response.start",
                "status": 500,
                "headers": [(b"content-type", b"text/plain")],
            }
        )
        await send({"type": "http.response.body", "body": b"Internal Server Error"})
        wrapped = RuntimeError("in a task")
        wrapped.cause = DataError("no_pixels", "the object has no pixels")
        raise wrapped

    reply = call(guard_of(app), scope_of(headers=WITH_KEY))
    assert (reply.status, reply.reason) == (422, "no_pixels")


@pytest.mark.parametrize(
    ("status", "reason"),
    [(404, "route_unknown"), (405, "method_not_allowed"), (422, "request_invalid"),
     (400, "request_malformed"), (500, "internal_error"), (503, "unavailable"),
     (418, "request_malformed"), (502, "internal_error")],
)  # fmt: skip
def test_errors_of_a_framework_get_the_one_shape_and_lose_their_text(status, reason):
    app = App(status, [(b"content-type", b"application/json"), (b"Allow", b"GET")])
    reply = call(guard_of(app), scope_of(headers=WITH_KEY))
    assert (reply.status, reply.reason) == (STATUS[reason], reason)
    assert reply.headers[b"allow"] == b"GET"
    assert b"bytes" not in reply.body


def test_health_and_own_problems_pass_as_they_are():
    for path, kind in (
        ("/health/ready", b"application/json"),
        ("/v1", b"application/problem+json"),
    ):
        app = App(503, [(b"content-type", kind)])
        reply = call(guard_of(app), scope_of(path=path, headers=WITH_KEY))
        assert (reply.status, reply.body) == (503, b'{"bytes": 0}')


def test_an_error_after_the_head_of_an_answer_sends_no_second_one(caplog):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("Jane^Doe")

    reply = call(guard_of(app), scope_of(headers=WITH_KEY))
    assert (reply.status, len(reply.sent)) == (200, 1)
    assert "Jane" not in caplog.text

    async def silent(scope, receive, send):
        pass

    assert call(guard_of(silent), scope_of(headers=WITH_KEY)).reason == "internal_error"


def test_websockets_are_refused_and_lifespan_passes():
    reply = call(guard_of(), {**scope_of(headers=WITH_KEY), "type": "websocket"})
    assert reply.sent == [{"type": "websocket.close", "code": 1008}]
    seen = []

    async def app(scope, receive, send):
        seen.append(scope["type"])

    assert call(guard_of(app), {"type": "lifespan"}).sent == []
    call(guard_of(app), {"type": "tunnel"})
    assert seen == ["lifespan"]
    assert isinstance(reply, Reply)


# --- problems


def test_every_reason_has_a_status_and_two_sentences():
    assert set(STATUS) == set(REASONS) | set(HTTP_REASONS)
    assert not set(REASONS) & set(HTTP_REASONS)
    expected = {
        "auth_missing": 401, "auth_wrong": 403, "auth_expired": 403, "model_unknown": 404,
        "too_large": 413, "unsupported_type": 415, "uri_not_allowed": 403, "queue_full": 429,
        "model_missing": 503, "several_series": 409, "not_acceptable": 406, "route_unknown": 404,
        "job_unknown": 404, "request_timeout": 408, "auth_throttled": 429,
        "method_not_allowed": 405, "truncated": 422, "out_of_distribution": 422,
    }  # fmt: skip
    assert {reason: STATUS[reason] for reason in expected} == expected
    for entry in HTTP_REASONS.values():
        assert entry.meaning.endswith(".")
        assert entry.mend.endswith(".")
    for reason, status in STATUS.items():
        answered, headers, body = problems.render(ProblemError(reason), "id-1")
        found = json.loads(body)
        assert (answered, found["status"], found["reason"]) == (status, status, reason)
        assert found["detail"].count("..") == 0
        assert (b"retry-after" in dict(headers)) == (status in {429, 503})


def test_a_problem_travels_between_processes():
    import pickle

    problem = ProblemError(
        "method_not_allowed", "so", retry_after_s=2, headers=((b"allow", b"GET"),)
    )
    again = pickle.loads(pickle.dumps(problem))
    assert (again.reason, again.detail, again.retry_after_s, again.headers) == (
        "method_not_allowed", "so", 2, ((b"allow", b"GET"),)
    )  # fmt: skip
    with pytest.raises(ValueError, match="reason must be one of STATUS, got 'none'"):
        ProblemError("none")


def test_limits_must_be_positive():
    with pytest.raises(ValueError, match="limits of the guard must be positive"):
        GuardOptions(max_body_bytes=0)
