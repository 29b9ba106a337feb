"""Defects of single files: bytes, headers, pixels."""

import gzip
import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pydicom
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from medray.phantoms.instance import instance_bytes, new_dataset, set_pixels
from medray.phantoms.zoo import Zoo, find_element, with_element

PIXEL_DATA = (0x7FE0, 0x0010)
_PLAIN = str(ExplicitVRLittleEndian)
_NESTING_DEPTH = 2000
_BOMB_BLOCK, _BOMB_BLOCKS = 64 << 20, 18  # 1.1 GiB from about 1.1 MB
_DECIMALS: dict[str, tuple[tuple[int, int], int]] = {
    "ImagePositionPatient": ((0x0020, 0x0032), 3),
    "ImageOrientationPatient": ((0x0020, 0x0037), 6),
    "PixelSpacing": ((0x0028, 0x0030), 2),
    "RescaleSlope": ((0x0028, 0x1053), 1),
    "RescaleIntercept": ((0x0028, 0x1052), 1),
}


def add_file_defects(zoo: Zoo) -> None:
    """Plant every defect that one file can have."""
    _add_byte_defects(zoo)
    _add_bombs(zoo)
    _add_number_defects(zoo)
    _add_missing(zoo)
    _add_syntax_defects(zoo)
    _add_pixel_defects(zoo)
    _add_survivors(zoo)


def _add_byte_defects(zoo: Zoo) -> None:
    zoo.file("empty_file", b"", "empty_file")
    zoo.file("text_as_dicom", b"This is a note, not an image.\n" * 20, "not_dicom")
    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII5B", 13, b"IHDR", 8, 8, 8, 0, 0, 0, 0)
    zoo.file("png_as_dicom", png + b"\0" * 64, "not_dicom")
    healthy = zoo.image("gzip_as_dicom")
    zoo.file("gzip_as_dicom", gzip.compress(healthy, mtime=0), "not_dicom")
    healthy = zoo.image("truncated_header")
    start, header, _ = find_element(healthy, (0x0020, 0x000D))
    zoo.file("truncated_header", healthy[: start + header + 9], "truncated")
    zoo.stack("truncated_pixels", lambda data: data[:-700], "truncated", syntax=_PLAIN)
    healthy = zoo.image("truncated_mid_element")
    start, _, _ = find_element(healthy, (0x0028, 0x0010))
    zoo.file("truncated_mid_element", healthy[: start + 3], "truncated")


def _add_bombs(zoo: Zoo) -> None:
    zoo.file("deflate_bomb", _deflate_bomb(zoo), "bomb_suspected")
    every = (0, 1, 2, 3, 4)
    zoo.stack("rle_bomb", declared_large, "bomb_suspected", syntax=RLELossless, spoilt=every)
    name = "jpeg2000_other_size"
    zoo.stack(name, declared_large, "decode_error", syntax=JPEG2000Lossless, spoilt=every)
    zoo.stack("huge_declared", declared_huge, "too_large", syntax=RLELossless, spoilt=every)
    zoo.file("nested_2000", _nested(zoo), "nesting_too_deep")


def declared_large(data: bytes) -> bytes:
    """Let a few bytes claim 6,000 rows and columns: no more than a machine has, and still a lie."""
    return _declared(data, 6000)


def declared_huge(data: bytes) -> bytes:
    """Let a few bytes claim 65,535 rows and columns: a series of it fits no machine."""
    return _declared(data, 65535)


def _declared(data: bytes, side: int) -> bytes:
    for tag in ((0x0028, 0x0010), (0x0028, 0x0011)):
        data = with_element(data, tag, struct.pack("<H", side))
    return data


def _deflate_bomb(zoo: Zoo) -> bytes:
    """Return a deflated data set whose private element inflates to more than a GiB."""
    tags = zoo.tags("deflate_bomb")
    dataset = new_dataset(tags)
    set_pixels(
        dataset, zoo.pixels("deflate_bomb"), syntax=DeflatedExplicitVRLittleEndian, bits_stored=12
    )
    plain = instance_bytes(dataset)
    group_length = struct.unpack_from("<I", plain, 140)[0]
    meta = plain[: 144 + group_length]
    head = struct.pack("<HH2sHI", 0x0009, 0x1010, b"OB", 0, _BOMB_BLOCK * _BOMB_BLOCKS)
    # Each block ends on a byte border (full flush), so its bytes can be repeated.
    first = zlib.compressobj(9, zlib.DEFLATED, -15)
    start = first.compress(head) + first.flush(zlib.Z_FULL_FLUSH)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(_BOMB_BLOCK)) + packer.flush(zlib.Z_FULL_FLUSH)
    end = packer.flush(zlib.Z_FINISH)
    return meta + start + block * _BOMB_BLOCKS + end


def _nested(zoo: Zoo) -> bytes:
    """Return a file whose private sequence holds itself 2,000 times, all of undefined length."""
    plain = zoo.image("nested_2000")
    start, _, _ = find_element(plain, (0x0020, 0x000D))
    open_one = struct.pack("<HH2sHI", 0x0009, 0x1001, b"SQ", 0, 0xFFFFFFFF)
    open_one += struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    close_one = struct.pack("<HHI", 0xFFFE, 0xE00D, 0) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    creator = struct.pack("<HH2sH", 0x0009, 0x0010, b"LO", 4) + b"NEST"
    nest = creator + open_one * _NESTING_DEPTH + close_one * _NESTING_DEPTH
    place = _first_after_group(plain, 0x0008)
    assert place <= start
    return plain[:place] + nest + plain[place:]


def _first_after_group(data: bytes, group: int) -> int:
    """Return where the first element behind a group starts."""
    start, _, _ = find_element(data, (0x0010, 0x0010))
    assert group < 0x0010
    return start


def _add_number_defects(zoo: Zoo) -> None:
    """Put `nan`, infinity, 1e308 and a wrong number of values into decimals of geometry and HU."""
    for keyword, (tag, count) in _DECIMALS.items():
        for name, text in (("nan", b"NaN"), ("inf", b"inf"), ("1e308", b"1e308")):
            label = f"{keyword}_{name}"
            healthy = zoo.image(label)
            zoo.file(label, with_element(healthy, tag, _first_value(text)), "bad_tag_value")
        label = f"{keyword}_count"
        values = b"\\".join([b"1"] * (count + 1))
        zoo.file(label, with_element(zoo.image(label), tag, values), "bad_tag_value")
    for label, tag, value in (
        ("slope_zero", (0x0028, 0x1053), b"0"),
        ("slope_text", (0x0028, 0x1053), b"one"),
        ("spacing_zero", (0x0028, 0x0030), b"0\\0.75"),
        ("spacing_negative", (0x0028, 0x0030), b"-0.75\\0.75"),
        ("orientation_skewed", (0x0020, 0x0037), b"1\\0\\0\\0.2\\0.98\\0"),
        ("orientation_zero", (0x0020, 0x0037), b"0\\0\\0\\0\\0\\0"),
    ):
        zoo.file(label, with_element(zoo.image(label), tag, value), "bad_tag_value")


def _first_value(text: bytes) -> Callable[[bytes], bytes]:
    """Return a change that replaces the first of several values."""

    def change(old: bytes) -> bytes:
        return b"\\".join([text, *old.strip().split(b"\\")[1:]])

    return change


def _add_missing(zoo: Zoo) -> None:
    zoo.file("rows_missing", zoo.image("rows_missing", drop=("Rows",)), "missing_tag")
    zoo.file("bits_missing", zoo.image("bits_missing", drop=("BitsAllocated",)), "missing_tag")
    path = zoo.folder("pixels_missing") / "1-1.dcm"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(zoo.image("pixels_missing", drop=("PixelData",)))
    zoo.defect(path, "no_pixels", scope="skip")


def _add_syntax_defects(zoo: Zoo) -> None:
    """Plant encodings without a decoder: retired JPEG, video, a private one, none at all."""
    for name, syntax in (
        ("syntax_jpeg_53", "1.2.840.10008.1.2.4.53"),
        ("syntax_mpeg2", "1.2.840.10008.1.2.4.100"),
        ("syntax_private", "1.2.826.0.1.3680043.2.1.9.77"),
    ):
        data = zoo.image(name, syntax=JPEGLosslessSV1)
        data = _with_syntax(data, syntax)
        zoo.file(name, data, "unsupported_transfer_syntax")


def _with_syntax(data: bytes, syntax: str) -> bytes:
    """Return the file with another transfer syntax in its meta information."""
    text = syntax.encode()
    text += b"\0" * (len(text) % 2)
    _, _, value = find_element(data, (0x0002, 0x0010))
    grown = len(text) - (value[1] - value[0])
    data = with_element(data, (0x0002, 0x0010), text)
    size = struct.unpack_from("<I", data, 140)[0]
    return data[:140] + struct.pack("<I", size + grown) + data[144:]


def _add_pixel_defects(zoo: Zoo) -> None:
    for name, syntax in (
        ("corrupt_jpeg2000", JPEG2000Lossless),
        ("corrupt_jpeg_lossless", JPEGLosslessSV1),
        ("corrupt_jpeg_ls", JPEGLSLossless),
        ("corrupt_rle", RLELossless),
    ):
        zoo.stack(name, damaged, "decode_error", syntax=syntax)
    for name, spoil in (
        ("pixels_short", lambda data: with_element(data, PIXEL_DATA, lambda v: v[: len(v) // 2])),
        ("pixels_long", lambda data: with_element(data, PIXEL_DATA, lambda v: v + v[:640])),
    ):
        zoo.stack(name, spoil, "pixel_length_mismatch", syntax=_PLAIN)
    for name, tag, value in (
        ("bits_allocated_64", (0x0028, 0x0100), 64),
        ("bits_allocated_12", (0x0028, 0x0100), 12),
        ("samples_2", (0x0028, 0x0002), 2),
    ):
        zoo.stack(name, _with_short(tag, value), "unsupported_pixels", syntax=_PLAIN)
    spoil = _with_short((0x0028, 0x0101), 24)
    zoo.stack("bits_stored_over_allocated", spoil, "bad_tag_value", syntax=_PLAIN)
    zoo.stack("float_pixels_nan", _as_float_pixels, "non_finite_pixels", syntax=_PLAIN)


def _with_short(tag: tuple[int, int], value: int) -> Callable[[bytes], bytes]:
    """Return a change of one 16-bit number of the header."""
    return lambda data: with_element(data, tag, struct.pack("<H", value))


def damaged(data: bytes) -> bytes:
    """Overwrite the middle of the encoded frame, keeping lengths and the first marker."""
    _, _, (start, stop) = find_element(data, PIXEL_DATA)
    frame = start + 8 + 8 + 16  # empty offset table, item header, first bytes of the stream
    end = stop - 8
    filler = bytes((31 * n + 7) % 256 for n in range(end - frame))
    return data[:frame] + filler + data[end:]


def _as_float_pixels(data: bytes) -> bytes:
    """Turn the pixels of a file into 32-bit floats, some of them NaN."""
    dataset = pydicom.dcmread(io.BytesIO(data))
    values = dataset.pixel_array.astype("<f4")
    values[5, 5:9] = np.nan
    del dataset.PixelData
    dataset.BitsAllocated = 32
    for keyword in ("BitsStored", "HighBit", "PixelRepresentation"):
        delattr(dataset, keyword)
    dataset.add_new(0x7FE00008, "OF", values.tobytes())
    return instance_bytes(dataset)


def _add_survivors(zoo: Zoo) -> None:
    """Plant what looks wrong and is not: it must come through."""
    for name, syntax in (
        ("ok_big_endian", ExplicitVRBigEndian),
        ("ok_deflated", DeflatedExplicitVRLittleEndian),
    ):
        why = "an old transfer syntax and no suffix"
        zoo.odd_stack(name, bytes, why, syntax=syntax, suffix="")
    zoo.odd_stack(
        "ok_no_preamble",
        lambda data: data[132:],
        "no preamble and no DICM mark",
        syntax=ImplicitVRLittleEndian,
        suffix=".dcm",
    )
    path = zoo.folder("notes") / "readme.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("Nothing to see.\n")
    zoo.defect(path, "not_dicom", scope="skip")
