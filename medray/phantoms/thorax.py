"""A chest in HU and in standardised uptake: heart on the left, liver on the right, spine behind."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from medray.phantoms.fields import (
    Grid,
    blend,
    bounding_box,
    box_round,
    crop_axes,
    curve,
    edge,
    ellipsoid,
    smooth_noise,
    tube_distance,
)
from medray.phantoms.lesions import Lesion, make_lesion
from medray.phantoms.naming import stream

_AIR, _LUNG, _FAT, _MUSCLE, _BONE = -1000.0, -860.0, -95.0, 45.0, 420.0
# Places for lesions in the lungs, (y, x) in mm; the heart takes the left front.
_SLOTS = ((-46, -72), (4, -84), (48, -66), (4, 100), (46, 78))
_SLICE_TOLERANCE = 1.3  # patch half-width over the lesion's radius; spikes reach beyond 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Focus:
    """One planted lesion: a tumour by its histology letter, or a harmless `blob`."""

    kind: str
    center_zyx_mm: tuple[float, float, float]
    volume_mm3: float
    seed: int
    suv: float

    @property
    def radius_mm(self) -> float:
        """Radius of the sphere of this volume."""
        return float((self.volume_mm3 * 3 / (4 * np.pi)) ** (1 / 3))


@dataclass(frozen=True, slots=True, kw_only=True)
class Chest:
    """One person's anatomy.

    Attributes:
        seed: of vessels and noise.
        scale_yx: size of the body beside the standard one.
        foci: tumours first.
    """

    seed: int
    scale_yx: tuple[float, float]
    foci: tuple[Focus, ...]


def make_chest(seed: int, *, number: int, histology: str, group: int) -> Chest:
    """Return a person with one tumour and harmless blobs of the same size.

    Args:
        seed: of the data set.
        number: of the patient; decides the anatomy.
        histology: letter of the tumour.
        group: patients of one group share the size and the level of their lesions, so that
            neither tells the classes apart.
    """
    shared = stream(seed, "chest-group", group)
    radius, level = shared.uniform(16, 20), shared.uniform(-32, 30)
    rng = stream(seed, "chest", number)
    order = rng.permutation(len(_SLOTS))
    other = level + (64 if level < 0 else -64)
    plan = [(histology, level), *[("blob", level)] * 2, *[("blob", other)] * 2]
    suvs = [7.0, 7.0, 7.0, 0.9, 6.5]
    foci = []
    for slot, (kind, height), suv in zip(order, plan, suvs, strict=True):
        y, x = np.array(_SLOTS[slot]) + rng.uniform(-6, 6, 2)
        size = radius * rng.uniform(0.97, 1.03)
        foci.append(
            Focus(
                kind=kind,
                center_zyx_mm=(height + rng.uniform(-4, 4), float(y), float(x)),
                volume_mm3=4 / 3 * np.pi * size**3,
                seed=int(rng.integers(1 << 31)),
                suv=suv,
            )
        )
    y_scale, x_scale = rng.uniform(0.95, 1.05, 2)
    return Chest(seed=seed * 1000 + number, scale_yx=(y_scale, x_scale), foci=tuple(foci))


def _body_axes(grid: Grid, chest: Chest) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    z, y, x = grid.axes()
    return z, y / np.float32(chest.scale_yx[0]), x / np.float32(chest.scale_yx[1])


def _outline(axes: Sequence[np.ndarray]) -> np.ndarray:
    _, y, x = axes
    return ellipsoid((y, x), (0, 0), (112, 166))


def _lung_radius(axes: Sequence[np.ndarray]) -> np.ndarray:
    """Return the normalised radius of the nearer lung: below 1 in lung tissue."""
    right = ellipsoid(axes, (6, 0, -76), (118, 86, 62))
    left = ellipsoid(axes, (8, 2, 80), (112, 82, 56))
    heart = ellipsoid(axes, (-30, -36, 28), (56, 44, 56))
    liver = ellipsoid(axes, (-120, 0, -70), (62, 90, 80))
    lungs = np.minimum(right, left)
    return np.asarray(np.maximum(np.maximum(lungs, 2 - heart), 2 - liver))


def chest_hu(grid: Grid, chest: Chest, *, noise_hu: float = 12.0) -> np.ndarray:
    """Return the chest in HU (depth, height, width), float32, with scanner noise."""
    axes = _body_axes(grid, chest)
    z, y, x = axes
    outline = _outline(axes)
    image = np.full(grid.shape, _AIR, dtype=np.float32)
    blend(image, edge(outline, 0.03), _FAT)
    blend(image, edge(outline, 0.03, 0.93), _MUSCLE)
    angle = np.arctan2(y, x)
    ribs = (abs(outline - 0.885) < 0.035) & (np.sin(z / 7.5 + 2.2 * np.sin(angle)) > 0.35)
    blend(image, ribs.astype(np.float32), _BONE)
    lung = edge(_lung_radius(axes), 0.05)
    blend(image, lung, _LUNG)
    _vessels(image, axes, lung, chest)
    blend(image, edge(ellipsoid((y, x), (-8, 6), (9, 10)), 0.2) * (z > 15), _AIR)  # trachea
    blend(image, edge(ellipsoid((y, x), (46, 24), (12, 12)), 0.2), 60.0)  # aorta, left
    _spine(image, axes)
    blend(image, edge(ellipsoid(axes, (-30, -36, 28), (50, 38, 50)), 0.08), 52.0)
    blend(image, edge(ellipsoid(axes, (-120, 0, -70), (56, 82, 74)), 0.06), 72.0)
    for focus in chest.foci:
        box, lesion = focus_on_grid(focus, grid)
        blend(image[box], lesion.alpha, lesion.values_hu)
    # A dense marker on the skin: left, front, head side.
    blend(image, edge(ellipsoid(axes, (62, -84, 92), (9, 8, 8)), 0.3), 1100.0)
    table = (abs(y - 122 - 6 * (x / 150) ** 2) < 3) & (abs(x) < 150)
    blend(image, table.astype(np.float32), -300.0)
    rng = stream(chest.seed, "noise", grid.shape)
    image += noise_hu * smooth_noise(rng, grid.shape, (1, 1.4, 1.4))
    return image


def _vessels(image: np.ndarray, axes: Sequence[np.ndarray], lung: np.ndarray, chest: Chest) -> None:
    """Lay branching vessels from the hila into the lungs, in place."""
    rng = stream(chest.seed, "vessels")
    for side in (-1, 1):
        for _ in range(13):
            hilum = np.array([rng.uniform(-20, 25), rng.uniform(-8, 14), side * 30.0])
            tip = np.array(
                [rng.uniform(-85, 95), rng.uniform(-62, 62), side * rng.uniform(60, 122)]
            )
            bend = (hilum + tip) / 2 + rng.normal(0, 10, 3)
            path = curve(np.stack([hilum, bend, tip]), num=6)
            box = box_round(axes, path.min(axis=0) - 6, path.max(axis=0) + 6)
            if box is None:
                continue
            local = crop_axes(axes, box)
            radius = tube_distance(local, path) / rng.uniform(2.0, 4.0)
            blend(image[box], edge(radius, 0.6) * lung[box], 35.0)


def _spine(image: np.ndarray, axes: Sequence[np.ndarray]) -> None:
    """Lay the vertebrae with their canal, and discs between them, in place."""
    z, y, x = axes
    body = edge(ellipsoid((y, x), (72, 0), (18, 20)), 0.15)
    blend(image, body, np.where(np.sin(z / 4.2) > -0.7, _BONE * 0.75, 90.0))
    blend(image, edge(ellipsoid((y, x), (100, 0), (9, 10)), 0.2), 250.0)
    blend(image, edge(ellipsoid((y, x), (92, 0), (7, 8)), 0.2), 20.0)


def focus_on_grid(focus: Focus, grid: Grid) -> tuple[tuple[slice, ...], Lesion]:
    """Return where a lesion lies on a grid, and the lesion itself."""
    axes = grid.axes()
    reach = focus.radius_mm * 2.1 * _SLICE_TOLERANCE / 1.3
    center = np.array(focus.center_zyx_mm)
    box = box_round(axes, center - reach, center + reach)
    if box is None:
        box = tuple(slice(0, 2) for _ in range(3))
    local = crop_axes(axes, box)
    patch = [axis - np.float32(middle) for axis, middle in zip(local, center, strict=True)]
    lesion = make_lesion(
        focus.kind,
        (patch[0], patch[1], patch[2]),
        volume_mm3=focus.volume_mm3,
        voxel_mm=grid.spacing_zyx_mm,
        seed=focus.seed,
    )
    return box, lesion


def focus_boxes(focus: Focus, grid: Grid) -> Iterator[tuple[int, tuple[int, int, int, int]]]:
    """Yield slice index and x1, y1, x2, y2 (pixel edges) where a lesion shows plainly."""
    (depth, rows, columns), lesion = focus_on_grid(focus, grid)
    for k, layer in enumerate(lesion.hull):
        # A tip of a few pixels is not annotated: no reader would box it.
        if layer.sum() * np.prod(grid.spacing_zyx_mm[1:]) < 0.25 * np.pi * focus.radius_mm**2:
            continue
        x1, y1, x2, y2 = bounding_box(layer)
        left, top = columns.start, rows.start
        yield depth.start + k, (x1 + left, y1 + top, x2 + left, y2 + top)


def chest_suv(grid: Grid, chest: Chest) -> np.ndarray:
    """Return uptake as SUVbw: heart, liver and inflamed blobs glow as tumours do."""
    axes = _body_axes(grid, chest)
    image = 0.8 * edge(_outline(axes), 0.06)
    image = np.broadcast_to(image, grid.shape).astype(np.float32)
    blend(image, edge(_lung_radius(axes), 0.1), 0.4)
    blend(image, edge(ellipsoid(axes, (-30, -36, 28), (50, 38, 50)), 0.15), 4.0)
    blend(image, edge(ellipsoid(axes, (-120, 0, -70), (56, 82, 74)), 0.1), 2.3)
    full = grid.axes()
    for focus in chest.foci:
        radius = ellipsoid(full, focus.center_zyx_mm, (focus.radius_mm,) * 3)
        blend(image, edge(radius, 0.6), focus.suv)
    rng = stream(chest.seed, "pet-noise", grid.shape)
    image *= 1 + 0.08 * smooth_noise(rng, grid.shape, (1.3, 1.3, 1.3))
    return np.maximum(image, 0)
