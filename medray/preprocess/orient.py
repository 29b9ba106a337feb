"""Axis order and direction: flips and transposes only, the affine follows."""

from dataclasses import replace
from itertools import permutations

import numpy as np

from medray.volume import Volume

# Columns of the canonical affine, k, j, i: superior, posterior, left in LPS.
_CANONICAL = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])


def canonical_axes(affine_lps: np.ndarray) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Return which input axis becomes k, j, i, and its sign (-1 is flipped).

    Among the six axis orders the one that lies closest to +z, +y, +x of LPS is taken, so an oblique
    volume gets each axis once.
    """
    cosines = affine_lps[:3, :3] / np.linalg.norm(affine_lps[:3, :3], axis=0)
    alike = _CANONICAL.T @ cosines  # [canonical axis, input axis]
    order = max(permutations(range(3)), key=lambda axes: float(np.abs(alike[range(3), axes]).sum()))
    k, j, i = (1 if alike[axis, order[axis]] >= 0 else -1 for axis in range(3))
    return (order[0], order[1], order[2]), (k, j, i)


def to_canonical(volume: Volume) -> Volume:
    """Return the volume with k toward superior, j toward posterior and i toward the left.

    Values stay at their place in the patient; an oblique volume is not resampled. A result on this
    grid goes back by `resample_to_grid` with the original affine, which is exact.
    """
    axes, signs = canonical_axes(volume.affine_lps)
    return flipped(transposed(volume, axes), tuple(sign < 0 for sign in signs))


def transposed(volume: Volume, axes: tuple[int, int, int]) -> Volume:
    """Return the volume with its axes in another order; `axes` as in `numpy.transpose`."""
    affine = volume.affine_lps.copy()
    affine[:, :3] = affine[:, list(axes)]
    return replace(
        volume, array=np.ascontiguousarray(volume.array.transpose(axes)), affine_lps=affine
    )


def flipped(volume: Volume, flip_kji: tuple[bool, ...]) -> Volume:
    """Return the volume with axes reversed; every voxel keeps its place in the patient."""
    affine = volume.affine_lps.copy()
    for axis, flip in enumerate(flip_kji):
        if flip:
            affine[:3, 3] += affine[:3, axis] * (volume.array.shape[axis] - 1)
            affine[:3, axis] *= -1
    steps = tuple(slice(None, None, -1 if flip else 1) for flip in flip_kji)
    return replace(volume, array=np.ascontiguousarray(volume.array[steps]), affine_lps=affine)
