"""How well scores rank: AUROC, average precision, their curves.

A positive case should have the higher score. Equal scores count half (AUROC) or enter together
(average precision), so the order of the cases never matters. Without a positive or without a
negative there is nothing to rank: the value is NaN, which the bootstrap counts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Integer, Real

from medray.metrics.scored import Scores, Truth, scored

ClassScores = Real[np.ndarray, "cases classes"]
Labels = Integer[np.ndarray, "cases"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RocCurve:
    """Points from (0, 0) to (1, 1), one for each distinct score, all (points,) float64.

    A case is called positive where its score is at least the threshold; the first one is infinite.
    """

    false_positive_rate: Float64[np.ndarray, "points"]
    true_positive_rate: Float64[np.ndarray, "points"]
    thresholds: Float64[np.ndarray, "points"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PrCurve:
    """Precision over rising recall, one point for each distinct score, all (points,) float64."""

    recall: Float64[np.ndarray, "points"]
    precision: Float64[np.ndarray, "points"]
    thresholds: Float64[np.ndarray, "points"]


def auroc(scores: Scores, positive: Truth) -> float:
    """Return the probability that a positive outranks a negative, ties counting half.

    Mann-Whitney U by midranks, O(n log n); NaN where one of the two is missing.
    """
    values, flags = scored(scores, positive)
    num_positive = int(flags.sum())
    num_negative = flags.size - num_positive
    if not num_positive or not num_negative:
        return float("nan")
    _, where, sizes = np.unique(values, return_inverse=True, return_counts=True)
    midranks = np.cumsum(sizes) - (sizes - 1) / 2
    rank_sum = midranks[where][flags].sum()
    wins = rank_sum - num_positive * (num_positive + 1) / 2
    return float(wins / (num_positive * num_negative))


def average_precision(scores: Scores, positive: Truth) -> float:
    """Return the area under the stepwise precision-recall curve (AUPRC), NaN with one class.

    Sum over distinct scores of (gain in recall) x precision, without interpolation.
    """
    values, flags = scored(scores, positive)
    if not flags.any() or flags.all():
        return float("nan")
    curve = pr_curve(values, flags)
    return float((np.diff(curve.recall, prepend=0.0) * curve.precision).sum())


def roc_curve(scores: Scores, positive: Truth) -> RocCurve:
    """Return the ROC curve.

    Raises:
        ValueError: one of the two classes is missing.
    """
    thresholds, tp, fp = _cumulated(scores, positive)
    if not tp[-1] or not fp[-1]:
        raise ValueError("a ROC curve needs positive and negative cases")
    return RocCurve(
        false_positive_rate=np.concatenate([[0.0], fp / fp[-1]]),
        true_positive_rate=np.concatenate([[0.0], tp / tp[-1]]),
        thresholds=np.concatenate([[np.inf], thresholds]),
    )


def pr_curve(scores: Scores, positive: Truth) -> PrCurve:
    """Return the precision-recall curve.

    Raises:
        ValueError: there is no positive case.
    """
    thresholds, tp, fp = _cumulated(scores, positive)
    if not tp.size or not tp[-1]:
        raise ValueError("a precision-recall curve needs positive cases")
    return PrCurve(recall=tp / tp[-1], precision=tp / (tp + fp), thresholds=thresholds)


def one_vs_rest(
    metric: Callable[[np.ndarray, np.ndarray], float], scores: ClassScores, labels: Labels
) -> Float64[np.ndarray, "classes"]:
    """Return a two-class metric of each class against the rest; NaN where it is undefined."""
    table, truth = _class_scores(scores, labels)
    each = [metric(table[:, one], truth == one) for one in range(table.shape[1])]
    return np.array(each, dtype=np.float64)


def macro_auroc(
    scores: ClassScores, labels: Labels, *, classes: Sequence[int] | None = None
) -> float:
    """Return the mean of the one-vs-rest AUROCs.

    Args:
        scores: one column a class.
        labels: true class indices.
        classes: the classes to average, NaN if one of them is missing in `labels` (for resamples:
            a mean over fewer classes would be another metric). None takes those that occur.
    """
    return _macro(auroc, scores, labels, classes)


def macro_average_precision(
    scores: ClassScores, labels: Labels, *, classes: Sequence[int] | None = None
) -> float:
    """Return the mean of the one-vs-rest average precisions; `classes` as in `macro_auroc`."""
    return _macro(average_precision, scores, labels, classes)


def _macro(
    metric: Callable[[np.ndarray, np.ndarray], float],
    scores: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[int] | None,
) -> float:
    each = one_vs_rest(metric, scores, labels)
    chosen = np.unique(labels) if classes is None else np.asarray(classes, dtype=np.int64)
    return float(each[chosen].mean()) if chosen.size else float("nan")


def _class_scores(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    table, truth = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    if table.ndim != 2 or truth.shape != table.shape[:1]:
        raise ValueError(f"need (cases, classes) scores, got {table.shape} for {truth.shape}")
    if truth.size and not (truth.min() >= 0 and truth.max() < table.shape[1]):
        raise ValueError(f"labels must be class indices below {table.shape[1]}")
    return table, truth


def _cumulated(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return distinct scores, falling, with how many positives and negatives reach each."""
    values, flags = scored(scores, positive)
    order = np.argsort(-values, kind="stable")
    values, flags = values[order], flags[order]
    last = (
        np.flatnonzero(np.append(np.diff(values) != 0, True)) if values.size else np.zeros(0, int)
    )
    tp = np.cumsum(flags)[last]
    return values[last], tp, last + 1 - tp
