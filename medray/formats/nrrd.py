"""Foreign NRRD files with their data attached (http://teem.sourceforge.net/nrrd/format.html)."""

import re

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

_TYPES = {
    "int8": "int8, int8_t, signed char",
    "uint8": "uint8, uint8_t, uchar, unsigned char",
    "int16": "int16, int16_t, short, short int, signed short, signed short int",
    "uint16": "uint16, uint16_t, ushort, unsigned short, unsigned short int",
    "int32": "int32, int32_t, int, signed int",
    "uint32": "uint32, uint32_t, uint, unsigned int",
    "int64": "int64, int64_t, longlong, long long, long long int, signed long long",
    "uint64": "uint64, uint64_t, ulonglong, unsigned long long, unsigned long long int",
    "float32": "float",
    "float64": "double",
}
_DTYPES = {alias: name for name, aliases in _TYPES.items() for alias in aliases.split(", ")}
# Signs that turn a world axis into LPS.
_SPACES = {
    "left-posterior-superior": (1, 1, 1), "lps": (1, 1, 1),
    "right-anterior-superior": (-1, -1, 1), "ras": (-1, -1, 1),
    "left-anterior-superior": (1, -1, 1), "las": (1, -1, 1),
}  # fmt: skip
_VECTOR = re.compile(r"\(([^()]*)\)|none", re.IGNORECASE)


def is_nrrd(head: bytes) -> bool:
    """Tell whether bytes begin with the NRRD mark."""
    return head[:5] == b"NRRD0"


def read_nrrd(data: bytes, *, max_bytes: int) -> Volume:
    """Return the volume of a NRRD file whose data follow the header, raw or gzip.

    Raises:
        DataError: a reason of the read stage, `unsupported_pixels` or `non_finite_pixels`.
    """
    fields, start = _header(data)
    if "data file" in fields or "datafile" in fields:
        raise DataError("unreadable", "header and data lie in two files")
    if fields.get("dimension") != "3":
        raise DataError("unsupported_pixels", "the image has not three dimensions")
    sides = sizes(fields.get("sizes", ""))
    if len(sides) != 3:
        raise DataError("bad_tag_value", "sizes and dimension disagree")
    shape = (sides[2], sides[1], sides[0])
    dtype = _dtype(fields)
    packed = _is_packed(fields)
    body = data[start:]
    declared = check_declared(
        shape, dtype.itemsize, stored_bytes=len(body), packed=packed, max_bytes=max_bytes
    )
    affine, known = _affine(fields)
    raw = inflate(body, num_bytes=declared, wbits=31, exact=True) if packed else body
    return Volume(
        array=check_finite(dtype_from(raw, dtype, shape)),
        affine_lps=check_affine(affine),
        geometry="verified" if known else "unverified",
    )


def _header(data: bytes) -> tuple[dict[str, str], int]:
    """Return the fields, names in lower case, and where the data start."""
    ends = [
        (place, place + len(mark))
        for mark in (b"\n\n", b"\r\n\r\n")
        if (place := data.find(mark, 0, MAX_HEADER_BYTES)) >= 0
    ]
    if not ends:
        raise DataError("truncated", "the header has no end")
    stop, start = min(ends)
    fields: dict[str, str] = {}
    for line in data[:stop].decode("utf-8", "replace").splitlines()[1:]:
        name, colon, value = line.partition(":")
        if line.startswith("#") or not colon or value.startswith("="):
            continue
        fields[name.strip().lower()] = value.strip()
    return fields, start


def _dtype(fields: dict[str, str]) -> np.dtype:
    name = _DTYPES.get(" ".join(fields.get("type", "").lower().split()))
    if name is None:
        raise DataError("unsupported_pixels", "the voxels are not plain numbers")
    endian = fields.get("endian", "little").lower()
    if endian not in {"little", "big"}:
        raise DataError("bad_tag_value", "the byte order is unknown")
    return np.dtype(name).newbyteorder("<" if endian == "little" else ">")


def _is_packed(fields: dict[str, str]) -> bool:
    encoding = fields.get("encoding", "").lower()
    if encoding not in {"raw", "gzip", "gz"}:
        raise DataError("unsupported_pixels", "the encoding is neither raw nor gzip")
    skips = (fields.get(name, "0") for name in ("line skip", "lineskip", "byte skip", "byteskip"))
    if any(skip != "0" for skip in skips):
        raise DataError("unsupported_pixels", "the data begin with bytes to skip")
    return encoding != "raw"


def _affine(fields: dict[str, str]) -> tuple[np.ndarray, bool]:
    """Return the LPS affine, and whether the file says where the patient is."""
    if not set(fields.get("space units", "").replace('"', " ").lower().split()) <= {"mm"}:
        raise DataError("bad_tag_value", "the unit of length is not mm")
    affine = np.eye(4)
    vectors = _VECTOR.findall(fields.get("space directions", ""))
    signs = _SPACES.get(fields.get("space", "").lower())
    if len(vectors) == 3:
        columns = [numbers(vector.replace(",", " "), 3) for vector in vectors]
        affine[:3, :3] = np.array(columns[::-1]).T  # (i, j, k) -> (k, j, i)
    elif "spacings" in fields:
        affine[:3, :3] = np.diag(numbers(fields["spacings"], 3))[:, ::-1]
    else:
        affine[:3, :3] = np.eye(3)[:, ::-1]
    origin = fields.get("space origin")
    if origin:
        affine[:3, 3] = numbers(origin.strip("()").replace(",", " "), 3)
    if signs is None:
        return affine, False
    affine[:3] *= np.array(signs)[:, None]
    return affine, len(vectors) == 3 and origin is not None
