"""One encoded frame to one array: the codecs, and what their codestreams declare.

A codestream says its own size, and foreign ones lie: size and depth are read here and compared with
the DICOM header before a native codec sees the bytes. Signedness and colour space are the DICOM
header's (PS3.5 8.2); codestreams are known to disagree with it, and pydicom does the same.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from imagecodecs import jpeg2k_decode, jpeg8_decode, jpegls_decode
from pydicom.pixels.decoders.rle import _rle_decode_frame
from pydicom.pixels.processing import convert_color_space

from medray.dicom.dataset import inflate
from medray.errors import DataError

_YBR = ("YBR_FULL", "YBR_FULL_422")
_J2K_START, _J2K_SIZE = b"\xff\x4f", b"\xff\x51"
_JP2_MAGIC = b"\x00\x00\x00\x0cjP  "
# Baseline, extended, progressive, lossless; JPEG-LS. Hierarchical and arithmetic ones are refused.
_JPEG_FRAMES = {0xC0, 0xC1, 0xC2, 0xC3}
_JPEG_LS_FRAMES = {0xF7}
_ALL_FRAMES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
_LOSSLESS_FRAME = 0xC3
_MAX_MARKERS = 1000
# PackBits makes at most 128 bytes out of 2.
_RLE_MAX_RATIO = 64
_BOMB_BYTES = 16 << 20
_MAX_PADDING_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameSpec:
    """What the DICOM header says of every frame."""

    rows: int
    columns: int
    samples: int
    bits_allocated: int
    bits_stored: int
    signed: bool
    photometric: str
    max_frame_bytes: int

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Native type of one stored sample."""
        return np.dtype(f"{'i' if self.signed else 'u'}{max(1, self.bits_allocated // 8)}")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one decoded frame."""
        return (self.rows, self.columns) + ((self.samples,) if self.samples > 1 else ())

    @property
    def frame_bytes(self) -> int:
        """Size of one decoded frame."""
        return self.rows * self.columns * self.samples * self.dtype.itemsize


@dataclass(frozen=True, slots=True, kw_only=True)
class Codestream:
    """What the codestream says of itself.

    Attributes:
        colour: `RGB` or `YBR` where the codestream says so, else empty.
        start: offset of the codestream in the frame (JP2 boxes precede it at times).
    """

    rows: int
    columns: int
    samples: int
    precision: int
    signed: bool = False
    lossless: bool = False
    colour: str = ""
    start: int = 0


def decode_frame(syntax: str, frame: bytes, spec: FrameSpec) -> np.ndarray:
    """Decode one encapsulated frame into stored values of the header's type; colour becomes RGB.

    Raises:
        DataError: `unsupported_transfer_syntax`, `bomb_suspected`, `decode_error`.
        MemoryError: The codec ran into the memory limit.
    """
    codec = FRAME_CODECS.get(syntax)
    if codec is None:
        raise DataError("unsupported_transfer_syntax", "no decoder for this encoding is built in")
    try:
        decoded = codec(frame, spec)
    except (DataError, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - codecs raise their own kinds; the kind is enough
        if "memory" in str(error).lower():
            raise MemoryError from None
        raise DataError("decode_error", f"the codec failed with {type(error).__name__}") from None
    if decoded.shape != spec.shape:
        raise DataError("decode_error", "the decoded frame has not the header's size")
    return decoded


def read_jpeg_header(frame: bytes, allowed: set[int]) -> Codestream:
    """Read the frame header of JPEG (ITU T.81 B.2.2) or JPEG-LS (ITU T.87 C.2.2).

    Raises:
        DataError: `decode_error` if there is none, or it is of a process that is not supported.
    """
    if frame[:2] != b"\xff\xd8":
        raise DataError("decode_error", "the frame does not start like JPEG")
    offset, adobe, jfif = 2, -1, False
    for _ in range(_MAX_MARKERS):
        while frame[offset : offset + 2] == b"\xff\xff":  # fill bytes
            offset += 1
        if offset + 4 > len(frame) or frame[offset] != 0xFF:
            break
        marker, length = frame[offset + 1], struct.unpack_from(">H", frame, offset + 2)[0]
        body = frame[offset + 4 : offset + 2 + length]
        if marker in _ALL_FRAMES:
            return _jpeg_frame(marker, body, allowed, _jpeg_colour(body, adobe, jfif))
        if marker == 0xE0:
            jfif = jfif or body.startswith(b"JFIF")
        if marker == 0xEE and body.startswith(b"Adobe") and len(body) >= 12:
            adobe = body[11]
        offset += 2 + length
    raise DataError("decode_error", "the JPEG frame has no frame header")


def _jpeg_colour(body: bytes, adobe: int, jfif: bool) -> str:  # noqa: FBT001 - two facts of one file
    """Tell the colour space from component ids, then Adobe's marker, then JFIF's."""
    if bytes(body[6::3][:3]) in (b"RGB", b"rgb"):
        return "RGB"
    if adobe >= 0:
        return "RGB" if adobe == 0 else "YBR"
    return "YBR" if jfif else ""


def _jpeg_frame(marker: int, body: bytes, allowed: set[int], colour: str) -> Codestream:
    if marker not in allowed or len(body) < 6:
        raise DataError("decode_error", "the JPEG process is none of this transfer syntax")
    precision, rows, columns, samples = struct.unpack_from(">BHHB", body)
    return Codestream(
        rows=rows, columns=columns, samples=samples, precision=precision,
        lossless=marker == _LOSSLESS_FRAME, colour=colour,
    )  # fmt: skip


def read_j2k_header(frame: bytes) -> Codestream:
    """Read the SIZ segment of JPEG 2000 (ITU T.800 A.5.1), past the boxes of a JP2 wrapper.

    Raises:
        DataError: `decode_error` or `unsupported_pixels` (subsampled or mixed components).
    """
    start = _jp2_codestream(frame) if frame.startswith(_JP2_MAGIC) else 0
    head = frame[start : start + 42]
    if len(head) < 42 or head[:2] != _J2K_START or head[2:4] != _J2K_SIZE:
        raise DataError("decode_error", "the frame does not start like JPEG 2000")
    x1, y1, x0, y0 = struct.unpack_from(">IIII", head, 8)
    samples = struct.unpack_from(">H", head, 40)[0]
    parts = frame[start + 42 : start + 42 + 3 * samples]
    if len(parts) < 3 * samples or not 1 <= samples <= 4 or x0 >= x1 or y0 >= y1:
        raise DataError("decode_error", "the JPEG 2000 size segment is damaged")
    if len(set(parts[::3])) != 1 or set(parts[1::3]) | set(parts[2::3]) != {1}:
        raise DataError("unsupported_pixels", "components differ in depth or are subsampled")
    return Codestream(
        rows=y1 - y0, columns=x1 - x0, samples=samples, precision=(parts[0] & 0x7F) + 1,
        signed=bool(parts[0] & 0x80), start=start,
    )  # fmt: skip


def _jp2_codestream(frame: bytes) -> int:
    """Return the offset of the codestream among the boxes of a JP2 file (ITU T.800 I.4)."""
    offset = 0
    for _ in range(_MAX_MARKERS):
        if frame[offset + 4 : offset + 8] == b"jp2c":
            return offset + 8
        if offset + 8 > len(frame):
            break
        length = struct.unpack_from(">I", frame, offset)[0]
        if length < 8:
            break
        offset += length
    raise DataError("decode_error", "the JP2 wrapper holds no codestream")


def _check_codestream(stream: Codestream, spec: FrameSpec) -> None:
    """Refuse a codestream that is not the frame which the header announces.

    Raises:
        DataError: `bomb_suspected` past the frame limit, else `decode_error`.
    """
    declared = stream.rows * stream.columns * stream.samples * ((stream.precision + 7) // 8)
    if declared > spec.max_frame_bytes:
        raise DataError("bomb_suspected", f"the codestream declares {declared} bytes in one frame")
    if (stream.rows, stream.columns, stream.samples) != (spec.rows, spec.columns, spec.samples):
        raise DataError("decode_error", "codestream and header disagree on the frame's size")
    if not 1 <= stream.precision <= spec.bits_allocated:
        raise DataError("decode_error", "the codestream's depth does not fit the bits allocated")


def _check_end(frame: bytes) -> None:
    """Refuse a codestream without its end marker: the codecs fill what is missing and say nothing.

    Raises:
        DataError: `decode_error`.
    """
    # Padding after the marker is one byte by the standard, and more in the wild.
    if b"\xff\xd9" not in frame[-_MAX_PADDING_BYTES:].rstrip(b"\0")[-16:]:
        raise DataError("decode_error", "the codestream has no end marker")


def extend_bits(values: np.ndarray, bits: int, dtype: np.dtype[np.generic]) -> np.ndarray:
    """Keep the low `bits` of each value, as two's complement where `dtype` is signed (PS3.5 8.1.1).

    Values that need no change come back as they are, not copied.
    """
    low, high = (-(1 << bits - 1), 1 << bits - 1) if dtype.kind == "i" else (0, 1 << bits)
    if values.dtype.newbyteorder("=") == dtype and low <= values.min() and values.max() < high:
        return values
    out = values.astype(dtype)
    shift = 8 * dtype.itemsize - bits
    if shift:
        np.left_shift(out, shift, out=out)
        np.right_shift(out, shift, out=out)
    return out


def _fit(values: np.ndarray, stream: Codestream, spec: FrameSpec) -> np.ndarray:
    """Bring decoded values to the header's signedness.

    Unsigned codestreams of signed pixels hold their two's complement (always so in JPEG and
    JPEG-LS, by mistake in JPEG 2000), in the codestream's precision rather than BitsStored.
    """
    if stream.signed == spec.signed:
        return values.astype(spec.dtype, copy=False)
    return extend_bits(values, min(stream.precision, spec.bits_stored), spec.dtype)


def to_rgb(values: np.ndarray, photometric: str) -> np.ndarray:
    """Convert YBR_FULL to RGB (PS3.3 C.7.6.3.1.2); everything else is returned as it is.

    Raises:
        DataError: `unsupported_pixels` for YBR of more than 8 bits.
    """
    if photometric not in _YBR:
        return values
    if values.dtype != np.uint8:
        raise DataError("unsupported_pixels", "YBR colour of more than 8 bits")
    return convert_color_space(values, "YBR_FULL", "RGB")


def _decode_jpeg(frame: bytes, spec: FrameSpec) -> np.ndarray:
    stream = read_jpeg_header(frame, _JPEG_FRAMES)
    _check_codestream(stream, spec)
    _check_end(frame)
    if spec.samples == 1:
        return _fit(jpeg8_decode(frame), stream, spec)
    ybr = (stream.colour or ("YBR" if spec.photometric in _YBR else "RGB")) == "YBR"
    if stream.lossless:  # libjpeg-turbo converts no colours there
        values = jpeg8_decode(frame, colorspace="RGB", outcolorspace="RGB")
        return to_rgb(_fit(values, stream, spec), "YBR_FULL" if ybr else "RGB")
    values = jpeg8_decode(frame, colorspace="YCBCR" if ybr else "RGB", outcolorspace="RGB")
    return _fit(values, stream, spec)


def _decode_jpegls(frame: bytes, spec: FrameSpec) -> np.ndarray:
    stream = read_jpeg_header(frame, _JPEG_LS_FRAMES)
    _check_codestream(stream, spec)
    _check_end(frame)
    values = jpegls_decode(frame)
    if spec.samples > 1 and values.shape == (spec.samples, spec.rows, spec.columns):
        values = np.moveaxis(values, 0, -1)  # interleave mode "none" is planar
    return to_rgb(_fit(values, stream, spec), spec.photometric)


def _decode_j2k(frame: bytes, spec: FrameSpec) -> np.ndarray:
    stream = read_j2k_header(frame)
    _check_codestream(stream, spec)
    _check_end(frame)
    # OpenJPEG for HTJ2K as well: the wheel's OpenJPH wraps 256 to 0 in lossy 8 bit codestreams.
    # The bare codestream: the colour boxes of a JP2 wrapper must not outvote the DICOM header.
    values = jpeg2k_decode(frame[stream.start :] if stream.start else frame, numthreads=1)
    return to_rgb(_fit(values, stream, spec), spec.photometric)


def _decode_rle(frame: bytes, spec: FrameSpec) -> np.ndarray:
    if spec.frame_bytes > len(frame) * _RLE_MAX_RATIO:
        bomb = spec.frame_bytes > _BOMB_BYTES
        raise DataError(
            "bomb_suspected" if bomb else "decode_error",
            f"{len(frame)} bytes of RLE cannot hold {spec.frame_bytes} bytes of pixels",
        )
    flat = _rle_decode_frame(
        frame, spec.rows, spec.columns, spec.samples, 8 * spec.dtype.itemsize, ">"
    )
    values = np.frombuffer(flat, spec.dtype.newbyteorder("<"))
    planes = values.reshape(spec.samples, spec.rows, spec.columns)
    values = planes[0] if spec.samples == 1 else np.moveaxis(planes, 0, -1)
    return to_rgb(extend_bits(values, spec.bits_stored, spec.dtype), spec.photometric)


def _decode_deflated(frame: bytes, spec: FrameSpec) -> np.ndarray:
    # One byte of padding makes an odd frame even.
    flat = inflate(frame, limit=spec.frame_bytes + 1)
    if len(flat) < spec.frame_bytes:
        raise DataError("pixel_length_mismatch", "the inflated frame is too short")
    values = np.frombuffer(
        flat, spec.dtype.newbyteorder("<"), spec.rows * spec.columns * spec.samples
    )
    values = extend_bits(values.reshape(spec.shape), spec.bits_stored, spec.dtype)
    return to_rgb(values, spec.photometric)


FrameCodec = Callable[[bytes, FrameSpec], np.ndarray]

FRAME_CODECS: dict[str, FrameCodec] = {
    "1.2.840.10008.1.2.5": _decode_rle,
    "1.2.840.10008.1.2.8.1": _decode_deflated,
    "1.2.840.10008.1.2.4.50": _decode_jpeg,
    "1.2.840.10008.1.2.4.51": _decode_jpeg,
    "1.2.840.10008.1.2.4.57": _decode_jpeg,
    "1.2.840.10008.1.2.4.70": _decode_jpeg,
    "1.2.840.10008.1.2.4.80": _decode_jpegls,
    "1.2.840.10008.1.2.4.81": _decode_jpegls,
    "1.2.840.10008.1.2.4.90": _decode_j2k,
    "1.2.840.10008.1.2.4.91": _decode_j2k,
    "1.2.840.10008.1.2.4.201": _decode_j2k,
    "1.2.840.10008.1.2.4.202": _decode_j2k,
    "1.2.840.10008.1.2.4.203": _decode_j2k,
}
