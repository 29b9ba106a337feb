"""A mammogram on its frame: the breast alone, or as the original did it."""

from typing import TYPE_CHECKING

import numpy as np

from medray.datasets.record import Sample
from medray.preprocess.breast import breast_mask, breast_side, remove_background
from medray.preprocess.display import grey, percentile_stretch, quantise, sigmoid_applied
from medray.preprocess.intensity import minmax
from medray.preprocess.planar import flip_sides, pad_sides, resize_image
from medray.volume import Image2D

if TYPE_CHECKING:
    from medray.tasks.breast_classification.recipe import Hparams


def roi_of(sample: Sample, shape: tuple[int, ...]) -> tuple[slice, slice]:
    """Return rows and columns of the first box; all where there is none or it is empty."""
    height, width = shape[:2]
    boxes = np.asarray(sample.boxes_xyxy_px if sample.boxes_xyxy_px is not None else [])
    if not boxes.size:
        return slice(0, height), slice(0, width)
    x1, y1, x2, y2 = np.clip(boxes.reshape(-1, 4)[0], 0, [width, height, width, height]).tolist()
    if x2 - x1 < 1 or y2 - y1 < 1:
        return slice(0, height), slice(0, width)
    return slice(int(y1), int(np.ceil(y2))), slice(int(x1), int(np.ceil(x2)))


def breast_alone(
    image: Image2D, hp: "Hparams", roi: tuple[slice, slice]
) -> tuple[np.ndarray, dict[str, object]]:
    """Return the breast alone, chest wall left, in 16 bit, and how to find it again.

    Under `foreground=whole` everything stays, and as it lies.
    """
    values = grey(image)[roi]
    whole = hp.foreground == "whole"
    mask = np.ones(values.shape, dtype=bool) if whole else breast_mask(values)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    crop = (slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
    part, mask = values[crop], mask[crop]
    # Told from the shape: glands may be denser far from the chest wall.
    flipped = not whole and breast_side(mask.astype(np.uint8)) == "right"
    if flipped:
        part, mask = flip_sides(part), flip_sides(mask)
    size = _fitting(part.shape, hp)
    shown = sigmoid_applied(resize_image(part, size), image)
    mask = resize_image(mask, size, order="nearest")
    shown = np.where(mask, percentile_stretch(shown, shown[mask]), np.float32(0))
    upper = (hp.height - size[0] + 1) // 2
    lower, spare = hp.height - size[0] - upper, hp.width - size[1]
    canvas = pad_sides(shown, top=upper, bottom=lower, right=spare)
    facts: dict[str, object] = {
        "crop_xyxy_px": [
            crop[1].start + roi[1].start,
            crop[0].start + roi[0].start,
            crop[1].stop + roi[1].start,
            crop[0].stop + roi[0].start,
        ],
        "flipped": flipped,
        "scale_yx": [size[0] / part.shape[0], size[1] / part.shape[1]],
        "offset_yx_px": [upper, 0],
    }
    return quantise(canvas, np.uint16), facts


def as_original(image: Image2D, hp: "Hparams") -> tuple[np.ndarray, dict[str, object]]:
    """Return the whole image in 8 bit without its background, and how to find it again."""
    shown = minmax(grey(image))
    size = _fitting(shown.shape, hp)
    upper = (hp.height - size[0] + 1) // 2
    spare = hp.width - size[1]
    is_left = breast_side(shown) == "left"
    canvas = pad_sides(
        resize_image(shown, size),
        top=upper,
        bottom=hp.height - size[0] - upper,
        left=0 if is_left else spare,
        right=spare if is_left else 0,
    )
    facts: dict[str, object] = {
        "flipped": False,
        "scale_yx": [size[0] / shown.shape[0], size[1] / shown.shape[1]],
        "offset_yx_px": [upper, 0 if is_left else spare],
    }
    return quantise(remove_background(canvas), np.uint8), facts


def _fitting(shape: tuple[int, ...], hp: "Hparams") -> tuple[int, int]:
    """Return the size in the frame with the aspect kept (truncated, as published)."""
    ratio = max(shape[0] / hp.height, shape[1] / hp.width)
    return max(1, int(shape[0] / ratio)), max(1, int(shape[1] / ratio))
