"""Surface distances against all pairs of points, MONAI, and boxes whose distances are known."""

import time

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.spatial.distance import cdist

from medray.metrics import surface

SPACING = (2.5, 0.8, 0.7)


def blob(seed: int, shape=(14, 20, 18)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.random(shape), 2)
    return smooth > np.quantile(smooth, 0.8)


def slow_surface(mask: np.ndarray) -> np.ndarray:
    points = []
    for index in np.argwhere(mask):
        for axis in range(mask.ndim):
            for step in (-1, 1):
                near = index.copy()
                near[axis] += step
                inside = (near >= 0).all() and (near < mask.shape).all()
                if not inside or not mask[tuple(near)]:
                    points.append(tuple(index))
    return np.array(sorted(set(points)))


def slow(found, truth, spacing):
    pairs = cdist(slow_surface(found) * np.array(spacing), slow_surface(truth) * np.array(spacing))
    return pairs.min(axis=1), pairs.min(axis=0)


def three(found, truth, spacing=SPACING, tolerance=1.5):
    distances = surface.surface_distances(found, truth, spacing_mm=spacing)
    return (
        surface.hd95_mm(distances),
        surface.average_surface_distance_mm(distances),
        surface.normalised_surface_distance(distances, tolerance_mm=tolerance),
    )


@pytest.mark.parametrize("points_rule", [1e9, 1e-9], ids=["transform", "tree"])
@pytest.mark.parametrize("seed", range(4))
def test_distances_equal_all_pairs_of_points(seed, points_rule, monkeypatch):
    monkeypatch.setattr(surface, "_BOX_VOXELS_PER_POINT", points_rule)
    found, truth = blob(seed), blob(seed + 100)
    ours = surface.surface_distances(found, truth, spacing_mm=SPACING)
    expected = slow(found, truth, SPACING)
    assert np.allclose(np.sort(ours.to_truth_mm), np.sort(expected[0]))
    assert np.allclose(np.sort(ours.to_found_mm), np.sort(expected[1]))
    both = np.concatenate(expected)
    hd95, average, nsd = three(found, truth)
    assert hd95 == pytest.approx(max(np.percentile(one, 95) for one in expected))
    assert average == pytest.approx(both.mean())
    assert nsd == pytest.approx((both <= 1.5).mean())


@pytest.mark.parametrize("seed", range(4))
def test_values_equal_monai(seed):
    from monai.metrics import (
        compute_average_surface_distance,
        compute_hausdorff_distance,
        compute_surface_dice,
    )

    found, truth = blob(seed), blob(seed + 100)
    first, second = (torch.from_numpy(m[None, None]).float() for m in (found, truth))
    given = {"include_background": True, "spacing": SPACING}
    hd95, average, nsd = three(found, truth)
    assert hd95 == pytest.approx(
        compute_hausdorff_distance(first, second, percentile=95, **given).item(), rel=1e-5
    )
    assert average == pytest.approx(
        compute_average_surface_distance(first, second, symmetric=True, **given).item(), rel=1e-5
    )
    assert nsd == pytest.approx(compute_surface_dice(first, second, [1.5], **given).item(), 1e-6)


def test_two_dimensions_and_other_types():
    found, truth = np.zeros((9, 9), np.uint8), np.zeros((9, 9), np.int16)
    found[2, 2], truth[5, 6] = 1, 3
    distance = np.hypot(3 * 2.0, 4 * 0.5)
    assert three(found, truth, (2.0, 0.5)) == pytest.approx((distance, distance, 0))


def test_shifted_box_by_hand():
    """A plate of one voxel's thickness moved by two slices of 3 mm: each distance is 6 mm."""
    found, truth = np.zeros((8, 6, 6), bool), np.zeros((8, 6, 6), bool)
    found[1], truth[3] = True, True
    assert three(found, truth, (3, 1, 1), 5.9) == pytest.approx((6, 6, 0))
    assert three(found, truth, (3, 1, 1), 6) == pytest.approx((6, 6, 1))


def test_tolerance_holds_for_distances_that_round_up():
    found, truth = np.zeros((1, 1, 9), bool), np.zeros((1, 1, 9), bool)
    found[..., 0], truth[..., 3] = True, True
    assert 3 * 0.1 > 0.3
    assert three(found, truth, (1, 1, 0.1), 0.3)[2] == 1


def test_moving_both_or_swapping_them_changes_nothing():
    found, truth = blob(1), blob(2)
    moved = [np.pad(mask, ((3, 0), (7, 2), (0, 5))) for mask in (found, truth)]
    inner = [np.pad(mask, 1) for mask in (found, truth)]  # the array's border is outside
    assert three(*moved) == pytest.approx(three(found, truth))
    assert three(*inner) == pytest.approx(three(found, truth))
    assert three(truth, found) == pytest.approx(three(found, truth))


def test_empty_masks():
    empty, full = np.zeros((4, 4, 4), bool), np.ones((4, 4, 4), bool)
    assert three(empty, empty) == (0, 0, 1)
    assert three(full, full) == (0, 0, 1)
    for pair in ((empty, full), (full, empty)):
        hd95, average, nsd = three(*pair)
        assert np.isnan(hd95)
        assert np.isnan(average)
        assert nsd == 0


def test_wrong_input_raises():
    mask = np.ones((2, 3, 4), bool)
    with pytest.raises(ValueError, match="share a grid"):
        surface.surface_distances(mask, mask[:1], spacing_mm=SPACING)
    for spacing in ((1, 1), (1, 0, 1), (1, np.nan, 1)):
        with pytest.raises(ValueError, match="must be 3 sizes > 0"):
            surface.surface_distances(mask, mask, spacing_mm=spacing)
    distances = surface.surface_distances(mask, mask, spacing_mm=SPACING)
    with pytest.raises(ValueError, match="finite and >= 0, got -1"):
        surface.normalised_surface_distance(distances, tolerance_mm=-1)


def test_a_whole_scan_takes_less_than_a_second():
    """A pancreas in 512 x 512 x 300 voxels, with one stray voxel that widens the common box."""
    shape, center, radii = (300, 512, 512), (150, 250, 250), (40, 30, 75)
    axes = np.ogrid[tuple(slice(0, n) for n in shape)]
    offsets = [((a - c) / r) ** 2 for a, c, r in zip(axes, center, radii, strict=True)]
    truth = sum(offsets) < 1
    found = np.roll(truth, (3, 4, -2), axis=(0, 1, 2))
    found[2, 3, 500] = True
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        three(found, truth, (1.0, 0.8, 0.8))
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1
