"""The threshold-and-blob baseline: what can be had without learning anything."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.encaps import generate_frames
from pydicom.uid import UID, RLELossless


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """One connected component.

    Attributes:
        size: number of its pixels or voxels.
        box_xyxy_px: its bounding box in the last two axes.
        number: its value in the label array.
    """

    size: int
    box_xyxy_px: tuple[float, float, float, float]
    number: int


def blobs(mask: np.ndarray, *, least: int = 1) -> tuple[np.ndarray, list[Blob]]:
    """Return the label array of a 2D or 3D mask, and its components of at least a size."""
    sitk: Any = import_module("SimpleITK")  # heavy, and its stubs are partial
    labels = sitk.ConnectedComponent(sitk.GetImageFromArray(mask.astype(np.uint8)))
    shapes = sitk.LabelShapeStatisticsImageFilter()
    shapes.Execute(labels)
    found = []
    for number in shapes.GetLabels():
        size = shapes.GetNumberOfPixels(number)
        if size < least:
            continue
        box = shapes.GetBoundingBox(number)
        dims = mask.ndim
        x, y, width, height = box[0], box[1], box[dims], box[dims + 1]
        found.append(Blob(size=size, box_xyxy_px=(x, y, x + width, y + height), number=int(number)))
    return sitk.GetArrayFromImage(labels), found


def scored_boxes(
    image: np.ndarray, *, low: float, high: float, typical_px: float
) -> list[tuple[float, Sequence[float]]]:
    """Return a box round each blob within a window of values, best size first.

    Args:
        image: (height, width).
        low: lower threshold.
        high: upper threshold.
        typical_px: area of a typical lesion; the score falls with the distance to it.
    """
    _, found = blobs((image >= low) & (image <= high), least=max(4, int(typical_px / 6)))
    return [
        (-abs(float(np.log(blob.size / typical_px))), blob.box_xyxy_px)
        for blob in found
        if blob.size < 6 * typical_px
    ]


def read_frame(path: Path) -> np.ndarray:
    """Return the stored values of a single-frame phantom file.

    Only for files that this package wrote: there is no protection against hostile bytes.
    """
    dataset = pydicom.dcmread(path)
    syntax = dataset.file_meta.TransferSyntaxUID
    if not UID(syntax).is_encapsulated or syntax == RLELossless:
        return np.asarray(dataset.pixel_array)
    import imagecodecs

    data = next(generate_frames(dataset.PixelData, number_of_frames=1))
    return np.asarray(imagecodecs.imread(data))


def read_values(path: Path) -> tuple[np.ndarray, Any]:
    """Return modality values (float32) of a phantom file, and its header."""
    dataset = pydicom.dcmread(path, stop_before_pixels=True)
    slope = float(dataset.get("RescaleSlope", 1) or 1)
    intercept = float(dataset.get("RescaleIntercept", 0) or 0)
    return read_frame(path).astype(np.float32) * slope + intercept, dataset


def read_stack(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return HU (depth, height, width) of an axial phantom series by rising z, and its affine."""
    slices = []
    for path in sorted(folder.glob("*.dcm")):
        values, header = read_values(path)
        slices.append((float(header.ImagePositionPatient[2]), values, header))
    slices.sort(key=lambda item: item[0])
    first, last = slices[0][2], slices[-1][2]
    affine = np.eye(4)
    start = np.array(first.ImagePositionPatient, float)
    step = (np.array(last.ImagePositionPatient, float) - start) / max(len(slices) - 1, 1)
    dy, dx = (float(v) for v in first.PixelSpacing)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = step, (0, dy, 0), (dx, 0, 0)
    affine[:3, 3] = start
    return np.stack([values for _, values, _ in slices]), affine
