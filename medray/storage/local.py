"""The local disk, without a layer in between: scandir, open, fsync, rename."""

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader

from medray.errors import DataError
from medray.storage.retry import TransientError
from medray.storage.sink import HashingSink, pour, sink_error
from medray.storage.store import FileEntry, Payload, WriteReceipt
from medray.storage.uri import TEMP_SUFFIX, is_own_file

# What a network file system answers while it is away for a moment.
_PASSING = frozenset(
    {errno.EIO, errno.ESTALE, errno.EAGAIN, errno.EINTR, errno.ETIMEDOUT, errno.ENETDOWN}
)
_NO_HARD_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK})
# Of a file name (255 bytes): 48 characters of at most 4 bytes leave room for the rest.
_NAME_CHARACTERS = 48


def source_error(error: OSError) -> DataError | TransientError:
    """Return what a source's OSError means; without the path, which may name a patient."""
    name = errno.errorcode.get(error.errno or 0, type(error).__name__)
    detail = f"the file cannot be opened or read ({name})"
    if error.errno in _PASSING:
        return TransientError("source_unavailable", detail)
    return DataError("source_unavailable", detail)


def open_file(path: str) -> BufferedReader:
    """Open a regular file for reading.

    Raises:
        DataError: it is gone, closed to this user, or no regular file.
        TransientError: the file system is away for the moment.
    """
    try:
        # Without O_NONBLOCK a pipe that somebody left in the folder would block for ever.
        number = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except ValueError as error:
        raise DataError("source_unavailable", "the path holds a zero character") from error
    except OSError as error:
        raise source_error(error) from error
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise DataError("source_unavailable", "the path is no regular file")
    return os.fdopen(number, "rb")


@dataclass(frozen=True, slots=True)
class LocalStore:
    """Files of this machine, network mounts included."""

    is_remote: bool = False
    is_exact: bool = True

    def stat(self, path: str) -> FileEntry | None:
        """Return the regular file at this path; None if there is none."""
        try:
            return _entry(os.path.abspath(path))
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None
        except OSError as error:
            raise source_error(error) from error

    def exists(self, path: str) -> bool:
        """Tell whether there is a file or a folder."""
        return os.path.exists(path)

    def read(self, path: str, *, expected_bytes: int | None, max_bytes: int | None) -> bytes:
        """Return a whole file."""
        with open_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            check_size(size, max_bytes)
            try:
                data = file.read()
            except OSError as error:
                raise source_error(error) from error
        check_length(len(data), size if expected_bytes is None else expected_bytes)
        return data

    def read_range(self, path: str, start: int, stop: int, *, stamp: str | None = None) -> bytes:
        """Return bytes [start, stop); the stamp is not looked at, a local stat is cheap."""
        del stamp
        with open_file(path) as file:
            try:
                file.seek(start)
                return file.read(max(0, stop - start))
            except OSError as error:
                raise source_error(error) from error

    def list_below(self, path: str) -> Iterator[FileEntry]:
        """Yield the file itself, or all files below a folder, by name."""
        root = os.path.abspath(path)
        try:
            is_folder = stat.S_ISDIR(os.stat(root).st_mode)
        except (OSError, ValueError) as error:
            raise DataError(
                "source_unavailable", "the source does not exist or is closed to this user"
            ) from error
        if is_folder:
            yield from _walk(root)
        elif (entry := _entry(root)) is not None:
            yield entry

    def write(self, path: str, payload: Payload) -> WriteReceipt:
        """Commit by a temporary name in the same folder, fsync, rename, fsync of the folder."""
        with _temporary(path) as (temp, sink):
            pour(payload, sink)
            with _as_sink_errors():
                _commit(temp, path)
        return sink.receipt()

    def create(self, path: str, payload: bytes) -> bool:
        """Commit unless there is one: a hard link is atomic and never replaces."""
        with _temporary(path) as (temp, sink):
            pour(payload, sink)
            with _as_sink_errors():
                return _commit_new(temp, path)

    def remove(self, path: str) -> None:
        """Remove the file if there is one."""
        try:
            os.unlink(path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise sink_error(error) from error


def check_size(size: int, max_bytes: int | None) -> None:
    """Refuse what is larger than the limit, before a byte of it is read."""
    if max_bytes is not None and size > max_bytes:
        raise DataError("too_large", f"the file has {size} bytes, the limit is {max_bytes}")


def check_length(got: int, expected: int) -> None:
    """Refuse another length than was recorded."""
    if got < expected:
        raise DataError("truncated", f"the file gave {got} of {expected} bytes")
    if got > expected:
        raise DataError("checksum_mismatch", f"the file gave {got} bytes, {expected} were recorded")


def sweep(folder: str) -> int:
    """Remove temporary files of ours below a folder; links are not followed."""
    removed = 0
    waiting = [folder]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    elif entry.name.endswith(TEMP_SUFFIX) and is_own_file(entry.name):
                        os.unlink(entry.path)
                        removed += 1
        except FileNotFoundError:
            continue
        except OSError as error:
            raise sink_error(error) from error
    return removed


def _entry(path: str) -> FileEntry | None:
    info = os.stat(path)
    if not stat.S_ISREG(info.st_mode):
        return None
    return FileEntry(path, info.st_size, str(info.st_mtime_ns))


def _refused(path: str, detail: str) -> FileEntry:
    printable = path.encode("utf-8", "backslashreplace").decode()
    return FileEntry(printable, 0, "", DataError("source_unavailable", detail))


def _names(folder: str) -> list[str]:
    """Return the names in one folder, folders with a slash: the order of an object store."""
    with os.scandir(folder) as entries:
        names = [
            entry.name + "/" if entry.is_dir() else entry.name
            for entry in entries
            if not is_own_file(entry.name)
        ]
    names.sort()
    return names


def _walk(root: str) -> Iterator[FileEntry]:
    """Yield the files below a folder while only the names on the way down are held."""
    waiting = [(root, iter(_names(root)), _identity(root))]
    while waiting:
        folder, names, _ = waiting[-1]
        name = next(names, None)
        if name is None:
            waiting.pop()
            continue
        path = os.path.join(folder, name)
        try:
            path.encode()
            if name.endswith("/"):
                identity = _identity(path)
                # A link to a folder that we are in would never end.
                if all(identity != above for _, _, above in waiting):
                    waiting.append((path, iter(_names(path)), identity))
            elif (entry := _entry(path)) is not None:
                yield entry
        except UnicodeEncodeError:
            yield _refused(path, "the file's name is not UTF-8; rename it")
        except OSError as error:
            code = errno.errorcode.get(error.errno or 0, "OSError")
            yield _refused(path, f"the file or folder cannot be opened ({code})")


def _identity(folder: str) -> tuple[int, int]:
    info = os.stat(folder)
    return info.st_dev, info.st_ino


@dataclass(slots=True)
class _Temp:
    path: str
    number: int


@contextlib.contextmanager
def _as_sink_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise sink_error(error) from error


@contextlib.contextmanager
def _temporary(path: str) -> Iterator[tuple[_Temp, HashingSink]]:
    """Give a new temporary file beside `path`; it is gone afterwards unless it was renamed."""
    folder, name = os.path.split(path)
    temp_name = f".{name[:_NAME_CHARACTERS]}.{secrets.token_hex(6)}{TEMP_SUFFIX}"
    temp = _Temp(os.path.join(folder, temp_name), -1)
    with _as_sink_errors():
        temp.number = _open_new(temp.path)
    try:
        yield temp, HashingSink(lambda data: os.write(temp.number, data))
    finally:
        if temp.number >= 0:
            with contextlib.suppress(OSError):
                os.close(temp.number)
            with contextlib.suppress(OSError):
                os.unlink(temp.path)


def _open_new(path: str) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        return os.open(path, flags, 0o666)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return os.open(path, flags, 0o666)


def _commit(temp: _Temp, path: str) -> None:
    os.fsync(temp.number)
    # A network file system may report a full disk only here, while the name is not yet given.
    number, temp.number = temp.number, -1
    try:
        os.close(number)
        os.replace(temp.path, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temp.path)
        raise
    _sync_folder(path)


def _commit_new(temp: _Temp, path: str) -> bool:
    os.fsync(temp.number)
    try:
        os.link(temp.path, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        return _claim_and_replace(temp, path)
    _sync_folder(path)
    return True


def _claim_and_replace(temp: _Temp, path: str) -> bool:
    """Create without hard links: claim the name empty, then rename over it."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
    except FileExistsError:
        return False
    _commit(temp, path)
    return True


def _sync_folder(path: str) -> None:
    number = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(number)
    except OSError as error:
        # Some network file systems have no fsync of folders; they order renames themselves.
        if error.errno not in {errno.EINVAL, errno.ENOTSUP, errno.EBADF}:
            raise
    finally:
        os.close(number)
