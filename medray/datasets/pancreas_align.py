"""Laying a Pancreas-CT label on its image by index, and proving that it lies there.

The labels' header carries no usable geometry (SEEDS_SPEC 4.1). Read in file order they are on the
grid of the assembled volume; this is checked against every other way to lay them, since a wrong one
passes any check of shapes on square matrices.
"""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from medray.errors import DataError

# Pancreas with contrast, its fat and vessels; of a correct label more than 90 % lie here.
_ORGAN_HU = (-50, 250)
_MIN_SHARE = 0.9
# By this much another way must fit better before the usual one is doubted.
_CLEARLY_BETTER = 0.03
# Neighbouring slices of an organ overlap; labels on shuffled or wrong slices do not.
_MIN_OVERLAP = 0.3


def align_label(label: np.ndarray, volume_hu: np.ndarray) -> tuple[np.ndarray, str]:
    """Return the label on the volume's grid and how it was laid (`index` or the flips used).

    Args:
        label: (depth, height, width) in file order (k, j, i); non-zero is the organ.
        volume_hu: (depth, height, width), slices ascending along the patient's axis.

    Raises:
        DataError: `label_geometry_mismatch` if no way, or no single way, fits.
    """
    organ = label != 0
    if not organ.any():
        if organ.shape != volume_hu.shape:
            raise DataError("label_geometry_mismatch", "label and image differ in their matrix")
        return organ.astype(np.uint8), "index"
    shares = {
        name: _share(candidate, volume_hu)
        for name, candidate in _candidates(organ)
        if candidate.shape == volume_hu.shape
    }
    if not shares:
        raise DataError("label_geometry_mismatch", "label and image differ in their matrix")
    best = max(shares, key=lambda name: shares[name])
    usual = shares.get("index", 0.0)
    chosen = best if shares[best] > usual + _CLEARLY_BETTER else "index"
    if shares.get(chosen, 0.0) <= _MIN_SHARE:
        raise DataError("label_geometry_mismatch", "the label does not lie on soft tissue")
    rivals = [n for n, s in shares.items() if n != chosen and s > shares[chosen] - _CLEARLY_BETTER]
    if chosen != "index" and rivals:
        raise DataError("label_geometry_mismatch", "several ways to lay the label fit equally well")
    if _slice_overlap(organ) < _MIN_OVERLAP:
        raise DataError("label_geometry_mismatch", "the label is not continuous across slices")
    aligned = dict(_candidates(organ))[chosen]
    return np.ascontiguousarray(aligned, dtype=np.uint8), chosen


def _candidates(organ: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the eight ways: transposed in the plane or not, rows flipped, slices flipped."""
    for transposed in (False, True):
        plane = organ.transpose(0, 2, 1) if transposed else organ  # (k, j, i) -> (k, i, j)
        for flip_y in (False, True):
            for flip_z in (False, True):
                used = [transposed * "transpose", flip_y * "flip_y", flip_z * "flip_z"]
                name = "+".join(part for part in used if part) or "index"
                yield name, plane[:: -1 if flip_z else 1, :: -1 if flip_y else 1]


def _share(organ: np.ndarray, volume_hu: np.ndarray) -> float:
    """Return the share of labelled voxels whose HU an organ has."""
    values = volume_hu[organ]
    low, high = _ORGAN_HU
    return float(((values >= low) & (values <= high)).mean())


def _slice_overlap(organ: np.ndarray) -> float:
    """Return the median Dice of neighbouring labelled slices, 1 where there are too few."""
    labelled = np.flatnonzero(organ.any(axis=(1, 2)))
    scores = []
    for below, above in pairwise(labelled):
        sizes = int(organ[below].sum()) + int(organ[above].sum())
        shared = int((organ[below] & organ[above]).sum())
        scores.append(2 * shared / sizes if above == below + 1 else 0.0)
    return float(np.median(scores)) if scores else 1.0
