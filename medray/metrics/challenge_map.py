"""The measure of the RSNA pneumonia challenge: precision over overlaps, image by image.

At each IoU level t from 0.40 to 0.75 the boxes of an image, best first, each take a free true box
that they overlap by t or more; the image has TP / (TP + FP + FN). Its score is the mean over the
levels, the result the mean over images. An image without true and found boxes is left out; one
without true boxes where any is found scores 0 (SEEDS_SPEC 5.4).

What is submitted are boxes at or above a threshold, of images whose gate is open: `image_score` is
at or above `gate`. A gate takes false boxes off healthy images and leaves weak ones beside a strong
one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64, Real

from medray.boxes import box_iou
from medray.metrics.box_matching import coco_hits

CHALLENGE_LEVELS: tuple[float, ...] = tuple(round(0.4 + 0.05 * n, 2) for n in range(8))
# Of each: the search takes their product, 5,000 images with 100 boxes 15 s.
_MOST_THRESHOLDS, _MOST_GATES = 32, 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """What is handed in: boxes from `threshold` on, of images from `gate` on."""

    threshold: float
    gate: float
    value: float


@dataclass(frozen=True, slots=True)
class _Flat:
    scores: Float64[np.ndarray, "boxes"]
    hits: Bool[np.ndarray, "boxes levels"]
    row_of: Int64[np.ndarray, "boxes"]
    num_true: Int64[np.ndarray, "images"]
    image_scores: Float64[np.ndarray, "images"]


def challenge_hits(
    found_xyxy: Real[np.ndarray, "num_found 4"], true_xyxy: Real[np.ndarray, "num_true 4"]
) -> list[int]:
    """Return for each box, best first, a whole number whose bit n says it is right at level n.

    Leaving off boxes at the end changes nothing for those before, so one matching serves every
    threshold.
    """
    hits, _ = coco_hits(box_iou(found_xyxy, true_xyxy), CHALLENGE_LEVELS)
    bits: list[int] = (hits @ (1 << np.arange(len(CHALLENGE_LEVELS), dtype=np.int64))).tolist()
    return bits


def challenge_map(
    rows: Sequence[Mapping[str, Any]], *, threshold: float, gate: float = 0.0
) -> float:
    """Return the challenge's mean precision; NaN where no image counts.

    Args:
        rows: with `box_scores`, `hits_challenge`, `true_boxes_xyxy` and `image_score`.
        threshold: boxes from this score on are handed in.
        gate: of images from this `image_score` on.
    """
    return _value(_flat(rows), threshold, gate)


def best_submission(rows: Sequence[Mapping[str, Any]], *, with_gate: bool) -> Submission:
    """Return threshold and gate of the greatest value on validation rows.

    Of several as good the highest threshold and the lowest gate win. Without any box or image that
    counts both are 0.5 and 0.
    """
    flat = _flat(rows)
    thresholds = _tried(flat.scores, _MOST_THRESHOLDS)
    gates = (
        np.concatenate([[0.0], _tried(flat.image_scores, _MOST_GATES)])
        if with_gate
        else np.zeros(1)
    )
    best = Submission(threshold=0.5, gate=0.0, value=float("-inf"))
    for gate in gates.tolist():
        for threshold in thresholds[::-1].tolist():
            value = _value(flat, threshold, gate)
            if value > best.value + 1e-12:
                best = Submission(threshold=threshold, gate=gate, value=value)
    return best


def _tried(scores: np.ndarray, most: int) -> np.ndarray:
    """Return the least score and, evenly spread, middles between two neighbouring ones."""
    distinct = np.unique(scores)
    tried = np.concatenate([distinct[:1], (distinct[1:] + distinct[:-1]) / 2])
    if tried.size <= most:
        return tried
    return np.unique(np.quantile(tried, np.linspace(0, 1, most)))


def _flat(rows: Sequence[Mapping[str, Any]]) -> _Flat:
    counts = np.array([len(row["box_scores"]) for row in rows], dtype=np.int64)
    total = int(counts.sum())
    scores = np.fromiter(chain.from_iterable(r["box_scores"] for r in rows), float, count=total)
    bits = np.fromiter(
        chain.from_iterable(r["hits_challenge"] for r in rows), np.int64, count=total
    )
    levels = np.arange(len(CHALLENGE_LEVELS), dtype=np.int64)
    return _Flat(
        scores,
        (bits[:, None] >> levels) & 1 == 1,
        np.repeat(np.arange(len(counts)), counts),
        np.array([len(row["true_boxes_xyxy"]) for row in rows], dtype=np.int64),
        np.array([row["image_score"] for row in rows], dtype=np.float64),
    )


def _value(flat: _Flat, threshold: float, gate: float) -> float:
    kept = (flat.scores >= threshold) & (flat.image_scores >= gate)[flat.row_of]
    rows, number = flat.row_of[kept], len(flat.num_true)
    found = np.bincount(rows, minlength=number)
    hits = flat.hits[kept]
    right = np.stack([np.bincount(rows[own], minlength=number) for own in hits.T], axis=1)
    whole = (found + flat.num_true)[:, None] - right
    counts = whole[:, 0] + right[:, 0] > 0
    if not counts.any():
        return float("nan")
    return float((right[counts] / whole[counts]).mean())
