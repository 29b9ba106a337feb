"""The box of the breast in a mammogram, first stage of the breast classifier.

Data      RSNA Screening Mammography (no boxes: labelled by threshold and shape); YOLO folders,
          datalist with boxes
Input     image (1, 640, 640) uint8 as its file wants it shown, aspect kept
Expected  none published; the labels of the original's detector are not public
Command   medray prepare breast_roi --data DIR --out URI

`compat=original` prepares as the original did; what differs from the default:
- values are stretched between the smallest and largest, in place of the file's window;
- the image is stretched to 640 x 640, so that breasts change their shape.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from medray.boxes import place_boxes
from medray.datasets import datalist, rsna_breast, yolo_folder
from medray.datasets.layouts import read_layout
from medray.datasets.loading import plain_meta
from medray.datasets.record import Record, Rejection, Sample, SourceTree
from medray.errors import DataError
from medray.preprocess.breast import breast_box
from medray.preprocess.display import grey, letterbox_shown, quantise
from medray.preprocess.intensity import minmax
from medray.preprocess.planar import Placement, resize_image
from medray.recipe import Prepared, Recipe
from medray.tasks.breast_roi.phantom import baseline, write_phantom
from medray.volume import Image2D

CLASS_NAMES = ("breast",)


@dataclass(frozen=True, kw_only=True, slots=True)
class Hparams:
    """Numbers that decide the frame.

    Attributes:
        size: side of the frame in pixels.
        compat: `original` for what the original did.
    """

    size: int = 640
    compat: Literal["none", "original"] = "none"

    def __post_init__(self) -> None:
        if self.size < 32 or self.size % 32:
            raise ValueError(f"size must be a positive multiple of 32, got {self.size}")


def recipe() -> Recipe[Hparams]:
    """Return the full-size recipe."""
    return Recipe(
        name="breast_roi",
        kind="box2d",
        transform_version=1,
        hparams=Hparams(),
        tiny_hparams=Hparams(size=128),
        prepare_fields=("size", "compat"),
        records=records,
        prepare=prepare,
        class_names=CLASS_NAMES,
        lesion_in_each=True,
        phantom=write_phantom,
        phantom_baseline=baseline,
        prepare_peak_factor=32.0,
    )


def records(tree: SourceTree, hp: Hparams) -> Iterator[Record | Rejection]:
    """Offer one record per mammogram."""
    del hp
    wanted = datalist.Wanted(image="image", label="boxes", class_names=CLASS_NAMES)
    return read_layout(
        tree,
        {
            rsna_breast.NAME: partial(rsna_breast.records, with_label=False),
            yolo_folder.NAME: partial(yolo_folder.records, class_names=CLASS_NAMES),
            datalist.NAME: partial(datalist.records, wanted=wanted),
        },
    )


def prepare(sample: Sample, hp: Hparams) -> Prepared:
    """Turn one mammogram into one example; a missing box is found by threshold and shape."""
    image = sample.image
    if not isinstance(image, Image2D):
        raise DataError("wrong_modality", "the task takes mammograms")
    drawn, placement = _drawn(image, hp)
    boxes = sample.boxes_xyxy_px
    if boxes is None:
        boxes = breast_box(grey(image))
    placed = place_boxes(
        np.asarray(boxes, dtype=np.float64).reshape(-1, 4),
        scale_yx=placement.scale_yx,
        offset_yx_px=placement.offset_yx_px,
    )
    return Prepared(
        arrays={
            "image": quantise(drawn, np.uint8)[None],
            "boxes": placed.astype(np.float32),
            "box_labels": np.zeros(len(placed), dtype=np.int64),
        },
        meta={
            **plain_meta(sample.meta),
            "boxes_found": sample.boxes_xyxy_px is None,
            "scale_yx": list(placement.scale_yx),
            "offset_yx_px": list(placement.offset_yx_px),
            "original_shape": list(image.array.shape[:2]),
        },
    )


def _drawn(image: Image2D, hp: Hparams) -> tuple[np.ndarray, Placement]:
    """Return (height, width) in [0, 1] and where the image went."""
    frame = (hp.size, hp.size)
    if hp.compat == "none":
        return letterbox_shown(image, frame)
    shown = minmax(grey(image))
    scale = (hp.size / shown.shape[0], hp.size / shown.shape[1])
    return resize_image(shown, frame), Placement(scale_yx=scale, offset_yx_px=(0, 0))
