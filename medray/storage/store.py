"""The seam between storage and its backends, and the choice of a backend by URI."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, Protocol, TypeAlias, runtime_checkable

from medray.errors import ConfigError, DataError
from medray.storage.uri import path_of, protocol_of

Payload: TypeAlias = bytes | Iterable[bytes | memoryview] | Callable[[BinaryIO], object]


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of a listing.

    Attributes:
        uri: what `read_bytes` takes; local paths are absolute.
        bytes: size.
        stamp: changes when the content does: mtime in ns, ETag, or CRC and size of a member.
        error: why this entry cannot be read (a bad archive, a closed folder), else None.
    """

    uri: str
    bytes: int
    stamp: str
    error: DataError | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class WriteReceipt:
    """What was committed: its size and the sha256 (hex) of the bytes handed over."""

    bytes: int
    sha256: str


@runtime_checkable
class Store(Protocol):
    """One backend. Reads make one attempt and raise TransientError for what may pass.

    Listings and writes are complete: they hold their own retries.
    """

    @property
    def is_remote(self) -> bool:
        """Tell whether a second read may give other bytes than the first."""

    @property
    def is_exact(self) -> bool:
        """Tell whether bytes without a checksum can be trusted (a local disk, TLS)."""

    def stat(self, path: str) -> FileEntry | None:
        """Return the file at this path; None if there is none."""

    def exists(self, path: str) -> bool:
        """Tell whether there is a file or a folder."""

    def read(self, path: str, *, expected_bytes: int | None, max_bytes: int | None) -> bytes:
        """Return a whole file, verified by what the backend knows of it."""

    def read_range(self, path: str, start: int, stop: int, *, stamp: str | None = None) -> bytes:
        """Return bytes [start, stop), fewer at the end; refuses another version than stamp."""

    def list_below(self, path: str) -> Iterator[FileEntry]:
        """Yield the file itself, or all files below a folder, by name."""

    def write(self, path: str, payload: Payload) -> WriteReceipt:
        """Commit atomically, over what may be there."""

    def create(self, path: str, payload: bytes) -> bool:
        """Commit atomically unless there is one; False then."""

    def remove(self, path: str) -> None:
        """Remove the file if there is one."""


def store_of(uri: str) -> tuple[Store, str]:
    """Return the backend of a URI and the path in it.

    Raises:
        ConfigError: the URI is a member of an archive, or its protocol is unknown.
    """
    protocol = protocol_of(uri)
    if protocol == "file":
        from medray.storage.local import LocalStore

        return LocalStore(), path_of(uri)
    if protocol == "s3":
        from medray.storage.s3 import S3Store

        return S3Store(), path_of(uri)
    if protocol == "zip":
        raise ConfigError("a zip archive can only be read; give a folder or a bucket for output")
    from medray.storage.filesystems import filesystem_of
    from medray.storage.foreign import ForeignStore

    filesystem_of(protocol)
    return ForeignStore(protocol), path_of(uri)
