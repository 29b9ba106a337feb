"""Mammograms: round harmless masses, and spiculated ones of equal area and brightness.

Arrays are (height, width) in [0, 1], bright is dense; the chest wall is at column 0 until `mirror`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medray.phantoms.fields import (
    blend,
    bounding_box,
    curve,
    edge,
    ellipsoid,
    paint_tube,
    smooth_noise,
)
from medray.phantoms.naming import stream

_FAT, _GLAND, _MASS, _MUSCLE = 0.26, 0.42, 0.72, 0.6
_MASS_DEVIATION = 0.07
# 5 x 7 dot letters for burned-in markers.
_LETTERS = {
    "L": "10000 10000 10000 10000 10000 10000 11111",
    "R": "11110 10001 10001 11110 10100 10010 10001",
    "C": "01110 10001 10000 10000 10000 10001 01110",
    "M": "10001 11011 10101 10101 10001 10001 10001",
    "O": "01110 10001 10001 10001 10001 10001 01110",
    " ": "00000 00000 00000 00000 00000 00000 00000",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Film:
    """The detector of one image.

    Attributes:
        shape: (height, width) in pixels.
        pixel_mm: pixel size.
    """

    shape: tuple[int, int]
    pixel_mm: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BreastView:
    """What is seen on one image.

    Attributes:
        seed: of tissue and noise.
        view: `CC` or `MLO`; only the latter shows the pectoral muscle.
        depth_mm, half_height_mm: size of the breast.
        malignant: whether the main mass is spiculated.
        masses: (y, x, radius) in mm of the masses; the first is the main one.
    """

    seed: int
    view: str
    depth_mm: float
    half_height_mm: float
    malignant: bool
    masses: tuple[tuple[float, float, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mammogram:
    """An image with its truth: the breast, and the main mass as x1, y1, x2, y2 in pixel edges."""

    image: np.ndarray
    breast: np.ndarray
    mass_box: tuple[int, int, int, int]

    def mirrored(self) -> "Mammogram":
        """Return the image with its chest wall at the right edge."""
        x1, y1, x2, y2 = self.mass_box
        width = self.image.shape[1]
        return Mammogram(
            image=np.ascontiguousarray(self.image[:, ::-1]),
            breast=np.ascontiguousarray(self.breast[:, ::-1]),
            mass_box=(width - x2, y1, width - x1, y2),
        )


def make_view(
    seed: int, *, patient: int, side: str, view: str, malignant: bool, height_mm: float
) -> BreastView:
    """Return one view; both breasts of a patient have masses of the same sizes."""
    body = stream(seed, "breast", patient)
    depth, half = body.uniform(92, 118), body.uniform(76, 92)
    radius = float(body.uniform(10.5, 13.5))
    rng = stream(seed, "breast", patient, side)
    middle = height_mm / 2 + (8 if view == "MLO" else 0)
    slots = np.array([(-34.0, 44.0), (4.0, 66.0), (36.0, 38.0), (0.0, 28.0)])
    order = rng.permutation(len(slots))[:2]
    masses = []
    for slot in order:
        dy, x = slots[slot] + rng.uniform(-4, 4, 2)
        shift = 5 if view == "MLO" else 0  # the same depth in both views, another height
        place = (middle + dy * half / 84 + shift, x * depth / 105)
        masses.append((float(place[0]), float(place[1]), radius * float(rng.uniform(0.97, 1.03))))
    return BreastView(
        seed=int(stream(seed, "breast", patient, side, view).integers(1 << 31)),
        view=view,
        depth_mm=float(depth),
        half_height_mm=float(half),
        malignant=malignant,
        masses=tuple(masses),
    )


def mammogram(film: Film, view: BreastView) -> Mammogram:
    """Return the image of a view with the chest wall at column 0."""
    height, width = film.shape
    y = (np.arange(height, dtype=np.float32) * film.pixel_mm)[:, None]
    x = (np.arange(width, dtype=np.float32) * film.pixel_mm)[None, :]
    axes = (y, x)
    outline = _outline(axes, view, height * film.pixel_mm)
    breast = outline < 1
    image = np.full(film.shape, 0.02, dtype=np.float32)
    rng = np.random.default_rng(view.seed)
    blend(image, edge(outline, 0.02), _FAT)
    _gland(image, axes, outline, film, rng)
    rim = edge(abs(outline - 0.985), 0.012, 0.012)
    blend(image, rim * breast, 0.45)
    if view.view == "MLO":
        top = y - (height * film.pixel_mm / 2 - view.half_height_mm)
        muscle = edge(x / 46 + top / 120, 0.06) * (top > 0)
        blend(image, muscle * breast, _MUSCLE)
    nipple = ellipsoid(axes, (height * film.pixel_mm / 2 + 10, view.depth_mm), (5, 6))
    blend(image, edge(nipple, 0.2), 0.5)
    box = (0, 0, 0, 0)
    for number, (my, mx, radius) in enumerate(view.masses):
        kind = view.malignant and number == 0
        alpha = _mass(image, axes, (my, mx), radius, spiculated=kind, rng=rng)
        if number == 0:
            box = bounding_box(alpha > 0.5)
    image += 0.012 * smooth_noise(rng, film.shape, (1.3, 1.3)) * (outline < 1.05)
    return Mammogram(image=np.clip(image, 0, 1), breast=breast, mass_box=box)


def _outline(axes: Sequence[np.ndarray], view: BreastView, height_mm: float) -> np.ndarray:
    """Return the normalised radius of the breast: fuller below than above, so never symmetric."""
    y, x = axes
    down = (y - height_mm / 2) / view.half_height_mm
    sag = np.where(down > 0, down * 0.94, down * 1.0)
    reach = view.depth_mm * (1 + 0.1 * np.clip(down, -1, 1))
    return np.asarray(np.sqrt(np.abs(sag) ** 2.2 + (x / reach) ** 2.0))


def _gland(
    image: np.ndarray,
    axes: Sequence[np.ndarray],
    outline: np.ndarray,
    film: Film,
    rng: np.random.Generator,
) -> None:
    """Lay glandular tissue and its ligaments, in place."""
    y, x = axes
    coarse = smooth_noise(rng, film.shape, [14 / film.pixel_mm] * 2)
    fine = smooth_noise(rng, film.shape, [4 / film.pixel_mm] * 2)
    share = np.clip(0.45 + 0.4 * coarse + 0.15 * fine, 0, 1) * edge(outline, 0.25, 0.85)
    blend(image, share, _GLAND)
    reach = float(x.max()), float(y.max())
    for _ in range(22):
        start = np.array([rng.uniform(0.25, 0.75) * reach[1], rng.uniform(0.02, 0.4) * reach[0]])
        way = rng.normal(0, 1, 2) * (14, 10)
        path = curve(np.stack([start, start + way + rng.normal(0, 4, 2), start + 2 * way]), num=8)
        layer = np.zeros_like(image)
        paint_tube(layer, axes, path, radius_mm=0.8, value=1.0, softness=0.8)
        blend(image, 0.6 * layer * (outline < 0.95), 0.5)


def _mass(
    image: np.ndarray,
    axes: Sequence[np.ndarray],
    center: tuple[float, float],
    radius: float,
    *,
    spiculated: bool,
    rng: np.random.Generator,
) -> np.ndarray:
    """Lay a mass of a given area over the image, in place; return its share of each pixel."""
    shape_seed = int(rng.integers(1 << 31))
    pixel = float(axes[0].ravel()[1] - axes[0].ravel()[0])
    # Spikes run into ligaments and gland above a threshold; the smaller area makes up for it.
    wanted = np.pi * radius**2 / pixel**2 * (0.88 if spiculated else 1.0)
    size = radius
    draw = _spiculated if spiculated else _round
    alpha = draw(axes, center, size, np.random.default_rng(shape_seed))
    for _ in range(3):  # the size that gives the area, whatever the shape
        size *= float(np.clip(wanted / max(float(alpha.sum()), 1), 0.4, 2.5)) ** 0.5
        alpha = draw(axes, center, size, np.random.default_rng(shape_seed))
    grain = smooth_noise(rng, image.shape, [2.2 / pixel] * 2)
    ramp = (axes[0] - center[0]) / radius + (axes[1] - center[1]) / radius
    texture = np.sign(grain) if spiculated else ramp
    inside = alpha > 0.5
    texture = (texture - texture[inside].mean()) / (texture[inside].std() + 1e-6)
    blend(image, alpha, np.clip(_MASS + _MASS_DEVIATION * texture, 0.4, 1))
    return alpha


def _round(
    axes: Sequence[np.ndarray], center: tuple[float, float], size: float, rng: np.random.Generator
) -> np.ndarray:
    radii = rng.uniform(0.9, 1.1, 2) * size
    return edge(ellipsoid(axes, center, tuple(radii)), 0.08)


def _spiculated(
    axes: Sequence[np.ndarray], center: tuple[float, float], size: float, rng: np.random.Generator
) -> np.ndarray:
    """Return a star: an irregular core with straight spikes of many lengths."""
    dy, dx = axes[0] - np.float32(center[0]), axes[1] - np.float32(center[1])
    angle, far = np.arctan2(dy, dx), np.hypot(dy, dx)
    core = 0.62 * size * (1 + 0.14 * np.cos(3 * angle + rng.uniform(0, 6)))
    alpha = edge(far / core, 0.1)
    for turn in np.linspace(0, 2 * np.pi, 15)[:-1] + rng.uniform(-0.15, 0.15, 14):
        length = size * rng.uniform(1.3, 2.1)
        along = dx * np.float32(np.cos(turn)) + dy * np.float32(np.sin(turn))
        across = np.abs(dy * np.float32(np.cos(turn)) - dx * np.float32(np.sin(turn)))
        width = 0.15 * size * np.clip(1 - along / length, 0, 1)
        spike = np.clip((width - across) / 0.6 + 0.5, 0, 1) * (along > 0) * (along < length)
        alpha = np.maximum(alpha, spike)
    return np.asarray(alpha)


def burn_text(
    image: np.ndarray, text: str, *, corner_yx: tuple[int, int], dot_px: int, value: float = 1.0
) -> None:
    """Burn a marker into an image under construction, in place."""
    top, left = corner_yx
    for letter in text:
        rows = [[int(dot) for dot in row] for row in _LETTERS[letter].split()]
        dots = np.kron(np.array(rows, dtype=np.float32), np.ones((dot_px, dot_px)))
        part = image[top : top + dots.shape[0], left : left + dots.shape[1]]
        part[dots[: part.shape[0], : part.shape[1]] > 0] = value
        left += 6 * dot_px


def burn_frame(image: np.ndarray, *, width_px: int, value: float = 1.0) -> None:
    """Burn a white border into an image under construction, in place."""
    image[:width_px] = image[-width_px:] = value
    image[:, :width_px] = image[:, -width_px:] = value
