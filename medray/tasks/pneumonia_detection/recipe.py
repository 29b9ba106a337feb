"""Boxes round lung opacities on chest radiographs.

Data      RSNA Pneumonia Detection Challenge, stage 2; also YOLO folders, datalist
Input     image (1, 1024, 1024) uint8 as its file wants it shown; healthy images have no box
Expected  none recorded by the author; top ensembles of the challenge reach about 0.25
Command   medray prepare pneumonia_detection --data DIR --out URI

`compat=original` gives healthy images one box over the whole image in the class of pneumonia, as
the original did; `compat=whole_image` gives it a class of its own (`normal`). Both train on all
boxes of an image; the original saw only those in its sample of rows, and split by row, not image.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from medray.boxes import place_boxes
from medray.datasets import datalist, rsna_pneumonia, yolo_folder
from medray.datasets.layouts import read_layout
from medray.datasets.loading import plain_meta
from medray.datasets.record import Record, Rejection, Sample, SourceTree
from medray.errors import DataError
from medray.preprocess.display import letterbox_shown, quantise
from medray.recipe import Prepared, Recipe
from medray.tasks.pneumonia_detection.phantom import baseline, write_phantom
from medray.volume import Image2D

CLASS_NAMES = ("pneumonia",)
_NORMAL_CLASS = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Hparams:
    """Numbers that decide size and the treatment of healthy images.

    Attributes:
        size: side of the frame in pixels.
        compat: `original` or `whole_image`, see the top of this page.
    """

    size: int = 1024
    compat: Literal["none", "whole_image", "original"] = "none"

    def __post_init__(self) -> None:
        if self.size < 32 or self.size % 32:
            raise ValueError(f"size must be a positive multiple of 32, got {self.size}")


def recipe() -> Recipe[Hparams]:
    """Return the full-size recipe."""
    return Recipe(
        name="pneumonia_detection",
        kind="box2d",
        transform_version=1,
        hparams=Hparams(),
        tiny_hparams=Hparams(size=128),
        prepare_fields=("size", "compat"),
        records=records,
        prepare=prepare,
        class_names=CLASS_NAMES,
        lesion_boxes=True,
        phantom=write_phantom,
        phantom_baseline=baseline,
        prepare_peak_factor=32.0,
    )


def records(tree: SourceTree, hp: Hparams) -> Iterator[Record | Rejection]:
    """Offer one record per labelled radiograph."""
    del hp
    wanted = datalist.Wanted(image="image", label="boxes", class_names=CLASS_NAMES)
    return read_layout(
        tree,
        {
            rsna_pneumonia.NAME: rsna_pneumonia.records,
            yolo_folder.NAME: partial(yolo_folder.records, class_names=CLASS_NAMES),
            datalist.NAME: partial(datalist.records, wanted=wanted),
        },
    )


def prepare(sample: Sample, hp: Hparams) -> Prepared:
    """Turn one radiograph and its boxes into one example."""
    image = sample.image
    if not isinstance(image, Image2D):
        raise DataError("wrong_modality", "the task takes radiographs")
    shown, placement = letterbox_shown(image, (hp.size, hp.size))
    arrays = {"image": quantise(shown, np.uint8)[None]}
    if sample.boxes_xyxy_px is not None:
        boxes, labels = _boxes(sample, image, hp)
        placed = place_boxes(
            boxes, scale_yx=placement.scale_yx, offset_yx_px=placement.offset_yx_px
        )
        arrays["boxes"], arrays["box_labels"] = placed.astype(np.float32), labels
    spacing = image.spacing_yx_mm or ()
    return Prepared(
        arrays=arrays,
        spacing_mm=tuple(
            mm / scale for mm, scale in zip(spacing, placement.scale_yx, strict=False)
        ),
        label=sample.label,
        meta={
            **plain_meta(sample.meta),
            "scale_yx": list(placement.scale_yx),
            "offset_yx_px": list(placement.offset_yx_px),
            "original_shape": list(image.array.shape[:2]),
        },
    )


def _boxes(sample: Sample, image: Image2D, hp: Hparams) -> tuple[np.ndarray, np.ndarray]:
    """Return boxes in pixels of the original image and their classes."""
    boxes = np.asarray(sample.boxes_xyxy_px, dtype=np.float64).reshape(-1, 4)
    labels = np.zeros(len(boxes), dtype=np.int64)
    if len(boxes) or hp.compat == "none":
        return boxes, labels
    height, width = image.array.shape[:2]
    # The original wrote width and height 1023 on 1024 pixels.
    whole = np.array([[0, 0, width - 1, height - 1]], dtype=np.float64)
    label = _NORMAL_CLASS if hp.compat == "whole_image" else 0
    return whole, np.array([label], dtype=np.int64)
