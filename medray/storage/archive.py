"""Zip archives as they are on the wire: the directory is parsed and judged before any member.

APPNOTE.TXT 6.3.10 sections 4.3 and 4.4. Written here rather than taken from `zipfile`, because
that reader believes declared sizes, ends a member at them, and takes overlapping members.
"""

import re
import stat
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from medray.errors import DataError

STORED, DEFLATED = 0, 8

_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
LOCAL_HEADER = struct.Struct("<4s5H3L2H")
_MAX_COMMENT_BYTES = 65_535
_MAX_16, _MAX_32 = 0xFFFF, 0xFFFFFFFF
_ENCRYPTED_FLAGS = 0x0001 | 0x0040 | 0x2000
_UTF8_FLAG = 0x0800
# Names of 256 bytes and extra fields for the most members that are allowed.
_MAX_DIRECTORY_BYTES = 128 << 20
_DRIVE = re.compile(r"[A-Za-z]:")

ReadAt = Callable[[int, int], bytes]


@dataclass(frozen=True, kw_only=True, slots=True)
class ArchiveLimits:
    """What an archive may hold. A server for uploads sets them lower.

    Attributes:
        max_members: the largest public set in one archive (NLST slices of one request) stays
            below it; a directory entry costs about 300 bytes, so this holds 90 MB.
        max_total_bytes: declared sizes together. Members are read one by one and never
            unpacked to disk, so this bounds time, not memory.
        max_ratio: unpacked to packed bytes, for members and for the whole archive; pixels of
            real scanners stay below 20:1.
        ratio_from_bytes: below this unpacked size a ratio is no danger (blank small images).
    """

    max_members: int = 300_000
    max_total_bytes: int = 1 << 40
    max_ratio: int = 100
    ratio_from_bytes: int = 1 << 20


DEFAULT_LIMITS = ArchiveLimits()


@dataclass(frozen=True, slots=True)
class Member:
    """One file in an archive.

    Attributes:
        offset: where its local header begins, from the start of the archive.
        bound: where the next local header or the directory begins.
        bytes, packed_bytes: declared sizes.
    """

    name: str
    raw_name: bytes
    offset: int
    bound: int
    bytes: int
    packed_bytes: int
    crc32: int
    method: int

    @property
    def stamp(self) -> str:
        """CRC and size: changes when the content does."""
        return f"{self.crc32:08x}-{self.bytes}"


@dataclass(frozen=True, slots=True)
class Archive:
    """A judged directory: files by name; folders are left out."""

    stamp: str
    members: dict[str, Member]
    num_members: int
    total_bytes: int
    packed_bytes: int
    largest_ratio: float = field(default=0.0)

    def check(self, limits: ArchiveLimits) -> None:
        """Refuse an archive that is over the limits.

        Raises:
            DataError: unsafe_archive for the count, bomb_suspected for sizes and ratios.
        """
        if self.num_members > limits.max_members:
            raise _too_many(limits)
        if self.total_bytes > limits.max_total_bytes:
            raise DataError(
                "bomb_suspected",
                f"the archive unpacks to {self.total_bytes} bytes, "
                f"the limit is {limits.max_total_bytes}",
            )
        if self.largest_ratio > limits.max_ratio:
            raise DataError(
                "bomb_suspected", f"a member unpacks to more than {limits.max_ratio} times its size"
            )
        if (
            self.total_bytes > limits.ratio_from_bytes
            and self.total_bytes > limits.max_ratio * self.packed_bytes
        ):
            raise DataError(
                "bomb_suspected",
                f"the archive unpacks to more than {limits.max_ratio} times its size",
            )


@dataclass(frozen=True, slots=True)
class _End:
    """The end record: where the directory is, and by how much its offsets are shifted."""

    directory_start: int
    directory_bytes: int
    num_members: int
    shift: int


def parse_archive(
    read_at: ReadAt, num_bytes: int, *, stamp: str, limits: ArchiveLimits = DEFAULT_LIMITS
) -> Archive:
    """Parse and judge an archive of this size by its directory.

    Raises:
        DataError: empty_file, truncated, unreadable, unsafe_archive or bomb_suspected.
    """
    end = _read_end(read_at, num_bytes)
    if end.num_members > limits.max_members or end.directory_bytes > _MAX_DIRECTORY_BYTES:
        raise _too_many(limits)
    directory = read_at(end.directory_start, end.directory_start + end.directory_bytes)
    if len(directory) != end.directory_bytes:
        raise DataError("truncated", "the archive ends before its directory does")
    entries = list(_entries(directory, end, limits))
    if len(entries) != end.num_members:
        raise DataError("unsafe_archive", "the archive's directory has another length than it says")
    _refuse_duplicates(entries)
    bounded = _bounded(entries, end.directory_start) if entries else []
    files = sorted((m for m in bounded if not m.raw_name.endswith(b"/")), key=lambda m: m.name)
    archive = Archive(
        stamp=stamp,
        members={member.name: member for member in files},
        num_members=len(entries),
        total_bytes=sum(member.bytes for member in bounded),
        packed_bytes=sum(member.packed_bytes for member in bounded),
        largest_ratio=max(
            (m.bytes / max(1, m.packed_bytes) for m in files if m.bytes > limits.ratio_from_bytes),
            default=0.0,
        ),
    )
    archive.check(limits)
    if not files:
        raise DataError("empty_file", "the archive holds no file")
    return archive


def _too_many(limits: ArchiveLimits) -> DataError:
    return DataError("unsafe_archive", f"the archive has more than {limits.max_members} members")


def _read_end(read_at: ReadAt, num_bytes: int) -> _End:
    """Find the end record, which must end the file exactly: two readers must see one archive."""
    if num_bytes == 0:
        raise DataError("empty_file", "the archive has no bytes")
    start = max(0, num_bytes - _END.size - _MAX_COMMENT_BYTES)
    tail = read_at(start, num_bytes)
    place = tail.rfind(b"PK\x05\x06")
    if place < 0 or place + _END.size > len(tail):
        if read_at(0, 4) == b"PK\x03\x04":
            raise DataError("truncated", "the archive's end is missing")
        raise DataError("unreadable", "the file is no zip archive")
    _, disk, first_disk, here, total, size, offset, comment = _END.unpack_from(tail, place)
    if place + _END.size + comment != len(tail):
        raise DataError("unsafe_archive", "the archive has bytes after its end record")
    end_start = start + place
    wide = _read_end64(read_at, end_start)
    if wide is not None:
        narrow = (disk, first_disk, here, total, size, offset)
        end_start, values = wide
        if any(
            value not in (other, _MAX_16, _MAX_32)
            for value, other in zip(narrow, values, strict=True)
        ):
            raise DataError("unsafe_archive", "the archive's two end records contradict each other")
        disk, first_disk, here, total, size, offset = values
    if disk or first_disk or here != total:
        raise DataError("unsafe_archive", "the archive is split over several files")
    directory_start = end_start - size
    shift = directory_start - offset
    if directory_start < 0 or shift < 0:
        raise DataError("unsafe_archive", "the archive's directory lies outside of it")
    return _End(directory_start, size, total, shift)


def _read_end64(read_at: ReadAt, end_start: int) -> tuple[int, tuple[int, ...]] | None:
    """Return the zip64 end record's place and values; None where no locator leads to it."""
    locator = read_at(max(0, end_start - _END64_LOCATOR.size), end_start)
    if len(locator) != _END64_LOCATOR.size or locator[:4] != b"PK\x06\x07":
        return None
    # The record stands right before its locator; its stated offset may be shifted.
    start = end_start - _END64_LOCATOR.size - _END64.size
    raw = read_at(max(0, start), max(0, start) + _END64.size)
    if start < 0 or len(raw) != _END64.size or raw[:4] != b"PK\x06\x06":
        raise DataError("unsafe_archive", "the archive's zip64 record is missing")
    return start, _END64.unpack(raw)[4:]


def _entries(directory: bytes, end: _End, limits: ArchiveLimits) -> Iterator[Member]:
    place = 0
    for _ in range(limits.max_members + 1):
        if place == len(directory):
            return
        if place + _CENTRAL.size > len(directory):
            break
        fields = _CENTRAL.unpack_from(directory, place)
        name_bytes, extra_bytes, comment_bytes = fields[10:13]
        name_start = place + _CENTRAL.size
        extra_start = name_start + name_bytes
        place = extra_start + extra_bytes + comment_bytes
        if fields[0] != b"PK\x01\x02" or place > len(directory):
            break
        raw_name = directory[name_start:extra_start]
        yield _member(fields, raw_name, directory[extra_start : extra_start + extra_bytes], end)
    raise DataError("unsafe_archive", "the archive's directory is malformed")


def _member(fields: tuple[int, ...], raw_name: bytes, extra: bytes, end: _End) -> Member:
    _, _, _, flags, method, _, _, crc32, packed, size, _, _, _, disk, _, external, offset = fields
    if flags & _ENCRYPTED_FLAGS:
        raise DataError("unsafe_archive", "a member is encrypted")
    if method not in (STORED, DEFLATED):
        raise DataError("unsafe_archive", "a member is packed by another method than deflate")
    size, packed, offset = _widened(size, packed, offset, extra)
    if method == STORED and size != packed:
        raise DataError("unsafe_archive", "a stored member declares two sizes")
    if disk not in (0, _MAX_16):
        raise DataError("unsafe_archive", "the archive is split over several files")
    # Some tools leave the upper half zero; what it says where it is set must be a file or folder.
    kind = stat.S_IFMT(external >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise DataError("unsafe_archive", "a member is a link or a device")
    name = _safe_name(raw_name, is_utf8=bool(flags & _UTF8_FLAG))
    return Member(name, raw_name, offset + end.shift, 0, size, packed, crc32, method)


def _widened(size: int, packed: int, offset: int, extra: bytes) -> tuple[int, int, int]:
    """Return the sizes and the offset with those from the zip64 extra field where they are."""
    values = [size, packed, offset]
    wide = [index for index, value in enumerate(values) if value == _MAX_32]
    if not wide:
        return size, packed, offset
    place = 0
    while place + 4 <= len(extra):
        tag, length = struct.unpack_from("<HH", extra, place)
        if tag == 1 and length >= 8 * len(wide) and place + 4 + length <= len(extra):
            for number, index in enumerate(wide):
                (values[index],) = struct.unpack_from("<Q", extra, place + 4 + 8 * number)
            return values[0], values[1], values[2]
        place += 4 + length
    raise DataError("unsafe_archive", "a member's zip64 sizes are missing")


def _safe_name(raw_name: bytes, *, is_utf8: bool) -> str:
    try:
        name = raw_name.decode("utf-8" if is_utf8 else "cp437")
    except UnicodeDecodeError as error:
        raise DataError("unsafe_archive", "a member's name is not what it says") from error
    if any(ord(character) < 32 for character in name) or "\\" in name:
        raise DataError("unsafe_archive", "a member's name has a backslash or control character")
    if name.startswith("/") or _DRIVE.match(name):
        raise DataError("unsafe_archive", "a member's name is an absolute path")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts or not parts:
        raise DataError("unsafe_archive", "a member's name leads out of the archive")
    return "/".join(parts)


def _refuse_duplicates(entries: list[Member]) -> None:
    if len({entry.name for entry in entries}) != len(entries):
        raise DataError("unsafe_archive", "two members have one name")


def _bounded(entries: list[Member], directory_start: int) -> list[Member]:
    """Give each member the place where the next one begins, which its bytes must not pass."""
    ordered = sorted(entries, key=lambda entry: entry.offset)
    bounds = [entry.offset for entry in ordered[1:]] + [directory_start]
    bounded = []
    for entry, bound in zip(ordered, bounds, strict=True):
        least = entry.offset + LOCAL_HEADER.size + len(entry.raw_name) + entry.packed_bytes
        if entry.offset < 0 or least > bound:
            raise DataError("unsafe_archive", "members overlap, or lie outside of the archive")
        bounded.append(
            Member(entry.name, entry.raw_name, entry.offset, bound, entry.bytes,
                   entry.packed_bytes, entry.crc32, entry.method)
        )  # fmt: skip
    return bounded
