"""An upper abdomen in HU: liver on the right, stomach and spleen on the left, pancreas across.

The pancreas has the HU of bowel and veins around it; only its place, its course and its lobules
tell it apart. A cancer is a round hypodense mass in it; a harmless dilated duct has as many voxels
of the same HU.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medray.phantoms.fields import (
    Grid,
    blend,
    box_round,
    crop_axes,
    curve,
    edge,
    ellipsoid,
    eroded,
    paint_tube,
    smooth_noise,
    tube_distance,
)
from medray.phantoms.naming import stream

ORGAN_HU = 95.0
ORGAN_DEVIATION_HU = 22.0
HYPODENSE_HU = 35.0
# A healthy duct is larger than its pair's mass in one pair and smaller in the next, so that the
# number of dark voxels means nothing either way round.
_DUCT_SHARES = (1.3, 0.75)
_AIR, _FAT, _MUSCLE, _BONE = -1000.0, -100.0, 55.0, 420.0
# Course of the organ from head to tail as (z, y, x) in mm, and its half-width there.
_COURSE = ((-24, 2, -42), (-14, -8, -26), (0, -22, -2), (8, -20, 26), (18, -2, 54), (30, 22, 76))
_HALF_WIDTH_MM = (17.0, 16.0, 13.0, 13.0, 12.5, 11.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Belly:
    """One person's anatomy.

    Attributes:
        seed: of texture, loops and noise.
        course: the pancreas from head to tail, (6, 3) as (z, y, x) in mm.
        lesion: `mass`, `duct`, or empty for neither.
        lesion_radius_mm: of the mass; the duct gets the mass's number of voxels.
        lesion_at: where along the organ, 0 head to 1 tail.
        duct_share: voxels of the duct over those of the mass.
    """

    seed: int
    course: np.ndarray
    lesion: str = ""
    lesion_radius_mm: float = 0.0
    lesion_at: float = 0.5
    duct_share: float = 1.0

    @property
    def lesion_center_zyx_mm(self) -> tuple[float, float, float]:
        """Middle of the mass or duct."""
        path = curve(self.course, num=41)
        z, y, x = path[round(self.lesion_at * 40)]
        return float(z), float(y), float(x)


def make_belly(seed: int, number: int, *, lesion: str = "", group: int = 0) -> Belly:
    """Return a person; those of one group share the size and the place of the lesion."""
    rng = stream(seed, "belly", number)
    shared = stream(seed, "belly-group", group)
    shift = rng.normal(0, 4, 3)
    course = np.array(_COURSE, float) + shift + rng.normal(0, 2.0, (len(_COURSE), 3))
    return Belly(
        seed=seed * 1000 + number,
        course=course,
        lesion=lesion,
        lesion_radius_mm=float(shared.uniform(9.0, 11.5)),
        lesion_at=float(shared.uniform(0.25, 0.75)),
        duct_share=_DUCT_SHARES[group % 2],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AbdomenImage:
    """The voxels of a person: HU float32 and the organ's mask, both (depth, height, width)."""

    hu: np.ndarray
    mask: np.ndarray
    num_lesion_voxels: int


def abdomen(grid: Grid, belly: Belly, *, noise_hu: float = 10.0) -> AbdomenImage:
    """Return the abdomen on a grid."""
    axes = grid.axes()
    image = np.full(grid.shape, _AIR, dtype=np.float32)
    _wall(image, axes)
    _organs(image, axes, belly)
    _loops(image, axes, belly)
    distance = _organ_distance(axes, belly, grid)
    alpha = np.clip(distance / grid.spacing_zyx_mm[2] + 0.5, 0, 1)
    rng = stream(belly.seed, "lobules", grid.shape)
    grains = smooth_noise(rng, grid.shape, [max(7.0 / s, 1.01) for s in grid.spacing_zyx_mm])
    blend(image, alpha, ORGAN_HU + ORGAN_DEVIATION_HU * np.sign(grains))
    mask = alpha > 0.5
    num_lesion = _lesion(image, axes, mask, belly)
    noise = smooth_noise(stream(belly.seed, "noise", grid.shape), grid.shape, (1, 1.4, 1.4))
    image += noise_hu * noise
    return AbdomenImage(hu=image, mask=mask, num_lesion_voxels=num_lesion)


def _organ_distance(axes: Sequence[np.ndarray], belly: Belly, grid: Grid) -> np.ndarray:
    """Return the signed distance in mm to the organ's lobulated surface (positive inside)."""
    path = curve(belly.course, num=16)
    width = np.interp(np.linspace(0, 5, 16), range(6), _HALF_WIDTH_MM)
    rng = stream(belly.seed, "surface")
    # Lobules come from waves over space, the same on any grid.
    waves = rng.normal(0, 1, (10, 3))
    waves *= (2 * np.pi / rng.uniform(14, 22, 10) / np.linalg.norm(waves, axis=1))[:, None]
    distance = np.full(grid.shape, -1e3, dtype=np.float32)
    box = box_round(axes, path.min(axis=0) - 24, path.max(axis=0) + 24)
    if box is None:
        return distance
    local = crop_axes(axes, box)
    best = np.full(1, -np.inf, dtype=np.float32)
    for n in range(15):
        half = (width[n] + width[n + 1]) / 2
        best = np.maximum(best, half - tube_distance(local, path[n : n + 2]))
    bumps = np.zeros(best.shape, dtype=np.float32)
    for wave, phase in zip(waves, rng.uniform(0, 2 * np.pi, 10), strict=True):
        bumps += np.cos(sum(a * w for a, w in zip(local, wave, strict=True)) + phase)
    distance[box] = best + 1.1 * bumps / np.sqrt(5)
    return distance


def _wall(image: np.ndarray, axes: Sequence[np.ndarray]) -> None:
    """Lay skin, fat, muscle, belly fat, spine, marker and table, in place."""
    z, y, x = axes
    outline = ellipsoid((y, x), (0, 0), (114, 164))
    blend(image, edge(outline, 0.03), _FAT)
    blend(image, edge(outline, 0.03, 0.92), _MUSCLE)
    inner = np.maximum(ellipsoid((y, x), (-6, 0), (94, 138)), (y - 50) / 46 + 0.4 * (abs(x) < 40))
    blend(image, edge(inner, 0.04), _FAT)
    angle = np.arctan2(y, x)
    ribs = (abs(outline - 0.87) < 0.03) & (np.sin(z / 7 + 2.2 * np.sin(angle)) > 0.5) & (z > -10)
    blend(image, ribs.astype(np.float32), _BONE)
    body = edge(ellipsoid((y, x), (64, 0), (18, 21)), 0.15)
    blend(image, body, np.where(np.sin(z / 4.6) > -0.7, _BONE * 0.7, 85.0))
    blend(image, edge(ellipsoid((y, x), (94, 0), (10, 10)), 0.2), 250.0)
    blend(image, edge(ellipsoid((y, x), (86, 0), (7, 8)), 0.2), 20.0)
    # A dense marker on the skin: left, front, head side.
    blend(image, edge(ellipsoid(axes, (56, -88, 90), (9, 8, 8)), 0.3), 1100.0)
    table = (abs(y - 124 - 6 * (x / 150) ** 2) < 3) & (abs(x) < 150)
    blend(image, table.astype(np.float32), -300.0)


def _organs(image: np.ndarray, axes: Sequence[np.ndarray], belly: Belly) -> None:
    """Lay the solid organs and great vessels, in place; the cysts in them are for everyone."""
    _, y, x = axes
    radius = ellipsoid(axes, (30, -18, -84), (76, 72, 60))
    blend(image, edge(np.maximum(radius, 1 + (x + 18) / 60), 0.06), 112.0)
    blend(image, edge(ellipsoid(axes, (40, 42, 108), (44, 36, 26)), 0.08), 120.0)
    blend(image, edge(ellipsoid(axes, (46, -48, 62), (38, 34, 42)), 0.08), 62.0)
    blend(image, edge(ellipsoid(axes, (48, -62, 62), (26, 14, 30)), 0.12), -800.0)  # its air
    for place in ((-30, 58, -66), (-8, 58, 68)):
        kidney = ellipsoid(axes, place, (48, 24, 22))
        blend(image, edge(kidney, 0.1), 170.0)
        blend(image, edge(kidney, 0.2, 0.55), 60.0)
    blend(image, edge(ellipsoid((y, x), (34, 12), (11, 11)), 0.2), ORGAN_HU + 10)  # aorta
    blend(image, edge(ellipsoid((y, x), (32, -24), (12, 14)), 0.2), ORGAN_HU)  # vena cava
    rng = stream(belly.seed, "cysts")
    for place in ((34, -30, -96), (-30, 66, -78), (44, 40, 112), (4, 66, 80)):
        center = np.array(place) + rng.uniform(-5, 5, 3)
        blend(image, edge(ellipsoid(axes, tuple(center), (9.5,) * 3), 0.25), HYPODENSE_HU)


def _loops(image: np.ndarray, axes: Sequence[np.ndarray], belly: Belly) -> None:
    """Lay bowel and veins of the organ's HU, width and length, in place."""
    rng = stream(belly.seed, "loops")
    head, tail = belly.course[0], belly.course[-1]
    duodenum = np.array(((26, -10, -14), (4, 4, -27), (-26, 2, -12), (-34, 0, 20)))
    jejunum = np.array(((4, -30, 14), (-24, -26, 22), (-50, -18, 10)))
    splenic_vein = belly.course + np.array([-4, 19, 2])
    paths = [
        (curve(head + duodenum, num=8), 9.0),
        (curve(splenic_vein, num=10), 5.0),
        (curve(tail + jejunum, num=6), 12.0),
    ]
    for place in ((-48, -52, -52), (-56, -60, 40), (-34, -66, 0), (-66, -26, 70), (-66, -20, -80)):
        middle = np.array(place) + rng.uniform(-7, 7, 3)
        turns = rng.normal(0, 1, (4, 3)) * (7, 10, 9)
        line = np.linspace(-58, 58, 4)[:, None] * np.array([0.12, 0.2, 1.0]) + turns
        paths.append((curve(middle + line, num=8), float(rng.uniform(11, 14))))
    ramp = rng.standard_normal(3) / 22
    shade = sum(axis * step for axis, step in zip(axes, ramp, strict=True))
    value = ORGAN_HU + ORGAN_DEVIATION_HU * 1.4 * np.sin(np.asarray(shade))
    value = np.broadcast_to(value, image.shape)
    for path, radius in paths:
        paint_tube(image, axes, path, radius_mm=radius, value=value)


def _lesion(image: np.ndarray, axes: Sequence[np.ndarray], mask: np.ndarray, belly: Belly) -> int:
    """Lay the mass or the duct into the organ, in place; return its number of voxels.

    Both fill whole voxels, and they are counted away from the surface, where fat mixes in.
    """
    if not belly.lesion:
        return 0
    center = belly.lesion_center_zyx_mm
    chosen = (ellipsoid(axes, center, (belly.lesion_radius_mm,) * 3) < 1) & mask
    if belly.lesion == "duct":
        inner = eroded(mask)
        wanted = int((chosen & inner).sum() * belly.duct_share)
        distance = np.where(mask, tube_distance(axes, _duct_path(axes, belly)), np.inf)
        order = np.argsort(distance, axis=None, kind="stable")
        enough = int(np.searchsorted(np.cumsum(inner.ravel()[order]), wanted)) + 1
        chosen = np.zeros(mask.size, dtype=bool)
        chosen[order[:enough]] = True
        chosen = chosen.reshape(mask.shape) & mask
    image[chosen] = HYPODENSE_HU
    return int(chosen.sum())


def _duct_path(axes: Sequence[np.ndarray], belly: Belly) -> np.ndarray:
    """Return the stretch of the organ's course that a duct of the mass's volume fills.

    The duct is as wide as the grid needs to keep it in one piece.
    """
    step = max(float(abs(axis.ravel()[1] - axis.ravel()[0])) for axis in axes)
    half_width = max(4.0, 0.85 * step)
    length = 4 / 3 * belly.lesion_radius_mm**3 / half_width**2
    path = curve(belly.course, num=81)
    along = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(path, axis=0), axis=1))])
    length = min(length, float(along[-1]))
    middle = float(np.clip(belly.lesion_at * along[-1], length / 2, along[-1] - length / 2))
    return np.asarray(path[np.abs(along - middle) <= length / 2][::2])
