"""Which found boxes are right: one row an image, so that metrics need only sort and cumulate.

A row is plain JSON. Of the found boxes, by falling score: `boxes_xyxy`, `box_scores`,
`box_classes`, and whether each is right at every IoU level, as one whole number whose bit n stands
for level n:

- `hits`: as YOLOv5 counts. A found box stands for the true box of its class that it overlaps most;
  at each level, of several that stand for one true box with that IoU, the best scored is right.
- `hits_coco`: as COCO counts. By falling score, each takes the true box of its class that it
  overlaps most among those that are not yet taken at that level.
- `hit_truth`: index of the true box that it takes by COCO's rule at the first level, or -1.

Of the true ones: `true_boxes_xyxy`, `true_classes`. `iou_levels` says which levels the bits are.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int64, Real

from medray.boxes import box_iou

IOU_LEVELS: tuple[float, ...] = tuple(round(0.5 + 0.05 * n, 2) for n in range(10))
# A level is reached as COCO has it: whatever rounding made of a full overlap.
_ALMOST = 1e-10
_DECIMALS_BOX, _DECIMALS_SCORE = 2, 6


def box_row(
    found_xyxy: Real[np.ndarray, "num_found 4"],
    scores: Real[np.ndarray, "num_found"],
    true_xyxy: Real[np.ndarray, "num_true 4"],
    *,
    classes: Real[np.ndarray, "num_found"] | None = None,
    true_classes: Real[np.ndarray, "num_true"] | None = None,
    levels: Sequence[float] = IOU_LEVELS,
) -> dict[str, Any]:
    """Return the row of one image.

    Args:
        found_xyxy: in any order; boxes with a score of 0 or less are padding and left out.
        scores: one a found box.
        true_xyxy: in the same pixels.
        classes: index a found box; None where there is one class.
        true_classes: index a true box.
        levels: rising IoU, 62 at most.
    """
    given = np.asarray(scores, dtype=np.float64).reshape(-1)
    order = np.argsort(-given, kind="stable")
    order = order[given[order] > 0]
    found = np.asarray(found_xyxy, dtype=np.float64).reshape(-1, 4)[order]
    truth = np.asarray(true_xyxy, dtype=np.float64).reshape(-1, 4)
    of_found = _classes(classes, len(given))[order]
    of_truth = _classes(true_classes, len(truth))
    iou = box_iou(found, truth) * (of_found[:, None] == of_truth[None])
    coco, taken = coco_hits(iou, levels)
    return {
        "boxes_xyxy": np.round(found, _DECIMALS_BOX).tolist(),
        "box_scores": np.round(given[order], _DECIMALS_SCORE).tolist(),
        "box_classes": of_found.tolist(),
        "hits": _bits(yolo_hits(iou, levels)),
        "hits_coco": _bits(coco),
        "hit_truth": taken.tolist(),
        "true_boxes_xyxy": np.round(truth, _DECIMALS_BOX).tolist(),
        "true_classes": of_truth.tolist(),
        "iou_levels": list(levels),
    }


def yolo_hits(
    iou: Float[np.ndarray, "num_found num_true"], levels: Sequence[float]
) -> Bool[np.ndarray, "num_found num_levels"]:
    """Tell at which levels each box is right by YOLOv5's rule; boxes by falling score."""
    hits = np.zeros((iou.shape[0], len(levels)), dtype=bool)
    if not iou.size:
        return hits
    best, overlap = iou.argmax(axis=1), iou.max(axis=1)
    for column, level in enumerate(levels):
        able = np.flatnonzero(overlap >= level - _ALMOST)
        _, first = np.unique(best[able], return_index=True)
        hits[able[first], column] = True
    return hits


def coco_hits(
    iou: Float[np.ndarray, "num_found num_true"], levels: Sequence[float]
) -> tuple[Bool[np.ndarray, "num_found num_levels"], Int64[np.ndarray, "num_found"]]:
    """Tell at which levels each box is right by COCO's rule, and what it takes at the first one."""
    hits = np.zeros((iou.shape[0], len(levels)), dtype=bool)
    taken_by = np.full(iou.shape[0], -1, dtype=np.int64)
    if not iou.size:
        return hits, taken_by
    wanted = np.asarray(levels) - _ALMOST
    rows = np.arange(len(levels))
    free = np.ones((len(levels), iou.shape[1]), dtype=bool)
    for number in np.flatnonzero(iou.max(axis=1) >= wanted.min()):
        overlap = np.where(free, iou[number], -1.0)
        best = overlap.argmax(axis=1)
        right = overlap[rows, best] >= wanted
        free[rows[right], best[right]] = False
        hits[number] = right
        if right[0]:
            taken_by[number] = best[0]
    return hits, taken_by


def _classes(given: np.ndarray | None, number: int) -> np.ndarray:
    if given is None:
        return np.zeros(number, dtype=np.int64)
    return np.asarray(given).astype(np.int64).reshape(-1)


def _bits(hits: np.ndarray) -> list[int]:
    weights = 1 << np.arange(hits.shape[1], dtype=np.int64)
    bits: list[int] = (hits @ weights).tolist()
    return bits
