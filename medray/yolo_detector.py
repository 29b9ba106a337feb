"""How a task with YOLOv5 learns, finds and is swept; data, frames and measures are the task's own.

torch is imported inside the functions only, as in recipes.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from medray.boxes import pad_boxes
from medray.learning import (
    Batch,
    Choice,
    Domain,
    InferenceSweep,
    LogUniform,
    Objective,
    Outputs,
    Prediction,
    Row,
    Schedule,
    Uniform,
    stack_examples,
)
from medray.metrics.box_placing import boxes_of_original
from medray.metrics.box_refining import refined_rows, settled_boxes
from medray.metrics.box_rows import batch_rows, f1_threshold
from medray.metrics.detection import ranked
from medray.nn.yolo_hparams import YoloHparams

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

SEARCH_SPACE: dict[str, Domain] = {
    "lr": LogUniform(2e-4, 2e-2),
    "box_gain": LogUniform(0.02, 0.2),
    "mosaic": Uniform(0.0, 1.0),
}


def collate(examples: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return the frames stacked and their boxes padded to one number."""
    images = stack_examples([{"image": example["image"]} for example in examples])
    return {**images, **pad_boxes(examples)}


def adopt(network: "nn.Module", content: bytes) -> str:
    """Take over a published YOLOv5 v6 or v7 file; return what was left out."""
    from medray.nn import yolo_weights

    return yolo_weights.adopt(network, content)


def loss_sums(outputs: Outputs, batch: Batch, hp: YoloHparams) -> "Tensor":
    """Return the sums of the YOLO loss."""
    from medray.losses.detection import padded_targets, yolo_sums

    del hp
    assert isinstance(outputs, dict)
    return yolo_sums(outputs, padded_targets(batch["boxes"], batch["num_boxes"]))


def loss_value(sums: "Tensor", hp: YoloHparams) -> "Tensor":
    """Return the YOLO loss; the original's is multiplied by the number of images."""
    from medray.losses.detection import YoloGains, yolo_value

    gains = YoloGains(
        box=hp.box_gain,
        objectness=hp.objectness_gain,
        image_px=hp.size,
        times_images=hp.compat == "original",
    )
    return yolo_value(sums, gains)


def optimizer(network: "nn.Module", hp: YoloHparams) -> "Optimizer":
    """Return AdamW, or the published recipe's SGD; kernels alone decay."""
    from medray.nn.optimizers import adamw_decayed, sgd_decayed

    make = sgd_decayed if hp.optimizer == "sgd" else adamw_decayed
    return make(network, lr=hp.lr, weight_decay=hp.weight_decay)


def schedule(hp: YoloHparams) -> Schedule:
    """Return a warm-up and a cosine."""
    return Schedule(kind="cosine", floor=hp.lr / 100, warmup_steps=hp.warmup_steps)


def probabilities(outputs: Outputs, hp: YoloHparams) -> "dict[str, Tensor]":
    """Return `boxes` (B, K, 4) in the frame's pixels, `scores` and `classes` (B, K)."""
    from medray.nn.nms import Selection
    from medray.nn.yolo_decode import detect

    assert isinstance(outputs, dict)
    selection = Selection(least_score=hp.least_score, iou_threshold=hp.nms_iou, most=hp.most_boxes)
    return detect(outputs, selection)


def measure(probs: "Mapping[str, Tensor]", batch: Batch, hp: YoloHparams) -> list[Row]:
    """Return the boxes of each image and at which overlaps they are right."""
    del hp
    return batch_rows(probs, batch)


def refine(rows: Sequence[Row], inference: Mapping[str, Any], hp: YoloHparams) -> list[Row]:
    """Return the rows of raw boxes after suppression and scaling."""
    return refined_rows(rows, {"nms_iou": hp.nms_iou, **inference}, most=hp.most_boxes)


def choose(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the threshold of the greatest F1."""
    return dict(f1_threshold(ranked(rows)))


def decode(
    probs: Mapping[str, np.ndarray],
    facts: Mapping[str, Any],
    hp: YoloHparams,
    inference: Mapping[str, Any],
) -> Prediction:
    """Return the boxes at or above the threshold, in pixels of the original image."""
    del hp
    boxes, scores, labels = boxes_of_original(probs, facts, inference)
    best = float(np.max(probs["scores"], initial=0.0))
    return Prediction(score=best, boxes_xyxy_px=boxes, box_scores=scores, box_labels=labels)


SWEEP = InferenceSweep(
    space={
        "threshold": Choice(tuple(k / 20 for k in range(1, 20))),
        "nms_iou": Choice((0.4, 0.5, 0.6)),
        "box_scale": Choice((0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1)),
    },
    objective=Objective("f1_50_95", "max"),
    # Nothing is suppressed: no IoU exceeds 1. Boxes far below the best matter to no threshold.
    raw={"nms_iou": 1.0, "box_scale": 1.0, "most_boxes": 500},
    refine=refine,
    refined_by=("nms_iou", "box_scale"),
    settle=settled_boxes,
    limits={"threshold": (0.0, 1.0), "nms_iou": (0.0, 1.0), "box_scale": (0.1, 10.0)},
)
