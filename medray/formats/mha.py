"""Foreign MetaImage files (.mha) with their data in the same file; their world is LPS as in ITK."""

import numpy as np

from medray.errors import DataError
from medray.formats.limits import (
    MAX_HEADER_BYTES,
    check_affine,
    check_declared,
    check_finite,
    dtype_from,
    inflate,
    numbers,
    sizes,
)
from medray.volume import Volume

_DTYPES = {
    "MET_CHAR": "int8", "MET_UCHAR": "uint8", "MET_SHORT": "int16", "MET_USHORT": "uint16",
    "MET_INT": "int32", "MET_UINT": "uint32", "MET_LONG_LONG": "int64",
    "MET_ULONG_LONG": "uint64", "MET_FLOAT": "float32", "MET_DOUBLE": "float64",
}  # fmt: skip
_FIRST_KEYS = (b"ObjectType", b"NDims", b"Comment")
# Old names of one and the same field.
_ALIASES = {
    "Position": "Offset", "Origin": "Offset", "Rotation": "TransformMatrix",
    "Orientation": "TransformMatrix", "ElementByteOrderMSB": "BinaryDataByteOrderMSB",
}  # fmt: skip


def is_mha(head: bytes) -> bool:
    """Tell whether bytes begin like a MetaImage header."""
    return head.startswith(_FIRST_KEYS)


def read_mha(data: bytes, *, max_bytes: int) -> Volume:
    """Return the volume of a MetaImage file, raw or zlib.

    Raises:
        DataError: a reason of the read stage, `unsupported_pixels` or `non_finite_pixels`.
    """
    fields, start = _header(data)
    if fields["ElementDataFile"].upper() != "LOCAL":
        raise DataError("unreadable", "header and data lie in two files")
    if fields.get("NDims") != "3" or fields.get("ElementNumberOfChannels", "1") != "1":
        raise DataError("unsupported_pixels", "the image has not three dimensions and one channel")
    sides = sizes(fields.get("DimSize", ""))
    if len(sides) != 3:
        raise DataError("bad_tag_value", "DimSize and NDims disagree")
    shape = (sides[2], sides[1], sides[0])
    dtype, packed = _dtype(fields), _flag(fields, "CompressedData")
    body = data[start:]
    declared = check_declared(
        shape, dtype.itemsize, stored_bytes=len(body), packed=packed, max_bytes=max_bytes
    )
    affine = check_affine(_affine(fields))
    raw = inflate(body, num_bytes=declared, wbits=15, exact=True) if packed else body
    known = "Offset" in fields and "TransformMatrix" in fields
    return Volume(
        array=check_finite(dtype_from(raw, dtype, shape)),
        affine_lps=affine,
        geometry="verified" if known else "unverified",
    )


def _header(data: bytes) -> tuple[dict[str, str], int]:
    """Return the fields and where the data start: after the line ElementDataFile."""
    fields: dict[str, str] = {}
    start = 0
    while start < min(len(data), MAX_HEADER_BYTES):
        stop = data.find(b"\n", start, MAX_HEADER_BYTES)
        if stop < 0:
            break
        key, equals, value = data[start:stop].decode("utf-8", "replace").partition("=")
        start, key = stop + 1, key.strip()
        if not equals:
            raise DataError("unreadable", "a header line is no assignment")
        fields[_ALIASES.get(key, key)] = value.strip()
        if key == "ElementDataFile":
            return fields, start
    raise DataError("truncated", "the header has no end")


def _dtype(fields: dict[str, str]) -> np.dtype:
    name = _DTYPES.get(fields.get("ElementType", "").upper())
    if name is None or not _flag(fields, "BinaryData", default="True"):
        raise DataError("unsupported_pixels", "the voxels are not plain binary numbers")
    if fields.get("HeaderSize", "0") not in {"0", "-1"}:
        raise DataError("unsupported_pixels", "the data begin with bytes to skip")
    return np.dtype(name).newbyteorder(">" if _flag(fields, "BinaryDataByteOrderMSB") else "<")


def _flag(fields: dict[str, str], name: str, *, default: str = "False") -> bool:
    return fields.get(name, default).strip().lower() in {"true", "1", "t"}


def _affine(fields: dict[str, str]) -> np.ndarray:
    """Return the LPS affine; each row of TransformMatrix is the direction of one axis i, j, k."""
    spacing = fields.get("ElementSpacing") or fields.get("ElementSize") or "1 1 1"
    directions = np.array(numbers(fields.get("TransformMatrix", "1 0 0 0 1 0 0 0 1"), 9))
    affine = np.eye(4)
    columns = directions.reshape(3, 3).T * np.array(numbers(spacing, 3))
    affine[:3, :3] = columns[:, ::-1]  # (i, j, k) -> (k, j, i)
    affine[:3, 3] = numbers(fields.get("Offset", "0 0 0"), 3)
    return affine
