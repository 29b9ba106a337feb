"""Two-dimensional images: resize, letterbox, pad, flip. (height, width) or (height, width, 3)."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Real

from medray.preprocess.axes import (
    AxisMap,
    Order,
    linear_map,
    nearest_map,
    pick_plane,
    resize_positions,
    sample_plane,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where an image went on a canvas: new = old * scale + offset, in edge coordinates (xyxy px).

    Attributes:
        scale_yx: size after over size before, per axis (whole pixels make them differ slightly).
        offset_yx_px: canvas pixels above and left of the image.
    """

    scale_yx: tuple[float, float]
    offset_yx_px: tuple[int, int]


def resize_image(
    image: Real[np.ndarray, "height width *channels"],
    shape_yx: tuple[int, int],
    *,
    order: Order = "linear",
    antialias: bool = True,
) -> Float32[np.ndarray, "new_height new_width *channels"]:
    """Resize an image, edges aligned; `linear` gives float32, `nearest` keeps dtype and values.

    Shrinking by more than 2 along an axis smooths along it (see `medray.preprocess.axes`).
    """
    if min(shape_yx) < 1:
        raise ValueError(f"shape_yx must be positive, got {shape_yx}")
    rows, columns = (
        _map(image.shape[axis], shape_yx[axis], order=order, antialias=antialias) for axis in (0, 1)
    )
    sample = pick_plane if order == "nearest" else sample_plane
    if image.ndim == 2:
        return np.ascontiguousarray(sample(image, rows=rows, columns=columns))
    channels = [
        sample(image[..., channel], rows=rows, columns=columns) for channel in range(image.shape[2])
    ]
    return np.stack(channels, axis=-1)


def letterbox(
    image: Real[np.ndarray, "height width *channels"],
    shape_yx: tuple[int, int],
    *,
    fill: float = 0.0,
    enlarge: bool = True,
) -> tuple[Float32[np.ndarray, "new_height new_width *channels"], Placement]:
    """Fit an image on a canvas, aspect kept, centred (an odd pixel goes below or to the right).

    Args:
        image: grey or colour.
        shape_yx: size of the canvas.
        fill: value of the canvas.
        enlarge: False leaves small images at their size.
    """
    height, width = image.shape[:2]
    ratio = min(shape_yx[0] / height, shape_yx[1] / width)
    ratio = ratio if enlarge else min(ratio, 1.0)
    size = tuple(
        min(max(1, round(have * ratio)), want)
        for have, want in zip((height, width), shape_yx, strict=True)
    )
    resized = resize_image(image, (size[0], size[1]))
    top, left = (shape_yx[0] - size[0]) // 2, (shape_yx[1] - size[1]) // 2
    canvas = np.full((*shape_yx, *image.shape[2:]), fill, dtype=np.float32)
    canvas[top : top + size[0], left : left + size[1]] = resized
    scale = (size[0] / height, size[1] / width)
    return canvas, Placement(scale_yx=scale, offset_yx_px=(top, left))


def pad_sides(
    image: Real[np.ndarray, "height width *channels"],
    *,
    top: int = 0,
    bottom: int = 0,
    left: int = 0,
    right: int = 0,
    fill: float = 0.0,
) -> Real[np.ndarray, "new_height new_width *channels"]:
    """Return the image with rows and columns of `fill` added at its sides; the dtype stays."""
    widths = [(top, bottom), (left, right), *[(0, 0)] * (image.ndim - 2)]
    return np.pad(image, widths, constant_values=fill)


def flip_sides(
    image: Real[np.ndarray, "height width *channels"],
) -> Real[np.ndarray, "height width *channels"]:
    """Return the image mirrored left to right; boxes follow by `medray.boxes.flip_sides`."""
    return np.ascontiguousarray(image[:, ::-1])


def _map(num_in: int, num_out: int, *, order: Order, antialias: bool) -> AxisMap:
    positions = resize_positions(num_in, num_out)
    if order == "nearest":
        return nearest_map(positions, num_in=num_in)
    return linear_map(positions, num_in=num_in, shrink=num_in / num_out if antialias else 1.0)
