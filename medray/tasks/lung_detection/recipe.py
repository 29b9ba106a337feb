"""Tumour boxes on single slices of chest CT or fused PET/CT.

Data      TCIA Lung-PET-CT-Dx, VOC boxes matched by SOP Instance UID; also YOLO folders, datalist
Input     one slice, 512 x 512: HU int16 (1, H, W), or uint8 (3, H, W) for colour and `windows`; the
          network sees HU through three windows, or colours, as 0..1, in training and serving at
          one size
Model     YOLOv5s, one class; published v6 and v7 weights fit it
Loss      CIoU, objectness; mosaic, scale, shift, flip, jitter of values or colours
Expected  P 0.826, R 0.800, mAP50 0.824, mAP50-95 0.356 (author's validation set, also used for
          selection; not reproduced);
          100 small phantoms, --tiny, seed 0: AP50 0.903 of the slices of 15 unseen patients
          (docs/results.md)
Command   medray prepare lung_detection --data DIR --out URI
          medray train lung_detection --data URI --out URI

`compat=original` prepares and learns as the original did; what differs from the default:
- values are stretched between the smallest and largest of each slice, in place of HU;
- no background slices, three slices a patient at most (drawn by hash; the original drew unseeded,
  with replacement), grey and colour slices together where `stream=both` is set;
- the loss is multiplied by the images of a step, which the published rate is made for:
  `--set optimizer=sgd --set lr=0.01 --set weight_decay=5e-4 --set ema_decay=0.9999`.
The original's anchors were fitted to its data; here they are the published ones. Its rate fell in a
line, here by a cosine, with one warm-up for all weights. It chose by 0.1 mAP50 + 0.9 mAP50-95.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np

from medray import yolo_detector as yolo
from medray.boxes import place_boxes
from medray.datasets import datalist, lung_pet_ct_dx, yolo_folder
from medray.datasets.layouts import read_layout
from medray.datasets.loading import plain_meta
from medray.datasets.record import Record, Rejection, Sample, SourceTree
from medray.errors import DataError
from medray.learning import (
    Batch,
    Learning,
    Objective,
)
from medray.nn.yolo_hparams import check_yolo
from medray.preprocess.display import quantise, stretch
from medray.preprocess.intensity import minmax
from medray.preprocess.planar import Placement, letterbox
from medray.recipe import Prepared, Recipe
from medray.tasks.lung_detection import measures
from medray.tasks.lung_detection.phantom import baseline, write_phantom
from medray.volume import Image2D

if TYPE_CHECKING:
    from torch import Tensor, nn

CLASS_NAMES = ("tumour",)
_AIR_HU, _MAX_HU = -1024, 3071
# Lung and mediastinum as radiologists set them, and the collection's own (HU + 1024) / 8.
_WINDOWS_HU = ((-1400.0, 0.0), (-135.0, 215.0), (-1024.0, 1016.0))
_GREY_OF_FRAMES = 114  # what detectors are padded with; black would be an edge in a colour slice
_ORIGINAL_SLICES = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Hparams:
    """Numbers that decide which slices are taken, how they are prepared and what is learnt.

    Attributes:
        stream: grey CT, colour fused slices, or both.
        pixels: CT as `hu` (int16), or as three `windows` (uint8); `stream=both` takes windows.
        size: side of the frame in pixels.
        background_per_series: most slices without a box from each safely annotated series.
        background_margin_mm: their distance from every annotated slice.
        compat: `original` for what the original did.
        depth: multiplies the network's repeats; 0.33 for the published n and s, 0.67 for m.
        width: multiplies its channels; 0.25 for n, 0.5 for s, 0.75 for m.
        box_gain: weight of the boxes' overlap in the loss.
        objectness_gain: weight of the objectness, at 640 pixels.
        mosaic: chance of a frame of four.
        scale: sizes vary by up to this share.
        translate: frames move by up to this share of their side.
        flip: chance of a flip left to right.
        gain: contrast of grey slices varies by up to this share.
        shift_hu: HU move by up to this.
        hsv: hue, saturation and value of colour slices vary by up to these shares.
        optimizer: `adamw`, or the original's `sgd` with momentum.
        lr: highest learning rate; falls by a cosine to a hundredth.
        warmup_steps: optimiser steps until it is reached.
        weight_decay: of kernels.
        least_score: boxes below it are not even judged.
        nms_iou: of two boxes that overlap by more the worse one goes.
        most_boxes: judged in a slice.
        epochs: passes over the training split.
        batch_size: slices a worker takes at one step.
        seed: initial weights, order and augmentation.
    """

    stream: Literal["ct", "fused", "both"] = "ct"
    pixels: Literal["hu", "windows"] = "hu"
    size: int = 512
    background_per_series: int = 3
    background_margin_mm: float = 10.0
    compat: Literal["none", "original"] = "none"
    depth: float = 0.33
    width: float = 0.5
    box_gain: float = 0.05
    objectness_gain: float = 1.0
    mosaic: float = 1.0
    scale: float = 0.5
    translate: float = 0.1
    flip: float = 0.5
    gain: float = 0.1
    shift_hu: float = 20.0
    hsv: tuple[float, ...] = (0.015, 0.7, 0.4)
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float = 2e-3
    warmup_steps: int = 100
    weight_decay: float = 0.01
    least_score: float = 0.001
    nms_iou: float = 0.6
    most_boxes: int = 100
    epochs: int = 100
    batch_size: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        check_yolo(self)
        if len(self.hsv) != 3 or not all(0 <= share <= 1 for share in self.hsv):
            raise ValueError(f"hsv must be three shares in 0..1, got {self.hsv}")
        if not 0 <= self.gain < 1 or self.shift_hu < 0:
            raise ValueError("gain must lie in 0..1 (below 1), shift_hu be >= 0")
        if self.background_per_series < 0 or self.background_margin_mm < 0:
            raise ValueError("background_per_series and background_margin_mm must be >= 0")


def recipe() -> Recipe[Hparams]:
    """Return the full-size recipe."""
    return Recipe(
        name="lung_detection",
        kind="box2d",
        transform_version=1,
        hparams=Hparams(),
        tiny_hparams=tiny_hparams(),
        prepare_fields=("stream", "pixels", "size", "compat"),
        records=records,
        prepare=prepare,
        class_names=CLASS_NAMES,
        lesion_boxes=True,
        phantom=write_phantom,
        phantom_baseline=baseline,
        prepare_peak_factor=16.0,
        learning=Learning(
            model=model,
            collate=yolo.collate,
            augment=augment,
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
        size=160,
        width=0.125,
        # the published gain shrinks with the square of the frame, to 1/16 here: too little to
        # tell a tumour from a blob, though enough to box both
        objectness_gain=13.0,
        mosaic=0.25,
        scale=0.1,
        lr=4e-3,
        warmup_steps=50,
        epochs=12,
        batch_size=8,
    )


def records(tree: SourceTree, hp: Hparams) -> Iterator[Record | Rejection]:
    """Offer one record per annotated slice, and background slices."""
    original = hp.compat == "original"
    slices = partial(
        lung_pet_ct_dx.slice_records,
        stream=hp.stream,
        background_per_series=0 if original else hp.background_per_series,
        margin_mm=hp.background_margin_mm,
    )
    wanted = datalist.Wanted(image="image", label="boxes", class_names=CLASS_NAMES)
    found = read_layout(
        tree,
        {
            lung_pet_ct_dx.NAME: slices,
            yolo_folder.NAME: partial(yolo_folder.records, class_names=CLASS_NAMES),
            datalist.NAME: partial(datalist.records, wanted=wanted),
        },
    )
    return _few_slices(found) if original else found


def _few_slices(found: Iterator[Record | Rejection]) -> Iterator[Record | Rejection]:
    """Keep three slices a patient, those whose names hash lowest."""
    by_patient: dict[str, list[Record]] = defaultdict(list)
    for item in found:
        if isinstance(item, Rejection):
            yield item
        else:
            by_patient[item.patient_id].append(item)
    for _, items in sorted(by_patient.items()):
        items.sort(key=lambda item: hashlib.sha256(item.name.encode()).hexdigest())
        yield from items[:_ORIGINAL_SLICES]


def prepare(sample: Sample, hp: Hparams) -> Prepared:
    """Turn one slice and its boxes into one example."""
    image = sample.image
    if not isinstance(image, Image2D):
        raise DataError("wrong_modality", "the task takes single slices")
    pixels, placement = _pixels(image, hp)
    arrays = {"image": pixels}
    if sample.boxes_xyxy_px is not None:
        boxes = place_boxes(
            sample.boxes_xyxy_px, scale_yx=placement.scale_yx, offset_yx_px=placement.offset_yx_px
        )
        arrays["boxes"] = boxes.astype(np.float32)
        labels = (
            sample.box_labels if sample.box_labels is not None else np.zeros(len(arrays["boxes"]))
        )
        arrays["box_labels"] = labels.astype(np.int64)
    spacing = image.spacing_yx_mm or ()
    return Prepared(
        arrays=arrays,
        spacing_mm=tuple(
            mm / scale for mm, scale in zip(spacing, placement.scale_yx, strict=False)
        ),
        meta={
            **plain_meta(sample.meta),
            "scale_yx": list(placement.scale_yx),
            "offset_yx_px": list(placement.offset_yx_px),
            "original_shape": list(image.array.shape[:2]),
        },
    )


def _is_ct(image: Image2D) -> bool:
    return image.array.ndim == 2 and image.meta.get("modality") == "CT"


def _pixels(image: Image2D, hp: Hparams) -> tuple[np.ndarray, Placement]:
    """Return (channel, height, width) in the frame, and where the image went."""
    frame = (hp.size, hp.size)
    if _is_ct(image) and hp.compat == "none":
        drawn, placement = letterbox(np.clip(image.array, _AIR_HU, _MAX_HU), frame, fill=_AIR_HU)
        if hp.stream == "ct" and hp.pixels == "hu":
            return np.rint(drawn).astype(np.int16)[None], placement
        shown = [stretch(drawn, low=low, high=high) for low, high in _WINDOWS_HU]
        return quantise(np.stack(shown), np.uint8), placement
    if is_grey(hp):
        raise DataError(
            "wrong_modality", "the network takes CT in HU; 8 bit and colour need pixels=windows"
        )
    if hp.compat == "original":
        array = quantise(minmax(image.array), np.uint8)
    elif image.array.dtype == np.uint8:
        array = image.array
    else:
        raise DataError("unsupported_pixels", "an image that is no CT must have 8 bit")
    drawn, placement = letterbox(_three(array), frame, fill=_GREY_OF_FRAMES)
    return np.ascontiguousarray(np.rint(drawn).astype(np.uint8).transpose(2, 0, 1)), placement


def _three(array: np.ndarray) -> np.ndarray:
    return array[..., :3] if array.ndim == 3 else np.repeat(array[..., None], 3, axis=-1)


def is_grey(hp: Hparams) -> bool:
    """Tell whether the network sees HU, in place of three channels of bytes."""
    return hp.stream == "ct" and hp.pixels == "hu" and hp.compat == "none"


def augment(batch: Batch, seeds: Sequence[int], hp: Hparams) -> Batch:
    """Put frames together, scale, shift and flip them with their boxes; jitter values, colours."""
    from medray.nn.mosaic import MosaicAugmentation
    from medray.nn.yolo_system import augmented

    windows = hp.stream == "ct" and hp.compat == "none"
    fill = _GREY_OF_FRAMES if not windows else float(_AIR_HU) if is_grey(hp) else 0.0
    hue, saturation, value = hp.hsv if not windows else (0.0, 0.0, 0.0)
    how = MosaicAugmentation(
        mosaic=hp.mosaic,
        scale=hp.scale,
        translate=hp.translate,
        flip=hp.flip,
        gain=hp.gain if windows else 0.0,
        shift=hp.shift_hu if is_grey(hp) else 0.0,
        hsv=(hue, saturation, value),
        fill=fill,
    )
    return augmented(batch, seeds, how)


def inputs(batch: Batch, hp: Hparams) -> "Tensor":
    """Return (B, 3, H, W) in [0, 1]: HU through the windows of lung, mediastinum, collection."""
    import torch

    from medray.nn.window import window

    if not is_grey(hp):
        return batch["image"].float() / 255
    shown = [
        window(batch["image"], low=low, high=high, out_low=0.0, out_high=1.0)
        for low, high in _WINDOWS_HU
    ]
    return torch.cat(shown, dim=1)


def model(hp: Hparams) -> "nn.Module":
    """Return a fresh YOLOv5."""
    from medray.nn.yolo_system import network

    return network(hp, in_channels=3)
