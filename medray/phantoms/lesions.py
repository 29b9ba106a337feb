"""Lung lesions that differ by shape and texture alone.

Tumours and harmless blobs have the same tissue volume, the same mean and the same deviation of HU:
no threshold tells them apart.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from medray.phantoms.fields import ellipsoid, smooth_noise

MEAN_HU = 40.0
DEVIATION_HU = 100.0
_TISSUE = 0.5  # share of a voxel above which it counts as lesion
HISTOLOGY = ("A", "B", "E", "G")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesion:
    """A lesion on its own small grid.

    Attributes:
        alpha: share of each voxel that is lesion tissue, 0 to 1.
        values_hu: HU of the tissue.
        hull: whole lesion with its cavity, as the annotator would box it.
    """

    alpha: np.ndarray
    values_hu: np.ndarray
    hull: np.ndarray


Patch = tuple[np.ndarray, np.ndarray, np.ndarray]
Shape = Callable[[Patch, float, np.random.Generator], tuple[np.ndarray, np.ndarray]]


def make_lesion(
    kind: str, patch: Patch, *, volume_mm3: float, voxel_mm: tuple[float, float, float], seed: int
) -> Lesion:
    """Return a lesion of a kind with a given tissue volume.

    Args:
        kind: a histology letter, or `blob` for a harmless one.
        patch: open z, y, x in mm, centred on the lesion.
        volume_mm3: volume of tissue; cavities do not count.
        voxel_mm: spacing of the patch.
        seed: of this lesion's own randomness.
    """
    shape = _SHAPES[kind]
    voxel_mm3 = float(np.prod(voxel_mm))
    radius = (volume_mm3 * 3 / (4 * np.pi)) ** (1 / 3)
    alpha, hull = shape(patch, radius, np.random.default_rng(seed))
    for _ in range(4):  # the radius that gives the volume, whatever the shape
        found = max(float(alpha.sum()) * voxel_mm3, voxel_mm3)
        radius *= float(np.clip(volume_mm3 / found, 0.4, 2.5)) ** (1 / 3)
        alpha, hull = shape(patch, radius, np.random.default_rng(seed))
    texture = _TEXTURES[kind](patch, radius, np.random.default_rng(seed + 1), voxel_mm)
    inside = alpha > _TISSUE
    if inside.sum() > 1:
        texture = (texture - texture[inside].mean()) / (texture[inside].std() + 1e-6)
    return Lesion(alpha=alpha, values_hu=MEAN_HU + DEVIATION_HU * texture, hull=hull > _TISSUE)


def _softness(patch: Patch) -> float:
    return float(abs(patch[2].ravel()[1] - patch[2].ravel()[0]))


def _solid(patch: Patch, radius: float, distance_mm: np.ndarray) -> np.ndarray:
    """Return the share of tissue for a signed distance in mm (negative outside)."""
    return np.clip(distance_mm / _softness(patch) + 0.5, 0, 1) * (radius > 0)


def _angles(rng: np.random.Generator, num: int) -> np.ndarray:
    """Return `num` unit vectors (z, y, x), flattened in z: slices must show the spikes."""
    vectors = rng.standard_normal((num, 3)) * np.array([0.45, 1, 1])
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def _spiculated(
    patch: Patch, radius: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Adenocarcinoma: a core with spikes that taper off into the lung."""
    z, y, x = patch
    core = ellipsoid(patch, (0, 0, 0), (radius * 0.85,) * 3)
    depth = (1 - core) * radius * 0.85
    for vector, reach in zip(_angles(rng, 14), rng.uniform(1.4, 1.9, 14), strict=True):
        along = z * vector[0] + y * vector[1] + x * vector[2]
        across = np.sqrt(np.maximum(z**2 + y**2 + x**2 - along**2, 0))
        width = radius * 0.34 * np.clip(1 - along / (radius * reach), 0, 1)
        spike = np.where((along > 0) & (width > 0), width - across, -1e3)
        depth = np.maximum(depth, spike)
    alpha = _solid(patch, radius, depth)
    return alpha, alpha


def _lobulated(
    patch: Patch, radius: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Small cell carcinoma: a cluster of rounded lobes."""
    depth = np.full(1, -1e3, dtype=np.float32)
    for vector, size in zip(_angles(rng, 6), rng.uniform(0.42, 0.6, 6), strict=True):
        lobe = ellipsoid(patch, tuple(vector * radius * 0.72), (radius * size,) * 3)
        depth = np.maximum(depth, (1 - lobe) * radius * size)
    alpha = _solid(patch, radius, depth)
    return alpha, alpha


def _large(patch: Patch, radius: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Large cell carcinoma: one broad mass with a straight, cut-off side."""
    radii = np.array([0.9, 1.25, 0.95])[rng.permutation(3)] * radius
    body = (1 - ellipsoid(patch, (0, 0, 0), tuple(radii))) * radius
    cut = _angles(rng, 1)[0]
    plane = radius * 0.45 - sum(a * v for a, v in zip(patch, cut, strict=True))
    alpha = _solid(patch, radius, np.minimum(body, plane))
    return alpha, alpha


def _cavitated(
    patch: Patch, radius: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Squamous cell carcinoma: a thick irregular wall round an air-filled cavity."""
    outer = (1 - ellipsoid(patch, (0, 0, 0), (radius,) * 3)) * radius
    shift = tuple(rng.uniform(-0.16, 0.16, 3) * radius)
    inner = (1 - ellipsoid(patch, shift, (radius * 0.56,) * 3)) * radius * 0.56
    hull = _solid(patch, radius, outer)
    return hull * (1 - _solid(patch, radius, inner)), hull


def _round(patch: Patch, radius: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return a harmless blob: vessel knot, cyst or healed focus with a smooth border."""
    radii = rng.uniform(0.88, 1.12, 3) * radius
    alpha = _solid(patch, radius, (1 - ellipsoid(patch, (0, 0, 0), tuple(radii))) * radius)
    return alpha, alpha


def _mottled(scale_mm: float) -> Callable[..., np.ndarray]:
    """Return a texture of grains of a size."""

    def texture(
        patch: Patch,
        radius: float,  # noqa: ARG001 - one signature for all textures
        rng: np.random.Generator,
        voxel_mm: tuple[float, float, float],
    ) -> np.ndarray:
        shape = tuple(axis.size for axis in patch)
        scales = [max(scale_mm / step, 1.01) for step in voxel_mm]
        grains = np.sign(smooth_noise(rng, shape, scales))
        return np.asarray(grains + 0.3 * smooth_noise(rng, shape, scales))

    return texture


def _rings(
    patch: Patch,
    radius: float,
    rng: np.random.Generator,  # noqa: ARG001
    voxel_mm: tuple[float, float, float],  # noqa: ARG001
) -> np.ndarray:
    """Concentric shells, as a dying centre leaves them."""
    return np.asarray(np.cos(ellipsoid(patch, (0, 0, 0), (radius * 0.36,) * 3) * np.pi))


def _ramp(
    patch: Patch,
    radius: float,  # noqa: ARG001
    rng: np.random.Generator,
    voxel_mm: tuple[float, float, float],  # noqa: ARG001
) -> np.ndarray:
    """Return an even slope of density: the same histogram without any grain."""
    vector = _angles(rng, 1)[0]
    return np.asarray(sum(axis * v for axis, v in zip(patch, vector, strict=True)))


_SHAPES: dict[str, Shape] = {
    "A": _spiculated,
    "B": _lobulated,
    "E": _large,
    "G": _cavitated,
    "blob": _round,
}
_TEXTURES: dict[str, Callable[..., np.ndarray]] = {
    "A": _mottled(9.0),
    "B": _mottled(5.0),
    "E": _rings,
    "G": _mottled(7.0),
    "blob": _ramp,
}
