"""Boxes round lung opacities on chest radiographs.

Data      RSNA Pneumonia Detection Challenge, stage 2; also YOLO folders, datalist
Input     image (1, 1024, 1024) uint8 as its file wants it shown; healthy images have no box
Model     Faster R-CNN, ResNet-50 with a feature pyramid, on 800 px; weights by path
Loss      the sum of its four: objectness and boxes of anchors, class and boxes of regions;
          with `gate=head` also the image's cross-entropy
Expected  none recorded by the author; top ensembles of the challenge reach about 0.25;
          360 tiny phantoms, --tiny, seed 0: AP50 0.900 of 54 unseen images (docs/results.md)
Command   medray prepare pneumonia_detection --data DIR --out URI
          medray train pneumonia_detection --data URI --out URI

An epoch visits as many healthy images as ill ones, drawn anew each time. Threshold and gate (the
least score of an image that may have boxes) are chosen on the validation split by the challenge's
measure.

`compat=original` gives healthy images one box over the whole image in the class of pneumonia, as
the original did; `compat=whole_image` gives it a class of its own (`normal`), and an answer without
opacities is that box. Both train on all boxes of an image; the original saw only those in its
sample of rows, and split by row, not image. Under `original` nothing is augmented and the last
layer alone is trained, which needs its COCO weights: `--set norm=frozen_batch`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np

from medray.boxes import pad_boxes, place_boxes
from medray.datasets import datalist, rsna_pneumonia, yolo_folder
from medray.datasets.layouts import read_layout
from medray.datasets.loading import plain_meta
from medray.datasets.record import Record, Rejection, Sample, SourceTree
from medray.errors import DataError
from medray.learning import Batch, Learning, LogUniform, Objective, Outputs, Schedule
from medray.preprocess.display import letterbox_shown, quantise
from medray.recipe import Prepared, Recipe
from medray.tasks.pneumonia_detection import measures
from medray.tasks.pneumonia_detection.phantom import baseline, write_phantom
from medray.volume import Image2D

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer


CLASS_NAMES = ("pneumonia",)


@dataclass(frozen=True, kw_only=True, slots=True)
class Hparams:
    """Numbers that decide size, the treatment of healthy images, and how boxes are learnt.

    Attributes:
        size: side of the frame in pixels.
        compat: `original` or `whole_image`, see the top of this page.
        backbone: `resnet50`, or `resnet18` for small frames.
        width: channels of the first stage of a `resnet18`.
        norm: `group` learns without trained weights, `frozen_batch` is for trained ones, `batch`
            depends on the batch.
        trainable_layers: of the backbone, from the last: 5 trains all, 3 leaves stem and first
            stage as they are.
        shown_px: side within the network; 0 is the frame's.
        anchor_px: side of the smallest anchors, there.
        channels: of the pyramid.
        hidden: width of the box head.
        proposals: regions kept in training.
        anchors_per_image, rois_per_image: anchors and regions judged by the losses.
        gate: what an image's score is: its `best_box`, or a `head` of its own.
        gate_weight: of that head's loss.
        per_class: images of each class an epoch visits; 0 is as many as the rarer one has. The
            original drew 400.
        flip: chance of a flip left to right.
        scale: sizes vary by up to this share.
        shift: images are moved by up to this share of the side.
        tone: brightness and contrast vary by up to this share.
        lr: learning rate.
        every: epochs after which the rate is divided by 10.
        warmup_steps: of the first epoch, from a thousandth of the rate; the original's 100 steps
            had 99.
        epochs: passes over the drawn images.
        batch_size: images a worker takes at one step.
        seed: initial weights, order, augmentation, and which anchors and regions are judged.
    """

    size: int = 1024
    compat: Literal["none", "whole_image", "original"] = "none"
    backbone: Literal["resnet50", "resnet18"] = "resnet50"
    width: int = 64
    norm: Literal["group", "frozen_batch", "batch"] = "group"
    trainable_layers: int = 5
    shown_px: int = 800
    anchor_px: int = 32
    channels: int = 256
    hidden: int = 1024
    proposals: int = 2000
    anchors_per_image: int = 256
    rois_per_image: int = 512
    gate: Literal["best_box", "head"] = "best_box"
    gate_weight: float = 1.0
    per_class: int = 0
    flip: float = 0.5
    scale: float = 0.1
    shift: float = 0.05
    tone: float = 0.1
    lr: float = 0.005
    every: int = 3
    warmup_steps: int = 99
    epochs: int = 5
    batch_size: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        if self.size < 32 or self.size % 32:
            raise ValueError(f"size must be a positive multiple of 32, got {self.size}")
        if self.shown_px < 0 or self.shown_px % 32:
            raise ValueError(f"shown_px must be 0 or a multiple of 32, got {self.shown_px}")
        if not 0 <= self.trainable_layers <= 5:
            raise ValueError(f"trainable_layers must lie in 0..5, got {self.trainable_layers}")
        counts = (self.anchor_px, self.channels, self.hidden, self.every)
        if (
            min(*counts, self.rois_per_image, self.anchors_per_image) < 1
            or min(self.epochs, self.batch_size) < 1
            or self.proposals < 2
        ):
            raise ValueError("sizes, counts, every, epochs and batch_size must be at least 1")
        if min(self.per_class, self.warmup_steps, self.gate_weight) < 0 or self.lr <= 0:
            raise ValueError("per_class, warmup_steps and gate_weight must be >= 0, lr > 0")
        if not 0 <= self.flip <= 1 or not all(
            0 <= one < 1 for one in (self.scale, self.shift, self.tone)
        ):
            raise ValueError("flip must lie in 0..1, scale, shift and tone in 0..1 (below 1)")


def classes(hp: Hparams) -> tuple[str, ...]:
    """Return the names of the classes of boxes."""
    return (*CLASS_NAMES, "normal") if hp.compat == "whole_image" else CLASS_NAMES


def recipe() -> Recipe[Hparams]:
    """Return the full-size recipe."""
    return Recipe(
        name="pneumonia_detection",
        kind="box2d",
        transform_version=1,
        hparams=Hparams(),
        tiny_hparams=_tiny(),
        prepare_fields=("size", "compat"),
        records=records,
        prepare=prepare,
        class_names=CLASS_NAMES,
        classes=classes,
        lesion_boxes=True,
        phantom=write_phantom,
        phantom_baseline=baseline,
        submission=measures.submission,
        prepare_peak_factor=32.0,
        learning=_learning(),
    )


def _tiny() -> Hparams:
    return Hparams(
        size=128,
        backbone="resnet18",
        width=24,
        shown_px=0,
        anchor_px=8,
        channels=32,
        hidden=64,
        proposals=100,
        anchors_per_image=32,
        rois_per_image=16,
        lr=0.01,
        every=12,
        warmup_steps=20,
        epochs=14,
        batch_size=4,
    )


def _learning() -> Learning[Hparams]:
    return Learning(
        model=model,
        collate=collate,
        augment=augment,
        sampler=sampler,
        inputs=inputs,
        loss_sums=loss_sums,
        loss_value=loss_value,
        optimizer=optimizer,
        adopt=adopt,
        schedule=schedule,
        probabilities=measures.probabilities,
        measure=measures.measure,
        metrics=measures.metrics,
        choose=measures.choose,
        baseline=measures.baseline,
        objective=Objective("map50", "max"),
        decode=measures.decode,
        search_space={"lr": LogUniform(1e-4, 1e-1)},
        sweep=measures.SWEEP,
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
    label = measures.NORMAL if hp.compat == "whole_image" else 0
    return whole, np.array([label], dtype=np.int64)


def collate(examples: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return the images stacked and boxes, where there are any, padded to one number."""
    images = {"image": np.stack([example["image"] for example in examples])}
    return {**images, **pad_boxes(examples)} if "boxes" in examples[0] else images


def sampler(cases: Sequence[Mapping[str, object]], epoch: int, hp: Hparams) -> list[int]:
    """Return as many ill as healthy images, drawn for the epoch; none twice before all once.

    Where one class is missing all images of the other are visited, or `per_class` of them.
    """
    ill = np.array([_is_ill(case) for case in cases], dtype=bool)
    groups = [group for group in (np.flatnonzero(ill), np.flatnonzero(~ill)) if group.size]
    number = hp.per_class or min(group.size for group in groups)
    rng = np.random.default_rng([hp.seed, epoch, 3])
    drawn = []
    for group in groups:
        rounds = [rng.permutation(group) for _ in range(-(-number // group.size))]
        drawn.append(np.concatenate(rounds)[:number])
    return [int(one) for one in np.concatenate(drawn)]


def _is_ill(case: Mapping[str, object]) -> bool:
    return case["label"] == 1 if case["label"] != -1 else bool(case["num_boxes"])


def augment(batch: Batch, seeds: Sequence[int], hp: Hparams) -> Batch:
    """Flip, scale, shift and tone images with their boxes; `compat=original` changes nothing.

    The seeds stay in the batch: by them the network draws what its losses judge.
    """
    import torch

    from medray.nn.augment2d import Augmentation2d, augment_with_boxes

    image = batch["image"]
    drawn = torch.tensor([int(seed) for seed in seeds], device=image.device)
    if hp.compat == "original":
        return {**batch, "seed": drawn}
    how = Augmentation2d(
        flip=hp.flip,
        affine=1.0,
        scale=hp.scale,
        shift_y=hp.shift,
        shift_x=hp.shift,
        tone=1.0 if hp.tone else 0.0,
        tone_range=hp.tone,
    )
    moved = augment_with_boxes(
        image, batch["boxes"], batch["box_labels"], batch["num_boxes"], seeds=seeds, how=how
    )
    return {
        **batch,
        "image": moved.images,
        "boxes": moved.boxes,
        "box_labels": moved.labels,
        "num_boxes": moved.num_boxes,
        "seed": drawn,
    }


def inputs(batch: Batch, hp: Hparams) -> "dict[str, Tensor]":
    """Return `image` (B, 1, H, W) in [0, 1] and what the network's losses need."""
    del hp
    found = {"image": batch["image"].float() / 255}
    if "boxes" in batch:
        found |= {"boxes": batch["boxes"], "num_boxes": batch["num_boxes"]}
        found["labels"] = batch["box_labels"]
    if "seed" in batch:
        found["seed"] = batch["seed"]
    return found


def model(hp: Hparams) -> "nn.Module":
    """Return a fresh network."""
    from medray.nn.faster_rcnn import FasterRcnn, FasterRcnnConfig

    return FasterRcnn(
        FasterRcnnConfig(
            backbone=hp.backbone,
            width=hp.width,
            norm=hp.norm,
            num_classes=len(classes(hp)),
            shown_px=hp.shown_px,
            anchor_px=hp.anchor_px,
            channels=hp.channels,
            hidden=hp.hidden,
            proposals=hp.proposals,
            anchors_per_image=hp.anchors_per_image,
            rois_per_image=hp.rois_per_image,
            trainable_layers=hp.trainable_layers,
            predictor_only=hp.compat == "original",
            gate=hp.gate == "head",
        )
    )


def adopt(network: "nn.Module", content: bytes) -> str:
    """Take over torchvision's weights of a detector or of a ResNet; return what was left out."""
    from medray.nn.foreign_weights import load_detector_weights, read_foreign_weights

    return str(load_detector_weights(network, read_foreign_weights(content)))


def loss_sums(outputs: Outputs, batch: Batch, hp: Hparams) -> "Tensor":
    """Return the sums of all images, see `medray.nn.region_losses`."""
    del batch, hp
    assert isinstance(outputs, dict)
    return outputs["sums"].sum(dim=0)


def loss_value(sums: "Tensor", hp: Hparams) -> "Tensor":
    """Return the sum of the four losses, and of the gate's."""
    anchors, regions = sums[2].clamp(min=1), sums[5].clamp(min=1)
    value = (sums[0] + sums[1]) / anchors + (sums[3] + sums[4]) / regions
    return value + hp.gate_weight * sums[6] / sums[7].clamp(min=1)


def optimizer(network: "nn.Module", hp: Hparams) -> "Optimizer":
    """Return SGD with momentum 0.9 and decay 0.0005."""
    from medray.nn.optimizers import sgd

    return sgd(network, lr=hp.lr, momentum=0.9, weight_decay=0.0005)


def schedule(hp: Hparams) -> Schedule:
    """Return a tenth after every so many epochs, with the warm-up of the first."""
    return Schedule(kind="step", factor=0.1, every=hp.every, warmup_steps=hp.warmup_steps)
