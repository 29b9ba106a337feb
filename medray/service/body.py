"""A request's body on its way in: its declared length, its size and its pace."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from medray.service.problems import ProblemError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

# No size that anybody has needs more digits, and int() refuses very long ones in its own way.
_MAX_LENGTH_DIGITS = 18


def declared_length(headers: Iterable[tuple[bytes, bytes]]) -> int | None:
    """Return the Content-Length; None where the body is chunked or there is none.

    Raises:
        ProblemError: request_malformed where it is no number, given twice, or contradicts
            Transfer-Encoding: two servers could then see two requests where there is one.
    """
    values = [value for name, value in headers if name.lower() == b"content-length"]
    chunked = any(name.lower() == b"transfer-encoding" for name, _ in headers)
    if not values:
        return None
    if len(values) > 1 or chunked:
        raise ProblemError("request_malformed", "the length of the body is given twice")
    value = values[0].strip(b" \t")
    # bytes.isdigit takes 0 to 9 only.
    if not value.isdigit() or len(value) > _MAX_LENGTH_DIGITS:
        raise ProblemError("request_malformed", "Content-Length is no number")
    return int(value)


class BodyGate:
    """Stands before `receive`: counts bytes while they stream and bounds the time they take.

    Attributes:
        stop: why the request must end; every further call raises it.
        gone: the client has left before its body was complete.
        complete: the whole body has been read.
        num_bytes: body bytes read so far.
    """

    def __init__(
        self, receive: Receive, *, limit_bytes: int, idle_s: float, total_s: float
    ) -> None:
        self._receive = receive
        self._limit_bytes = limit_bytes
        self._idle_s = idle_s
        self._end_s = time.monotonic() + total_s
        self.stop: ProblemError | None = None
        self.gone = False
        self.complete = False
        self.num_bytes = 0

    async def __call__(self) -> Message:
        """Return the next message.

        Raises:
            ProblemError: too_large at the first byte over, request_timeout.
        """
        if self.stop is not None:
            raise self.stop
        if self.complete or self.gone:
            # What follows is the client's leaving; an answer may take its time.
            return await self._receive()
        message = await self._in_time()
        if message["type"] == "http.disconnect":
            self.gone = True
            return message
        self.num_bytes += len(message.get("body", b""))
        if self.num_bytes > self._limit_bytes:
            self.stop = ProblemError("too_large", "the body is larger than this service takes")
            raise self.stop
        self.complete = not message.get("more_body", False)
        return message

    async def _in_time(self) -> Message:
        left_s = min(self._idle_s, self._end_s - time.monotonic())
        try:
            async with asyncio.timeout(max(0.0, left_s)):
                return await self._receive()
        except TimeoutError:
            self.stop = ProblemError("request_timeout")
            raise self.stop from None


async def drain(receive: Receive, num_bytes: int, *, within_s: float) -> None:
    """Read a short body and forget it: a client that still sends would miss its answer.

    Args:
        receive: of the request.
        num_bytes: what the client has declared; no more is read.
        within_s: for how long to wait.
    """
    seen = 0
    try:
        async with asyncio.timeout(within_s):
            while seen < num_bytes:
                message = await receive()
                if message["type"] != "http.request" or not message.get("more_body", False):
                    return
                seen += len(message.get("body", b""))
    except TimeoutError:
        return
