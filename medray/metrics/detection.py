"""Numbers of detectors from the rows of `medray.metrics.box_matching`.

`ranked(rows)` sorts the boxes of any set of rows, those of a bootstrap resample included, once for
all numbers: `precision_numbers`, `threshold_numbers`, `best_f1`, `medray.metrics.froc`. With
several classes, average precision is the mean over the classes that occur in the truth. Of two
boxes with one score the row that comes first wins.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, TypeAlias

import numpy as np
from jaxtyping import Bool, Float64, Int64

from medray.metrics.box_matching import IOU_LEVELS

Rows: TypeAlias = Sequence[Mapping[str, Any]]
Rule = Literal["yolo", "coco"]

_HITS: dict[str, str] = {"yolo": "hits", "coco": "hits_coco"}
_RECALLS = np.linspace(0.0, 1.0, 101)
_CONFIDENCES = np.linspace(0.0, 1.0, 1000)
_SMOOTHING = 0.1  # share of the confidences that the F1 curve is averaged over
# COCO's small, medium and large objects, areas in square pixels.
COCO_SIZES_PX: tuple[tuple[str, float, float], ...] = (
    ("small", 0.0, 32.0**2),
    ("medium", 32.0**2, 96.0**2),
    ("large", 96.0**2, float("inf")),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """All found boxes of some rows by falling score.

    Attributes:
        rule: of the matching.
        levels: IoU levels.
        scores: of the boxes.
        hits: whether each is right, a column a level.
        row_of: index of each box's row.
        place_of: index of each box within its row.
        classes: of the boxes.
        num_true: true boxes by class.
        num_images: rows, those without a box included.
    """

    rule: Rule
    levels: tuple[float, ...]
    scores: Float64[np.ndarray, "boxes"]
    hits: Bool[np.ndarray, "boxes levels"]
    row_of: Int64[np.ndarray, "boxes"]
    place_of: Int64[np.ndarray, "boxes"]
    classes: Int64[np.ndarray, "boxes"]
    num_true: Mapping[int, int]
    num_images: int

    @property
    def total_true(self) -> int:
        """Number of true boxes."""
        return sum(self.num_true.values())

    def hits_at(self, iou: float) -> Bool[np.ndarray, "boxes"]:
        """Tell which boxes are right at an IoU level.

        Raises:
            ValueError: the rows were not matched at this level.
        """
        for column, level in enumerate(self.levels):
            if abs(level - iou) < 1e-6:
                return np.asarray(self.hits[:, column])
        if not self.num_images:
            return np.zeros(0, dtype=bool)
        raise ValueError(f"the rows were matched at IoU {self.levels}, not at {iou}")


@dataclass(frozen=True, slots=True, kw_only=True)
class F1Point:
    """Where F1 is greatest: a found box counts where its score is at least the threshold."""

    threshold: float
    precision: float
    recall: float
    f1: float


def ranked(rows: Rows, *, rule: Rule = "yolo") -> Ranked:
    """Return all boxes of the rows by falling score.

    Raises:
        ValueError: rows that were matched at different IoU levels.
    """
    levels = _levels(rows)
    counts = np.array([len(row["box_scores"]) for row in rows], dtype=np.int64)
    total = int(counts.sum())
    scores = _flat((row["box_scores"] for row in rows), total, np.float64)
    bits = _flat((row[_HITS[rule]] for row in rows), total, np.int64)
    classes = _flat((row["box_classes"] for row in rows), total, np.int64)
    starts = np.cumsum(counts) - counts
    order = np.argsort(-scores, kind="stable")
    row_of = np.repeat(np.arange(len(counts)), counts)
    truth = np.array(list(chain.from_iterable(row["true_classes"] for row in rows)), dtype=np.int64)
    names, numbers = np.unique(truth, return_counts=True)
    return Ranked(
        rule=rule,
        levels=levels,
        num_images=len(rows),
        scores=scores[order],
        hits=(bits[order, None] >> np.arange(len(levels), dtype=np.int64)) & 1 == 1,
        row_of=row_of[order],
        place_of=(np.arange(total) - np.repeat(starts, counts))[order],
        classes=classes[order],
        num_true=dict(zip(names.tolist(), numbers.tolist(), strict=True)),
    )


def average_precisions(boxes: Ranked) -> Float64[np.ndarray, "levels"]:
    """Return the average precision at each level; NaN without a true box.

    `yolo`: area under the precision envelope, drawn from (0, 1) to (1, 0), interpolated at 101
    recalls and summed by trapezoids. `coco`: mean over 101 recalls of the best precision at that
    recall or beyond.
    """
    if not boxes.num_true:
        return np.full(boxes.hits.shape[1], np.nan)
    each = []
    for one, number in boxes.num_true.items():
        own = boxes.hits[boxes.classes == one] if len(boxes.num_true) > 1 else boxes.hits
        each.append([_area(column, number, boxes.rule) for column in own.T])
    return np.asarray(np.mean(each, axis=0))


def precision_numbers(boxes: Ranked) -> dict[str, float]:
    """Return `map50`, `map75` and `map50_95`, means over classes; NaN without a true box.

    The last is the mean over the rows' levels; of the first two, a level that the rows lack is left
    out.
    """
    values = average_precisions(boxes)
    each = zip(boxes.levels, values, strict=True)
    named = {f"map{round(level * 100)}": float(value) for level, value in each}
    numbers: dict[str, float] = {name: named[name] for name in ("map50", "map75") if name in named}
    numbers["map50_95"] = float(values.mean()) if values.size else float("nan")
    return numbers


def threshold_numbers(boxes: Ranked, threshold: float, *, iou: float = 0.5) -> dict[str, float]:
    """Return `precision`, `recall`, `f1` and `false_positives` an image at one threshold.

    All classes together. Precision is NaN where no box is found, recall without a true box.
    """
    found = int((boxes.scores >= threshold).sum())
    right = int(boxes.hits_at(iou)[:found].sum())
    whole = found + boxes.total_true
    return {
        "precision": right / found if found else float("nan"),
        "recall": right / boxes.total_true if boxes.total_true else float("nan"),
        "f1": 2 * right / whole if whole else float("nan"),
        "false_positives": (found - right) / boxes.num_images if boxes.num_images else float("nan"),
    }


def mean_f1(boxes: Ranked, threshold: float) -> float:
    """Return the mean over the IoU levels of F1 at one threshold; NaN where nothing is there.

    Unlike average precision it judges the threshold, unlike F1 at one level how well boxes fit.
    """
    found = int((boxes.scores >= threshold).sum())
    whole = found + boxes.total_true
    return float(np.mean(2 * boxes.hits[:found].sum(axis=0) / whole)) if whole else float("nan")


def best_f1(boxes: Ranked, *, iou: float = 0.5) -> F1Point:
    """Return the threshold of the greatest F1, of the smoothed curve, as YOLOv5 reports.

    Precision and recall are read at 1,000 confidences, means over the classes; the F1 curve is
    averaged over a tenth of them, its ends repeated. Without a true box the threshold is 0.5 and
    the rest NaN.
    """
    if not boxes.num_true:
        return F1Point(threshold=0.5, precision=np.nan, recall=np.nan, f1=np.nan)
    hits = boxes.hits_at(iou)
    curves = []
    for one, number in boxes.num_true.items():
        own = boxes.classes == one
        precision, recall = _at_confidences(boxes.scores[own], hits[own], number)
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-16)
        curves.append(np.stack([precision, recall, f1]))
    mean = np.mean(curves, axis=0)
    best = int(_smoothed(mean[2]).argmax())
    return F1Point(
        threshold=float(_CONFIDENCES[best]),
        precision=float(mean[0, best]),
        recall=float(mean[1, best]),
        f1=float(mean[2, best]),
    )


def size_table(
    rows: Rows,
    threshold: float,
    *,
    sizes_px: Sequence[tuple[str, float, float]] = COCO_SIZES_PX,
) -> list[dict[str, Any]]:
    """Return one line a size of true boxes, by COCO's matching at the first level.

    A line has `size`, `num_true`, `recall` (at the threshold) and `ap`: what takes a true box of
    another size, or takes none and has another size itself, is left out of the AP.
    """
    boxes = ranked(rows, rule="coco")
    found = _flat_areas(rows, "boxes_xyxy")
    truth = _flat_areas(rows, "true_boxes_xyxy")
    starts = _starts(rows, "boxes_xyxy")
    true_starts = _starts(rows, "true_boxes_xyxy")
    partner = _flat((row["hit_truth"] for row in rows), len(found), np.int64)
    place = starts[boxes.row_of] + boxes.place_of
    taken = partner[place]
    area = found[place]
    hit = taken >= 0
    area[hit] = truth[(true_starts[boxes.row_of] + taken)[hit]]
    lines = []
    for name, low, high in sizes_px:
        number = int(((truth >= low) & (truth < high)).sum())
        own = (area >= low) & (area < high)
        right = hit[own]
        found_above = int((right & (boxes.scores[own] >= threshold)).sum())
        ap = _area(right, number, "coco") if number else np.nan
        recall = found_above / number if number else np.nan
        lines.append({"size": name, "num_true": number, "recall": recall, "ap": ap})
    return lines


def _levels(rows: Rows) -> tuple[float, ...]:
    found = {tuple(row["iou_levels"]) for row in rows}
    if len(found) > 1:
        raise ValueError("rows matched at different IoU levels do not add up")
    return found.pop() if found else IOU_LEVELS


def _area(hits: np.ndarray, number: int, rule: Rule) -> float:
    """Return the AP of one class at one level, from (boxes,) hits by falling score.

    Between two hits the precision falls, and recall stays: the curve is known from the ranks of the
    hits alone, which are few.
    """
    ranks = np.flatnonzero(hits) + 1
    if not len(ranks):
        return 0.0
    order = np.arange(1, len(ranks) + 1)
    recall = order / number
    envelope = np.maximum.accumulate((order / ranks)[::-1])[::-1]
    if rule == "coco":
        place = np.searchsorted(recall, _RECALLS, side="left")
        return float(np.append(envelope, 0.0)[place].mean())
    start = 1.0 if ranks[0] == 1 else envelope[0]
    # precision just before the next hit, and of the last box
    before = np.maximum(order[:-1] / np.maximum(ranks[1:] - 1, 1), envelope[1:])
    ends = np.concatenate([before, [order[-1] / len(hits)]])
    heights = np.stack([envelope, ends], axis=1).ravel()
    curve = np.interp(_RECALLS, [0.0, *np.repeat(recall, 2), 1.0], [start, *heights, 0.0])
    return float(np.trapezoid(curve, _RECALLS))


def _at_confidences(
    scores: np.ndarray, hits: np.ndarray, number: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return precision and recall at the 1,000 confidences, between scores linearly."""
    if not len(scores):
        return np.ones(len(_CONFIDENCES)), np.zeros(len(_CONFIDENCES))
    right = np.cumsum(hits)
    precision = right / np.arange(1, len(hits) + 1)
    at = -_CONFIDENCES
    return (
        np.interp(at, -scores, precision, left=1.0),
        np.interp(at, -scores, right / number, left=0.0),
    )


def _smoothed(curve: np.ndarray) -> np.ndarray:
    half = round(len(curve) * _SMOOTHING) // 2
    padded = np.pad(curve, half, mode="edge")
    window = np.full(2 * half + 1, 1 / (2 * half + 1))
    return np.convolve(padded, window, mode="valid")


def _flat(parts: Iterable[Sequence[float]], total: int, dtype: type) -> np.ndarray:
    return np.fromiter(chain.from_iterable(parts), dtype=dtype, count=total)


def _starts(rows: Rows, name: str) -> np.ndarray:
    counts = np.array([len(row[name]) for row in rows], dtype=np.int64)
    return np.asarray(np.cumsum(counts) - counts)


def _flat_areas(rows: Rows, name: str) -> np.ndarray:
    boxes = np.array([box for row in rows for box in row[name]], dtype=np.float64).reshape(-1, 4)
    return np.asarray((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
