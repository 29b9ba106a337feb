"""Calibration against loops over bins and MONAI."""

import itertools

import numpy as np
import pytest
import torch

from medray.metrics import calibration

RNG = np.random.default_rng(0)
SCORES = RNG.random(400)
POSITIVE = RNG.random(400) < SCORES**2


def slow_error(scores, positive, edges):
    error = 0.0
    for n, (low, high) in enumerate(itertools.pairwise(edges)):
        last = n == len(edges) - 2
        inside = (scores >= low) & ((scores < high) | last)
        if inside.any():
            error += inside.mean() * abs(scores[inside].mean() - positive[inside].mean())
    return error


def test_equal_width_equals_a_loop_and_monai():
    from monai.metrics.calibration import CalibrationErrorMetric

    ours = calibration.expected_calibration_error(SCORES, POSITIVE, num_bins=10, bins="width")
    assert ours == pytest.approx(slow_error(SCORES, POSITIVE, np.linspace(0, 1, 11)))
    metric = CalibrationErrorMetric(num_bins=10, include_background=True)
    metric(
        torch.from_numpy(SCORES).float()[None, None, :, None],
        torch.from_numpy(POSITIVE).float()[None, None, :, None],
    )
    assert ours == pytest.approx(float(metric.aggregate()), abs=1e-5)


def test_equal_mass_equals_a_loop_and_fills_the_bins_alike():
    edges = np.append(np.sort(SCORES)[::40], 1.0)
    ours = calibration.expected_calibration_error(SCORES, POSITIVE, num_bins=10)
    assert ours == pytest.approx(slow_error(SCORES, POSITIVE, edges))
    curve = calibration.reliability(SCORES, POSITIVE, num_bins=10)
    assert curve.num_cases.tolist() == [40] * 10
    assert (np.diff(curve.mean_score) > 0).all()


def test_equal_scores_stay_together():
    scores = np.array([0.2, 0.2, 0.2, 0.2, 0.9])
    positive = np.array([1, 0, 0, 0, 1])
    for order in (slice(None), slice(None, None, -1)):
        curve = calibration.reliability(scores[order], positive[order], num_bins=3)
        assert curve.num_cases.tolist() == [4, 1]
        assert curve.share_positive == pytest.approx([0.25, 1])
    error = calibration.expected_calibration_error(scores, positive, num_bins=3)
    assert error == pytest.approx((4 * 0.05 + 0.1) / 5)


def test_ends_fewer_cases_than_bins_and_perfect_scores():
    for bins in ("width", "mass"):
        curve = calibration.reliability([0.0, 1.0], [0, 1], num_bins=10, bins=bins)
        assert curve.num_cases.tolist() == [1, 1]
        error = calibration.expected_calibration_error([0, 1, 1], [0, 1, 1], bins=bins)
        assert error == 0


def test_brier_score():
    assert calibration.brier_score([0.8, 0.3], [1, 0]) == pytest.approx((0.04 + 0.09) / 2)
    assert np.isnan(calibration.brier_score([], []))


def test_wrong_input_raises():
    with pytest.raises(ValueError, match=r"scores within \[0, 1\]"):
        calibration.reliability([1.5], [1])
    with pytest.raises(ValueError, match="at least one case"):
        calibration.reliability([], [])
    with pytest.raises(ValueError, match="num_bins must be >= 1, got 0"):
        calibration.reliability([0.5], [1], num_bins=0)
    with pytest.raises(ValueError, match="'width' or 'mass', got 'depth'"):
        calibration.reliability([0.5], [1], bins="depth")
