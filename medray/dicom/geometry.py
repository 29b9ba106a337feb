"""Order, spacing and affine of a stack of slices, proven from positions alone.

Everything is in the patient's LPS millimetres (PS3.3 C.7.6.2.1.1). A file's name, number or place
in a folder never orders anything.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medray.dicom.header import Plane
from medray.errors import DataError

MIN_SLICES = 3
# Table positions are stored with 0.1 mm at worst; 5 % passes rounding, one lost slice cannot.
_INCREMENT_ATOL_MM = 0.1
_INCREMENT_RTOL = 0.05
_ROUNDING_MM = 1e-6  # decimal text to binary
_SAME_POSITION_MM = 1e-3
# Slices that move less than this in their plane over the whole stack lie on an orthogonal grid.
_MAX_SHIFT_PX = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class StackGeometry:
    """Where the slices of a stack lie.

    Attributes:
        order: indices of the given planes, ascending along the slice normal.
        affine_lps: (4, 4), index (k, j, i, 1) to (x, y, z, 1) mm, of the orthogonal grid.
        spacing_zyx_mm: distance between slices along the normal, rows, columns.
        shift_yx_px: (n, 2) in-plane offset of each ordered slice against the orthogonal grid.
        tilt_deg: angle between the stack's axis and the slice normal.
        is_tilted: the slices must be moved in their plane to lie on an orthogonal grid.
    """

    order: tuple[int, ...]
    affine_lps: np.ndarray
    spacing_zyx_mm: tuple[float, float, float]
    shift_yx_px: np.ndarray
    tilt_deg: float
    is_tilted: bool


def direction_cosines(orientation: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Return the directions of a row and of a column, exactly unit and orthogonal.

    Headers round them to as few as three digits; a grid needs a right angle.
    """
    row = np.asarray(orientation[:3], dtype=np.float64)
    row = row / np.linalg.norm(row)
    column = np.asarray(orientation[3:6], dtype=np.float64)
    column = column - (column @ row) * row
    return row, column / np.linalg.norm(column)


def slice_normal(orientation: Sequence[float]) -> np.ndarray:
    """Return the unit normal, row cosines x column cosines."""
    return np.cross(*direction_cosines(orientation))


def stack_geometry(planes: Sequence[Plane]) -> StackGeometry:
    """Order the planes of one stack and prove that they form a regular grid.

    Args:
        planes: one per slice, of one orientation and pixel spacing, in any order.

    Raises:
        DataError: `no_geometry`, `too_few_slices`, `duplicate_positions`, `missing_slices` or
            `slice_increment_inconsistent`.
    """
    first = planes[0]
    if first.orientation is None or first.spacing_yx_mm is None:
        raise DataError("no_geometry", "orientation or pixel spacing is absent")
    if any(plane.position_mm is None for plane in planes):
        raise DataError("no_geometry", "a slice has no position")
    if len(planes) < MIN_SLICES:
        raise DataError("too_few_slices", f"{len(planes)} slices where {MIN_SLICES} are needed")
    positions = np.array([plane.position_mm for plane in planes], dtype=np.float64)
    normal = slice_normal(first.orientation)
    distances = positions @ normal
    order = np.lexsort((np.arange(len(planes)), distances))
    positions, distances = positions[order], distances[order]
    check_increments(distances)
    return _regular_geometry(tuple(int(i) for i in order), positions, normal, first)


def check_increments(distances_mm: np.ndarray) -> None:
    """Prove that ascending distances along the normal are regular.

    Raises:
        DataError: `duplicate_positions`, `missing_slices` or `slice_increment_inconsistent`.
    """
    increments = np.diff(distances_mm)
    if increments.min() < _SAME_POSITION_MM:
        count = int((increments < _SAME_POSITION_MM).sum())
        raise DataError("duplicate_positions", f"{count} slices lie where another one lies")
    step = float(np.median(increments))
    tolerance = max(_INCREMENT_ATOL_MM, _INCREMENT_RTOL * step) + _ROUNDING_MM
    wrong = np.abs(increments - step) > tolerance
    if wrong.any():
        multiples = np.rint(increments[wrong] / step)
        whole = np.abs(increments[wrong] - multiples * step) <= tolerance * multiples
        where = int(np.flatnonzero(wrong)[0])
        if (multiples >= 2).all() and whole.all():
            lost = int((multiples - 1).sum())
            raise DataError(
                "missing_slices",
                f"{lost} missing, first after sorted slice {where}: "
                f"gap of {increments[where]:.2f} mm, expected {step:.2f} mm",
            )
        raise DataError(
            "slice_increment_inconsistent",
            f"{int(wrong.sum())} of {len(increments)} increments differ from the median "
            f"{step:.2f} mm, first after sorted slice {where}: {increments[where]:.2f} mm",
        )
    mean_step = (distances_mm[-1] - distances_mm[0]) / len(increments)
    regular = distances_mm[0] + mean_step * np.arange(len(distances_mm))
    # Each increment may pass alone while their sum walks away from any regular grid.
    drift = float(np.abs(distances_mm - regular).max())
    if drift > step / 2:
        raise DataError(
            "slice_increment_inconsistent", f"slices drift {drift:.2f} mm from a regular grid"
        )


def _regular_geometry(
    order: tuple[int, ...], positions: np.ndarray, normal: np.ndarray, plane: Plane
) -> StackGeometry:
    assert plane.orientation is not None
    assert plane.spacing_yx_mm is not None
    row_mm, column_mm = plane.spacing_yx_mm
    along_i, along_j = direction_cosines(plane.orientation)  # a row runs along i
    span = positions[-1] - positions[0]
    count = len(positions)
    thickness = float(span @ normal) / (count - 1)
    shear = span - (span @ normal) * normal
    tilt_deg = float(np.degrees(np.arctan2(np.linalg.norm(shear), span @ normal)))
    offsets = positions - positions[0]
    shift = np.stack([offsets @ along_j / row_mm, offsets @ along_i / column_mm], axis=1)
    affine = np.eye(4)
    affine[:3, 0] = normal * thickness
    affine[:3, 1] = along_j * row_mm
    affine[:3, 2] = along_i * column_mm
    affine[:3, 3] = positions[0]
    return StackGeometry(
        order=order,
        affine_lps=affine,
        spacing_zyx_mm=(thickness, row_mm, column_mm),
        shift_yx_px=shift,
        tilt_deg=tilt_deg,
        is_tilted=bool(np.abs(shift).max() > _MAX_SHIFT_PX),
    )
