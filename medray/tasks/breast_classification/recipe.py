"""Breast cancer on screening mammograms, one score a image, aggregated to the breast.

Data      RSNA Screening Mammography, label per breast; also datalist
Input     image (1, 1024, 512) uint16: the breast alone, chest wall left, background black
Expected  pF1 0.35 on the public leaderboard (author's report, not reproduced)
Command   medray prepare breast_classification --data DIR --out URI

`compat=original` prepares as the original did without its unpublished detector; what differs:
- values are stretched between smallest and largest to 8 bit, in place of a percentile window of the
  breast in 16 bit; a SIGMOID function of the file is ignored;
- no crop to the breast and no canonical side; padding goes to the side away from the breast.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from medray.datasets import datalist, rsna_breast
from medray.datasets.layouts import read_layout
from medray.datasets.loading import plain_meta
from medray.datasets.record import Record, Rejection, Sample, SourceTree
from medray.errors import DataError
from medray.preprocess.breast import breast_mask, breast_side, remove_background
from medray.preprocess.display import grey, percentile_stretch, quantise, sigmoid_applied
from medray.preprocess.intensity import minmax
from medray.preprocess.planar import flip_sides, pad_sides, resize_image
from medray.recipe import Prepared, Recipe
from medray.tasks.breast_classification.phantom import baseline, write_phantom
from medray.volume import Image2D

CLASS_NAMES = ("no_cancer", "cancer")


@dataclass(frozen=True, kw_only=True, slots=True)
class Hparams:
    """Numbers that decide the frame.

    Attributes:
        height, width: of the frame in pixels.
        compat: `original` for what the original did.
    """

    height: int = 1024
    width: int = 512
    compat: Literal["none", "original"] = "none"

    def __post_init__(self) -> None:
        if min(self.height, self.width) < 32 or self.height % 32 or self.width % 32:
            raise ValueError(
                f"height and width must be multiples of 32, got {self.height} and {self.width}"
            )


def recipe() -> Recipe[Hparams]:
    """Return the full-size recipe."""
    return Recipe(
        name="breast_classification",
        kind="score2d",
        transform_version=1,
        hparams=Hparams(),
        tiny_hparams=Hparams(height=128, width=64),
        prepare_fields=("height", "width", "compat"),
        records=records,
        prepare=prepare,
        class_names=CLASS_NAMES,
        phantom=write_phantom,
        phantom_baseline=baseline,
        prepare_peak_factor=32.0,
    )


def records(tree: SourceTree, hp: Hparams) -> Iterator[Record | Rejection]:
    """Offer one record per labelled mammogram."""
    del hp
    wanted = datalist.Wanted(image="image", label="class", class_names=CLASS_NAMES)
    return read_layout(
        tree,
        {
            rsna_breast.NAME: rsna_breast.records,
            datalist.NAME: partial(datalist.records, wanted=wanted),
        },
    )


def prepare(sample: Sample, hp: Hparams) -> Prepared:
    """Turn one mammogram into one example."""
    image = sample.image
    if not isinstance(image, Image2D):
        raise DataError("wrong_modality", "the task takes mammograms")
    pixels, facts = _original(image, hp) if hp.compat == "original" else _breast(image, hp)
    return Prepared(
        arrays={"image": pixels[None]},
        label=sample.label,
        meta={
            **plain_meta(sample.meta),
            **facts,
            "original_shape": list(image.array.shape[:2]),
        },
    )


def _breast(image: Image2D, hp: Hparams) -> tuple[np.ndarray, dict[str, object]]:
    """Return the breast alone, chest wall left, in 16 bit, and how to find it again."""
    values = grey(image)
    mask = breast_mask(values)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    crop = (slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
    part, mask = values[crop], mask[crop]
    # Told from the shape: glands may be denser far from the chest wall.
    flipped = breast_side(mask.astype(np.uint8)) == "right"
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
        "crop_xyxy_px": [crop[1].start, crop[0].start, crop[1].stop, crop[0].stop],
        "flipped": flipped,
        "scale_yx": [size[0] / part.shape[0], size[1] / part.shape[1]],
        "offset_yx_px": [upper, 0],
    }
    return quantise(canvas, np.uint16), facts


def _original(image: Image2D, hp: Hparams) -> tuple[np.ndarray, dict[str, object]]:
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


def _fitting(shape: tuple[int, ...], hp: Hparams) -> tuple[int, int]:
    """Return the size in the frame with the aspect kept (truncated, as published)."""
    ratio = max(shape[0] / hp.height, shape[1] / hp.width)
    return max(1, int(shape[0] / ratio)), max(1, int(shape[1] / ratio))
