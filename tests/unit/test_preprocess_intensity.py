"""Ranges and windows against the standard's formula, point by point."""

import numpy as np
import pytest

from medray.preprocess.intensity import (
    minmax,
    normalise,
    percentile_window,
    pixel_stats,
    scale_range,
    window_hu,
)

VALUES = np.array([[-1024, -160, -161], [40, 239, 240], [241, 3000, -159]], dtype=np.int16)


def linear_exact(value: float, center: float, width: float) -> float:
    """PS3.3 C.11.2.1.3.2 as it is written."""
    if value <= center - width / 2:
        return 0.0
    if value > center + width / 2:
        return 1.0
    return (value - center) / width + 0.5


@pytest.mark.parametrize(("center", "width"), [(40, 400), (-600, 1500), (0.5, 1), (300, 0.25)])
def test_window_is_linear_exact(center, width):
    out = window_hu(VALUES, center_hu=center, width_hu=width)
    expected = [[linear_exact(float(v), center, width) for v in row] for row in VALUES]
    assert np.allclose(out, expected, atol=1e-6)
    assert out.dtype == np.float32


def test_window_saturates_exactly():
    out = window_hu(VALUES, center_hu=40, width_hu=400)
    assert out.min() == 0
    assert out.max() == 1


@pytest.mark.parametrize("width", [0, -1, float("nan")])
def test_a_window_needs_width(width):
    with pytest.raises(ValueError, match="width_hu must be > 0"):
        window_hu(VALUES, center_hu=0, width_hu=width)


def test_scale_range_to_minus_one_and_one():
    out = scale_range(VALUES, low=-512, high=1024, out_low=-1, out_high=1)
    expected = np.clip((VALUES.astype(float) + 512) / 1536 * 2 - 1, -1, 1)
    assert np.allclose(out, expected, atol=1e-6)
    falling = scale_range(VALUES, low=-512, high=1024, out_low=1, out_high=0)
    assert np.allclose(falling, 1 - (expected + 1) / 2, atol=1e-6)
    with pytest.raises(ValueError, match="high must be > low"):
        scale_range(VALUES, low=3, high=3)


def test_minmax_reaches_both_ends():
    out = minmax(VALUES)
    assert (out.min(), out.max()) == (0, 1)
    assert np.array_equal(minmax(np.full((2, 2), 5), out_low=-1), np.full((2, 2), -1))


def test_percentile_window_is_always_usable():
    values = np.arange(1001)
    assert percentile_window(values, low_percent=1, high_percent=99) == (10, 990)
    mostly_black = np.zeros(10_000)
    mostly_black[0] = 7
    assert percentile_window(mostly_black) == (0, 7)
    assert percentile_window(np.full(9, 4)) == (4, 5)


def test_normalise_by_channel():
    values = np.stack([VALUES, VALUES * 2]).astype(np.float32)
    out = normalise(values, mean=(10, 20), std=(2, 4))
    assert np.allclose(out[0], (VALUES.astype(float) - 10) / 2)
    assert np.allclose(out[1], out[0])
    assert np.allclose(normalise(VALUES, mean=10, std=2), (VALUES.astype(float) - 10) / 2)
    with pytest.raises(ValueError, match="std must be > 0"):
        normalise(VALUES, mean=0, std=0)


def test_stats_are_summed_in_double():
    big = np.full(1_000_000, 30_000, np.int16)
    stats = pixel_stats(big)
    assert (stats.value_min, stats.value_max, stats.mean, stats.std) == (30_000, 30_000, 30_000, 0)
    assert stats.is_constant
    assert not pixel_stats(VALUES).is_constant


def test_arguments_are_left_alone():
    values = VALUES.astype(np.float32)
    before = values.copy()
    window_hu(values, center_hu=0, width_hu=10)[:] = 9
    minmax(values)[:] = 9
    normalise(values, mean=1, std=2)[:] = 9
    assert np.array_equal(values, before)
