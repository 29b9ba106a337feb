"""The frames of a segmentation as bytes: functional groups and pixels in Explicit VR Little Endian.

A frame's group is nine nested data sets that differ from the next frame's in three values. Built
and written one by one by the libraries, 300 of them take three quarters of a second; put together
from their bytes, some milliseconds. A test holds them against highdicom's own.
"""

import struct
from collections.abc import Sequence

import numpy as np
from pydicom.valuerep import format_number_as_ds

from medray.dicom.seg_source import SegSource
from medray.errors import DataError

_LONG_VRS = frozenset({b"OB", b"SQ"})
_ITEM = b"\xfe\xff\x00\xe0"
_MAX_BYTES = 2**32 - 2
_DS_CHARS = 16
# DCM codes of PS3.16: what the frame is, and what its source was for.
_SEGMENTATION = ("113076", "Segmentation")
_SOURCE_IMAGE = ("121322", "Source image for image processing operation")


def encode_frames(mask: np.ndarray, source: SegSource, kept: np.ndarray) -> bytes:
    """Return the per-frame functional groups and the pixel data, the last two elements of a file.

    Args:
        mask: (n, rows, columns), zero or not, on the slices of the source.
        source: where they lie.
        kept: ascending indices of the slices that become frames.

    Raises:
        DataError: `too_large`.
    """
    groups = b"".join(
        _frame_group(source, int(index), place) for place, index in enumerate(kept, start=1)
    )
    pixels = pack_frames(mask, kept)
    if max(len(groups), len(pixels)) > _MAX_BYTES:
        raise DataError("too_large", "the frames of a segmentation exceed what DICOM can hold")
    return _element(0x52009230, b"SQ", groups) + _element(0x7FE00010, b"OB", pixels)


def pack_frames(mask: np.ndarray, kept: np.ndarray) -> bytes:
    """Return frames as bits, the first pixel in the lowest bit, without padding between frames."""
    frames = mask if len(kept) == len(mask) else mask[kept]
    return np.packbits(frames.reshape(-1), bitorder="little").tobytes()


def decimal(value: float) -> str:
    """Return a number as a decimal string: exact where 16 characters can hold it."""
    exact = repr(float(value))
    return exact if len(exact) <= _DS_CHARS else format_number_as_ds(float(value))


def _frame_group(source: SegSource, index: int, place: int) -> bytes:
    """Return one item of the per-frame functional groups (PS3.3 C.7.6.16.2)."""
    item = source.slices[index]
    frame = b""
    if item.frame_number is not None:
        frame = _element(0x00081160, b"IS", str(item.frame_number).encode())
    image = (
        _element(0x00081150, b"UI", item.sop_class_uid.encode())
        + _element(0x00081155, b"UI", item.sop_uid.encode())
        + frame
        + _element(0x0028135A, b"CS", b"YES")  # the frame's pixels are the source's
        + _coded(0x0040A170, *_SOURCE_IMAGE)
    )
    derivation = _sequence(0x00082112, image) + _coded(0x00089215, *_SEGMENTATION)
    # The first index is the segment's, the second the frame's place along the normal.
    content = _element(0x00209157, b"UL", struct.pack("<II", 1, place))
    position = "\\".join(decimal(value) for value in source.positions_mm[index])
    group = (
        _sequence(0x00089124, derivation)
        + _sequence(0x00209111, content)
        + _sequence(0x00209113, _element(0x00200032, b"DS", position.encode()))
    )
    return _item(group)


def _coded(tag: int, value: str, meaning: str) -> bytes:
    code = (
        _element(0x00080100, b"SH", value.encode())
        + _element(0x00080102, b"SH", b"DCM")
        + _element(0x00080104, b"LO", meaning.encode())
    )
    return _sequence(tag, code)


def _sequence(tag: int, item: bytes) -> bytes:
    """Return a sequence of one item."""
    return _element(tag, b"SQ", _item(item))


def _item(value: bytes) -> bytes:
    return _ITEM + struct.pack("<I", len(value)) + value


def _element(tag: int, vr: bytes, value: bytes) -> bytes:
    """Return one element (PS3.5 7.1.2); text is padded by a space, UIDs and bytes by zero."""
    if len(value) % 2:
        value += b"\0" if vr in (b"UI", b"OB") else b" "
    head = struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, vr)
    if vr in _LONG_VRS:
        return head + struct.pack("<HI", 0, len(value)) + value
    return head + struct.pack("<H", len(value)) + value


def references(source: SegSource) -> Sequence[tuple[str, str]]:
    """Return SOP class and UID of each source instance, once."""
    return list(dict.fromkeys((item.sop_class_uid, item.sop_uid) for item in source.slices))
