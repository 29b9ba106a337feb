"""Mask files: NIfTI with a true or a useless geometry, NRRD, written without a time stamp."""

import gzip
import struct
from pathlib import Path

import numpy as np

_NIFTI_HEADER_BYTES = 348
_NIFTI_UINT8 = 2


def nifti_bytes(array: np.ndarray, affine_ras: np.ndarray) -> bytes:
    """Return an uncompressed NIfTI-1 file.

    Args:
        array: uint8 in NIfTI's own index order (first axis fastest on disk).
        affine_ras: (4, 4) from array index to RAS mm, written as sform and as spacing.
    """
    header = bytearray(_NIFTI_HEADER_BYTES)
    struct.pack_into("<i", header, 0, _NIFTI_HEADER_BYTES)
    struct.pack_into("<8h", header, 40, 3, *array.shape, 1, 1, 1, 1)
    struct.pack_into("<hh", header, 70, _NIFTI_UINT8, 8)
    spacing = np.linalg.norm(affine_ras[:3, :3], axis=0)
    struct.pack_into("<8f", header, 76, 1.0, *spacing, 0, 0, 0, 0)
    struct.pack_into("<f", header, 108, 352.0)
    struct.pack_into("<f", header, 112, 1.0)
    header[123] = 2  # mm
    struct.pack_into("<hh", header, 252, 0, 1)  # sform only
    struct.pack_into("<12f", header, 280, *affine_ras[:3].ravel())
    header[344:348] = b"n+1\0"
    return bytes(header) + b"\0" * 4 + np.asarray(array, np.uint8).tobytes(order="F")


def write_gz(path: Path, data: bytes) -> Path:
    """Write gzip data without name and time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data, compresslevel=6, mtime=0))
    return path


def physical_nifti(
    mask: np.ndarray, affine_lps: np.ndarray, *, flips: tuple[bool, bool, bool]
) -> bytes:
    """Return a NIfTI mask in true physical geometry, its axes reversed as asked.

    Args:
        mask: (depth, height, width).
        affine_lps: of the mask's index (k, j, i).
        flips: for i, j, k; a reader that goes by index alone gets it wrong.
    """
    array = mask.astype(np.uint8).transpose(2, 1, 0)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine_lps[:, [2, 1, 0, 3]]
    for axis, flip in enumerate(flips):
        if flip:
            affine[:3, 3] += affine[:3, axis] * (array.shape[axis] - 1)
            affine[:3, axis] *= -1
            array = np.flip(array, axis)
    return nifti_bytes(array, affine)


def nrrd_bytes(mask: np.ndarray, affine_lps: np.ndarray) -> bytes:
    """Return an NRRD mask (gzip encoding, LPS space) of a (depth, height, width) array."""
    depth, height, width = mask.shape
    directions = " ".join(_vector(affine_lps[:3, axis]) for axis in (2, 1, 0))
    header = [
        "NRRD0004",
        "type: unsigned char",
        "dimension: 3",
        "space: left-posterior-superior",
        f"sizes: {width} {height} {depth}",
        f"space directions: {directions}",
        "kinds: domain domain domain",
        "encoding: gzip",
        f"space origin: {_vector(affine_lps[:3, 3])}",
    ]
    data = gzip.compress(mask.astype(np.uint8).tobytes(), compresslevel=6, mtime=0)
    return "\n".join([*header, "", ""]).encode() + data


def _vector(values: np.ndarray) -> str:
    return "(" + ",".join(f"{float(value):.9g}" for value in values) + ")"
