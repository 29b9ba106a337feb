"""Whole reads that are right or refused, ranges, and hashes."""

import hashlib
from functools import partial
from io import BufferedReader

from medray.errors import DataError
from medray.storage.local import check_length, check_size, open_file
from medray.storage.members import read_member, read_member_head, stat_member
from medray.storage.retry import TransientError, until_agreed, with_retries
from medray.storage.store import FileEntry, Store, store_of
from medray.storage.uri import is_local, local_path, protocol_of

_PIECE_BYTES = 64 << 20


def read_bytes(
    uri: str,
    *,
    expected_bytes: int | None = None,
    max_bytes: int | None = None,
    sha256: str | None = None,
) -> bytes:
    """Return the whole content, read again if the transport broke it or a checksum failed.

    Object stores are checked by the checksum or the MD5 entity tag that they give, members of
    archives by their CRC, everything by `expected_bytes` and `sha256` (hex) where given.

    Raises:
        DataError: source_unavailable, truncated, checksum_mismatch or too_large.
    """

    def attempt() -> bytes:
        data = _read_once(uri, expected_bytes, max_bytes)
        if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
            detail = "the bytes differ from the recorded sha256"
            if is_local(uri):
                raise DataError("checksum_mismatch", detail)
            raise TransientError("checksum_mismatch", detail)
        return data

    return with_retries(attempt)


def read_range(uri: str, start: int, stop: int) -> bytes:
    """Return bytes [start, stop), fewer where the file ends.

    An object store gives no checksum of a range; without TLS it is asked until two answers
    agree.

    Raises:
        DataError: source_unavailable, or what `read_bytes` raises.
    """
    if start < 0 or stop < start:
        raise ValueError(f"a range needs 0 <= start <= stop, got [{start}, {stop})")
    if start == stop:
        return b""
    if protocol_of(uri) == "zip":
        head = with_retries(lambda: read_member_head(uri, stop))
        return (read_bytes(uri) if head is None else head)[start:stop]
    store, path = store_of(uri)
    agree = with_retries if store.is_exact else until_agreed
    return agree(lambda: store.read_range(path, start, stop))


def open_local(uri: str) -> BufferedReader | None:
    """Return an open file where the URI is a plain local path, else None.

    Raises:
        DataError: source_unavailable.
    """
    if not is_local(uri):
        return None
    path = local_path(uri)
    return with_retries(lambda: open_file(path))


def sha256_of(uri: str) -> str:
    """Return the sha256 (hex) of the content; large files are read in pieces.

    Raises:
        DataError: what `read_bytes` raises.
    """
    local = open_local(uri)
    if local is not None:
        with local:
            return hashlib.file_digest(local, "sha256").hexdigest()
    entry = stat(uri)
    if entry.bytes <= _PIECE_BYTES or protocol_of(uri) == "zip":
        return hashlib.sha256(read_bytes(uri, expected_bytes=entry.bytes)).hexdigest()
    store, path = store_of(uri)
    return _sha256_in_pieces(store, path, entry)


def stat(uri: str) -> FileEntry:
    """Return size and stamp of one file.

    Raises:
        DataError: source_unavailable.
    """
    if protocol_of(uri) == "zip":
        entry = with_retries(lambda: stat_member(uri))
    else:
        store, path = store_of(uri)
        entry = with_retries(lambda: store.stat(path))
    if entry is None:
        raise DataError("source_unavailable", "there is no such file")
    return entry


def _read_once(uri: str, expected_bytes: int | None, max_bytes: int | None) -> bytes:
    if protocol_of(uri) != "zip":
        store, path = store_of(uri)
        return store.read(path, expected_bytes=expected_bytes, max_bytes=max_bytes)
    data = read_member(uri, max_bytes=max_bytes)
    check_size(len(data), max_bytes)
    if expected_bytes is not None:
        check_length(len(data), expected_bytes)
    return data


def _sha256_in_pieces(store: Store, path: str, entry: FileEntry) -> str:
    digest = hashlib.sha256()
    agree = with_retries if store.is_exact else until_agreed
    for start in range(0, entry.bytes, _PIECE_BYTES):
        stop = min(start + _PIECE_BYTES, entry.bytes)
        piece = agree(partial(store.read_range, path, start, stop, stamp=entry.stamp))
        check_length(len(piece), stop - start)
        digest.update(piece)
    return digest.hexdigest()
