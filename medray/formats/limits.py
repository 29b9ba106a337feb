"""What a file may unpack to, decided from its declared size before anything is inflated."""

import math
from collections.abc import Sequence
from typing import cast

import numpy as np
from isal import isal_zlib

from medray.errors import DataError

# 2 GiB: a whole-body CT of 512 x 512 x 2000 in float32 fits.
MAX_VOLUME_BYTES = 2 << 30
MAX_HEADER_BYTES = 1 << 20
# Above the limit, more than this per stored byte is no scan but a bomb: CT packs 2 : 1, masks more,
# but a mask of 2 GiB is none of a scanner's.
_BOMB_RATIO = 100
# Deflate cannot exceed 1032 : 1 (zlib's technical notes); what declares more is cut off.
_DEFLATE_MAX_RATIO = 1032
_MAX_SPACING_MM = 100.0
_MIN_SPACING_MM = 1e-4
_MAX_PLACE_MM = 1e5
# A grid sheared by more than 84 degrees is a mistake, not a scan.
_MIN_DETERMINANT = 0.1
_MAX_SIDE = 1 << 20
_PIECE = 1 << 20
# Its stubs give an instance for the class.
_INFLATE_ERRORS = cast("type[Exception]", isal_zlib.error)
_TRAILING_SLACK = 1 << 16


def check_declared(
    shape: Sequence[int], itemsize: int, *, stored_bytes: int, packed: bool, max_bytes: int
) -> int:
    """Return the number of data bytes that a header declares, once they are plausible.

    Args:
        shape: declared sizes.
        itemsize: bytes per voxel.
        stored_bytes: size of the data part of the file.
        packed: the data are deflated.
        max_bytes: what they may unpack to.

    Raises:
        DataError: `bad_tag_value`, `bomb_suspected`, `too_large` or `truncated`.
    """
    if any(side < 1 or side > _MAX_SIDE for side in shape):
        raise DataError("bad_tag_value", "a declared size is out of range")
    declared = math.prod(int(side) for side in shape) * itemsize
    if declared > max_bytes:
        if packed and declared > _BOMB_RATIO * stored_bytes:
            raise DataError("bomb_suspected", "few bytes declare more voxels than the limit allows")
        raise DataError("too_large", "the declared size exceeds the limit")
    if declared > stored_bytes * (_DEFLATE_MAX_RATIO if packed else 1):
        raise DataError("truncated", "fewer data are there than the header declares")
    return declared


def inflate(data: bytes, *, num_bytes: int, wbits: int, exact: bool) -> bytearray:
    """Return the first `num_bytes` bytes that gzip or zlib data unpack to; more is never held.

    Args:
        data: one stream, or several gzip members in a row.
        num_bytes: how much to unpack.
        wbits: as in zlib: 31 gzip, 15 zlib.
        exact: read to the end, prove the checksum, and refuse what unpacks to more.

    Raises:
        DataError: `truncated`, `bomb_suspected` or `unreadable`.
    """
    limit = num_bytes + (_TRAILING_SLACK if exact else 0)
    out, ended = _unpacked(data, limit=limit, wbits=wbits)
    if exact and not ended and len(out) >= limit:
        raise DataError("bomb_suspected", "the data unpack to more than the header declares")
    if len(out) < num_bytes or (exact and not ended):
        raise DataError("truncated", "the compressed data end before they are complete")
    del out[num_bytes:]
    return out


def unpacked_head(data: bytes, num_bytes: int) -> bytes:
    """Return up to `num_bytes` of what gzip data begin with; fewer where they end early.

    Raises:
        DataError: `unreadable`.
    """
    return bytes(_unpacked(data[: 4 * num_bytes + 1024], limit=num_bytes, wbits=31)[0])


def _unpacked(data: bytes, *, limit: int, wbits: int) -> tuple[bytearray, bool]:
    """Unpack at most `limit` bytes; tell whether the last stream came to its end."""
    out, rest, ended = bytearray(), memoryview(data), False
    while rest and len(out) < limit:
        stream = isal_zlib.decompressobj(wbits)
        try:
            rest = _inflate_member(stream, rest, out, limit)
        except _INFLATE_ERRORS as error:
            raise DataError("unreadable", "the compressed data are damaged") from error
        ended = stream.eof
        if not ended or bytes(rest[:2]) != b"\x1f\x8b":
            break
    return out, ended


def _inflate_member(
    stream: "isal_zlib.Decompress", rest: memoryview, out: bytearray, limit: int
) -> memoryview:
    """Unpack one stream in pieces until it ends or the limit is reached; return what follows it."""
    pending: bytes | memoryview = rest[:_PIECE]
    taken = len(pending)
    while not stream.eof and len(out) < limit:
        out += stream.decompress(pending, min(_PIECE * 8, limit - len(out)))
        if stream.unconsumed_tail:
            pending = stream.unconsumed_tail
        elif taken < len(rest):
            pending = rest[taken : taken + _PIECE]
            taken += len(pending)
        elif not stream.eof:
            break
    return rest[taken - len(stream.unused_data) :]


def check_affine(affine: np.ndarray) -> np.ndarray:
    """Return a (4, 4) affine whose spacing and place a scanner could have.

    Raises:
        DataError: `bad_tag_value`.
    """
    if not np.isfinite(affine).all() or np.abs(affine).max() > _MAX_PLACE_MM:
        raise DataError("bad_tag_value", "position or spacing is not finite or out of range")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if spacing.min() < _MIN_SPACING_MM or spacing.max() > _MAX_SPACING_MM:
        raise DataError("bad_tag_value", "the voxel spacing is out of range")
    if abs(np.linalg.det(affine[:3, :3] / spacing)) < _MIN_DETERMINANT:
        raise DataError("bad_tag_value", "two axes of the grid are parallel")
    return affine


def check_finite(array: np.ndarray) -> np.ndarray:
    """Return the array if every value is finite.

    Raises:
        DataError: `non_finite_pixels`.
    """
    if array.dtype.kind == "f" and not all(np.isfinite(plane).all() for plane in array):
        raise DataError("non_finite_pixels", "the volume holds NaN or infinite values")
    return array


def numbers(text: str, count: int) -> list[float]:
    """Return exactly `count` finite numbers from text.

    Raises:
        DataError: `bad_tag_value`.
    """
    try:
        values = [float(part) for part in text.split()]
    except ValueError as error:
        raise DataError("bad_tag_value", "a header value is no number") from error
    if len(values) != count or not all(math.isfinite(value) for value in values):
        raise DataError("bad_tag_value", "a header value is not finite or incomplete")
    return values


def sizes(text: str) -> list[int]:
    """Return whole numbers from text.

    Raises:
        DataError: `bad_tag_value`.
    """
    try:
        return [int(part) for part in text.split()]
    except ValueError as error:
        raise DataError("bad_tag_value", "a declared size is no whole number") from error


def dtype_from(
    data: bytes | bytearray | memoryview, dtype: np.dtype, shape: Sequence[int]
) -> np.ndarray:
    """Return data bytes as a (depth, height, width) array in native byte order, writable."""
    array = np.frombuffer(data, dtype=dtype, count=math.prod(shape)).reshape(shape)
    return array.astype(dtype.newbyteorder("="), copy=not array.flags.writeable)
