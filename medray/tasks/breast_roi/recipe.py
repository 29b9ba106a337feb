"""The box of the breast in a mammogram, first stage of the breast classifier.

Data      RSNA Screening Mammography (no boxes: labelled by threshold and shape); YOLO folders,
          datalist with boxes
Input     image (1, 640, 640) uint8 as its file wants it shown, aspect kept; 0..255 as 0..1
Model     YOLOv5s, one class, one channel; published v6 and v7 weights fit it (the stem is summed)
Loss      CIoU, objectness; mosaic, scale, shift, flip, jitter of values
Expected  none published; the labels of the original's detector are not public;
          40 tiny phantoms, --tiny, seed 0: AP50 0.995 of 6 unseen patients (docs/results.md)
Command   medray prepare breast_roi --data DIR --out URI
          medray train breast_roi --data URI --out URI

`compat=original` prepares and learns as the original did; what differs from the default:
- values are stretched between the smallest and largest, in place of the file's window;
- the image is stretched to 640 x 640, so that breasts change their shape;
- images are drawn with replacement, each as often as it has boxes: one without is never seen;
- the loss is multiplied by the images of a step, which the published rate is made for:
  `--set optimizer=sgd --set lr=0.01 --set weight_decay=5e-4 --set epochs=150 --set batch_size=32`.
The original started from published weights (`--weights`), with three equal channels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np

from medray import yolo_detector as yolo
from medray.boxes import place_boxes
from medray.datasets import datalist, rsna_breast, yolo_folder
from medray.datasets.layouts import read_layout
from medray.datasets.loading import plain_meta
from medray.datasets.record import Record, Rejection, Sample, SourceTree
from medray.errors import DataError
from medray.learning import (
    Batch,
    Case,
    Learning,
    Objective,
)
from medray.nn.yolo_hparams import check_yolo
from medray.preprocess.breast import breast_box
from medray.preprocess.display import grey, letterbox_shown, quantise
from medray.preprocess.intensity import minmax
from medray.preprocess.planar import Placement, resize_image
from medray.recipe import Prepared, Recipe
from medray.tasks.breast_roi import measures
from medray.tasks.breast_roi.phantom import baseline, write_phantom
from medray.volume import Image2D

if TYPE_CHECKING:
    from torch import Tensor, nn

CLASS_NAMES = ("breast",)


@dataclass(frozen=True, kw_only=True, slots=True)
class Hparams:
    """Numbers that decide the frame, and how it is learnt.

    Attributes:
        size: side of the frame in pixels.
        compat: `original` for what the original did.
        depth: multiplies the network's repeats; 0.33 for the published n and s, 0.67 for m.
        width: multiplies its channels; 0.25 for n, 0.5 for s, 0.75 for m.
        box_gain: weight of the boxes' overlap in the loss.
        objectness_gain: weight of the objectness, at 640 pixels.
        mosaic: chance of a frame of four.
        scale: sizes vary by up to this share.
        translate: frames move by up to this share of their side.
        flip: chance of a flip left to right.
        gain: contrast varies by up to this share.
        optimizer: `adamw`, or the original's `sgd` with momentum.
        lr: highest learning rate; falls by a cosine to a hundredth.
        warmup_steps: optimiser steps until it is reached.
        weight_decay: of kernels.
        least_score: boxes below it are not even judged.
        nms_iou: of two boxes that overlap by more the worse one goes.
        most_boxes: judged in an image.
        epochs: passes over the training split.
        batch_size: images a worker takes at one step.
        seed: initial weights, order and augmentation.
    """

    size: int = 640
    compat: Literal["none", "original"] = "none"
    depth: float = 0.33
    width: float = 0.5
    box_gain: float = 0.05
    objectness_gain: float = 1.0
    mosaic: float = 0.5
    scale: float = 0.5
    translate: float = 0.1
    flip: float = 0.5
    gain: float = 0.2
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float = 2e-3
    warmup_steps: int = 100
    weight_decay: float = 0.01
    least_score: float = 0.001
    nms_iou: float = 0.6
    most_boxes: int = 20
    epochs: int = 50
    batch_size: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        check_yolo(self)
        if not 0 <= self.gain < 1:
            raise ValueError(f"gain must lie in 0..1 (below 1), got {self.gain}")


def recipe() -> Recipe[Hparams]:
    """Return the full-size recipe."""
    return Recipe(
        name="breast_roi",
        kind="box2d",
        transform_version=1,
        hparams=Hparams(),
        tiny_hparams=tiny_hparams(),
        prepare_fields=("size", "compat"),
        records=records,
        prepare=prepare,
        class_names=CLASS_NAMES,
        lesion_in_each=True,
        phantom=write_phantom,
        phantom_baseline=baseline,
        prepare_peak_factor=32.0,
        learning=Learning(
            model=model,
            collate=yolo.collate,
            augment=augment,
            sampler=sampler,
            inputs=inputs,
            loss_sums=yolo.loss_sums,
            loss_value=yolo.loss_value,
            optimizer=yolo.optimizer,
            adopt=yolo.adopt,
            schedule=yolo.schedule,
            probabilities=yolo.probabilities,
            measure=yolo.measure,
            metrics=measures.metrics,
            choose=yolo.choose,
            baseline=measures.baseline,
            objective=Objective("map50_95", "max"),
            decode=yolo.decode,
            search_space=yolo.SEARCH_SPACE,
            sweep=yolo.SWEEP,
        ),
    )


def tiny_hparams() -> Hparams:
    """Return the small preset: two CPU cores, two minutes."""
    return Hparams(
        size=128,
        width=0.125,
        mosaic=0.25,
        scale=0.25,
        lr=3e-3,
        warmup_steps=50,
        epochs=24,
        batch_size=8,
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


def sampler(cases: Sequence[Case], epoch: int, hp: Hparams) -> Sequence[int]:
    """Return every case once; the original draws by the number of boxes, with replacement."""
    weights = np.array([case["num_boxes"] for case in cases], dtype=np.float64)
    if hp.compat == "none" or not weights.any():
        return range(len(cases))
    rng = np.random.default_rng([hp.seed, epoch])
    drawn: list[int] = rng.choice(len(cases), size=len(cases), p=weights / weights.sum()).tolist()
    return drawn


def augment(batch: Batch, seeds: Sequence[int], hp: Hparams) -> Batch:
    """Put frames together, scale, shift and flip them with their boxes; jitter the contrast."""
    from medray.nn.mosaic import MosaicAugmentation
    from medray.nn.yolo_system import augmented

    how = MosaicAugmentation(
        mosaic=hp.mosaic,
        scale=hp.scale,
        translate=hp.translate,
        flip=hp.flip,
        gain=hp.gain,
        fill=0.0,
    )
    return augmented(batch, seeds, how)


def inputs(batch: Batch, hp: Hparams) -> "Tensor":
    """Return (B, 1, H, W) in [0, 1]."""
    del hp
    return batch["image"].float() / 255


def model(hp: Hparams) -> "nn.Module":
    """Return a fresh YOLOv5."""
    from medray.nn.yolo_system import network

    return network(hp, in_channels=1)
