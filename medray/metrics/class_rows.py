"""The numbers of classifiers from their rows' scores and labels."""

import numpy as np
from jaxtyping import Float64, Int64

from medray.metrics import calibration, classes, ranking


def two_class_numbers(
    scores: Float64[np.ndarray, "cases"], labels: Int64[np.ndarray, "cases"], *, threshold: float
) -> dict[str, float]:
    """Return what is reported of a score for class 1 against class 0.

    `auroc`, `auprc`, `brier` judge the score; the others the decision score >= threshold. A number
    without an answer, e.g. in a resample of one class, is NaN.
    """
    positive = labels == 1
    matrix = classes.confusion_matrix(labels, (scores >= threshold).astype(int), num_classes=2)
    recalls = classes.class_recalls(matrix)
    return {
        "auroc": ranking.auroc(scores, positive),
        "auprc": ranking.average_precision(scores, positive),
        "balanced_accuracy": float(recalls.mean()),
        "accuracy": classes.accuracy(matrix),
        "sensitivity": float(recalls[1]),
        "specificity": float(recalls[0]),
        "brier": calibration.brier_score(scores, positive),
    }


def many_class_numbers(
    scores: Float64[np.ndarray, "cases classes"],
    labels: Int64[np.ndarray, "cases"],
    *,
    threshold: float | None = None,
) -> dict[str, float]:
    """Return what is reported of one score per class.

    `auroc` and `auprc` are means over one class against the rest; of two classes those of class 1.
    The decision is the greatest score, of two classes score 1 >= threshold where one is given.
    """
    num_classes = scores.shape[1]
    found = scores.argmax(axis=1) if len(scores) else np.zeros(0, dtype=np.int64)
    if num_classes == 2 and threshold is not None:
        found = (scores[:, 1] >= threshold).astype(np.int64)
    matrix = classes.confusion_matrix(labels, found, num_classes=num_classes)
    every = range(num_classes)
    two = num_classes == 2
    return {
        "auroc": ranking.auroc(scores[:, 1], labels == 1)
        if two
        else ranking.macro_auroc(scores, labels, classes=every),
        "auprc": ranking.average_precision(scores[:, 1], labels == 1)
        if two
        else ranking.macro_average_precision(scores, labels, classes=every),
        "balanced_accuracy": classes.balanced_accuracy(matrix),
        "macro_f1": classes.macro_f1(matrix),
        "accuracy": classes.accuracy(matrix),
    }


def youden_threshold(
    scores: Float64[np.ndarray, "cases"], labels: Int64[np.ndarray, "cases"]
) -> float:
    """Return the operating point of the best balanced accuracy; 0.5 where one class is missing."""
    if len(np.unique(labels)) < 2:
        return 0.5
    return classes.operating_point(scores, labels == 1).threshold
