"""The outermost layer of the service: who may come in, how much they may send, what goes out.

Pure ASGI: it decides on the raw scope before a byte of the body is read, never on an address that
was put together from the Host header.
"""

import logging
import re
import time
import traceback
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl, urlencode

from medray.service.answer import Answer, is_static
from medray.service.body import BodyGate, Receive, Send, declared_length, drain
from medray.service.keys import KeyRing
from medray.service.problems import ProblemError, problem_of
from medray.service.throttle import BadTries, address_of

Scope = MutableMapping[str, Any]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

# What is read at most of a client without a key, so that it still gets its answer.
KEYLESS_BYTES = 64 << 10
_DRAIN_S = 2.0
_KEY_HEADER = b"x-api-key"
_QUERY_KEY = "api-key"
_REQUEST_ID = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._\-]{0,63}")
_MAX_QUERY_BYTES = 8192
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class GuardOptions:
    """Limits and switches.

    Attributes:
        max_body_bytes: of one request.
        idle_s: longest pause within a body.
        body_s: longest time for a whole body.
        no_auth: nobody needs a key; the caller binds loopback only.
        allow_query_key: `POST /predict?api-key=` is taken, as the original service did.
        bad_tries, bad_tries_window_s: wrong keys that an address may try.
        forwards_key: another guard stands behind this one and asks for the key again.
    """

    max_body_bytes: int = 1 << 30
    idle_s: float = 30.0
    body_s: float = 300.0
    no_auth: bool = False
    allow_query_key: bool = False
    bad_tries: int = 10
    bad_tries_window_s: float = 60.0
    forwards_key: bool = False

    def __post_init__(self) -> None:
        if min(self.max_body_bytes, self.idle_s, self.body_s, self.bad_tries) <= 0:
            raise ValueError("limits of the guard must be positive")


class Guard:
    """ASGI middleware around the whole application; also fits Starlette's `add_middleware`.

    The application inside finds `request_id` and `key_id` in `scope["state"]`; the key itself
    does not come in. It gets HEAD as GET, and the body is left out on the way back. Whatever it
    raises or answers with a status of 400 and more (but health) leaves as a problem.

    Args:
        app: the application.
        keys: gives the keys that are valid now.
        options: limits and switches.
        clock: seconds that only grow, for the counting of bad tries.
        now: the time of day, for the expiry of keys.
    """

    def __init__(
        self,
        app: App,
        *,
        keys: Callable[[], KeyRing] | None,
        options: GuardOptions,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        if keys is None and not options.no_auth:
            raise ValueError("a guard needs keys unless no_auth is set")
        self._app = app
        self._keys = keys
        self._options = options
        self._clock = clock
        self._now = now
        self._tries = BadTries(options.bad_tries, options.bad_tries_window_s)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})  # before accept: 403
        elif scope["type"] == "http":
            await self._http(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, method = route_path(scope), str(scope["method"])
        answer = Answer(send, request_id=_request_id(scope), path=path, head=method == "HEAD")
        public = method in {"GET", "HEAD"} and is_public(path)
        try:
            key_id = "" if public else self._admit(scope, method, path)
        except ProblemError as problem:
            await self._deny(scope, receive, answer, problem)
            return
        limit = KEYLESS_BYTES if public else self._options.max_body_bytes
        try:
            length = declared_length(scope["headers"])
            if length is not None and length > limit:
                raise ProblemError("too_large", "the body is larger than this service takes")
            if len(scope.get("query_string", b"")) > _MAX_QUERY_BYTES:
                raise ProblemError("request_malformed", "the query is too long")
        except ProblemError as problem:
            await answer.refuse(problem, close=True)
            return
        gate = BodyGate(
            receive, limit_bytes=limit, idle_s=self._options.idle_s, total_s=self._options.body_s
        )
        inner = _inner_scope(scope, answer.request_id, key_id, with_key=self._options.forwards_key)
        ending = await self._run(inner, gate, answer)
        if not gate.gone or answer.started:
            unread = not gate.complete and (bool(length) or _is_chunked(scope))
            await answer.finish(ending, close=unread)
        else:
            _LOG.info("request %s: the client went away", answer.request_id)

    def _admit(self, scope: Scope, method: str, path: str) -> str:
        """Return the id of the client's key.

        Raises:
            ProblemError: auth_missing, auth_wrong, auth_expired or auth_throttled.
        """
        if self._options.no_auth or self._keys is None:
            return ""
        value = _header_key(scope)
        if (
            value is None
            and self._options.allow_query_key
            and (method, path) == ("POST", "/predict")
        ):
            value = _query_key(scope)
        verdict = self._keys().check(value, self._now())
        if verdict.key_id:
            return verdict.key_id
        if verdict.reason == "auth_missing":
            raise ProblemError("auth_missing")
        address, now_s = address_of(scope.get("client")), self._clock()
        wait_s = self._tries.wait_s(address, now_s)
        if wait_s > 0:
            raise ProblemError("auth_throttled", retry_after_s=wait_s)
        self._tries.count(address, now_s)
        raise ProblemError(verdict.reason)

    async def _deny(
        self, scope: Scope, receive: Receive, answer: Answer, problem: ProblemError
    ) -> None:
        """Answer a client without a key; a long body, or one of unknown length, is not read."""
        try:
            length = declared_length(scope["headers"]) or 0
        except ProblemError:
            length = 0
        if length <= KEYLESS_BYTES:
            await drain(receive, length, within_s=_DRAIN_S)
        await answer.refuse(problem, close=True)

    async def _run(self, scope: Scope, gate: BodyGate, answer: Answer) -> ProblemError | None:
        """Run the application and return what it ended with; None where it may have answered."""
        try:
            await self._app(scope, gate, answer.send)
        except Exception as error:  # noqa: BLE001 - the last line of defence
            problem = gate.stop or problem_of(error)
            if problem is None and not gate.gone:
                _LOG.error("request %s failed: %s", answer.request_id, _where(error))
                problem = ProblemError("internal_error")
            return problem
        return gate.stop


def route_path(scope: Scope) -> str:
    """Return the path that the application routes by: without the prefix it is mounted at."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    if root and (path == root or path.startswith(root + "/")):
        return path[len(root) :]
    return path


def is_public(path: str) -> bool:
    """Tell whether a path is read without a key; everything that is not named here needs one."""
    return path in {"/health/live", "/health/ready"} or is_static(path)


def _request_id(scope: Scope) -> str:
    """Return the client's request id if it is short and plain, else a new one."""
    given = [value for name, value in scope["headers"] if name.lower() == b"x-request-id"]
    if len(given) == 1 and _REQUEST_ID.fullmatch(given[0]):
        return bytes(given[0]).decode("ascii")
    return uuid.uuid4().hex


def _is_chunked(scope: Scope) -> bool:
    return any(name.lower() == b"transfer-encoding" for name, _ in scope["headers"])


def _header_key(scope: Scope) -> bytes | None:
    given = [value for name, value in scope["headers"] if name.lower() == _KEY_HEADER]
    # Two of them make one that is wrong.
    return b",".join(given) if given else None


def _query_pairs(scope: Scope) -> list[tuple[str, str]]:
    query = bytes(scope.get("query_string", b""))
    if len(query) > _MAX_QUERY_BYTES:
        return []
    return parse_qsl(query.decode("latin-1"), keep_blank_values=True)


def _query_key(scope: Scope) -> bytes | None:
    given = [value for name, value in _query_pairs(scope) if name == _QUERY_KEY]
    return ",".join(given).encode("utf-8", "surrogateescape") if given else None


def _inner_scope(scope: Scope, request_id: str, key_id: str, *, with_key: bool) -> Scope:
    """Return the scope without the key: what is not inside cannot be logged there."""
    left_out = {b"x-request-id"} if with_key else {_KEY_HEADER, b"x-request-id"}
    headers = [pair for pair in scope["headers"] if pair[0].lower() not in left_out]
    query = scope.get("query_string", b"")
    if not with_key and (_QUERY_KEY.encode() in query or b"%" in query):
        query = urlencode([p for p in _query_pairs(scope) if p[0] != _QUERY_KEY]).encode()
    return {
        **scope,
        "method": "GET" if scope["method"] == "HEAD" else scope["method"],
        "query_string": query,
        "headers": [*headers, (b"x-request-id", request_id.encode())],
        "state": {**scope.get("state", {}), "request_id": request_id, "key_id": key_id},
    }


def _where(error: Exception) -> str:
    """Return the kind of an error and its place; its text may hold values of a patient."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" in {frames[-1].name}, line {frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}"
