"""Whether a probability means what it says: reliability curve, calibration error, Brier score.

For several classes give the highest class probability as score and "it was right" as truth.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float64, Int64

from medray.metrics.scored import Scores, Truth, scored

Bins = Literal["width", "mass"]
NUM_BINS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Reliability:
    """One entry for each bin that holds a case, by rising score.

    Attributes:
        mean_score: mean predicted probability.
        share_positive: share of cases that are positive.
        num_cases: how many cases.
    """

    mean_score: Float64[np.ndarray, "bins"]
    share_positive: Float64[np.ndarray, "bins"]
    num_cases: Int64[np.ndarray, "bins"]


def reliability(
    scores: Scores, positive: Truth, *, num_bins: int = NUM_BINS, bins: Bins = "mass"
) -> Reliability:
    """Return how often cases of like probability are positive.

    Args:
        scores: probabilities.
        positive: truth.
        num_bins: at most so many bins.
        bins: `width` cuts [0, 1] into equal parts, closed below, the last one also above; `mass`
            cuts the ranks into parts of equal number, equal scores sharing their middle rank.

    Raises:
        ValueError: no case, a score outside [0, 1], `num_bins` below 1, or another kind of bin.
    """
    values, flags = scored(scores, positive)
    if not values.size or values.min() < 0 or values.max() > 1:
        raise ValueError("calibration needs at least one case and scores within [0, 1]")
    if num_bins < 1:
        raise ValueError(f"num_bins must be >= 1, got {num_bins}")
    where = _bin_of(values, num_bins, bins)
    sizes = np.bincount(where, minlength=num_bins)
    used = sizes > 0
    return Reliability(
        mean_score=np.bincount(where, weights=values, minlength=num_bins)[used] / sizes[used],
        share_positive=np.bincount(where, weights=flags, minlength=num_bins)[used] / sizes[used],
        num_cases=sizes[used].astype(np.int64),
    )


def expected_calibration_error(
    scores: Scores, positive: Truth, *, num_bins: int = NUM_BINS, bins: Bins = "mass"
) -> float:
    """Return the mean of |share positive - mean score| over bins, weighted by their cases.

    Naeini et al., AAAI 2015, for equal width; equal mass is less biased on few cases. Arguments
    and errors are those of `reliability`.
    """
    curve = reliability(scores, positive, num_bins=num_bins, bins=bins)
    gaps = np.abs(curve.share_positive - curve.mean_score)
    return float((gaps * curve.num_cases).sum() / curve.num_cases.sum())


def brier_score(scores: Scores, positive: Truth) -> float:
    """Return the mean squared difference of probability and truth; NaN without cases."""
    values, flags = scored(scores, positive)
    return float(((values - flags) ** 2).mean()) if values.size else float("nan")


def _bin_of(values: np.ndarray, num_bins: int, bins: Bins) -> np.ndarray:
    if bins == "width":
        return np.searchsorted(np.arange(1, num_bins) / num_bins, values, side="right")
    if bins == "mass":
        _, where, sizes = np.unique(values, return_inverse=True, return_counts=True)
        middle_ranks = np.cumsum(sizes) - (sizes + 1) / 2
        bin_of: np.ndarray = (middle_ranks * num_bins / values.size).astype(np.int64)[where]
        return bin_of
    raise ValueError(f"bins must be 'width' or 'mass', got {bins!r}")
