"""One writer for one output: a kernel lock on a local disk, a conditional object on S3."""

import contextlib
import fcntl
import os
import secrets
import threading
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol

from medray.errors import ConfigError, DataError
from medray.storage import s3, s3_client
from medray.storage.retry import TransientError, with_retries
from medray.storage.s3_client import MissingError, PreconditionError, RefusedError
from medray.storage.sink import sink_error
from medray.storage.uri import LOCK_NAME, is_local, join, local_path, path_of, protocol_of

STALE_S = 60.0
# Three beats may be lost before another run may take over.
BEAT_S = 15.0


class _Held(Protocol):
    """A lock that is held."""

    def release(self) -> None:
        """Give the lock back."""


class OutputLock:
    """Context manager that makes this process the only writer of an output folder.

    Locally the kernel gives the lock back when the process dies; on S3 a heartbeat keeps it, and
    a lock without a beat for a minute is taken over. Other filesystems have no lock.

    Raises:
        ConfigError: on entry, where another run writes to the same output.
        DataError: on entry, sink_denied or sink_full.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._held: _Held | None = None

    def __enter__(self) -> "OutputLock":
        if is_local(self.uri):
            self._held = _lock_folder(self.uri)
        elif protocol_of(self.uri) == "s3":
            self._held = _lock_prefix(self.uri)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._held is not None:
            self._held.release()
            self._held = None

    def is_held(self) -> bool:
        """Tell whether the lock is still ours; a run that stood still too long may lose it."""
        if isinstance(self._held, _ObjectLock):
            return not self._held.lost.is_set()
        return self._held is not None


def _taken(uri: str, wait: str) -> ConfigError:
    return ConfigError(
        f"another run is writing to {uri}; wait until it has ended{wait}, or give another --out"
    )


@dataclass(slots=True)
class _FileLock:
    path: str
    number: int

    def release(self) -> None:
        """Remove the file while it is locked, then let go."""
        with contextlib.suppress(OSError):
            os.unlink(self.path)
        os.close(self.number)


def _lock_folder(uri: str) -> _FileLock:
    folder = local_path(uri)
    path = os.path.join(folder, LOCK_NAME)
    try:
        os.makedirs(folder, exist_ok=True)
        while True:
            number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # The last holder may have removed the file between our open and our lock.
                if _is_file_at(path, number):
                    return _FileLock(path, number)
            except BlockingIOError as error:
                os.close(number)
                raise _taken(uri, "") from error
            os.close(number)
    except OSError as error:
        raise sink_error(error) from error


def _is_file_at(path: str, number: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(number))
    except FileNotFoundError:
        return False


@dataclass(slots=True)
class _ObjectLock:
    path: str
    token: str
    etag: str
    beats: int = 0
    lost: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to renew the object's time."""
        self.thread = threading.Thread(target=self._keep, name="medray-lock", daemon=True)
        self.thread.start()

    def _keep(self) -> None:
        while not self.ended.wait(BEAT_S):
            try:
                self.renew()
            except (PreconditionError, MissingError, RefusedError):
                self.lost.set()
                return
            except (DataError, TransientError):
                # The next beat tries again; whether the lock is lost shows then.
                continue

    def renew(self) -> None:
        """Write the next beat over our own version only."""
        self.beats += 1
        body = b"%d" % self.beats

        def attempt() -> str:
            try:
                return s3.put_if(self.path, body, etag=self.etag, token=self.token)
            except PreconditionError:
                # An earlier try may have come through though its answer was lost.
                found = _look(self.path)
                if found is not None and found[0] == self.token:
                    return found[1]
                raise

        self.etag = with_retries(attempt)

    def release(self) -> None:
        """Stop the beat and remove the object if it is still ours."""
        self.ended.set()
        if self.thread is not None:
            self.thread.join(timeout=BEAT_S)
        with contextlib.suppress(DataError, RefusedError):
            found = with_retries(lambda: _look(self.path))
            if found is not None and found[0] == self.token:
                s3.S3Store().remove(self.path)


def _lock_prefix(uri: str) -> _ObjectLock:
    path = path_of(join(uri, LOCK_NAME))
    token = secrets.token_hex(16)
    etag = s3.with_sink_retries(lambda: _acquire(path, token))
    if etag is None:
        raise _taken(uri, f" (one that was killed is given up after {STALE_S:.0f} s)")
    lock = _ObjectLock(path, token, etag)
    lock.start()
    return lock


def _acquire(path: str, token: str) -> str | None:
    """Create the lock or take over a stale one; return its entity tag, None where it is taken."""
    try:
        return s3.put_if(path, b"0", etag=None, token=token)
    except PreconditionError:
        found = _look(path)
    if found is None:
        raise TransientError("sink_denied", "the lock was given back in this moment")
    owner, etag, age_s = found
    if owner == token:
        return etag
    if age_s < STALE_S:
        return None
    try:
        # Of two that take over, one finds another version than it looked at.
        return s3.put_if(path, b"0", etag=etag, token=token)
    except (PreconditionError, MissingError) as error:
        raise TransientError("sink_denied", "the lock changed hands in this moment") from error


def _look(path: str) -> tuple[str, str, float] | None:
    """Return owner, entity tag and age of the lock; None if there is none."""
    try:
        info = s3_client.head(*s3.split_key(path))
    except MissingError:
        return None
    return info.token, info.etag, info.age_s
