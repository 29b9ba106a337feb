"""Shapes and textures on a grid: the clay that bodies are made of.

Coordinates are patient millimetres, LPS: x grows to the left, y to the back, z to the head. Arrays
are (depth, height, width) = (z, y, x), or (height, width) = (y, x) for projections.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """An axial voxel grid in the body's own coordinates.

    Attributes:
        shape: (depth, height, width).
        spacing_zyx_mm: distance between voxels.
        center_zyx_mm: body coordinate of the grid's middle.
    """

    shape: tuple[int, int, int]
    spacing_zyx_mm: tuple[float, float, float]
    center_zyx_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def axes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return open (broadcastable) z, y, x coordinates in mm."""
        lines = [
            (np.arange(n) - (n - 1) / 2) * step + middle
            for n, step, middle in zip(
                self.shape, self.spacing_zyx_mm, self.center_zyx_mm, strict=True
            )
        ]
        z, y, x = (line.astype(np.float32) for line in lines)
        return z[:, None, None], y[None, :, None], x[None, None, :]

    def affine_lps(self, offset_xyz_mm: Sequence[float] = (0.0, 0.0, 0.0)) -> np.ndarray:
        """Return the (4, 4) affine from (k, j, i) to LPS mm, the body moved by an offset."""
        affine = np.zeros((4, 4))
        for axis, row in ((0, 2), (1, 1), (2, 0)):
            step, n = self.spacing_zyx_mm[axis], self.shape[axis]
            affine[row, axis] = step
            affine[row, 3] = self.center_zyx_mm[axis] - (n - 1) / 2 * step + offset_xyz_mm[row]
        affine[3, 3] = 1
        return affine


def ellipsoid(
    axes: Sequence[np.ndarray], center: Sequence[float], radii: Sequence[float]
) -> np.ndarray:
    """Return the normalised radius on the grid: below 1 inside; the order is that of `axes`."""
    total = np.zeros(1, dtype=np.float32)
    for axis, middle, radius in zip(axes, center, radii, strict=True):
        total = total + ((axis - np.float32(middle)) / np.float32(radius)) ** 2
    return np.sqrt(total)


def tube_distance(axes: Sequence[np.ndarray], path: np.ndarray) -> np.ndarray:
    """Return the distance in mm to a polyline, with its end caps.

    Args:
        axes: open coordinates, one per dimension.
        path: (num_points, num_dimensions), in the order of `axes`.
    """
    best = np.full(1, np.inf, dtype=np.float32)
    for start, end in pairwise(path):
        way = (end - start).astype(np.float32)
        length2 = max(float(way @ way), 1e-6)
        along = sum((a - np.float32(s)) * w for a, s, w in zip(axes, start, way, strict=True))
        share = np.clip(along / np.float32(length2), 0, 1)
        gap2 = sum(
            (a - np.float32(s) - share * w) ** 2 for a, s, w in zip(axes, start, way, strict=True)
        )
        best = np.minimum(best, gap2)
    return np.asarray(np.sqrt(best))


def box_round(
    axes: Sequence[np.ndarray], low: np.ndarray, high: np.ndarray
) -> tuple[slice, ...] | None:
    """Return the slices of a grid between two corners in mm, None where there are too few."""
    box = []
    for axis, start, stop in zip(axes, low, high, strict=True):
        where = np.flatnonzero((axis.ravel() >= start) & (axis.ravel() <= stop))
        if where.size < 2:
            return None
        box.append(slice(int(where[0]), int(where[-1]) + 1))
    return tuple(box)


def crop_axes(axes: Sequence[np.ndarray], box: Sequence[slice]) -> list[np.ndarray]:
    """Return the open coordinates of a part of the grid."""
    return [
        axis[tuple(part if n > 1 else slice(None) for n in axis.shape)]
        for axis, part in zip(axes, box, strict=True)
    ]


def paint_tube(
    image: np.ndarray,
    axes: Sequence[np.ndarray],
    path: np.ndarray,
    *,
    radius_mm: float,
    value: np.ndarray | float,
    softness: float = 0.25,
) -> None:
    """Lay a tube along a path over an image under construction, in place."""
    reach = radius_mm * 1.5
    box = box_round(axes, path.min(axis=0) - reach, path.max(axis=0) + reach)
    if box is None:
        return
    alpha = edge(tube_distance(crop_axes(axes, box), path) / radius_mm, softness)
    blend(image[box], alpha, value[box] if isinstance(value, np.ndarray) else value)


def curve(points: Sequence[Sequence[float]] | np.ndarray, num: int = 24) -> np.ndarray:
    """Return a smooth path (num, dims) through points (Catmull-Rom)."""
    knots = np.asarray(points, dtype=np.float64)
    padded = np.vstack([2 * knots[0] - knots[1], knots, 2 * knots[-1] - knots[-2]])
    where = np.linspace(0, len(knots) - 1 - 1e-9, num)
    index = where.astype(int)
    t = (where - index)[:, None]
    p0, p1, p2, p3 = (padded[index + shift] for shift in range(4))
    smooth = (
        2 * p1
        + (p2 - p0) * t
        + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2
        + (3 * p1 - p0 - 3 * p2 + p3) * t**3
    )
    return np.asarray(0.5 * smooth)


def smooth_noise(
    rng: np.random.Generator, shape: Sequence[int], scales: Sequence[float]
) -> np.ndarray:
    """Return Gaussian noise of mean 0 and deviation about 1 with a correlation length per axis.

    Args:
        rng: the random stream.
        shape: of the result.
        scales: correlation length per axis in voxels; at most 1 means white.
    """
    coarse = [int(np.ceil(n / max(scale, 1.0))) + 6 for n, scale in zip(shape, scales, strict=True)]
    field = rng.standard_normal(coarse, dtype=np.float32)
    for axis, (n, scale) in enumerate(zip(shape, scales, strict=True)):
        weights = _spread(n, coarse[axis], scale)
        field = np.moveaxis(np.tensordot(weights, field, axes=(1, axis)), 0, axis)
    return np.ascontiguousarray(field, dtype=np.float32)


def _spread(n: int, num_coarse: int, scale: float) -> np.ndarray:
    """Return (n, num_coarse) Gaussian weights with unit energy per row."""
    if scale <= 1:
        return np.eye(n, num_coarse, dtype=np.float32)
    place = np.arange(n)[:, None] / scale + 2.5 - np.arange(num_coarse)[None, :]
    weights = np.exp(-0.5 * (place / 0.6) ** 2)
    return np.asarray(weights / np.linalg.norm(weights, axis=1, keepdims=True), dtype=np.float32)


def edge(radius: np.ndarray, width: float, at: float = 1.0) -> np.ndarray:
    """Return a soft step: 1 well inside `at`, 0 outside, over `width`."""
    return np.clip((at - radius) / width + 0.5, 0, 1)


def blend(image: np.ndarray, alpha: np.ndarray, value: np.ndarray | float) -> None:
    """Lay a value over an image under construction, in place."""
    image += alpha * (value - image)


def bounding_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Return x1, y1, x2, y2 of a 2D mask in pixel edges (x2, y2 exclusive)."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def eroded(mask: np.ndarray) -> np.ndarray:
    """Return the voxels whose six neighbours are in the mask, too."""
    inner = mask.copy()
    for axis in (0, 1, 2):
        inner &= np.roll(mask, 1, axis) & np.roll(mask, -1, axis)
    return inner
