"""How well tumours are found: in slices and in patients."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from medray.learning import (
    Batch,
    Choice,
    InferenceSweep,
    Objective,
    Outputs,
    Prediction,
    Row,
)
from medray.metrics.box_placing import boxes_of_original
from medray.metrics.box_refining import refined_rows, settled_boxes
from medray.metrics.box_rows import batch_rows, detector_numbers, f1_threshold, one_box_rows
from medray.metrics.detection import ranked
from medray.metrics.froc import froc_numbers

if TYPE_CHECKING:
    from torch import Tensor

    from medray.tasks.lung_detection.recipe import Hparams


def probabilities(outputs: Outputs, hp: "Hparams") -> "dict[str, Tensor]":
    """Return `boxes` (B, K, 4) in the frame's pixels, `scores` and `classes` (B, K)."""
    from medray.nn.yolo_system import detections

    assert isinstance(outputs, dict)
    return detections(outputs, hp)


def measure(probs: "Mapping[str, Tensor]", batch: Batch, hp: "Hparams") -> list[Row]:
    """Return the boxes of each slice and at which overlaps they are right."""
    del hp
    return batch_rows(probs, batch)


def metrics(rows: Sequence[Row], inference: Mapping[str, Any]) -> dict[str, float]:
    """Return the detector's numbers, and the sensitivities of slices and of patients."""
    boxes = ranked(rows)
    return {**detector_numbers(boxes, inference), **froc_numbers(boxes, rows)}


def refine(rows: Sequence[Row], inference: Mapping[str, Any], hp: "Hparams") -> list[Row]:
    """Return the rows of raw boxes after suppression and scaling."""
    return refined_rows(rows, {"nms_iou": hp.nms_iou, **inference}, most=hp.most_boxes)


def choose(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the threshold of the greatest F1."""
    return dict(f1_threshold(ranked(rows)))


def baseline(rows: Sequence[Row], training_labels: Sequence[int]) -> dict[str, float]:
    """Return what one box in every slice would score, the median of all true ones."""
    del training_labels
    return metrics(one_box_rows(rows), {})


def decode(
    probs: Mapping[str, np.ndarray],
    facts: Mapping[str, Any],
    hp: "Hparams",
    inference: Mapping[str, Any],
) -> Prediction:
    """Return the boxes at or above the threshold, in pixels of the original slice."""
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
)
