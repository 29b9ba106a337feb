"""A response on its way out: request id, security headers, and errors in one shape."""

import re
from collections.abc import Iterable

from medray.service.body import Message, Send
from medray.service.problems import (
    MEDIA_TYPE,
    Headers,
    ProblemError,
    reason_of_status,
    render,
)

# A segment that begins with a dot would be `..` or hidden.
_PAGE_FILE = re.compile(r"/page(?:/[A-Za-z0-9_\-][A-Za-z0-9_.\-]*)+")
_STATIC = frozenset({"/", "/docs", "/openapi.json"})
_CONTENT_SECURITY_POLICY = (
    b"default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; "
    b"form-action 'self'; frame-ancestors 'none'"
)
_SECURITY: Headers = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
]


def is_static(path: str) -> bool:
    """Tell whether a path is the page, its files or the documentation: no data, no key."""
    return path in _STATIC or _PAGE_FILE.fullmatch(path) is not None


class Answer:
    """Stands before `send`.

    An answer of 400 and more that is no problem yet is held back: what raised it may still come
    out of the application and say more. Health is let through, its 503 has a body of its own.

    Attributes:
        request_id: echoed in every answer.
        started: the client has got the response's head.
    """

    def __init__(self, send: Send, *, request_id: str, path: str, head: bool) -> None:
        self._send = send
        self._path = path
        self._head = head
        self._held: ProblemError | None = None
        self._ended = False
        self.request_id = request_id
        self.started = False

    async def send(self, message: Message) -> None:
        """Pass on one message of the application."""
        if self._held is not None or self._ended:
            return
        if message["type"] == "http.response.start":
            await self._start(message)
            return
        if message["type"] == "http.response.body":
            self._ended = not message.get("more_body", False)
            if self._head:
                message = {**message, "body": b""}
        await self._send(message)

    async def finish(self, problem: ProblemError | None, *, close: bool) -> None:
        """End the response after the application has ended, by a problem where there is one."""
        problem = problem or self._held
        if not self.started:
            await self.refuse(problem or ProblemError("internal_error"), close=close)

    async def refuse(self, problem: ProblemError, *, close: bool) -> None:
        """Answer with a problem instead of the application."""
        status, headers, body = render(problem, self.request_id)
        if close:
            headers.append((b"connection", b"close"))
        self.started = self._ended = True
        start = {"type": "http.response.start", "status": status}
        await self._send({**start, "headers": self._completed(headers)})
        await self._send({"type": "http.response.body", "body": b"" if self._head else body})

    async def _start(self, message: Message) -> None:
        headers = [(bytes(name).lower(), bytes(value)) for name, value in message["headers"]]
        status = int(message["status"])
        is_problem = _value(headers, b"content-type").startswith(MEDIA_TYPE.encode())
        if status >= 400 and not is_problem and not self._path.startswith("/health/"):
            kept = tuple(pair for pair in headers if pair[0] in {b"allow", b"retry-after"})
            self._held = ProblemError(reason_of_status(status), headers=kept)
            return
        self.started = True
        await self._send({**message, "headers": self._completed(headers)})

    def _completed(self, headers: Headers) -> Headers:
        """Return the headers and those that every answer has."""
        own = [*_SECURITY, (b"x-request-id", self.request_id.encode())]
        if _value(headers, b"content-type").startswith(b"text/html"):
            own.append((b"content-security-policy", _CONTENT_SECURITY_POLICY))
        if not is_static(self._path):
            own.append((b"cache-control", b"no-store"))
        elif not _value(headers, b"cache-control"):
            own.append((b"cache-control", b"no-cache"))
        names = {name for name, _ in own}
        return [pair for pair in headers if pair[0] not in names] + own


def _value(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes:
    return next((value for key, value in headers if key == name), b"")
