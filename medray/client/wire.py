"""One exchange with the server: streamed upload, whole answer, every failure a `ClientError`."""

import contextlib
import http.client
import json
import logging
import select
import ssl
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import medray
from medray.client.upload import Body
from medray.errors import ConfigError, MedrayError

_LOG = logging.getLogger(__name__)
_CONNECT_S = 10.0
_PASSING_STATUS = frozenset({429, 502, 503, 504})
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
# What a server says of an error is a sentence, not a page.
_MAX_DETAIL = 500


class ClientError(MedrayError):
    """The server refused, or gave no answer.

    Attributes:
        status: of HTTP; 0 where no answer came.
        reason: the server's code (docs/DESIGN sections 6 and 7), or `connection`, `timeout`,
            `unreadable`.
        detail: one sentence.
        request_id: to look the request up in the server's log; may be empty.
        retry_after_s: what the server asks to wait, None where it does not say.
    """

    def __init__(
        self,
        status: int,
        reason: str,
        detail: str,
        request_id: str = "",
        retry_after_s: float | None = None,
    ) -> None:
        named = f"{status} {reason}" if status else reason
        super().__init__(f"{named}: {detail}" + (f" (request {request_id})" if request_id else ""))
        self.status = status
        self.reason = reason
        self.detail = detail
        self.request_id = request_id
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[Any, ...]:
        fields = (self.status, self.reason, self.detail, self.request_id, self.retry_after_s)
        return (ClientError, fields)

    @property
    def may_pass(self) -> bool:
        """Whether the same request may succeed later: the connection broke, or it was refused so.

        A server that is silent for the whole time limit is not asked again: it may be working.
        """
        return self.status in _PASSING_STATUS or self.reason == "connection"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A 2xx answer, read in full."""

    status: int
    content_type: str
    content: bytes


class Wire:
    """Connections to one server, one a thread, kept open between requests."""

    def __init__(self, url: str, key: str, *, timeout_s: float, ca_file: str | None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
            raise ConfigError("the server's address is http://HOST:PORT or https://HOST:PORT")
        if parts.username is not None or parts.password is not None:
            raise ConfigError("the server's address takes no user or password; give the key")
        # http.client quotes a header value that it refuses, and this one is a secret.
        if not key.isascii() or not key.isprintable() or " " in key:
            raise ConfigError("the key has a character that no key has")
        if parts.scheme == "http" and key and parts.hostname not in _LOOPBACK:
            _LOG.warning("the key and the images go over a connection without TLS")
        self.url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        self._prefix = parts.path.rstrip("/")
        self._host, self._port = parts.hostname, parts.port
        self._key, self._timeout_s = key, timeout_s
        self._tls = ssl.create_default_context(cafile=ca_file) if parts.scheme == "https" else None
        self._own = threading.local()
        self._lock = threading.Lock()
        self._open: set[http.client.HTTPConnection] = set()

    def close(self) -> None:
        """Close the connections of all threads."""
        with self._lock:
            for connection in self._open:
                connection.close()
            self._open.clear()
        self._own = threading.local()

    def exchange(
        self, method: str, path: str, headers: Mapping[str, str], body: Body | None
    ) -> Reply:
        """Send one request and return its answer.

        Raises:
            ClientError: any other answer than 2xx, or none.
        """
        connection = getattr(self._own, "connection", None)
        if connection is not None:
            # A connection that was kept may have been closed at the other end meanwhile.
            with contextlib.suppress(_StaleError):
                return self._answered(connection, (method, path, headers, body), kept=True)
        return self._answered(self._connected(), (method, path, headers, body), kept=False)

    def _connected(self) -> http.client.HTTPConnection:
        """Return a new connection of this thread."""
        if self._tls is None:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=_CONNECT_S)
        else:
            connection = http.client.HTTPSConnection(
                self._host, self._port, timeout=_CONNECT_S, context=self._tls
            )
        try:
            connection.connect()
        except ssl.SSLCertVerificationError as error:
            raise ClientError(
                0, "certificate", "the server's certificate is not trusted"
            ) from error
        except OSError as error:
            raise ClientError(0, "connection", "the server cannot be reached") from error
        connection.sock.settimeout(self._timeout_s)
        self._own.connection = connection
        with self._lock:
            self._open.add(connection)
        return connection

    def _drop(self, connection: http.client.HTTPConnection) -> None:
        connection.close()
        self._own.connection = None
        with self._lock:
            self._open.discard(connection)

    def _answered(
        self,
        connection: http.client.HTTPConnection,
        request: tuple[str, str, Mapping[str, str], Body | None],
        *,
        kept: bool,
    ) -> Reply:
        try:
            is_whole = self._sent(connection, *request)
            response = connection.getresponse()
            content = response.read()
        except TimeoutError as error:
            self._drop(connection)
            detail = f"no answer within {self._timeout_s:g} s"
            raise ClientError(0, "timeout", detail) from error
        except (OSError, http.client.HTTPException) as error:
            self._drop(connection)
            if kept:
                raise _StaleError from error
            raise ClientError(0, "connection", "the connection broke") from error
        except BaseException:
            # An interrupt leaves half a request behind; nothing may follow it.
            self._drop(connection)
            raise
        if not is_whole or response.will_close:
            self._drop(connection)
        return _judged(response, content)

    def _sent(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: Body | None,
    ) -> bool:
        """Send a request; return whether the server took all of it.

        A server that refuses an upload says so before it has read it, and then closes: what it
        said is worth more than the broken pipe.
        """
        connection.putrequest(method, self._prefix + path, skip_accept_encoding=True)
        named = {"User-Agent": f"medray/{medray.__version__}", **headers}
        if self._key:
            named["X-API-Key"] = self._key
        if body is not None:
            named |= {"Content-Type": body.content_type, "Content-Length": str(body.length)}
        for name, value in named.items():
            connection.putheader(name, value)
        connection.endheaders()
        if body is None:
            return True
        try:
            for chunk in body.chunks():
                # TLS has messages of its own, so there readable does not mean an answer.
                if self._tls is None and select.select([connection.sock], [], [], 0)[0]:
                    return False
                connection.send(chunk)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True


class _StaleError(Exception):
    """A connection that was kept open broke before it answered."""


def _judged(response: http.client.HTTPResponse, content: bytes) -> Reply:
    content_type = response.headers.get_content_type()
    if 200 <= response.status < 300:
        return Reply(status=response.status, content_type=content_type, content=content)
    problem: Any = None
    if content_type.endswith("json"):
        with contextlib.suppress(ValueError):
            problem = json.loads(content)
    problem = problem if isinstance(problem, dict) else {}
    detail = str(problem.get("detail") or problem.get("title") or response.reason or "no reason")
    raise ClientError(
        response.status,
        str(problem.get("reason") or "http"),
        detail[:_MAX_DETAIL],
        str(problem.get("request_id") or ""),
        _retry_after_s(response.headers.get("Retry-After")),
    )


def _retry_after_s(text: str | None) -> float | None:
    """Return seconds of a Retry-After header (RFC 9110, 10.2.3), None where it says nothing."""
    if text is None:
        return None
    if text.strip().isdecimal():
        return float(text)
    try:
        then = parsedate_to_datetime(text)
    except ValueError:
        return None
    from datetime import UTC, datetime

    return max(0.0, (then - datetime.now(UTC)).total_seconds()) if then.tzinfo else None
