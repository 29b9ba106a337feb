"""Foreign NIfTI files, parsed here under limits rather than by a native reader.

Layouts of nifti1.h and nifti2.h, either byte order. The sform holds where its code is set, else the
qform (as in nibabel); a file with neither has no proven place.
"""

import struct
from dataclasses import dataclass
from typing import Literal

import numpy as np

from medray.errors import DataError
from medray.formats.limits import (
    check_affine,
    check_declared,
    check_finite,
    dtype_from,
    inflate,
    unpacked_head,
)
from medray.formats.nifti_header import DTYPE_CODES, lps_affine
from medray.volume import Volume

_GZIP_MAGIC = b"\x1f\x8b"
_HEADER_BYTES = {348: 1, 540: 2}
_MAGICS = {1: b"n+1\0", 2: b"n+2\0"}
_DETACHED = frozenset({b"ni1\0", b"ni2\0"})
# Where each version keeps its fields: (struct format, offset).
_FIELDS = {
    1: {
        "magic": ("4s", 344), "dim": ("8h", 40), "datatype": ("h", 70), "pixdim": ("8f", 76),
        "vox_offset": ("f", 108), "scl": ("2f", 112), "units": ("b", 123), "codes": ("2h", 252),
        "quatern": ("6f", 256), "srow": ("12f", 280),
    },
    2: {
        "magic": ("4s", 4), "dim": ("8q", 16), "datatype": ("h", 12), "pixdim": ("8d", 104),
        "vox_offset": ("q", 168), "scl": ("2d", 176), "units": ("i", 500), "codes": ("2i", 344),
        "quatern": ("6d", 352), "srow": ("12d", 400),
    },
}  # fmt: skip
_NAMES = {code: name for name, code in DTYPE_CODES.items()}
# nifti1.h: NIFTI_UNITS_METER, _MM, _MICRON; 0 is unknown and taken as mm.
_MM_PER_UNIT = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
# Extensions lie between header and data; real ones hold kilobytes.
_MAX_OFFSET = 64 << 20
_MAX_RESCALE = 1e9
_INT16 = np.iinfo(np.int16)


@dataclass(frozen=True, slots=True, kw_only=True)
class NiftiHeader:
    """The fields that medray uses, in the file's own terms (i, j, k; RAS)."""

    version: int
    order: Literal["<", ">"]
    dim: tuple[int, ...]
    datatype: int
    pixdim: tuple[float, ...]
    vox_offset: int
    slope: float
    intercept: float
    mm_per_unit: float
    qform_code: int
    sform_code: int
    quatern: tuple[float, ...]
    srow: tuple[float, ...]


def is_nifti(head: bytes) -> bool:
    """Tell whether unpacked bytes begin like a NIfTI header."""
    return len(head) >= 4 and _byte_order(head) is not None


def read_nifti(data: bytes, *, max_bytes: int) -> Volume:
    """Return the volume of a .nii or .nii.gz file.

    Raises:
        DataError: a reason of the read stage, `unsupported_pixels`, `no_geometry` or
            `non_finite_pixels`.
    """
    packed = data[:2] == _GZIP_MAGIC
    head = unpacked_head(data, 544) if packed else data[:544]
    header = parse_header(head)
    shape = _shape(header)
    dtype = _dtype(header)
    declared = check_declared(
        shape, dtype.itemsize, stored_bytes=len(data), packed=packed, max_bytes=max_bytes
    )
    affine = check_affine(nifti_affine(header))
    end = header.vox_offset + declared
    raw = inflate(data, num_bytes=end, wbits=31, exact=True) if packed else data[:end]
    if len(raw) < end:
        raise DataError("truncated", "fewer data are there than the header declares")
    stored = dtype_from(memoryview(raw)[header.vox_offset :], dtype, shape)
    known = header.sform_code > 0 or header.qform_code > 0
    return Volume(
        array=_rescaled(check_finite(stored), header),
        affine_lps=lps_affine(affine),
        geometry="verified" if known else "unverified",
    )


def parse_header(head: bytes) -> NiftiHeader:
    """Return the header of unpacked bytes.

    Raises:
        DataError: `truncated`, `unreadable` or `bad_tag_value`.
    """
    order = _byte_order(head)
    if order is None:
        raise DataError("unreadable", "the bytes do not begin with a NIfTI header")
    num_bytes = struct.unpack(order + "i", head[:4])[0]
    version = _HEADER_BYTES[num_bytes]
    if len(head) < num_bytes:
        raise DataError("truncated", "the header is incomplete")
    raw = {
        name: struct.unpack_from(order + form, head, offset)
        for name, (form, offset) in _FIELDS[version].items()
    }
    magic = raw["magic"][0]
    if magic in _DETACHED:
        raise DataError("unreadable", "header and data lie in two files")
    if magic != _MAGICS[version]:
        raise DataError("unreadable", "the file has no NIfTI mark (Analyze has no orientation)")
    offset = raw["vox_offset"][0]
    if not num_bytes <= offset <= _MAX_OFFSET:
        raise DataError("bad_tag_value", "the data offset is out of range")
    if raw["units"][0] & 7 not in _MM_PER_UNIT:
        raise DataError("bad_tag_value", "the unit of length is unknown")
    return NiftiHeader(
        version=version,
        order=order,
        dim=raw["dim"],
        datatype=raw["datatype"][0],
        pixdim=raw["pixdim"],
        vox_offset=int(offset),
        slope=raw["scl"][0],
        intercept=raw["scl"][1],
        mm_per_unit=_MM_PER_UNIT[raw["units"][0] & 7],
        qform_code=raw["codes"][0],
        sform_code=raw["codes"][1],
        quatern=raw["quatern"],
        srow=raw["srow"],
    )


def _byte_order(head: bytes) -> Literal["<", ">"] | None:
    if struct.unpack("<i", head[:4])[0] in _HEADER_BYTES:
        return "<"
    return ">" if struct.unpack(">i", head[:4])[0] in _HEADER_BYTES else None


def nifti_affine(header: NiftiHeader) -> np.ndarray:
    """Return the (4, 4) affine, (i, j, k, 1) to RAS mm, by nifti1.h methods 3, 2 and 1."""
    affine = np.eye(4)
    if header.sform_code > 0:
        affine[:3] = np.reshape(header.srow, (3, 4))
    elif header.qform_code > 0:
        qfac = -1.0 if header.pixdim[0] < 0 else 1.0
        spacing = np.array(header.pixdim[1:4]) * [1, 1, qfac]
        affine[:3, :3] = _rotation(header.quatern[:3]) * spacing
        affine[:3, 3] = header.quatern[3:]
    else:
        affine[:3, :3] = np.diag(header.pixdim[1:4])
    affine[:3] *= header.mm_per_unit
    return affine


def _rotation(quaternion: tuple[float, ...]) -> np.ndarray:
    """Return the rotation of b, c, d with a >= 0 (nifti1.h, method 2)."""
    b, c, d = quaternion
    square = b * b + c * c + d * d
    if not square <= 1.0 + 1e-4:
        raise DataError("bad_tag_value", "the quaternion is not of unit length")
    a = np.sqrt(max(0.0, 1.0 - square))
    if square > 1.0:
        b, c, d = (float(part / np.sqrt(square)) for part in (b, c, d))
    return np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )


def _shape(header: NiftiHeader) -> tuple[int, int, int]:
    """Return (depth, height, width); further axes may only have one sample."""
    rank = header.dim[0]
    if not 1 <= rank <= 7:
        raise DataError("bad_tag_value", "the number of dimensions is out of range")
    if rank < 2 or any(side > 1 for side in header.dim[4 : rank + 1]):
        raise DataError("unsupported_pixels", "the image has not three dimensions")
    sides = [header.dim[axis] if axis <= rank else 1 for axis in (3, 2, 1)]
    return sides[0], sides[1], sides[2]


def _dtype(header: NiftiHeader) -> np.dtype:
    name = _NAMES.get(header.datatype)
    if name is None:
        raise DataError("unsupported_pixels", "the voxels are not plain numbers")
    return np.dtype(name).newbyteorder(header.order)


def _rescaled(stored: np.ndarray, header: NiftiHeader) -> np.ndarray:
    """Apply slope and intercept; whole ones keep whole numbers, in int16 where they fit."""
    slope, intercept = header.slope, header.intercept
    if not np.isfinite(slope) or slope == 0:
        return stored
    if not np.isfinite(intercept) or abs(slope) > _MAX_RESCALE or abs(intercept) > _MAX_RESCALE:
        raise DataError("bad_tag_value", "slope or intercept is out of range")
    if slope == 1 and intercept == 0:
        return stored
    if stored.dtype.kind in "iu" and slope == int(slope) and intercept == int(intercept):
        low, high = int(stored.min()), int(stored.max())
        ends = sorted((low * int(slope) + int(intercept), high * int(slope) + int(intercept)))
        if _INT16.min <= ends[0] and ends[1] <= _INT16.max:
            whole: np.ndarray = stored.astype(np.int64) * int(slope) + int(intercept)
            return whole.astype(np.int16)
    scaled = stored.astype(np.float32)
    scaled *= np.float32(slope)
    scaled += np.float32(intercept)
    return check_finite(scaled)
