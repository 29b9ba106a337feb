"""Members of zip archives by URI: opened once per process, inflated under a count, CRC checked."""

import os
import threading
import zlib
from collections import OrderedDict
from dataclasses import dataclass, field

from medray.errors import DataError
from medray.storage.archive import (
    DEFAULT_LIMITS,
    DEFLATED,
    LOCAL_HEADER,
    Archive,
    ArchiveLimits,
    Member,
    parse_archive,
)
from medray.storage.local import check_size
from medray.storage.retry import TransientError, until_agreed, with_retries
from medray.storage.store import FileEntry, Store, store_of
from medray.storage.uri import normalise, split_member

# Directories of this many archives, or of archives with this many members together, are kept.
_KEPT_ARCHIVES = 16
_KEPT_MEMBERS = 600_000
# The longest name and extra field of a local header.
_MAX_HEADER_BYTES = LOCAL_HEADER.size + 2 * 65_535


@dataclass(slots=True)
class _Opened:
    """Archives of one process, the latest used last."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    archives: OrderedDict[str, Archive] = field(default_factory=OrderedDict)


# Keyed by process, because a lock may be held in the moment of a fork.
_OPENED: dict[int, _Opened] = {}


def open_archive(outer: str, *, limits: ArchiveLimits = DEFAULT_LIMITS) -> Archive:
    """Return the judged directory of an archive, parsed once per process and version.

    Raises:
        DataError: the archive is gone, damaged, unsafe or a bomb.
    """
    outer = normalise(outer)
    store, path = store_of(outer)
    opened = _OPENED.setdefault(os.getpid(), _Opened())
    with opened.lock:
        found = opened.archives.get(outer)
        # A remote archive is asked for by its entity tag at each read; no need to ask twice.
        if found is not None and (store.is_remote or _stamp(store, path) == found.stamp):
            opened.archives.move_to_end(outer)
            found.check(limits)
            return found
        archive = _parse(store, path, limits)
        opened.archives[outer] = archive
        held = sum(kept.num_members for kept in opened.archives.values())
        while len(opened.archives) > _KEPT_ARCHIVES or (
            held > _KEPT_MEMBERS and len(opened.archives) > 1
        ):
            _, dropped = opened.archives.popitem(last=False)
            held -= dropped.num_members
        return archive


def forget_archive(outer: str) -> None:
    """Drop what is kept of an archive, so that its next use opens it anew."""
    opened = _OPENED.get(os.getpid())
    if opened is not None:
        with opened.lock:
            opened.archives.pop(normalise(outer), None)


def stat_member(uri: str) -> FileEntry | None:
    """Return the member of a `zip://member::archive` URI; None if there is none."""
    name, outer = split_member(uri)
    member = open_archive(outer).members.get(name)
    return None if member is None else FileEntry(uri, member.bytes, member.stamp)


def member_exists(uri: str) -> bool:
    """Tell whether the archive has this member or members below it."""
    name, outer = split_member(uri)
    members = open_archive(outer).members
    return not name or name in members or any(other.startswith(f"{name}/") for other in members)


def read_member(uri: str, *, max_bytes: int | None = None) -> bytes:
    """Return a whole member, its size and CRC checked; one attempt.

    Raises:
        DataError: it is gone, too large, truncated or damaged.
        TransientError: the same, where the archive is remote and a new read may help.
    """
    name, outer = split_member(uri)
    store, path = store_of(outer)
    archive = open_archive(outer)
    member = _find(archive, name)
    check_size(member.bytes, max_bytes)
    try:
        return unpack(_read_packed(store, path, archive, member), member)
    except DataError as error:
        forget_archive(outer)
        if store.is_remote:
            raise TransientError(error.reason, error.detail) from error
        raise


def read_member_head(uri: str, stop: int) -> bytes | None:
    """Return a member's first bytes without inflating the rest; None where it needs the CRC.

    Only what lies on a local disk can be believed without its CRC.
    """
    name, outer = split_member(uri)
    store, path = store_of(outer)
    if store.is_remote:
        return None
    archive = open_archive(outer)
    member = _find(archive, name)
    if stop >= member.bytes:
        return None
    # Deflate makes data at most 5 bytes in 16 KiB longer, so this many packed bytes suffice.
    enough = member.offset + _MAX_HEADER_BYTES + stop + stop // 1024 + 64
    raw = store.read_range(path, member.offset, min(member.bound, enough))
    packed = _packed_part(raw, member)
    return bytes(packed[:stop]) if member.method != DEFLATED else _inflate(packed, stop)[0]


def unpack(raw: bytes, member: Member) -> bytes:
    """Return a member's content from the bytes of its local header and packed data.

    Raises:
        DataError: truncated, checksum_mismatch, or unsafe_archive where header and directory
            contradict each other.
    """
    packed = _packed_part(raw, member)
    if len(packed) < member.packed_bytes:
        raise DataError("truncated", "the archive ends within a member")
    packed = packed[: member.packed_bytes]
    if member.method == DEFLATED:
        # One byte more than declared is enough to see that a member lies about its size.
        data, is_complete = _inflate(packed, member.bytes + 1)
        if len(data) <= member.bytes and not is_complete:
            raise DataError("truncated", "a member's packed data has no end")
    else:
        data = bytes(packed)
    if len(data) < member.bytes:
        raise DataError("truncated", "a member unpacks to fewer bytes than it declares")
    if len(data) > member.bytes:
        raise DataError("checksum_mismatch", "a member unpacks to more bytes than it declares")
    if zlib.crc32(data) != member.crc32:
        raise DataError("checksum_mismatch", "a member's bytes differ from its CRC")
    return data


def _find(archive: Archive, name: str) -> Member:
    member = archive.members.get(name)
    if member is None:
        raise DataError("source_unavailable", "the archive has no such member")
    return member


def _stamp(store: Store, path: str) -> str | None:
    entry = store.stat(path)
    return None if entry is None else f"{entry.stamp}-{entry.bytes}"


def _parse(store: Store, path: str, limits: ArchiveLimits) -> Archive:
    entry = with_retries(lambda: store.stat(path))
    if entry is None:
        raise DataError("source_unavailable", "the archive is gone")
    agree = with_retries if store.is_exact else until_agreed

    def read_at(start: int, stop: int) -> bytes:
        return agree(lambda: store.read_range(path, start, stop, stamp=entry.stamp))

    stamp = entry.stamp if store.is_remote else f"{entry.stamp}-{entry.bytes}"
    return parse_archive(read_at, entry.bytes, stamp=stamp, limits=limits)


def _read_packed(store: Store, path: str, archive: Archive, member: Member) -> bytes:
    stop = min(member.bound, member.offset + _MAX_HEADER_BYTES + member.packed_bytes)
    return store.read_range(
        path, member.offset, stop, stamp=archive.stamp if store.is_remote else None
    )


def _packed_part(raw: bytes, member: Member) -> memoryview:
    """Return the packed data behind the local header, which must agree with the directory."""
    if len(raw) < LOCAL_HEADER.size:
        raise DataError("truncated", "the archive ends within a member's header")
    fields = LOCAL_HEADER.unpack_from(raw)
    name_bytes, extra_bytes = fields[9], fields[10]
    name_stop = LOCAL_HEADER.size + name_bytes
    start = name_stop + extra_bytes
    if (
        fields[0] != b"PK\x03\x04"
        or fields[3] != member.method
        or raw[LOCAL_HEADER.size : name_stop] != member.raw_name
    ):
        raise DataError("unsafe_archive", "a member's header contradicts the directory")
    if member.offset + start + member.packed_bytes > member.bound:
        raise DataError("unsafe_archive", "a member reaches into the next one")
    return memoryview(raw)[start:]


def _inflate(packed: memoryview, limit: int) -> tuple[bytes, bool]:
    """Return at most `limit` bytes, and whether the stream came to its end."""
    engine = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        data = engine.decompress(packed, limit)
    except zlib.error as error:
        raise DataError("checksum_mismatch", "a member's packed data is damaged") from error
    if engine.unused_data:
        raise DataError("checksum_mismatch", "a member has bytes behind its packed data")
    return data, engine.eof
