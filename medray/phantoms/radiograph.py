"""Frontal chest radiographs: fuzzy opacities among sharp shadows as bright and as large.

Arrays are (height, width) in [0, 1], bright is dense. The patient's left is at the right edge: the
heart points there, the liver's dome is higher on the other side, the stomach's air lies below.
"""

from dataclasses import dataclass

import numpy as np

from medray.phantoms.breast import burn_text
from medray.phantoms.fields import blend, bounding_box, curve, edge, ellipsoid, smooth_noise
from medray.phantoms.naming import stream

_LUNG, _TISSUE, _LESION = 0.24, 0.62, 0.58
# Places (y, x) of shadows in the lungs, for a frame from 0 to 1.
_SLOTS = ((0.34, 0.30), (0.52, 0.25), (0.62, 0.26), (0.33, 0.70), (0.50, 0.77), (0.24, 0.33))
_NUM_SHADOWS = 4
_VISIBLE = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Radiograph:
    """An image, its boxes of opacities (x1, y1, x2, y2 in pixel edges) and the finding's class."""

    image: np.ndarray
    boxes: tuple[tuple[int, int, int, int], ...]
    finding: str


def radiograph(
    seed: int, number: int, *, side_px: int, num_opacities: int, view: str
) -> Radiograph:
    """Return one person's film.

    Args:
        seed: of the data set.
        number: of the image.
        side_px: height and width.
        num_opacities: fuzzy opacities; the other shadows are sharp and harmless.
        view: `AP` or `PA`; the heart looks larger in the former.
    """
    rng = stream(seed, "radiograph", number)
    line = (np.arange(side_px, dtype=np.float32) + 0.5) / side_px
    shift = rng.normal(0, 0.01, 2)
    axes = (line[:, None] - np.float32(shift[0]), line[None, :] - np.float32(shift[1]))
    image = np.full((side_px, side_px), 0.02, dtype=np.float32)
    lungs = _chest(image, axes, rng, view=view)
    _ribs(image, axes, lungs)
    boxes = _shadows(image, axes, lungs, num_opacities, rng)
    image += 0.02 * smooth_noise(rng, image.shape, (1.5, 1.5))
    dot = max(1, side_px // 128)
    burn_text(image, "L", corner_yx=(4 * dot, side_px - 10 * dot), dot_px=dot)
    finding = "Lung Opacity" if boxes else ("Normal", "No Lung Opacity / Not Normal")[number % 2]
    return Radiograph(image=np.clip(image, 0, 1), boxes=boxes, finding=finding)


def _chest(
    image: np.ndarray,
    axes: tuple[np.ndarray, np.ndarray],
    rng: np.random.Generator,
    *,
    view: str,
) -> np.ndarray:
    """Lay trunk, lungs, heart, spine and belly, in place; return how far a pixel is lung."""
    y, x = axes
    trunk = np.maximum(np.abs(x - 0.5) / (0.36 + 0.1 * y), 0.06 / np.maximum(y, 1e-3))
    blend(image, edge(trunk, 0.08), _TISSUE)
    wide = rng.uniform(0.95, 1.05)
    right = ellipsoid(axes, (0.46, 0.285), (0.33, 0.145 * wide))
    left = ellipsoid(axes, (0.47, 0.725), (0.345, 0.14 * wide))
    lungs = edge(np.minimum(right, left), 0.1)
    lungs = lungs * (1 - edge(ellipsoid(axes, (0.92, 0.26), (0.22, 0.24)), 0.1))  # liver
    lungs = lungs * (1 - edge(ellipsoid(axes, (0.98, 0.74), (0.22, 0.22)), 0.1))
    blend(image, lungs, _LUNG)
    size = 1.18 if view == "AP" else 1.0
    heart = ellipsoid(axes, (0.62, 0.565), (0.17 * size, 0.135 * size))
    blend(image, edge(heart, 0.1), _TISSUE + 0.04)
    blend(image, 0.5 * edge(np.abs(x - 0.5) / 0.045, 0.2), 0.8)  # spine
    blend(image, 0.7 * edge(ellipsoid(axes, (0.9, 0.68), (0.05, 0.09)), 0.2), 0.15)  # stomach
    return np.asarray(lungs * (1 - edge(heart, 0.1)))


def _ribs(image: np.ndarray, axes: tuple[np.ndarray, np.ndarray], lungs: np.ndarray) -> None:
    """Lay ribs and clavicles over both lungs, in place."""
    y, x = axes
    away = np.abs(x - 0.5)
    wave = np.sin((y - 0.9 * away + 1.6 * away**2) * 2 * np.pi / 0.085)
    blend(image, 0.28 * np.clip(wave * 3 - 1.2, 0, 1) * lungs, 0.8)
    for sign in (-1, 1):
        path = curve(
            ((0.19, 0.5 + sign * 0.05), (0.15, 0.5 + sign * 0.2), (0.2, 0.5 + sign * 0.36))
        )
        for start, end in zip(path[:-1:4], path[4::4], strict=False):
            middle = (start + end) / 2
            blend(image, 0.35 * edge(ellipsoid(axes, tuple(middle), (0.016, 0.04)), 0.3), 0.85)


def _shadows(
    image: np.ndarray,
    axes: tuple[np.ndarray, np.ndarray],
    lungs: np.ndarray,
    num_opacities: int,
    rng: np.random.Generator,
) -> tuple[tuple[int, int, int, int], ...]:
    """Lay opacities and harmless shadows in the lungs, in place; return the opacities' boxes."""
    order = rng.permutation(len(_SLOTS))[:_NUM_SHADOWS]
    boxes = []
    for rank, slot in enumerate(order):
        place = np.array(_SLOTS[slot]) + rng.uniform(-0.015, 0.015, 2)
        radii = np.array([0.088, 0.075]) * rng.uniform(0.9, 1.15, 2)
        fuzzy = rank < num_opacities
        alpha = _opacity(axes, place, radii, rng) if fuzzy else _nodule(axes, place, radii)
        blend(image, alpha * (0.35 + 0.65 * lungs) if fuzzy else alpha, _LESION)
        if fuzzy:
            boxes.append(bounding_box(alpha > _VISIBLE))
    return tuple(boxes)


def _opacity(
    axes: tuple[np.ndarray, np.ndarray],
    place: np.ndarray,
    radii: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Return a cloud: no border, patchy inside."""
    shape = (axes[0].size, axes[1].size)
    radius = ellipsoid(axes, tuple(place), tuple(radii * 1.5))
    scale = [float(r) * 0.3 * n for r, n in zip(radii, shape, strict=True)]
    patchy = 1 + 0.35 * smooth_noise(rng, shape, scale)
    return np.asarray(np.clip(np.exp(-2.2 * radius**2.5) * patchy, 0, 1))


def _nodule(
    axes: tuple[np.ndarray, np.ndarray], place: np.ndarray, radii: np.ndarray
) -> np.ndarray:
    """Return a sharp, even shadow: a granuloma, a mass long known, a nipple."""
    return 0.8 * edge(ellipsoid(axes, tuple(place), tuple(radii * 0.95)), 0.08)
