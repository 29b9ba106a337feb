"""Overlap of masks from three counts: true positives, false positives, false negatives.

Counts are the last axis of an int64 array, in this order, so that cases stack, workers add, and
bootstrap resamples sum. Where a ratio is 0 / 0 it is 1 if nothing was there and nothing was found
(two empty masks agree fully), else 0; there is no NaN.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64, Real

Mask = Bool[np.ndarray, "*grid"] | Real[np.ndarray, "*grid"]
Counts = Int64[np.ndarray, "*batch 3"]
Histograms = Int64[np.ndarray, "cases 2 bins"]

NUM_BINS = 256
# Means over cases that differ by rounding alone are a tie.
_TIE = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeError:
    """Difference of two volumes; `relative` ones are NaN where the true volume is 0."""

    signed_ml: float
    absolute_ml: float
    relative: float
    absolute_relative: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ThresholdCurve:
    """Scores at each threshold, all (bins,) float64.

    Attributes:
        thresholds: 0, 1 / bins, ...; a voxel is found where its probability is at least this.
        dice: mean over cases of each case's Dice.
        precision: of the counts pooled over all cases, as are `recall` and `f1`.
    """

    thresholds: Float64[np.ndarray, "bins"]
    dice: Float64[np.ndarray, "bins"]
    precision: Float64[np.ndarray, "bins"]
    recall: Float64[np.ndarray, "bins"]
    f1: Float64[np.ndarray, "bins"]


def count_overlap(found: Mask, truth: Mask) -> Int64[np.ndarray, "3"]:
    """Return [TP, FP, FN] of two masks; every value but 0 is inside.

    Raises:
        ValueError: the masks differ in shape.
    """
    if found.shape != truth.shape:
        raise ValueError(f"masks must share a grid, got {found.shape} and {truth.shape}")
    inside, true = found.astype(bool, copy=False), truth.astype(bool, copy=False)
    both = np.count_nonzero(inside & true)
    return np.array(
        [both, np.count_nonzero(inside) - both, np.count_nonzero(true) - both], dtype=np.int64
    )


def dice(counts: Counts) -> Float64[np.ndarray, "*batch"]:
    """Return 2 TP / (2 TP + FP + FN), which is also F1; 1 for two empty masks."""
    tp, fp, fn = np.moveaxis(np.asarray(counts), -1, 0)
    return _ratio(2 * tp, 2 * tp + fp + fn, empty=tp + fp + fn == 0)


def precision(counts: Counts) -> Float64[np.ndarray, "*batch"]:
    """Return TP / (TP + FP); where nothing was found, 1 if nothing was there, else 0."""
    tp, fp, fn = np.moveaxis(np.asarray(counts), -1, 0)
    return _ratio(tp, tp + fp, empty=tp + fp + fn == 0)


def recall(counts: Counts) -> Float64[np.ndarray, "*batch"]:
    """Return TP / (TP + FN); where nothing was there, 1 if nothing was found, else 0."""
    tp, fp, fn = np.moveaxis(np.asarray(counts), -1, 0)
    return _ratio(tp, tp + fn, empty=tp + fp + fn == 0)


def pooled(counts: Int64[np.ndarray, "cases 3"]) -> dict[str, float]:
    """Return `precision`, `recall` and `f1` of the voxels of all cases taken together (micro)."""
    total = np.asarray(counts).sum(axis=0)
    return {
        "precision": float(precision(total)),
        "recall": float(recall(total)),
        "f1": float(dice(total)),
    }


def volume_ml(num_voxels: float, spacing_mm: Sequence[float]) -> float:
    """Return the volume of so many voxels of this spacing."""
    return float(num_voxels) * float(np.prod(np.asarray(spacing_mm, dtype=np.float64))) / 1000.0


def volume_error(found_ml: float, *, truth_ml: float) -> VolumeError:
    """Return found less true volume, in ml and as a share of the true one."""
    signed = float(found_ml) - float(truth_ml)
    share = signed / truth_ml if truth_ml > 0 else float("nan")
    return VolumeError(
        signed_ml=signed, absolute_ml=abs(signed), relative=share, absolute_relative=abs(share)
    )


def probability_histogram(
    probs: Float[np.ndarray, "*grid"], truth: Mask, *, num_bins: int = NUM_BINS
) -> Int64[np.ndarray, "2 bins"]:
    """Return how many background (row 0) and foreground (row 1) voxels fall in each bin.

    Bin k holds k / num_bins <= p < (k + 1) / num_bins, the last one also p = 1. A power of two
    makes p * num_bins exact, so that the curve at k / num_bins equals counting `probs >= k /
    num_bins` voxel by voxel, in any float type.

    Raises:
        ValueError: the shapes differ, `num_bins` is no power of two, or a probability is not
            within [0, 1].
    """
    if num_bins < 2 or num_bins & (num_bins - 1):
        raise ValueError(f"num_bins must be a power of two, got {num_bins}")
    if probs.shape != truth.shape:
        raise ValueError(f"probs and truth must share a grid, got {probs.shape} and {truth.shape}")
    if probs.size and not (probs.min() >= 0 and probs.max() <= 1):
        raise ValueError("probabilities must be finite and within [0, 1]; apply softmax first")
    # float16 would round products above 2048 and is slow here
    scaled = probs.astype(np.float32) if probs.dtype == np.float16 else probs
    bins = np.minimum((scaled * num_bins).astype(np.int64), num_bins - 1)
    bins += num_bins * truth.astype(bool)
    return np.bincount(bins.ravel(), minlength=2 * num_bins).reshape(2, num_bins).astype(np.int64)


def curve_counts(
    histograms: Int64[np.ndarray, "*batch 2 bins"],
) -> Int64[np.ndarray, "*batch bins 3"]:
    """Return [TP, FP, FN] at each threshold k / bins; found means at or above it."""
    above = np.asarray(histograms)[..., ::-1].cumsum(axis=-1)[..., ::-1]
    fp, tp = above[..., 0, :], above[..., 1, :]
    return np.stack([tp, fp, tp[..., :1] - tp], axis=-1)


def threshold_curve(histograms: Histograms) -> ThresholdCurve:
    """Return mean Dice and pooled scores at each threshold from one histogram a case.

    Raises:
        ValueError: there is no case.
    """
    if not len(histograms):
        raise ValueError("a threshold curve needs at least one case")
    counts = curve_counts(histograms)
    total = counts.sum(axis=0)
    num_bins = counts.shape[-2]
    return ThresholdCurve(
        thresholds=np.arange(num_bins) / num_bins,
        dice=dice(counts).mean(axis=0),
        precision=precision(total),
        recall=recall(total),
        f1=dice(total),
    )


def best_threshold(curve: ThresholdCurve) -> tuple[float, float]:
    """Return the threshold of the best mean Dice, and that Dice.

    Ties go to the threshold nearest 0.5, then to the lower one.
    """
    best = curve.dice >= curve.dice.max() - _TIE
    away = np.where(best, np.abs(curve.thresholds - 0.5), np.inf)
    chosen = int(np.argmin(away))
    return float(curve.thresholds[chosen]), float(curve.dice[chosen])


def _ratio(part: np.ndarray, whole: np.ndarray, *, empty: np.ndarray) -> np.ndarray:
    start = np.where(empty, 1.0, 0.0)
    return np.asarray(np.divide(part, whole, out=start, where=np.asarray(whole) > 0))
