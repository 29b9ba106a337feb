"""From one row per mammogram to one score per breast, and the numbers of the challenge.

A breast is a patient's side; an image without a side stands for itself. A patient that a resample
drew twice counts twice: each breast as often as its images were drawn.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from medray.metrics import ranking
from medray.metrics.class_rows import two_class_numbers
from medray.metrics.pf1 import best_f1, f1_at, probabilistic_f1

AGGREGATIONS = ("mean", "max", "top2")
DEFAULT_THRESHOLD = 0.5
_STRATA = ("site", "machine")


@dataclass(frozen=True, slots=True, kw_only=True)
class Breasts:
    """Aggregated scores, all arrays (breasts,).

    Attributes:
        scores: aggregated over the breast's images.
        labels: 0 or 1.
        strata: `site` and `machine` of the breast's first image, -1 where unknown.
    """

    scores: Float64[np.ndarray, "breasts"]
    labels: Int64[np.ndarray, "breasts"]
    strata: Mapping[str, Int64[np.ndarray, "breasts"]]


def aggregate(rows: Sequence[Mapping[str, Any]], how: str) -> Breasts:
    """Return the breasts of rows with `key`, `patient_id`, `laterality`, `score` and `label`.

    Args:
        rows: one per image; `site` and `machine` may be there.
        how: `mean`, `max`, or `topK`: the mean of the K greatest scores (all, where fewer).

    Raises:
        ValueError: an unknown way, or images of one breast with several labels.
    """
    units: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    drawn: dict[tuple[str, str], int] = {}
    for row in rows:
        key = str(row["key"])
        unit = (str(row["patient_id"]), row["laterality"] or key)
        units.setdefault(unit, {})[key] = row
        drawn[unit] = drawn.get(unit, 0) + 1
    times = np.array([drawn[unit] // len(images) for unit, images in units.items()], dtype=int)
    groups = [list(images.values()) for images in units.values()]
    if any(len({row["label"] for row in group}) > 1 for group in groups):
        raise ValueError("images of one breast have several labels")
    scores = [_combined([row["score"] for row in group], how) for group in groups]
    strata = {name: [group[0].get(name, -1) for group in groups] for name in _STRATA}
    return Breasts(
        scores=np.repeat(np.array(scores, dtype=np.float64), times),
        labels=np.repeat(np.array([group[0]["label"] for group in groups], dtype=np.int64), times),
        strata={n: np.repeat(np.array(v, dtype=np.int64), times) for n, v in strata.items()},
    )


def _combined(scores: list[float], how: str) -> float:
    if how == "mean":
        return sum(scores) / len(scores)
    if how == "max":
        return max(scores)
    if how.startswith("top") and how[3:].isdigit() and int(how[3:]):
        best = sorted(scores)[-int(how[3:]) :]
        return sum(best) / len(best)
    raise ValueError(f"unknown aggregation {how!r}; choose from {', '.join(AGGREGATIONS)}")


def breast_numbers(breasts: Breasts, *, threshold: float | None) -> dict[str, float]:
    """Return what is reported of breasts, of all and of each site and machine.

    `pf1_raw` takes the scores as they are; `pf1` the decisions at the threshold, which is what is
    submitted. Without a threshold, as while training, the best one of these very breasts stands in:
    by that value the original chose its epoch.
    """
    positive = breasts.labels == 1
    if threshold is None:
        threshold = best_threshold(breasts)
    numbers = {
        "pf1": f1_at(breasts.scores, positive, threshold),
        "pf1_raw": probabilistic_f1(breasts.scores, positive),
        **two_class_numbers(breasts.scores, breasts.labels, threshold=threshold),
    }
    for name, values in breasts.strata.items():
        known = np.unique(values[values >= 0])
        for value in known if known.size > 1 else ():
            part = values == value
            scores, flags = breasts.scores[part], positive[part]
            numbers[f"pf1_{name}_{value}"] = f1_at(scores, flags, threshold)
            numbers[f"auroc_{name}_{value}"] = ranking.auroc(scores, flags)
    return numbers


def best_threshold(breasts: Breasts) -> float:
    """Return the threshold of the best F1; 0.5 where no breast is positive."""
    positive = breasts.labels == 1
    return best_f1(breasts.scores, positive).threshold if positive.any() else DEFAULT_THRESHOLD


def choose_aggregation(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return `aggregation` and `threshold` of the best F1 of validation rows.

    Ties go to the better average precision, then to the first of `AGGREGATIONS`.
    """
    tried = {how: aggregate(rows, how) for how in AGGREGATIONS}
    if not any((breasts.labels == 1).any() for breasts in tried.values()):
        return {"aggregation": AGGREGATIONS[0], "threshold": DEFAULT_THRESHOLD}

    def merit(how: str) -> tuple[float, float]:
        positive = tried[how].labels == 1
        point = best_f1(tried[how].scores, positive)
        ranked = ranking.average_precision(tried[how].scores, positive)
        return point.f1, ranked if np.isfinite(ranked) else 0.0

    best = max(AGGREGATIONS, key=merit)
    return {"aggregation": best, "threshold": best_threshold(tried[best])}
