"""Scores of the threshold-and-blob baselines: Dice, average precision, AUROC."""

from collections.abc import Sequence

import numpy as np

from medray.metrics.ranking import auroc

Boxes = Sequence[Sequence[float]]


def dice(found: np.ndarray, truth: np.ndarray) -> float:
    """Return the Dice overlap of two masks; two empty masks overlap fully."""
    both = float(found.sum() + truth.sum())
    return 1.0 if both == 0 else 2.0 * float((found & truth).sum()) / both


def box_iou(one: Sequence[float], other: Sequence[float]) -> float:
    """Return intersection over union of two xyxy boxes."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return width * height / (sum(areas) - width * height)


def average_precision(
    found: Sequence[Sequence[tuple[float, Sequence[float]]]], truth: Sequence[Boxes], iou: float
) -> float:
    """Return the area under the precision envelope over all images.

    Args:
        found: per image, scored boxes `(score, xyxy)`.
        truth: per image, true boxes.
        iou: a detection is right at this overlap with a box that is not yet taken.
    """
    ranked = sorted(
        ((score, n, box) for n, boxes in enumerate(found) for score, box in boxes),
        key=lambda item: -item[0],
    )
    total = sum(len(boxes) for boxes in truth)
    if total == 0 or not ranked:
        return 0.0
    taken: set[tuple[int, int]] = set()
    hits = np.zeros(len(ranked))
    for rank, (_, n, box) in enumerate(ranked):
        overlaps = [
            (0.0 if (n, m) in taken else box_iou(box, true)) for m, true in enumerate(truth[n])
        ]
        if overlaps and max(overlaps) >= iou:
            hits[rank] = 1
            taken.add((n, int(np.argmax(overlaps))))
    true_so_far = np.cumsum(hits)
    precision = true_so_far / np.arange(1, len(ranked) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((envelope * hits).sum() / total)


def best_auroc(features: np.ndarray, positive: np.ndarray) -> float:
    """Return the best AUROC of a column of (cases, features); chance where a class is missing."""
    each = [auroc(column, positive) for column in features.T]
    return 0.5 if np.isnan(each).any() else max(each)
