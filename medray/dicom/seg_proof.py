"""Proof that a written segmentation is the mask it was made from, by a reader of its own.

Nothing is shared with the writer but the facts of the source: the file is parsed by pydicom, its
bits are unpacked by numpy, and every frame is placed by its own position and orientation. Frames
lie on their source slices to 0.001 mm and their far corners to 0.1 mm, as does the grid of the
mask, so no voxel and no centroid is further off than that.
"""

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pydicom
from pydicom.dataset import Dataset

from medray.dicom.seg import SegFacts, write_seg
from medray.dicom.seg_source import SegSource
from medray.errors import DataError

_SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
_EXPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
# Positions of frames are copied from the source's text, so only its rounding may differ.
_POSITION_ATOL_MM = 1e-3
# The corners of a frame, and of the mask's grid, may lie this far from where they should.
_CORNER_ATOL_MM = 0.1
# Half a pixel to either side is a tie, whatever its last digits say.
_TIE = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class SegMeasure:
    """What was read of a segmentation.

    Attributes:
        num_frames: frames in the file.
        num_voxels: set voxels of all of them.
        centroid_mm: of the set voxels, LPS; None where there is none.
    """

    num_frames: int
    num_voxels: int
    centroid_mm: tuple[float, float, float] | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Frame:
    """One frame as the file has it: its pixels, its plane, what it refers to."""

    pixels: np.ndarray
    position_mm: np.ndarray
    row_mm: np.ndarray
    column_mm: np.ndarray
    referenced: tuple[str, str, int | None]


def proven_seg(
    mask: np.ndarray, affine_lps: np.ndarray, source: SegSource, facts: SegFacts
) -> bytes:
    """Write a segmentation, read it back and return its bytes.

    Raises:
        DataError: see `write_seg` and `verify_seg`.
    """
    data = write_seg(mask, source, facts)
    verify_seg(data, mask, affine_lps, source)
    return data


def verify_seg(
    data: bytes, mask: np.ndarray, affine_lps: np.ndarray, source: SegSource
) -> SegMeasure:
    """Prove that a segmentation holds exactly a mask, slice by slice, on the slices of a source.

    Args:
        data: the file.
        mask: (depth, height, width), zero or not.
        affine_lps: (4, 4) of the mask's grid.
        source: the slices. They, not the affine, say where a frame lies: a stack passes for a
            regular grid with increments that differ a little, or tilted.

    Raises:
        DataError: `output_mismatch`.
    """
    if mask.shape != source.mask_shape_zyx:
        raise _mismatch("is to be compared with a mask of another shape")
    if not _corner_distance_mm(affine_lps, source.mask_affine_lps, mask.shape) <= _CORNER_ATOL_MM:
        raise _mismatch("is to be compared with a mask on another grid than its source")
    try:
        return _proven(data, mask, affine_lps, source)
    except DataError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever is wrong with the file, it is not proven
        raise _mismatch(f"cannot be read back: {type(error).__name__}") from None


def _proven(data: bytes, mask: np.ndarray, affine_lps: np.ndarray, source: SegSource) -> SegMeasure:
    placed = np.zeros(len(mask), dtype=bool)
    num_voxels, sum_mm = 0, np.zeros(3)
    for frame in _frames(pydicom.dcmread(io.BytesIO(data)), source):
        k, window = _place(frame, mask, affine_lps, source)
        if placed[k]:
            raise _mismatch("has two frames on one slice")
        placed[k] = True
        count, y, x = _index_sums(window)
        num_voxels += count
        sum_mm += count * frame.position_mm + y * frame.row_mm + x * frame.column_mm
    shape = source.rows, source.columns
    for k in np.flatnonzero(~placed & mask.any(axis=(1, 2))).tolist():
        index = _index(affine_lps, source.positions_mm[k])
        if all(window.any() for window in _windows(mask[k], index, shape)):
            raise _mismatch("lacks a slice that has voxels")
    x_mm, y_mm, z_mm = sum_mm / max(num_voxels, 1)
    return SegMeasure(
        num_frames=int(placed.sum()),
        num_voxels=num_voxels,
        centroid_mm=(float(x_mm), float(y_mm), float(z_mm)) if num_voxels else None,
    )


def _corner_distance_mm(first: np.ndarray, second: np.ndarray, shape: tuple[int, ...]) -> float:
    """Return how far two grids of one shape lie apart where they do so most."""
    ends = np.stack(np.meshgrid(*((0, size - 1) for size in shape), [1], indexing="ij"), axis=-1)
    apart = ends.reshape(-1, 4) @ (first - second).T
    return float(np.linalg.norm(apart[:, :3], axis=1).max())


def _index_sums(pixels: np.ndarray) -> tuple[int, int, int]:
    """Return the number of set pixels and the sums of their row and column indices."""
    if not pixels.any():
        return 0, 0, 0
    # 16 bits hold what a row or column of DICOM can, and add up twice as fast as more.
    in_column, in_row = (
        np.add.reduce(pixels.view(np.uint8), axis=axis, dtype=np.uint16).astype(np.int64)
        for axis in (0, 1)
    )
    y, x = in_row @ np.arange(len(in_row)), in_column @ np.arange(len(in_column))
    return int(in_row.sum()), int(y), int(x)


def _mismatch(what: str) -> DataError:
    return DataError("output_mismatch", f"the segmentation {what}")


def _frames(dataset: Dataset, source: SegSource) -> Iterator[_Frame]:
    """Yield the frames of the file, after a look at what all of them share."""
    if (dataset.SOPClassUID, dataset.SegmentationType) != (_SEGMENTATION, "BINARY"):
        raise _mismatch("is another kind of object")
    if dataset.file_meta.TransferSyntaxUID != _EXPLICIT_LITTLE_ENDIAN:
        raise _mismatch("has another transfer syntax")
    if len(dataset.SegmentSequence) != 1 or dataset.BitsAllocated != 1:
        raise _mismatch("is not one segment of bits")
    if dataset.FrameOfReferenceUID != source.frame_of_reference_uid:
        raise _mismatch("lies in another frame of reference")
    if dataset.StudyInstanceUID != source.study_uid:
        raise _mismatch("is filed under another study")
    rows, columns, number = dataset.Rows, dataset.Columns, int(dataset.NumberOfFrames)
    if (rows, columns) != (source.rows, source.columns):
        raise _mismatch("has another matrix than its source")
    groups, shared = (
        dataset.PerFrameFunctionalGroupsSequence,
        dataset.SharedFunctionalGroupsSequence,
    )
    bits = np.frombuffer(dataset.PixelData or b"", np.uint8)
    if len(groups) != number or len(bits) != (number * rows * columns + 15) // 16 * 2:
        raise _mismatch("has not as many frames as it says")
    for index, group in enumerate(groups):
        first = index * rows * columns
        last = first + rows * columns
        part = np.unpackbits(bits[first // 8 : (last + 7) // 8], bitorder="little")
        pixels = part[first % 8 : first % 8 + rows * columns].reshape(rows, columns).view(bool)
        yield _frame(group, shared[0], pixels)


def _frame(group: Dataset, shared: Dataset, pixels: np.ndarray) -> _Frame:
    def of(name: str) -> Dataset:
        item: Dataset = (group if name in group else shared)[name][0]
        return item

    if of("SegmentIdentificationSequence").ReferencedSegmentNumber != 1:
        raise _mismatch("has a frame of an unknown segment")
    cosines = np.array(of("PlaneOrientationSequence").ImageOrientationPatient, dtype=np.float64)
    between_rows_mm, between_columns_mm = (
        float(value) for value in of("PixelMeasuresSequence").PixelSpacing
    )
    images = of("DerivationImageSequence").SourceImageSequence
    if len(images) != 1:
        raise _mismatch("has a frame that does not refer to one source")
    frame_number = images[0].get("ReferencedFrameNumber")
    return _Frame(
        pixels=pixels,
        position_mm=np.array(of("PlanePositionSequence").ImagePositionPatient, dtype=np.float64),
        row_mm=cosines[3:] * between_rows_mm,  # from one row to the next, down a column
        column_mm=cosines[:3] * between_columns_mm,
        referenced=(
            str(images[0].ReferencedSOPClassUID),
            str(images[0].ReferencedSOPInstanceUID),
            None if frame_number is None else int(frame_number),
        ),
    )


def _place(
    frame: _Frame, mask: np.ndarray, affine_lps: np.ndarray, source: SegSource
) -> tuple[int, np.ndarray]:
    """Return the slice of the mask that a frame is, and the part of it under the frame.

    Raises:
        DataError: `output_mismatch`.
    """
    distances = np.linalg.norm(source.positions_mm - frame.position_mm, axis=1)
    k = int(distances.argmin())
    if not distances[k] <= _POSITION_ATOL_MM:
        raise _mismatch("has a frame where the source has no slice")
    named = source.slices[k]
    if frame.referenced != (named.sop_class_uid, named.sop_uid, named.frame_number):
        raise _mismatch("has a frame that refers to another slice than its own")
    steps = np.stack([frame.row_mm, frame.column_mm], axis=1)
    drift = np.abs((steps - affine_lps[:3, 1:3]) * frame.pixels.shape).sum(axis=1)
    if not np.linalg.norm(drift) <= _CORNER_ATOL_MM:
        raise _mismatch("has a frame that is turned or scaled against its volume")
    index = _index(affine_lps, frame.position_mm)
    for window in _windows(mask[k], index, frame.pixels.shape):
        if np.array_equal(frame.pixels, window):
            return k, window
    raise _mismatch("has other voxels than the mask")


def _index(affine_lps: np.ndarray, position_mm: np.ndarray) -> np.ndarray:
    """Return where a place lies on the grid, in slices, rows and columns."""
    return np.asarray(np.linalg.solve(affine_lps, np.append(position_mm, 1.0))[:3])


def _windows(plane: np.ndarray, index: np.ndarray, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """Yield the part of a mask's slice under a frame that begins there; several if it is a tie."""
    for y in _nearest(float(index[1])):
        for x in _nearest(float(index[2])):
            yield _window(plane, (y, x), shape)


def _nearest(value: float) -> list[int]:
    low = math.floor(value)
    return [near for near in (low, low + 1) if abs(value - near) <= 0.5 + _TIE]


def _window(plane: np.ndarray, offset_yx: tuple[int, int], shape: tuple[int, ...]) -> np.ndarray:
    """Return part of a slice as booleans; what is beyond the slice is empty."""
    (y, x), (height, width) = offset_yx, shape
    if y == 0 and x == 0 and plane.shape == (height, width):
        return np.asarray(plane != 0)
    out = np.zeros((height, width), dtype=bool)
    part = plane[max(y, 0) : max(y + height, 0), max(x, 0) : max(x + width, 0)]
    top, left = max(-y, 0), max(-x, 0)
    out[top : top + part.shape[0], left : left + part.shape[1]] = part != 0
    return out
