"""What detecting tasks share: rows of a batch, their numbers, a trivial answer."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from medray.boxes import box_iou
from medray.metrics.box_matching import box_row
from medray.metrics.box_placing import DEFAULT_THRESHOLD
from medray.metrics.detection import (
    Ranked,
    Rows,
    best_f1,
    mean_f1,
    precision_numbers,
    threshold_numbers,
)


def batch_rows(found: Mapping[str, Any], batch: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return one row an image.

    Args:
        found: `boxes` (B, K, 4), `scores` and `classes` (B, K); a score of 0 is padding.
        batch: `boxes` (B, M, 4) and `box_labels` (B, M), padded where `num_boxes` (B,) is smaller
            than M; without `boxes` nothing is there to be found.
    """
    columns = {name: _array(found[name]) for name in ("boxes", "scores", "classes")}
    rows = []
    for index, scores in enumerate(columns["scores"]):
        truth, names = _truth(batch, index)
        rows.append(
            box_row(
                columns["boxes"][index],
                scores,
                truth,
                classes=columns["classes"][index],
                true_classes=names,
            )
        )
    return rows


def detector_numbers(boxes: Ranked, inference: Mapping[str, Any]) -> dict[str, float]:
    """Return `map50`, `map75`, `map50_95`, and precision, recall, F1 and false positives an image.

    The latter four at the operating point, and there `f1_50_95`, the mean over all levels; see
    `medray.metrics.detection`.
    """
    threshold = float(inference.get("threshold", DEFAULT_THRESHOLD))
    return {
        **precision_numbers(boxes),
        **threshold_numbers(boxes, threshold),
        "f1_50_95": mean_f1(boxes, threshold),
    }


def f1_threshold(boxes: Ranked) -> dict[str, float]:
    """Return the inference parameters: the threshold of the greatest smoothed F1."""
    return {"threshold": best_f1(boxes).threshold}


def one_box_rows(rows: Rows) -> list[dict[str, Any]]:
    """Return the rows of a trivial answer: in each image the one box that is the median of all.

    It knows the true boxes of the very images that it answers for, which no model does.
    """
    truth = [box for row in rows for box in row["true_boxes_xyxy"]]
    found = np.median(np.array(truth), axis=0)[None] if truth else np.zeros((0, 4))
    return [
        {
            **row,
            **box_row(
                found,
                np.ones(len(found)),
                np.array(row["true_boxes_xyxy"]).reshape(-1, 4),
                true_classes=np.array(row["true_classes"]),
                levels=row["iou_levels"],
            ),
        }
        for row in rows
    ]


def best_box_iou(rows: Rows) -> float:
    """Return the mean IoU of each image's best scored box with the true box nearest to it.

    An image where nothing is found counts 0, one without a true box not at all.
    """
    values = []
    for row in rows:
        if row["true_boxes_xyxy"]:
            found = np.array(row["boxes_xyxy"][:1]).reshape(-1, 4)
            overlap = box_iou(found, np.array(row["true_boxes_xyxy"]))
            values.append(float(overlap.max()) if overlap.size else 0.0)
    return float(np.mean(values)) if values else float("nan")


def _truth(batch: Mapping[str, Any], index: int) -> tuple[np.ndarray, np.ndarray | None]:
    if "boxes" not in batch:
        return np.zeros((0, 4)), None
    boxes = _array(batch["boxes"][index])
    number = int(batch["num_boxes"][index]) if "num_boxes" in batch else len(boxes)
    names = _array(batch["box_labels"][index])[:number] if "box_labels" in batch else None
    return boxes[:number], names


def _array(values: Any) -> np.ndarray:
    """Return an array of a tensor on any device, or of an array."""
    return np.asarray(values.cpu() if hasattr(values, "cpu") else values)
