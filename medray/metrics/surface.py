"""Distances between the surfaces of two masks, in mm.

The surface of a mask is the set of its voxels that have a neighbour outside along an axis (what a
6-neighbour erosion takes away; beyond the array is outside). Distances run between voxel centres,
each surface voxel to the nearest of the other surface, both ways, every voxel with equal weight.
MONAI's `compute_hausdorff_distance`, `compute_surface_dice` (without subvoxels) and
`compute_average_surface_distance(symmetric=True)` mean the same by a surface, a percentile and a
mean; they differ for empty masks and in float32 rounding. DeepMind's surface-distance (and
MONAI's subvoxels) weigh by area of a mesh instead: values there differ a little.

Empty masks: two empty masks agree (0 mm, NSD 1). Where one alone is empty no distance exists:
HD95 and the average are NaN, to be counted and told beside the mean of the others; NSD is 0, so
that a missed organ costs there and in Dice.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64, Real

Mask = Bool[np.ndarray, "*grid"] | Real[np.ndarray, "*grid"]

# Distances are sums of rounded squares: 2 voxels of 0.7 mm are within 1.4 mm all the same.
_TOLERANCE_SLACK_MM = 1e-6
# A k-d tree takes 3 to 9 us a surface voxel wherever it lies, a distance transform 0.2 to 0.4 us a
# voxel of the box around both masks: 0.1 s against 0.3 s for two pancreases, 0.4 s against 18 s
# if one stray voxel widens the box, 60 s against 4 s for noise that fills it.
_BOX_VOXELS_PER_POINT = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SurfaceDistances:
    """Nearest distances from one surface to the other in mm, in no particular order.

    Attributes:
        to_truth_mm: from each surface voxel of the found mask.
        to_found_mm: from each surface voxel of the true mask.
        one_empty: exactly one of the masks has no voxel, and both arrays are empty.
    """

    to_truth_mm: Float64[np.ndarray, "num_found"]
    to_found_mm: Float64[np.ndarray, "num_truth"]
    one_empty: bool


def surface_distances(found: Mask, truth: Mask, *, spacing_mm: Sequence[float]) -> SurfaceDistances:
    """Return the distances all three metrics are made of; every value but 0 is inside.

    Args:
        found: a mask of any number of axes.
        truth: a mask on the same grid.
        spacing_mm: one size an axis, in the order of the axes.

    Raises:
        ValueError: the grids differ, or the spacing is not positive and one number an axis.
    """
    if found.shape != truth.shape:
        raise ValueError(f"masks must share a grid, got {found.shape} and {truth.shape}")
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    if spacing.shape != (found.ndim,) or not (np.isfinite(spacing) & (spacing > 0)).all():
        raise ValueError(f"spacing_mm must be {found.ndim} sizes > 0, got {tuple(spacing_mm)}")
    one, other = _surface(found), _surface(truth)
    if not len(one) or not len(other):
        none = np.zeros(0)
        return SurfaceDistances(
            to_truth_mm=none, to_found_mm=none, one_empty=len(one) != len(other)
        )
    low = np.minimum(one.min(axis=0), other.min(axis=0))
    box = np.maximum(one.max(axis=0), other.max(axis=0)) - low + 1
    dense = _BOX_VOXELS_PER_POINT * (len(one) + len(other)) > box.prod()
    nearest = _nearest_by_transform if dense else _nearest_by_tree
    return SurfaceDistances(
        to_truth_mm=nearest(one - low, other - low, spacing),
        to_found_mm=nearest(other - low, one - low, spacing),
        one_empty=False,
    )


def hd95_mm(distances: SurfaceDistances) -> float:
    """Return the larger of the two directed 95th percentiles (linear between ranks)."""
    if distances.one_empty:
        return float("nan")
    both = (distances.to_truth_mm, distances.to_found_mm)
    return max((float(np.percentile(one, 95)) for one in both if one.size), default=0.0)


def average_surface_distance_mm(distances: SurfaceDistances) -> float:
    """Return the mean over the voxels of both surfaces taken together (ASSD)."""
    if distances.one_empty:
        return float("nan")
    both = np.concatenate([distances.to_truth_mm, distances.to_found_mm])
    return float(both.mean()) if both.size else 0.0


def normalised_surface_distance(distances: SurfaceDistances, *, tolerance_mm: float) -> float:
    """Return the share of both surfaces within the tolerance of the other (NSD, surface Dice).

    Nikolov et al., Deep learning to achieve clinically applicable segmentation, JMIR 2021.

    Raises:
        ValueError: the tolerance is negative or not finite.
    """
    if not 0 <= tolerance_mm < float("inf"):
        raise ValueError(f"tolerance_mm must be finite and >= 0, got {tolerance_mm}")
    if distances.one_empty:
        return 0.0
    both = np.concatenate([distances.to_truth_mm, distances.to_found_mm])
    return float((both <= tolerance_mm + _TOLERANCE_SLACK_MM).mean()) if both.size else 1.0


def _surface(mask: np.ndarray) -> Int64[np.ndarray, "points axes"]:
    """Return the indices of the surface voxels, looked for in the mask's own bounding box."""
    box: list[slice] = []
    for axis in range(mask.ndim):
        part = mask[tuple(box)]
        rest = tuple(other for other in range(mask.ndim) if other != axis)
        used = np.flatnonzero(part.any(axis=rest))
        if not used.size:
            return np.zeros((0, mask.ndim), dtype=np.int64)
        box.append(slice(int(used[0]), int(used[-1]) + 1))
    inside = mask[tuple(box)].astype(bool)
    padded = np.pad(inside, 1)
    inner = inside.copy()
    for axis in range(mask.ndim):
        for start in (0, 2):
            near = [slice(1, -1)] * mask.ndim
            near[axis] = slice(start, start + inside.shape[axis])
            inner &= padded[tuple(near)]
    points: np.ndarray = np.argwhere(inside & ~inner) + [one.start for one in box]
    return points


def _nearest_by_tree(points: np.ndarray, others: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    from scipy.spatial import KDTree

    nearest: np.ndarray = KDTree(others * spacing).query(points * spacing)[0]
    return nearest


def _nearest_by_transform(
    points: np.ndarray, others: np.ndarray, spacing: np.ndarray
) -> np.ndarray:
    from scipy.ndimage import distance_transform_edt

    free = np.ones(np.maximum(points.max(axis=0), others.max(axis=0)) + 1, dtype=bool)
    free[tuple(others.T)] = False
    distance: np.ndarray = distance_transform_edt(free, sampling=spacing)
    nearest: np.ndarray = distance[tuple(points.T)]
    return nearest
