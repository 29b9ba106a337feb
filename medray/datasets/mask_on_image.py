"""Bringing a mask onto the grid of its image by physical coordinates, never by index."""

import numpy as np

from medray.errors import DataError
from medray.preprocess.spatial import resample_to_grid
from medray.volume import Volume

# A mask cut at the border of a cropped image loses a little; one that lies elsewhere loses all.
_MIN_KEPT = 0.9


def mask_on_image(mask: Volume, image: Volume) -> Volume:
    """Return the mask at the image's voxels, nearest label, 0 outside the mask's own field.

    Raises:
        DataError: `label_geometry_mismatch` if either has no proven place, or the labelled parts
            do not lie on the image.
    """
    if image.geometry != "verified" or mask.geometry != "verified":
        raise DataError(
            "label_geometry_mismatch", "image or mask has no proven place in the patient"
        )
    placed = resample_to_grid(
        mask, image.affine_lps, image.array.shape, order="nearest", fill=0, antialias=False
    )
    labelled = np.count_nonzero(mask.array)
    if labelled == 0:
        return placed
    kept = np.count_nonzero(placed.array)
    if kept == 0:
        raise DataError("label_geometry_mismatch", "the mask lies outside its image")
    share = kept * _voxel_mm3(image) / (labelled * _voxel_mm3(mask))
    if share < _MIN_KEPT and _lost_outside(mask, image) > 1 - _MIN_KEPT:
        raise DataError("label_geometry_mismatch", "a part of the mask lies outside its image")
    return placed


def _voxel_mm3(volume: Volume) -> float:
    return float(abs(np.linalg.det(volume.affine_lps[:3, :3])))


def _lost_outside(mask: Volume, image: Volume) -> float:
    """Return the share of labelled voxels whose centre is beyond the image."""
    index = np.argwhere(mask.array)
    to_image = np.linalg.inv(image.affine_lps) @ mask.affine_lps
    places = index @ to_image[:3, :3].T + to_image[:3, 3]
    limit = np.array(image.array.shape) - 0.5
    return float(((places < -0.5) | (places > limit)).any(axis=1).mean())
