"""Opening a DICOM stream under limits, and reading single values with a reason on failure."""

import io
import math
import struct
import zlib
from functools import lru_cache
from typing import Any, BinaryIO

import pydicom
from pydicom import config as pydicom_config
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag, Tag
from pydicom.uid import DeflatedExplicitVRLittleEndian

from medray.errors import DataError

_PREAMBLE_BYTES = 132
_MAGIC = b"DICM"
_DEFLATED = DeflatedExplicitVRLittleEndian.encode()
_META_PROBE_BYTES = 4096
# Private information may make group 0002 long, but not this long.
_MAX_META_BYTES = 1 << 20
# A header that inflates to more than this is a bomb: real ones stay below one MiB.
MAX_INFLATED_HEADER_BYTES = 64 << 20
_PIXEL_TAGS = frozenset(Tag(t) for t in (0x7FE00008, 0x7FE00009, 0x7FE00010))
_ELEMENT_HEADER_BYTES = 8
_UNDEFINED = 0xFFFFFFFF
_LONG_VRS = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"UC", b"UN", b"UR", b"UT"})


def has_dicom_mark(head: bytes) -> bool:
    """Tell whether the first 132 bytes carry the DICM mark (PS3.10 7.1)."""
    return head[128:132] == _MAGIC


def looks_like_dicom(head: bytes) -> bool:
    """Tell whether bytes without the mark start like a data set of group 0002 or 0008."""
    if len(head) < 8:
        return False
    little, big = struct.unpack("<H", head[:2])[0], struct.unpack(">H", head[:2])[0]
    if head[4:6].isalpha() and head[4:6].isupper() and (little in (2, 8) or big == 8):
        return True
    length = struct.unpack("<I", head[4:8])[0]
    element = struct.unpack("<H", head[2:4])[0]
    return bool(little == 8 and length <= 256 and element <= 0x100)


def open_dataset(
    stream: BinaryIO,
    *,
    stop_before_pixels: bool,
    tags: tuple[str | int, ...] | None = None,
    max_inflated_bytes: int = MAX_INFLATED_HEADER_BYTES,
) -> tuple[Dataset, bool]:
    """Parse a DICOM stream; return the data set and whether pixel data follow or are in it.

    Raises:
        DataError: `empty_file`, `not_dicom`, `truncated`, `bomb_suspected`, `nesting_too_deep`,
            `too_large` or `unreadable`.
    """
    pydicom_config.settings.reading_validation_mode = pydicom_config.IGNORE
    head = stream.read(_META_PROBE_BYTES)
    if not head:
        raise DataError("empty_file", "the file has no bytes")
    if not has_dicom_mark(head) and not looks_like_dicom(head):
        raise DataError("not_dicom", "the file has no DICM mark and no DICOM elements")
    stream.seek(0)
    try:
        if is_deflated(stream):
            return _open_deflated(
                stream, stop=stop_before_pixels, tags=tags, limit=max_inflated_bytes
            )
        seen = _PixelStop(stop=stop_before_pixels, stream=stream)
        dataset = pydicom.filereader.read_partial(
            stream, stop_when=seen, force=True, specific_tags=_tag_list(tags)
        )
        seen.require_all(marked=has_dicom_mark(head))
    except DataError:
        raise
    except RecursionError:
        raise DataError("nesting_too_deep", "sequences are nested too deep") from None
    except MemoryError:
        raise DataError("too_large", "the header asks for more memory than there is") from None
    except EOFError:
        raise DataError("truncated", "the file ends inside its header") from None
    except Exception as error:  # noqa: BLE001 - hostile bytes raise anything; the kind is enough
        raise DataError("unreadable", f"parsing failed with {type(error).__name__}") from None
    _require_content(dataset)
    return dataset, seen.met


def is_deflated(stream: BinaryIO) -> bool:
    """Tell whether group 0002 may name the deflated syntax; pydicom would inflate without a bound.

    Raises:
        DataError: `too_large` if the group is longer than any real one.
    """
    head = stream.read(_META_PROBE_BYTES)
    if len(head) == _META_PROBE_BYTES and _end_of_meta(head)[0] + 12 > len(head):
        head += stream.read(_MAX_META_BYTES)
        if len(head) > _MAX_META_BYTES and _end_of_meta(head)[0] > _MAX_META_BYTES:
            raise DataError("too_large", "the file meta information is too long")
    stream.seek(0)
    return _DEFLATED in head


class _PixelStop:
    """Stops the parser at the pixel data and remembers that it got there."""

    def __init__(self, *, stop: bool, stream: BinaryIO | None = None) -> None:
        self.stop = stop
        self.met = False
        self.num_elements = 0
        self._stream = stream
        self._end: int | None = None

    def __call__(self, tag: BaseTag, vr: str | None, length: int) -> bool:  # noqa: ARG002
        if tag in _PIXEL_TAGS:
            self.met = True
            return self.stop
        self.num_elements += 1
        if self._stream is not None:
            self._end = None if length == _UNDEFINED else self._stream.tell() + length
        return False

    def require_all(self, *, marked: bool) -> None:
        """Refuse a header that is cut: pydicom takes what there is for the whole.

        Args:
            marked: the file has the DICM mark, so something must follow its meta information.

        Raises:
            DataError: `truncated`.
        """
        if marked and not self.met and self.num_elements == 0:
            raise DataError("truncated", "the file ends with its meta information")
        if self.met or self._stream is None or self._end is None:
            return
        size = self._stream.seek(0, io.SEEK_END)
        rest = b""
        if 0 < size - self._end < _ELEMENT_HEADER_BYTES:  # padding, or half an element
            self._stream.seek(self._end)
            rest = self._stream.read(_ELEMENT_HEADER_BYTES).strip(b"\0")
        if size < self._end or rest:
            raise DataError("truncated", "the file ends inside its header")


@lru_cache(maxsize=8)
def _tag_list(tags: tuple[str | int, ...] | None) -> list[BaseTag | int] | None:
    return None if tags is None else [Tag(tag) for tag in tags]


def _require_content(dataset: Dataset) -> None:
    """Refuse what parsed to nothing: text files can pass for implicit VR elements."""
    if len(dataset) == 0 and not getattr(dataset, "file_meta", None):
        raise DataError("not_dicom", "the file holds no DICOM elements")


def _open_deflated(
    stream: BinaryIO, *, stop: bool, tags: tuple[str | int, ...] | None, limit: int
) -> tuple[Dataset, bool]:
    """Inflate at most `limit` bytes, then parse; pydicom itself would inflate without a bound."""
    raw = stream.read()
    start, syntax = _end_of_meta(raw)
    if syntax != _DEFLATED.decode():
        raise DataError("unreadable", "the transfer syntax is not in the file meta information")
    inflated = inflate(raw[start:], limit=limit)
    seen = _PixelStop(stop=stop)
    dataset = read_dataset(
        io.BytesIO(inflated), False, True, stop_when=seen, specific_tags=_tag_list(tags)
    )
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.file_meta = meta
    _require_content(dataset)
    return dataset, seen.met


def inflate(data: bytes, *, limit: int) -> bytes:
    """Inflate raw deflate data.

    Raises:
        DataError: `bomb_suspected` past `limit` bytes, `truncated` or `decode_error`.
    """
    engine = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        out = engine.decompress(data, limit)
    except zlib.error:
        raise DataError("decode_error", "the deflated data set is damaged") from None
    if engine.unconsumed_tail:
        raise DataError("bomb_suspected", f"the data set inflates to more than {limit} bytes")
    if not engine.eof:
        raise DataError("truncated", "the deflated data set ends too early")
    return out


def _end_of_meta(raw: bytes) -> tuple[int, str]:
    """Return where group 0002 ends and the transfer syntax in it (always explicit VR LE)."""
    offset = _PREAMBLE_BYTES if has_dicom_mark(raw) else 0
    syntax = ""
    while offset + 12 <= len(raw):
        group, element = struct.unpack_from("<HH", raw, offset)
        if group != 2:
            break
        long_form = raw[offset + 4 : offset + 6] in _LONG_VRS
        start = offset + (12 if long_form else 8)
        length = struct.unpack_from(
            "<I" if long_form else "<H", raw, start - (4 if long_form else 2)
        )[0]
        if element == 0x0010:
            syntax = raw[start : start + length].rstrip(b"\0 ").decode("ascii", "replace")
        offset = start + length
    return offset, syntax


# Converting a value through pydicom's element objects costs ten times its decoding; these VRs are
# plain text or 16 bit numbers, so the bytes say all.
_TEXT_VRS = frozenset({"AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "SH", "TM", "UI"})
_SHORT_VRS = {"US": "H", "SS": "h"}


@lru_cache(maxsize=1024)
def _tag_and_vr(keyword: str) -> tuple[BaseTag, str]:
    tag = tag_for_keyword(keyword)
    assert tag is not None
    return BaseTag(tag), dictionary_VR(tag)


def _value(dataset: Dataset, keyword: str) -> Any:
    """Return a value as text, numbers or whatever pydicom makes of it; None where absent."""
    tag, vr = _tag_and_vr(keyword)
    if tag not in dataset:
        return None
    element: Any = dataset.get_item(tag)
    if isinstance(element, RawDataElement):
        raw, vr = element.value, element.VR or vr
        if not raw:
            return None
        if vr in _TEXT_VRS and raw.isascii():
            return raw.decode("ascii").rstrip("\0 ")
        if vr in _SHORT_VRS and len(raw) % 2 == 0:
            order = "<" if element.is_little_endian else ">"
            return list(struct.unpack(f"{order}{len(raw) // 2}{_SHORT_VRS[vr]}", raw))
    return dataset[tag].value


def text(dataset: Dataset, keyword: str) -> str:
    """Return a value as text, several joined by a backslash, empty where absent."""
    try:
        value = _value(dataset, keyword)
    except Exception:  # noqa: BLE001 - a value that cannot be converted is no text
        return ""
    if value is None:
        return ""
    if isinstance(value, str) and "\\" not in value:
        return value.strip().strip("\0")
    many = value.split("\\") if isinstance(value, str) else value
    if isinstance(many, (list, pydicom.multival.MultiValue)):
        return "\\".join(str(item).strip() for item in many)
    return str(value).strip()


def numbers(
    dataset: Dataset, keyword: str, *, limit: float, count: int | None = None
) -> tuple[float, ...] | None:
    """Return a value as finite numbers, None where absent or empty.

    Raises:
        DataError: `bad_tag_value` if one is not finite, beyond `limit`, or their count is wrong.
    """
    try:
        value: Any = _value(dataset, keyword)
        if isinstance(value, str):
            value = value.split("\\") if value.strip() else None
        if value is None or (hasattr(value, "__len__") and len(value) == 0):
            return None
        many = isinstance(value, (list, tuple, pydicom.multival.MultiValue))
        items = tuple(_as_float(item) for item in (value if many else [value]))
    except Exception:  # noqa: BLE001 - pydicom converts lazily and raises many kinds
        raise DataError("bad_tag_value", f"{keyword} is not a number") from None
    if count is not None and len(items) != count:
        raise DataError("bad_tag_value", f"{keyword} has {len(items)} values instead of {count}")
    if not all(math.isfinite(item) and abs(item) <= limit for item in items):
        raise DataError("bad_tag_value", f"{keyword} is not finite or out of range")
    return items


def _as_float(value: Any) -> float:
    if isinstance(value, str) and "_" in value:
        raise ValueError("Python's digit separator is no DICOM number")
    return float(value)


def number(dataset: Dataset, keyword: str, *, low: float, high: float) -> float | None:
    """Return one finite number in [low, high], None where absent.

    Raises:
        DataError: `bad_tag_value`.
    """
    found = numbers(dataset, keyword, limit=max(abs(low), abs(high)), count=1)
    if found is None:
        return None
    if not low <= found[0] <= high:
        raise DataError("bad_tag_value", f"{keyword} is out of range")
    return found[0]


def whole(
    dataset: Dataset, keyword: str, *, low: int, high: int, default: int | None = None
) -> int | None:
    """Return one whole number in [low, high], `default` where absent.

    Raises:
        DataError: `bad_tag_value`.
    """
    found = number(dataset, keyword, low=low, high=high)
    if found is None:
        return default
    if found != int(found):
        raise DataError("bad_tag_value", f"{keyword} is not a whole number")
    return int(found)
