"""Decisions against truth: confusion matrix, accuracies, the operating point and its two rates."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, Integer

from medray.metrics.scored import Scores, Truth, scored

Labels = Integer[np.ndarray, "cases"]
Matrix = Int64[np.ndarray, "truth found"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatingPoint:
    """A threshold (positive: score >= threshold) and what it gives where it was chosen."""

    threshold: float
    sensitivity: float
    specificity: float
    balanced_accuracy: float


def confusion_matrix(labels: Labels, found: Labels, *, num_classes: int) -> Matrix:
    """Return how many cases of each true class (row) were given each class (column).

    Raises:
        ValueError: the lengths differ, or an index is not below `num_classes`.
    """
    true, given = np.asarray(labels), np.asarray(found)
    if true.shape != given.shape or true.ndim != 1:
        raise ValueError(f"need one decision a case: {true.shape} labels, {given.shape} decisions")
    both = np.concatenate([true, given])
    if both.size and not (both.min() >= 0 and both.max() < num_classes):
        raise ValueError(f"class indices must be within 0 .. {num_classes - 1}")
    flat = np.bincount(true.astype(np.int64) * num_classes + given, minlength=num_classes**2)
    return flat.reshape(num_classes, num_classes).astype(np.int64)


def accuracy(matrix: Matrix) -> float:
    """Return the share of right decisions; NaN without cases."""
    total = matrix.sum()
    return float(np.trace(matrix) / total) if total else float("nan")


def class_recalls(matrix: Matrix) -> np.ndarray:
    """Return (classes,) shares of each true class that were found; NaN for an absent class."""
    return _share(np.diag(matrix), matrix.sum(axis=1))


def class_precisions(matrix: Matrix) -> np.ndarray:
    """Return (classes,) shares of each given class that were right; NaN if it was never given."""
    return _share(np.diag(matrix), matrix.sum(axis=0))


def class_f1(matrix: Matrix) -> np.ndarray:
    """Return (classes,) 2 TP / (2 TP + FP + FN); NaN for a class neither true nor given."""
    return _share(2 * np.diag(matrix), matrix.sum(axis=0) + matrix.sum(axis=1))


def balanced_accuracy(matrix: Matrix) -> float:
    """Return the mean recall of the classes that occur; NaN without cases."""
    return _mean(class_recalls(matrix))


def macro_f1(matrix: Matrix) -> float:
    """Return the mean F1 of the classes that occur in truth or decisions; NaN without cases."""
    return _mean(class_f1(matrix))


def majority_baseline(labels: Labels, *, known: Labels, num_classes: int) -> dict[str, float]:
    """Return `accuracy`, `balanced_accuracy` and `macro_f1` of always saying the commonest class.

    Args:
        labels: true classes of the cases judged.
        known: true classes to learn the commonest from, the training split's; a tie goes to the
            lowest index.
        num_classes: how many classes there are.

    Raises:
        ValueError: `known` is empty.
    """
    if not len(known):
        raise ValueError("a majority class needs known labels, got none")
    common = int(np.argmax(np.bincount(np.asarray(known), minlength=num_classes)))
    matrix = confusion_matrix(labels, np.full(len(labels), common), num_classes=num_classes)
    return {
        "accuracy": accuracy(matrix),
        "balanced_accuracy": balanced_accuracy(matrix),
        "macro_f1": macro_f1(matrix),
    }


def sensitivity_specificity(
    scores: Scores, positive: Truth, *, threshold: float
) -> tuple[float, float]:
    """Return the shares of positives at or above and of negatives below the threshold.

    A share of no cases is NaN.
    """
    values, flags = scored(scores, positive)
    above = values >= threshold
    rates = _share(
        np.array([(above & flags).sum(), (~above & ~flags).sum()]),
        np.array([flags.sum(), (~flags).sum()]),
    )
    return float(rates[0]), float(rates[1])


def operating_point(scores: Scores, positive: Truth) -> OperatingPoint:
    """Return the threshold of the greatest balanced accuracy (Youden's J), for validation scores.

    Every threshold between two neighbouring scores decides alike, so the middle of the two is
    taken. Of several such gaps with one balanced accuracy the widest is taken, then the lowest;
    calling all cases positive or all negative is no gap and wins only where no gap is as good.

    Raises:
        ValueError: there are no positive or no negative cases.
    """
    values, flags = scored(scores, positive)
    if not flags.any() or flags.all():
        raise ValueError("an operating point needs positive and negative cases")
    distinct, where = np.unique(values, return_inverse=True)
    num_at = np.bincount(where)
    positives_at = np.bincount(where, weights=flags).astype(np.int64)
    # cut k calls the k lowest distinct scores negative
    missed = np.concatenate([[0], np.cumsum(positives_at)])
    spared = np.concatenate([[0], np.cumsum(num_at - positives_at)])
    # whole numbers, so that ties are ties: sensitivity + specificity times both class sizes
    gain = (missed[-1] - missed) * spared[-1] + spared * missed[-1]
    width = np.concatenate([[0.0], np.diff(distinct), [0.0]])
    cut = int(np.lexsort((np.arange(gain.size), -width, -gain))[0])
    threshold = _threshold_of(distinct, cut)
    sensitivity, specificity = sensitivity_specificity(values, flags, threshold=threshold)
    return OperatingPoint(
        threshold=threshold,
        sensitivity=sensitivity,
        specificity=specificity,
        balanced_accuracy=(sensitivity + specificity) / 2,
    )


def _threshold_of(distinct: np.ndarray, cut: int) -> float:
    if cut == 0:
        return float(distinct[0])
    if cut == distinct.size:
        return float(np.nextafter(distinct[-1], np.inf))
    low, high = float(distinct[cut - 1]), float(distinct[cut])
    middle = low + (high - low) / 2
    return middle if middle > low else high  # neighbouring floats have no middle


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    start = np.full(len(whole), np.nan)
    return np.asarray(np.divide(part, whole, out=start, where=whole > 0))


def _mean(values: np.ndarray) -> float:
    defined = values[np.isfinite(values)]
    return float(defined.mean()) if defined.size else float("nan")
