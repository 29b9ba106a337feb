"""Any other fsspec filesystem (memory, gs, abfs, ...), by its generic calls."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import Any

from medray.errors import DataError
from medray.storage.filesystems import filesystem_of
from medray.storage.local import check_length, check_size
from medray.storage.retry import TransientError, with_retries
from medray.storage.sink import HashingSink, pour
from medray.storage.store import FileEntry, Payload, WriteReceipt
from medray.storage.uri import is_own_file


@dataclass(frozen=True, slots=True)
class ForeignStore:
    """A filesystem that only fsspec knows; sizes are checked, other checksums are not known."""

    protocol: str
    is_remote: bool = True
    is_exact: bool = True

    def stat(self, path: str) -> FileEntry | None:
        """Return the file at this path; None if there is none."""
        try:
            with _as_source_errors():
                info = filesystem_of(self.protocol).info(path)
        except FileNotFoundError:
            return None
        return self._entry(info) if info["type"] == "file" else None

    def exists(self, path: str) -> bool:
        """Tell whether there is a file or a folder."""
        with _as_source_errors():
            return bool(filesystem_of(self.protocol).exists(path))

    def read(self, path: str, *, expected_bytes: int | None, max_bytes: int | None) -> bytes:
        """Return a whole file of the size that the store names."""
        entry = self.stat(path)
        if entry is None:
            raise DataError("source_unavailable", "there is no such file")
        check_size(entry.bytes, max_bytes)
        with _as_source_errors():
            data = bytes(filesystem_of(self.protocol).cat_file(path))
        if len(data) != entry.bytes:
            raise TransientError("truncated", f"{len(data)} of {entry.bytes} bytes came")
        check_length(len(data), entry.bytes if expected_bytes is None else expected_bytes)
        return data

    def read_range(self, path: str, start: int, stop: int, *, stamp: str | None = None) -> bytes:
        """Return bytes [start, stop)."""
        del stamp
        try:
            with _as_source_errors():
                return bytes(filesystem_of(self.protocol).cat_file(path, start=start, end=stop))
        except FileNotFoundError as error:
            raise DataError("source_unavailable", "there is no such file") from error

    def list_below(self, path: str) -> Iterator[FileEntry]:
        """Yield the file itself, or all files below a folder, one folder at a time."""
        itself = with_retries(lambda: self.stat(path))
        if itself is not None:
            yield itself
            return
        waiting = [path]
        while waiting:
            infos = with_retries(partial(self._folder, waiting.pop()))
            waiting.extend(i["name"] for i in reversed(infos) if i["type"] == "directory")
            for info in infos:
                if info["type"] == "file" and not is_own_file(info["name"].rpartition("/")[2]):
                    yield self._entry(info)

    def write(self, path: str, payload: Payload) -> WriteReceipt:
        """Commit by one call of the store, which shows an object when it is whole."""
        buffer = BytesIO()
        sink = HashingSink(buffer.write)
        pour(payload, sink)
        with_retries(lambda: self._pipe(path, buffer.getvalue(), mode="overwrite"))
        return sink.receipt()

    def create(self, path: str, payload: bytes) -> bool:
        """Commit unless there is one."""
        try:
            with_retries(lambda: self._pipe(path, payload, mode="create"))
        except FileExistsError:
            return False
        return True

    def remove(self, path: str) -> None:
        """Remove the file if there is one."""
        with _as_sink_errors():
            if filesystem_of(self.protocol).exists(path):
                filesystem_of(self.protocol).rm_file(path)

    def _pipe(self, path: str, data: bytes, *, mode: str) -> None:
        with _as_sink_errors():
            filesystem = filesystem_of(self.protocol)
            filesystem.makedirs(path.rpartition("/")[0], exist_ok=True)
            filesystem.pipe_file(path, data, mode=mode)

    def _folder(self, folder: str) -> list[dict[str, Any]]:
        try:
            with _as_source_errors():
                infos = filesystem_of(self.protocol).ls(folder, detail=True)
        except FileNotFoundError as error:
            raise DataError("source_unavailable", "there is no such file or folder") from error
        return sorted(infos, key=lambda info: str(info["name"]))

    def _entry(self, info: dict[str, Any]) -> FileEntry:
        stamp = next(
            (str(info[name]) for name in ("ETag", "etag", "mtime", "LastModified", "created")
             if info.get(name)), ""
        )  # fmt: skip
        return FileEntry(f"{self.protocol}://{info['name'].lstrip('/')}", int(info["size"]), stamp)


@contextlib.contextmanager
def _as_source_errors() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except PermissionError as error:
        raise DataError("source_unavailable", "the store does not let this user read") from error
    except Exception as error:
        # Each of these filesystems has errors of its own; what they mean is not known here.
        name = type(error).__name__
        raise TransientError("source_unavailable", f"the store failed ({name})") from error


@contextlib.contextmanager
def _as_sink_errors() -> Iterator[None]:
    try:
        yield
    except FileExistsError:
        raise
    except (PermissionError, FileNotFoundError, NotImplementedError) as error:
        raise DataError("sink_denied", "the store does not take files from this user") from error
    except Exception as error:
        name = type(error).__name__
        raise TransientError("sink_denied", f"the store failed ({name})") from error
