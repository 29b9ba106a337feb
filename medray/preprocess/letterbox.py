"""Putting an image of any size into a fixed frame with its aspect kept, and boxes with it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medray.preprocess.axes import linear_map, resize_positions, sample_plane


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """Where an image went: `new = old * scale + offset`, pixel edges, y then x.

    Attributes:
        shape_yx: of the frame.
        size_yx: of the image inside it.
        scale_yx: frame pixels per image pixel.
        offset_yx_px: first row and column of the image in the frame.
    """

    shape_yx: tuple[int, int]
    size_yx: tuple[int, int]
    scale_yx: tuple[float, float]
    offset_yx_px: tuple[int, int]

    def boxes(self, boxes_xyxy_px: np.ndarray) -> np.ndarray:
        """Return boxes of the image as (n, 4) float32 boxes of the frame."""
        (scale_y, scale_x), (top, left) = self.scale_yx, self.offset_yx_px
        scaled = np.asarray(boxes_xyxy_px, dtype=np.float64).reshape(-1, 4)
        scaled = scaled * [scale_x, scale_y, scale_x, scale_y] + [left, top, left, top]
        return scaled.astype(np.float32)

    def as_meta(self) -> dict[str, list[float]]:
        """Return what postprocessing needs to map boxes back, as plain values."""
        return {"scale_yx": list(self.scale_yx), "offset_yx_px": list(self.offset_yx_px)}


def letterbox_frame(
    shape_yx: Sequence[int], frame_yx: tuple[int, int], *, anchor_x: float = 0.5
) -> Frame:
    """Plan the largest placement of an image in a frame that keeps its aspect.

    Args:
        shape_yx: of the image.
        frame_yx: of the frame.
        anchor_x: 0 puts spare columns right, 1 left, 0.5 on both sides; rows are always centred.
    """
    height, width = int(shape_yx[0]), int(shape_yx[1])
    ratio = min(frame_yx[0] / height, frame_yx[1] / width)
    new_height = min(frame_yx[0], max(1, round(height * ratio)))
    new_width = min(frame_yx[1], max(1, round(width * ratio)))
    spare_y, spare_x = frame_yx[0] - new_height, frame_yx[1] - new_width
    return Frame(
        shape_yx=frame_yx,
        size_yx=(new_height, new_width),
        scale_yx=(new_height / height, new_width / width),
        offset_yx_px=(spare_y // 2, round(spare_x * anchor_x)),
    )


def draw_in_frame(image: np.ndarray, frame: Frame, *, fill: float) -> np.ndarray:
    """Return (channel, height, width) float32 with the image resized into its place.

    Args:
        image: (height, width) or (height, width, channel).
        frame: from `letterbox_frame`.
        fill: value of what the image leaves free.
    """
    planes = image[..., None] if image.ndim == 2 else image
    canvas = np.full((planes.shape[2], *frame.shape_yx), fill, dtype=np.float32)
    (top, left), (height, width) = frame.offset_yx_px, frame.size_yx
    for channel in range(planes.shape[2]):
        resized = resize_plane(planes[..., channel], frame.size_yx)
        canvas[channel, top : top + height, left : left + width] = resized
    return canvas


def resize_plane(plane: np.ndarray, size_yx: tuple[int, int]) -> np.ndarray:
    """Return a plane at another size, linear, smoothed where it shrinks by more than 2."""
    maps = [
        linear_map(resize_positions(old, new), num_in=old, shrink=old / new)
        for old, new in zip(plane.shape, size_yx, strict=True)
    ]
    return sample_plane(plane, rows=maps[0], columns=maps[1])
