"""Overlap against slow counting, MONAI and exact small examples."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medray.metrics import overlap

RNG = np.random.default_rng(0)
SMALL = settings(max_examples=50, deadline=None)


def masks(seed: int, share: float = 0.4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.random((5, 6, 7)) < share, rng.random((5, 6, 7)) < share


def test_counts_by_hand():
    found = np.array([[1, 1, 0], [0, 2, 0]], np.uint8)
    truth = np.array([[1, 0, 0], [0, 1, 1]], bool)
    counts = overlap.count_overlap(found, truth)
    assert counts.tolist() == [2, 1, 1]
    assert overlap.dice(counts) == pytest.approx(2 * 2 / 6)
    assert overlap.precision(counts) == pytest.approx(2 / 3)
    assert overlap.recall(counts) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("counts", "dice", "precision", "recall"),
    [
        ([0, 0, 0], 1, 1, 1),  # both empty: full agreement
        ([0, 5, 0], 0, 0, 0),  # nothing there
        ([0, 0, 5], 0, 0, 0),  # nothing found
        ([3, 0, 0], 1, 1, 1),
    ],
)
def test_ratios_without_a_denominator(counts, dice, precision, recall):
    one = np.array(counts)
    assert overlap.dice(one) == dice
    assert overlap.precision(one) == precision
    assert overlap.recall(one) == recall
    stacked = overlap.dice(np.array([counts, [1, 1, 1]]))
    assert stacked.tolist() == [dice, pytest.approx(0.5)]


def test_dice_equals_monai():
    from monai.metrics import compute_dice

    for seed in range(5):
        found, truth = masks(seed)
        first, second = (torch.from_numpy(m[None, None]) for m in (found, truth))
        expected = compute_dice(first, second, include_background=True).item()
        assert overlap.dice(overlap.count_overlap(found, truth)) == pytest.approx(expected, 1e-6)


def test_pooled_scores_are_those_of_one_long_mask():
    pairs = [masks(seed, share) for seed, share in enumerate((0.05, 0.3, 0.9))]
    counts = np.stack([overlap.count_overlap(*pair) for pair in pairs])
    found, truth = (np.concatenate([pair[n].ravel() for pair in pairs]) for n in (0, 1))
    precision, recall = truth[found].mean(), found[truth].mean()
    scores = overlap.pooled(counts)
    assert scores["precision"] == pytest.approx(precision)
    assert scores["recall"] == pytest.approx(recall)
    assert scores["f1"] == pytest.approx(2 * precision * recall / (precision + recall))
    assert scores["f1"] != pytest.approx(overlap.dice(counts).mean(), abs=1e-3)


@SMALL
@given(st.integers(0, 10**6), st.floats(0, 1))
def test_dice_is_symmetric_and_within_0_and_1(seed, share):
    found, truth = masks(seed, share)
    value = overlap.dice(overlap.count_overlap(found, truth))
    assert 0 <= value <= 1
    assert value == overlap.dice(overlap.count_overlap(truth, found))
    assert overlap.dice(overlap.count_overlap(found, found)) == 1


def test_volumes():
    assert overlap.volume_ml(1000, (2.0, 0.5, 0.5)) == pytest.approx(0.5)
    error = overlap.volume_error(80.0, truth_ml=100.0)
    assert (error.signed_ml, error.absolute_ml) == (-20, 20)
    assert error.relative == pytest.approx(-0.2)
    assert error.absolute_relative == pytest.approx(0.2)
    nothing = overlap.volume_error(3.0, truth_ml=0.0)
    assert nothing.signed_ml == 3
    assert np.isnan(nothing.relative)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_curve_equals_counting_at_each_threshold(dtype):
    probs = RNG.random((4, 9, 11)).astype(dtype)
    probs.ravel()[:20] = (
        np.arange(20, dtype=dtype) / 16 % 1.0625
    )  # on the edges, 0 and 1 among them
    truth = RNG.random(probs.shape) < 0.3
    histogram = overlap.probability_histogram(probs, truth, num_bins=16)
    assert histogram.sum() == probs.size
    assert histogram[1].sum() == truth.sum()
    curve = overlap.curve_counts(histogram)
    for k in range(16):
        assert (curve[k] == overlap.count_overlap(probs >= k / 16, truth)).all()


def test_threshold_curve_and_best_threshold_equal_a_loop():
    truths = [RNG.random((6, 6, 6)) < share for share in (0.1, 0.4, 0.0)]
    probs = [np.clip(0.4 * t + RNG.random(t.shape) * 0.6, 0, 1) for t in truths]
    histograms = np.stack(
        [
            overlap.probability_histogram(p, t, num_bins=32)
            for p, t in zip(probs, truths, strict=True)
        ]
    )
    curve = overlap.threshold_curve(histograms)
    means = []
    for n, threshold in enumerate(curve.thresholds):
        counts = np.stack(
            [overlap.count_overlap(p >= threshold, t) for p, t in zip(probs, truths, strict=True)]
        )
        means.append(np.mean([overlap.dice(c) for c in counts]))
        assert curve.dice[n] == pytest.approx(means[-1])
        assert overlap.pooled(counts) == pytest.approx(
            {"precision": curve.precision[n], "recall": curve.recall[n], "f1": curve.f1[n]}
        )
    threshold, best = overlap.best_threshold(curve)
    assert best == pytest.approx(max(means))
    assert threshold == curve.thresholds[int(np.argmax(means))]


def test_best_threshold_takes_the_tie_nearest_a_half_then_the_lower():
    truth = np.array([0, 0, 1, 1], bool)
    clear = overlap.probability_histogram(np.array([0, 0.1, 0.9, 1.0]), truth, num_bins=8)
    assert overlap.best_threshold(overlap.threshold_curve(clear[None])) == (0.5, 1.0)
    high = overlap.probability_histogram(np.array([0, 0.6, 0.9, 1.0]), truth, num_bins=8)
    assert overlap.best_threshold(overlap.threshold_curve(high[None]))[0] == 0.625
    curve = overlap.threshold_curve(clear[None])
    sides = overlap.ThresholdCurve(
        thresholds=curve.thresholds, dice=np.array([0, 0, 0, 1, 0, 1, 0, 0.0]),
        precision=curve.precision, recall=curve.recall, f1=curve.f1,
    )  # fmt: skip
    assert overlap.best_threshold(sides)[0] == 0.375


def test_wrong_input_raises():
    mask = np.zeros((2, 3), bool)
    with pytest.raises(ValueError, match=r"share a grid, got \(2, 3\) and \(3, 2\)"):
        overlap.count_overlap(mask, mask.T)
    with pytest.raises(ValueError, match="probs and truth must share a grid"):
        overlap.probability_histogram(np.zeros((3, 2)), mask)
    with pytest.raises(ValueError, match="power of two, got 100"):
        overlap.probability_histogram(np.zeros((2, 3)), mask, num_bins=100)
    for bad in (np.nan, -0.1, 1.1):
        with pytest.raises(ValueError, match="apply softmax"):
            overlap.probability_histogram(np.full((2, 3), bad), mask)
    with pytest.raises(ValueError, match="at least one case"):
        overlap.threshold_curve(np.zeros((0, 2, 8), np.int64))
