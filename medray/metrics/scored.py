"""The one shape that scores with two-class truth come in, checked in one place."""

import numpy as np
from jaxtyping import Bool, Float64, Real

Scores = Real[np.ndarray, "cases"]
Truth = Real[np.ndarray, "cases"] | Bool[np.ndarray, "cases"]


def scored(
    scores: Scores, positive: Truth
) -> tuple[Float64[np.ndarray, "cases"], Bool[np.ndarray, "cases"]]:
    """Return scores as float64 and truth as bool.

    Raises:
        ValueError: the two differ in length, are not flat, a score is not finite, or the truth has
            another value than 0 and 1.
    """
    values, given = np.asarray(scores, dtype=np.float64), np.asarray(positive)
    if values.ndim != 1 or values.shape != given.shape:
        raise ValueError(f"need one score a case: {values.shape} scores, {given.shape} truths")
    if not np.isfinite(values).all():
        raise ValueError(f"{int((~np.isfinite(values)).sum())} of {values.size} scores not finite")
    flags = given.astype(bool)
    if (flags != given).any():
        raise ValueError("truth must be 0 or 1; take one class against the rest first")
    return values, flags
