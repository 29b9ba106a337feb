"""From a parsed data set and the bytes of its pixel element to one array of stored values.

Runs in the decoder's child process. Sizes are checked from the header before anything is allocated
or inflated; every refusal is a `DataError`.
"""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels.utils import expand_ybr422

from medray.dicom.codecs import FRAME_CODECS, FrameSpec, decode_frame, extend_bits, to_rgb
from medray.dicom.header import InstanceHeader
from medray.dicom.tables import Palette
from medray.errors import DataError

_PIXEL_TAG, _FLOAT_TAG, _DOUBLE_TAG = 0x7FE00010, 0x7FE00008, 0x7FE00009
_FLOAT_TYPES: dict[int, np.dtype[Any]] = {_FLOAT_TAG: np.dtype("f4"), _DOUBLE_TAG: np.dtype("f8")}
_UNDEFINED = 0xFFFFFFFF
_ITEM, _SEQUENCE_END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
_LONG_VRS = frozenset(
    {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"UC", b"UN", b"UR", b"UT", b"SV", b"UV"}
)
_NATIVE = frozenset(
    {"", "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2",
     "1.2.840.10008.1.2.1.99"}
)  # fmt: skip
_MONO = frozenset({"MONOCHROME1", "MONOCHROME2"})
_NATIVE_COLOUR = frozenset({"RGB", "YBR_FULL", "YBR_FULL_422"})
_COLOUR = _NATIVE_COLOUR | {"YBR_ICT", "YBR_RCT"}
_RLE = "1.2.840.10008.1.2.5"
_RLE_MAX_RATIO = 64
# Below this a false size does no harm and is named for what it is.
_BOMB_BYTES = 16 << 20

Allocate = Callable[[tuple[int, ...], "np.dtype[np.generic]"], np.ndarray]


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelLimits:
    """What one instance may unpack to."""

    max_frame_bytes: int
    max_pixels_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelElement:
    """The pixel element as it lies in the file.

    Attributes:
        value: its bytes; the rest of the file where the length is undefined.
        declared_bytes: the element's length, None if undefined (encapsulated).
        words: whether its value representation is OW.
    """

    tag: int
    value: memoryview
    declared_bytes: int | None
    big_endian: bool
    words: bool = False


def find_pixel_element(data: memoryview, offset: int, dataset: Dataset) -> PixelElement:
    """Read the element header at `offset`, where the parser stopped.

    Raises:
        DataError: `truncated`.
    """
    implicit, little = dataset.original_encoding
    order = "<" if little is not False else ">"
    head = bytes(data[offset : offset + 12])
    if len(head) < 8:
        raise DataError("truncated", "the file ends at its pixel data")
    group, element = struct.unpack_from(f"{order}HH", head)
    if implicit or not head[4:6].isalpha():
        start, length = 8, struct.unpack_from(f"{order}I", head, 4)[0]
    elif head[4:6] in _LONG_VRS:
        if len(head) < 12:
            raise DataError("truncated", "the file ends at its pixel data")
        start, length = 12, struct.unpack_from(f"{order}I", head, 8)[0]
    else:
        start, length = 8, struct.unpack_from(f"{order}H", head, 6)[0]
    declared = None if length == _UNDEFINED else length
    stop = len(data) if declared is None else offset + start + declared
    return PixelElement(
        tag=group << 16 | element, value=data[offset + start : stop], declared_bytes=declared,
        big_endian=order == ">", words=head[4:6] == b"OW",
    )  # fmt: skip


def decode_pixels(
    dataset: Dataset,
    header: InstanceHeader,
    element: PixelElement,
    *,
    limits: PixelLimits,
    allocate: Allocate = np.empty,
) -> np.ndarray:
    """Decode all frames into stored values; YBR and palette colour become RGB.

    Args:
        dataset: the parsed header.
        header: its facts.
        element: the pixel element.
        limits: what the instance may unpack to.
        allocate: gives the array for decoded frames.

    Returns:
        (num_frames, rows, columns) or (num_frames, rows, columns, 3); a view on `element.value`
        where the file holds exactly that, else from `allocate`.

    Raises:
        DataError: one of the read and decode reasons.
        MemoryError: A codec ran into the memory limit.
    """
    if element.tag in _FLOAT_TYPES:
        return _float_frames(header, element, limits)
    spec = frame_spec(dataset, header, limits)
    if header.transfer_syntax_uid in _NATIVE:
        return _native_frames(dataset, header, element, spec, limits)
    if header.transfer_syntax_uid not in FRAME_CODECS:
        raise DataError("unsupported_transfer_syntax", "no decoder for this encoding is built in")
    return _encapsulated_frames(dataset, header, element, spec, (limits, allocate))


def frame_spec(dataset: Dataset, header: InstanceHeader, limits: PixelLimits) -> FrameSpec:
    """Check the pixel description of the header (PS3.3 C.7.6.3).

    Raises:
        DataError: `missing_tag`, `bad_tag_value`, `unsupported_pixels`.
    """
    needed = {
        "Rows": header.rows, "Columns": header.columns, "BitsAllocated": header.bits_allocated,
        "BitsStored": header.bits_stored, "PhotometricInterpretation": header.photometric,
    }  # fmt: skip
    absent = [name for name, value in needed.items() if not value]
    if absent:
        raise DataError("missing_tag", f"{absent[0]} is absent or empty")
    if header.bits_stored > header.bits_allocated:
        raise DataError("bad_tag_value", "BitsStored is more than BitsAllocated")
    if header.bits_allocated not in {1, 8, 16, 32}:
        raise DataError("unsupported_pixels", f"{header.bits_allocated} bits allocated")
    _check_layout(dataset, header)
    return FrameSpec(
        rows=header.rows, columns=header.columns, samples=header.samples_per_pixel,
        bits_allocated=header.bits_allocated, bits_stored=header.bits_stored,
        signed=header.signed and header.bits_allocated > 1, photometric=header.photometric,
        max_frame_bytes=limits.max_frame_bytes,
    )  # fmt: skip


def _check_layout(dataset: Dataset, header: InstanceHeader) -> None:
    mono = header.photometric in _MONO or header.photometric == "PALETTE COLOR"
    native = header.transfer_syntax_uid in _NATIVE
    colour = header.photometric in (_NATIVE_COLOUR if native else _COLOUR)
    if (header.samples_per_pixel, mono, colour) not in {(1, True, False), (3, False, True)}:
        raise DataError("unsupported_pixels", "samples per pixel and photometric interpretation")
    if header.bits_allocated == 1 and not (native and mono):
        raise DataError("unsupported_pixels", "1 bit pixels that are coloured or compressed")
    if header.photometric.startswith("YBR") and header.bits_allocated != 8:
        raise DataError("unsupported_pixels", "YBR colour of more than 8 bits")
    high_bit = dataset.get("HighBit")
    partial = header.bits_stored < header.bits_allocated
    in_place = native or header.transfer_syntax_uid == _RLE
    # Retired since 2017; to shift or not to shift would be a guess.
    if in_place and partial and high_bit not in {None, header.bits_stored - 1}:
        raise DataError("unsupported_pixels", "HighBit is not BitsStored - 1")


def _check_total(header: InstanceHeader, total: int, limits: PixelLimits) -> None:
    """Refuse more than the limits.

    Raises:
        DataError: `too_large`.
    """
    if total > limits.max_pixels_bytes:
        raise DataError("too_large", f"the header declares {total} bytes of pixels")
    if total // header.num_frames > limits.max_frame_bytes:
        raise DataError("too_large", f"the header declares {total} bytes of pixels in few frames")


def _native_values(element: PixelElement, expected: int, frame_bytes: int) -> memoryview:
    """Return exactly the declared pixels.

    A padding byte, and zeros for less than a frame, may follow them.

    Raises:
        DataError: `truncated`, `pixel_length_mismatch` or `decode_error`.
    """
    if element.declared_bytes is None:
        raise DataError("decode_error", "encapsulated pixel data in a native transfer syntax")
    if len(element.value) < element.declared_bytes:
        raise DataError("truncated", "the file ends inside its pixel data")
    excess = len(element.value) - expected
    if excess < 0:
        raise DataError("pixel_length_mismatch", f"{-excess} bytes of pixels are missing")
    padding = element.value[expected:]
    if excess > 1 and (excess >= max(2, frame_bytes) or any(padding)):
        raise DataError("pixel_length_mismatch", f"{excess} bytes of pixels too many")
    return element.value[:expected]


def _float_frames(header: InstanceHeader, element: PixelElement, limits: PixelLimits) -> np.ndarray:
    """Read FloatPixelData or DoubleFloatPixelData (PS3.3 C.7.6.24, C.7.6.25)."""
    dtype = _FLOAT_TYPES[element.tag].newbyteorder(">" if element.big_endian else "<")
    if not header.rows or not header.columns:
        raise DataError("missing_tag", "Rows or Columns is absent")
    if header.transfer_syntax_uid not in _NATIVE or header.samples_per_pixel != 1:
        raise DataError("unsupported_pixels", "compressed or coloured float pixels")
    frame_bytes = header.rows * header.columns * dtype.itemsize
    value = _native_values(element, frame_bytes * header.num_frames, frame_bytes)
    _check_total(header, len(value), limits)
    values = np.frombuffer(value, dtype).reshape(header.num_frames, header.rows, header.columns)
    if not all(np.isfinite(frame).all() for frame in values):
        raise DataError("non_finite_pixels", "pixels are NaN or infinite")
    return values


def _native_frames(
    dataset: Dataset,
    header: InstanceHeader,
    element: PixelElement,
    spec: FrameSpec,
    limits: PixelLimits,
) -> np.ndarray:
    count = header.num_frames
    if spec.bits_allocated == 1:
        return _packed_bits(header, element, limits)
    subsampled = spec.photometric == "YBR_FULL_422"
    if subsampled and spec.columns % 2:
        raise DataError("unsupported_pixels", "YBR_FULL_422 with an odd number of columns")
    frame_bytes = spec.frame_bytes * 2 // 3 if subsampled else spec.frame_bytes
    value = _native_values(element, frame_bytes * count, frame_bytes)
    _check_total(header, spec.frame_bytes * count, limits)
    if subsampled:
        value = memoryview(expand_ybr422(bytes(value), 8))
    order: Literal["<", ">"] = ">" if element.big_endian else "<"
    if element.big_endian and element.words and spec.bits_allocated == 8:
        # Bytes in big-endian words (PS3.5 8.1.2); the odd one out has its padding before it.
        swapped = np.frombuffer(element.value, "u2", len(element.value) // 2).byteswap()
        value = memoryview(swapped.tobytes())[: len(value)]
    values = np.frombuffer(value, spec.dtype.newbyteorder(order))
    if spec.samples > 1 and dataset.get("PlanarConfiguration") == 1 and not subsampled:
        values = values.reshape(count, spec.samples, spec.rows, spec.columns)
        values = np.moveaxis(values, 1, -1)
    else:
        values = values.reshape(count, *spec.shape)
    if spec.bits_stored < spec.bits_allocated:
        values = extend_bits(values, spec.bits_stored, spec.dtype)
    if spec.photometric == "PALETTE COLOR":
        return Palette(dataset, header).colour(values)
    return to_rgb(values, spec.photometric)


def _packed_bits(header: InstanceHeader, element: PixelElement, limits: PixelLimits) -> np.ndarray:
    """Unpack 1 bit pixels: low bit first, frames follow without padding (PS3.5 8.1.1)."""
    total = header.rows * header.columns * header.num_frames
    if header.photometric not in _MONO:
        raise DataError("unsupported_pixels", "1 bit palette colour")
    value = _native_values(element, (total + 7) // 8, (header.rows * header.columns + 7) // 8)
    _check_total(header, total, limits)
    flat = np.unpackbits(np.frombuffer(value, np.uint8), count=total, bitorder="little")
    return flat.reshape(header.num_frames, header.rows, header.columns)


def _encapsulated_frames(
    dataset: Dataset,
    header: InstanceHeader,
    element: PixelElement,
    spec: FrameSpec,
    bounds: tuple[PixelLimits, Allocate],
) -> np.ndarray:
    limits, allocate = bounds
    if element.declared_bytes is not None or element.big_endian:
        raise DataError("decode_error", "the pixel data is not encapsulated")
    total = spec.frame_bytes * header.num_frames
    _check_plausible(header, element, total)
    _check_total(header, total, limits)
    check_items(element.value)
    palette = Palette(dataset, header) if spec.photometric == "PALETTE COLOR" else None
    out: np.ndarray | None = None
    done = 0
    for frame in _frames(dataset, element, header.num_frames):
        if done == header.num_frames:
            raise DataError("pixel_length_mismatch", "more frames than NumberOfFrames")
        values = decode_frame(header.transfer_syntax_uid, frame, spec)
        if palette is not None:
            values = palette.colour(values)
        if out is None:  # only after one frame has proven to be what the header says
            out = allocate((header.num_frames, *values.shape), values.dtype)
        out[done] = values
        done += 1
    if out is None or done < header.num_frames:
        raise DataError("pixel_length_mismatch", f"{done} frames of {header.num_frames}")
    return out


def _check_plausible(header: InstanceHeader, element: PixelElement, total: int) -> None:
    """Refuse what its bytes cannot hold: RLE has a largest ratio, each frame has an item.

    Raises:
        DataError: `bomb_suspected`, or `pixel_length_mismatch` where it is too small for one.
    """
    held = len(element.value)
    rle = header.transfer_syntax_uid == _RLE and total > held * _RLE_MAX_RATIO
    if rle or header.num_frames * 8 > held:
        reason = "bomb_suspected" if total > _BOMB_BYTES else "pixel_length_mismatch"
        raise DataError(reason, f"{held} bytes cannot hold {total} bytes of pixels")


def check_items(value: memoryview) -> None:
    """Walk the items of encapsulated pixel data (PS3.5 A.4) without copying.

    Raises:
        DataError: `truncated` or `decode_error`.
    """
    offset, size = 0, len(value)
    while offset < size:
        tag = value[offset : offset + 4]
        if tag == _SEQUENCE_END:
            return
        if offset + 8 > size:
            raise DataError("truncated", "the file ends inside its pixel data")
        length = struct.unpack_from("<I", value, offset + 4)[0]
        if tag != _ITEM or length == _UNDEFINED:
            raise DataError("decode_error", "the fragments of the pixel data are damaged")
        offset += 8 + length
    if offset > size:
        raise DataError("truncated", "the file ends inside its pixel data")


def _frames(dataset: Dataset, element: PixelElement, num_frames: int) -> Iterator[bytes]:
    """Put fragments together to frames, by offset table, count or end marker."""
    table, lengths = dataset.get("ExtendedOffsetTable"), dataset.get("ExtendedOffsetTableLengths")
    extended = (table, lengths) if table and lengths else None
    try:
        yield from generate_frames(
            bytes(element.value), number_of_frames=num_frames, extended_offsets=extended
        )
    except (ValueError, TypeError, struct.error, RuntimeError, IndexError):
        raise DataError("decode_error", "the fragments of the pixel data are damaged") from None
