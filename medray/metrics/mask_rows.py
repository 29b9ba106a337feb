"""What one case says of a predicted mask, kept so that every threshold can be judged later.

A row holds `found_true` and `found_false`: the numbers of foreground and background voxels whose
probability is at least k / NUM_THRESHOLDS, for each k. A power of two, so that p x NUM_THRESHOLDS
is exact and the counts are those of comparing voxel by voxel.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from medray.metrics import overlap

if TYPE_CHECKING:
    from torch import Tensor

NUM_THRESHOLDS = 128
# Between them thresholds are counted; of 0 every voxel would be foreground, unseen by the counts.
THRESHOLD_LIMITS = (1 / NUM_THRESHOLDS, 1 - 1 / NUM_THRESHOLDS)
PART_STEP = 4


def voxel_counts(probs: "Tensor", mask: "Tensor") -> list[dict[str, list[int]]]:
    """Return one row per example.

    Args:
        probs: (B, D, H, W) float32 probability of the foreground.
        mask: (B, D, H, W), 0 is background.
    """
    bins = (probs * NUM_THRESHOLDS).long().clamp(0, NUM_THRESHOLDS - 1)
    bins += NUM_THRESHOLDS * (mask != 0).long()
    rows = []
    for one in bins:
        counts = one.flatten().bincount(minlength=2 * NUM_THRESHOLDS).cpu().reshape(2, -1)
        reached = counts.flip(1).cumsum(1).flip(1).tolist()
        rows.append({"found_true": reached[1], "found_false": reached[0]})
    return rows


def counts_at(rows: Sequence[Mapping[str, Any]], threshold: float) -> np.ndarray:
    """Return (cases, 3) [TP, FP, FN] at the nearest threshold kept."""
    k = min(NUM_THRESHOLDS - 1, max(0, round(threshold * NUM_THRESHOLDS)))
    table = [(r["found_true"][k], r["found_false"][k], r["found_true"][0]) for r in rows]
    counts = np.array(table, dtype=np.int64).reshape(-1, 3)
    counts[:, 2] -= counts[:, 0]
    return counts


def mask_numbers(counts: np.ndarray) -> dict[str, float]:
    """Return `dice` and `dice_sd` over cases, and pooled `precision`, `recall` and `f1`."""
    if not len(counts):
        return dict.fromkeys(("dice", "dice_sd", "precision", "recall", "f1"), float("nan"))
    each = overlap.dice(counts)
    return {"dice": float(each.mean()), "dice_sd": float(each.std()), **overlap.pooled(counts)}


def best_mask_threshold(rows: Sequence[Mapping[str, Any]]) -> float:
    """Return the threshold of the best mean Dice of these cases."""
    return overlap.best_threshold(mask_curve(rows))[0]


def mask_curve(rows: Sequence[Mapping[str, Any]]) -> overlap.ThresholdCurve:
    """Return the scores of these cases at every threshold kept."""
    reached = np.array([[r["found_false"], r["found_true"]] for r in rows], dtype=np.int64)
    return overlap.threshold_curve(-np.diff(reached, axis=-1, append=0))


def all_foreground(rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Return (cases, 3) counts of the trivial answer that calls every voxel foreground."""
    table = [(r["found_true"][0], r["found_false"][0], 0) for r in rows]
    return np.array(table, dtype=np.int64).reshape(-1, 3)


def level_counts(
    levels: np.ndarray, truth: np.ndarray, largest: Callable[[np.ndarray], np.ndarray]
) -> dict[str, list[int]]:
    """Return the columns `native_true`, `native_false`, `largest_true` and `largest_false`.

    The first two are like `found_true` and `found_false`. The others are those of the largest part
    alone, which is another one at each threshold: they are counted at every `PART_STEP`-th.

    Args:
        levels: (depth, height, width) highest k whose threshold each voxel reaches.
        truth: of the same shape, 0 is background.
        largest: a mask to its largest part.
    """
    counts = np.zeros((2, NUM_THRESHOLDS), dtype=np.int64)
    for part, true in zip(levels, truth, strict=True):  # by slices: bincount widens to 8 bytes
        inside = part[true != 0]
        counts[1] += np.bincount(inside, minlength=NUM_THRESHOLDS)
        counts[0] += np.bincount(part.ravel(), minlength=NUM_THRESHOLDS)
    counts[0] -= counts[1]
    reached = counts[:, ::-1].cumsum(axis=1)[:, ::-1].tolist()
    near = tuple(
        slice(int(hit[0]), int(hit[-1]) + 1) if len(hit) else slice(0, 1)
        for hit in (
            np.flatnonzero((levels >= PART_STEP).any(axis=axes))
            for axes in ((1, 2), (0, 2), (0, 1))
        )
    )
    close, there = levels[near], truth[near] != 0
    parts = [(0, 0)]
    for k in range(PART_STEP, NUM_THRESHOLDS, PART_STEP):
        largest_part = largest((close >= k).astype(np.uint8)) != 0
        both = int(np.count_nonzero(largest_part & there))
        parts.append((both, int(np.count_nonzero(largest_part)) - both))
    return {
        "native_true": reached[1],
        "native_false": reached[0],
        "largest_true": [true for true, _ in parts],
        "largest_false": [false for _, false in parts],
    }


def native_counts(
    row: Mapping[str, Any], threshold: float, *, largest_alone: bool = False
) -> np.ndarray:
    """Return [TP, FP, FN] on the original grid at the nearest threshold that was counted."""
    name = "largest" if largest_alone else "native"
    steps = NUM_THRESHOLDS // PART_STEP if largest_alone else NUM_THRESHOLDS
    k = min(steps - 1, max(1, round(threshold * steps)))
    found, wrong = row[f"{name}_true"][k], row[f"{name}_false"][k]
    return np.array([found, wrong, row["native_true"][0] - found], dtype=np.int64)
