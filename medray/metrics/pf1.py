"""Probabilistic F1 of the RSNA mammography challenge, and the threshold of the best F1."""

from dataclasses import dataclass

import numpy as np

from medray.metrics.scored import Scores, Truth, scored


@dataclass(frozen=True, slots=True, kw_only=True)
class F1Point:
    """A threshold (positive: score >= threshold) and the F1 that it gives where it was chosen."""

    threshold: float
    f1: float


def probabilistic_f1(scores: Scores, positive: Truth, *, beta: float = 1.0) -> float:
    """Return the official pF-beta: precision and recall with probabilities for counts.

    (1 + beta^2) P R / (beta^2 P + R), P = sum of positives' scores over the sum of all, R = the
    former over the number of positives (SEEDS_SPEC 3.4). Scores are cut to 0..1; with scores of 0
    and 1 it is F-beta. NaN without a positive case.
    """
    values, flags = scored(scores, positive)
    if not flags.any():
        return float("nan")
    cut = np.clip(values, 0, 1)
    true_positive = float(cut[flags].sum())
    if not true_positive:
        return 0.0
    precision = true_positive / float(cut.sum())
    recall = true_positive / int(flags.sum())
    return (1 + beta**2) * precision * recall / (beta**2 * precision + recall)


def f1_at(scores: Scores, positive: Truth, threshold: float) -> float:
    """Return the F1 of deciding by a threshold: pF1 of decisions. NaN without a positive case."""
    values, flags = scored(scores, positive)
    return probabilistic_f1((values >= threshold).astype(np.float64), flags)


def best_f1(scores: Scores, positive: Truth) -> F1Point:
    """Return the threshold of the greatest F1, for validation scores.

    All thresholds between two neighbouring scores decide alike, so the middle is taken; ties go to
    the higher threshold, as in the original's search.

    Raises:
        ValueError: there is no positive case.
    """
    values, flags = scored(scores, positive)
    if not flags.any():
        raise ValueError("the best F1 needs positive cases")
    distinct = np.unique(values)[::-1]
    order = np.argsort(-values, kind="stable")
    called = np.searchsorted(-values[order], -distinct, side="right")
    found = np.cumsum(flags[order])[called - 1]
    f1 = 2 * found / (called + int(flags.sum()))
    best = int(np.argmax(f1))
    threshold = float(distinct[best])
    if best + 1 < distinct.size:
        low = float(distinct[best + 1])
        middle = low + (threshold - low) / 2
        threshold = middle if middle > low else threshold  # neighbouring floats have no middle
    return F1Point(threshold=threshold, f1=float(f1[best]))
