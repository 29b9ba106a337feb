"""What bytes pass on their way out: counted, hashed once, and stopped at the first refusal."""

import errno
import hashlib
import io
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, BinaryIO, cast

from medray.errors import DataError
from medray.storage.store import Payload, WriteReceipt

_BUFFER_BYTES = 1 << 20
_PENDING_PIECES = 8
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_DENIED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


def sink_error(error: OSError) -> DataError:
    """Return the refusal that an output's OSError means."""
    name = errno.errorcode.get(error.errno or 0, type(error).__name__)
    if error.errno in _FULL:
        return DataError("sink_full", f"the output takes no more bytes ({name})")
    if error.errno in _DENIED:
        return DataError("sink_denied", f"the output does not let this user write ({name})")
    return DataError("sink_denied", f"the output cannot be written ({name})")


class HashingSink(io.RawIOBase):
    """A write-only file object (hence the base class) that hashes what it hands on.

    Its own failure is kept in `failure`, because a writer in between may wrap or swallow it.
    """

    def __init__(self, write: Callable[[Any], int], *, with_md5: bool = False) -> None:
        super().__init__()
        self._write = write
        self._sha256 = hashlib.sha256()
        # An object store's tag; on a local disk it would cost more than the writing.
        self.md5 = hashlib.md5(usedforsecurity=False) if with_md5 else None
        self.num_bytes = 0
        self.failure: DataError | None = None
        self._hasher: ThreadPoolExecutor | None = None
        self._pending: deque[Future[None]] = deque()

    def writable(self) -> bool:
        """Tell that this end takes bytes."""
        return True

    def tell(self) -> int:
        """Return the number of bytes so far; formats such as Parquet ask for it."""
        return self.num_bytes

    def write(self, data: Any) -> int:
        """Hand on all of the bytes."""
        self._settle()
        view = memoryview(data).cast("B")
        self._hand_on(view)
        self._hash(view)
        return len(view)

    def write_lasting(self, data: Any) -> None:
        """Hand on bytes that stay as they are until `receipt`; they are hashed beside it."""
        view = memoryview(data).cast("B")
        self._hand_on(view)
        if self._hasher is None:
            self._hasher = ThreadPoolExecutor(1, thread_name_prefix="medray-sink")
        self._pending.append(self._hasher.submit(self._hash, view))
        while len(self._pending) > _PENDING_PIECES:
            self._pending.popleft().result()

    def _hash(self, view: memoryview) -> None:
        self._sha256.update(view)
        if self.md5 is not None:
            self.md5.update(view)

    def _settle(self) -> None:
        while self._pending:
            self._pending.popleft().result()

    def _hand_on(self, view: memoryview) -> None:
        done = 0
        while done < len(view):
            try:
                done += self._write(view[done:])
            except OSError as error:
                self.failure = sink_error(error)
                raise self.failure from error
        self.num_bytes += len(view)

    def receipt(self) -> WriteReceipt:
        """Return what was written; the last call."""
        self._settle()
        if self._hasher is not None:
            self._hasher.shutdown()
        return WriteReceipt(self.num_bytes, self._sha256.hexdigest())


def pour(payload: Payload, sink: HashingSink) -> None:
    """Write a payload of any kind into the sink.

    Raises:
        DataError: the sink refused; errors of the payload's own making pass unchanged.
    """
    if isinstance(payload, bytes | bytearray | memoryview):
        sink.write(payload)
        return
    buffered = io.BufferedWriter(sink, _BUFFER_BYTES)
    try:
        if callable(payload):
            payload(cast("BinaryIO", buffered))
        else:
            for piece in payload:
                sink.write_lasting(piece)
        if not buffered.closed:
            buffered.flush()
    except Exception:
        if sink.failure is not None:
            raise sink.failure from None
        raise
    finally:
        _let_go(buffered)
    if sink.failure is not None:
        raise sink.failure


def _let_go(buffered: Any) -> None:
    """Part from the sink without a second attempt to write what it refused."""
    try:
        # From here on the sink only counts: detaching flushes what the buffer still holds.
        buffered.raw._write = len
        buffered.detach()
    except ValueError:
        # The payload closed the file object; nothing is left in the buffer then.
        return
