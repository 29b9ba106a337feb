"""One-axis maps against slow loops, torch and Pillow."""

import numpy as np
import pytest
import torch
from PIL import Image

from medray.preprocess.axes import (
    linear_map,
    nearest_map,
    pick_plane,
    resize_positions,
    sample_plane,
)

SIZES = [(7, 7), (7, 14), (7, 5), (16, 8), (16, 7), (100, 9), (5, 1), (1, 4), (64, 63), (3, 40)]


def dense(axis_map) -> np.ndarray:
    matrix = np.zeros((axis_map.num_out, axis_map.num_in))
    for target, source, weights in axis_map.blocks:
        matrix[target, source] += weights
    return matrix


def resize_map(num_in: int, num_out: int, *, antialias: bool = True):
    shrink = num_in / num_out if antialias else 1.0
    return linear_map(resize_positions(num_in, num_out), num_in=num_in, shrink=shrink)


def slow_linear(values, positions):
    out = []
    for position in positions:
        place = min(max(position, 0), len(values) - 1)
        low = int(np.floor(place))
        high = min(low + 1, len(values) - 1)
        out.append(values[low] * (1 - (place - low)) + values[high] * (place - low))
    return np.array(out)


def slow_triangle(values, positions, shrink):
    out = []
    for place in positions:
        total = weight_sum = 0.0
        for index, value in enumerate(values):
            weight = max(0.0, 1 - abs(index - place) / shrink)
            total, weight_sum = total + weight * value, weight_sum + weight
        out.append(total / weight_sum)
    return np.array(out)


@pytest.mark.parametrize(("num_in", "num_out"), SIZES)
def test_resize_equals_a_slow_loop(num_in, num_out):
    values = np.random.default_rng(0).normal(size=num_in)
    positions = resize_positions(num_in, num_out)
    shrink = num_in / num_out
    expected = (
        slow_linear(values, positions) if shrink <= 2 else slow_triangle(values, positions, shrink)
    )
    assert np.allclose(dense(resize_map(num_in, num_out)) @ values, expected, atol=1e-6)


@pytest.mark.parametrize(("num_in", "num_out"), SIZES)
def test_plain_resize_equals_torch(num_in, num_out):
    values = np.random.default_rng(1).normal(size=num_in)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(values)[None, None], num_out, mode="linear", align_corners=False
    )[0, 0].numpy()
    assert np.allclose(
        dense(resize_map(num_in, num_out, antialias=False)) @ values, expected, atol=1e-6
    )


@pytest.mark.parametrize("shape", [(160, 160), (31, 200), (9, 9), (200, 50), (512, 100), (1, 1)])
def test_planes_equal_torch_on_each_side_of_the_rule(shape):
    plane = np.random.default_rng(2).integers(-1024, 3000, (512, 300)).astype(np.int16)
    maps = {"rows": resize_map(512, shape[0]), "columns": resize_map(300, shape[1])}
    for axis in (0, 1):
        smooth = plane.shape[axis] / shape[axis] > 2
        size = [512, 300]
        size[axis] = shape[axis]
        expected = torch.nn.functional.interpolate(
            torch.from_numpy(plane.astype(np.float64))[None, None],
            size, mode="bilinear", antialias=smooth, align_corners=False,
        )[0, 0].numpy()  # fmt: skip
        one = {"rows": resize_map(512, size[0]), "columns": resize_map(300, size[1])}
        assert np.abs(sample_plane(plane, **one) - expected).max() < 2e-3
    both = sample_plane(plane, **maps)
    assert both.shape == shape
    assert both.dtype == np.float32


def test_shrinking_equals_pillow():
    image = np.random.default_rng(3).normal(size=(300, 200)).astype(np.float32)
    expected = np.asarray(Image.fromarray(image).resize((40, 60), Image.Resampling.BILINEAR))
    out = sample_plane(image, rows=resize_map(300, 60), columns=resize_map(200, 40))
    assert np.allclose(out, expected, atol=1e-5)


def test_the_rule_changes_at_two():
    values = np.zeros(64)
    values[10] = 1
    assert np.count_nonzero(dense(resize_map(64, 32))[:, 10]) == 1
    assert np.count_nonzero(dense(resize_map(64, 31))[:, 10]) > 1


@pytest.mark.parametrize(("num_in", "num_out"), SIZES)
def test_weights_are_positive_and_sum_to_one(num_in, num_out):
    matrix = dense(resize_map(num_in, num_out))
    assert matrix.min() >= 0
    assert np.allclose(matrix.sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize(("num_in", "num_out"), SIZES)
def test_nearest_equals_torch(num_in, num_out):
    values = np.arange(num_in)
    picked = values[nearest_map(resize_positions(num_in, num_out), num_in=num_in).index[:, 0]]
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(values.astype(np.float64))[None, None], num_out, mode="nearest-exact"
    )[0, 0].numpy()
    assert np.array_equal(picked, expected)


def test_nearest_keeps_labels_and_dtype():
    labels = np.random.default_rng(4).choice([0, 3, 200], (30, 20)).astype(np.uint8)
    maps = [nearest_map(resize_positions(*sizes), num_in=sizes[0]) for sizes in ((30, 7), (20, 33))]
    picked = pick_plane(labels, rows=maps[0], columns=maps[1])
    assert picked.dtype == np.uint8
    assert set(np.unique(picked)) <= {0, 3, 200}


def test_whole_positions_are_exact_also_reversed():
    plane = np.random.default_rng(5).integers(-30000, 30000, (9, 8)).astype(np.int16)
    rows = linear_map(np.arange(9)[::-1] + 3e-5, num_in=9)
    columns = linear_map(np.arange(8.0), num_in=8)
    assert rows.is_pick
    assert np.array_equal(sample_plane(plane, rows=rows, columns=columns), plane[::-1])


def test_a_single_position_near_a_voxel_is_not_snapped_where_others_are_between():
    assert not linear_map(np.array([0.0, 0.00005, 1.5]), num_in=3).is_pick


def test_inside_reaches_half_a_voxel_beyond_the_centres():
    axis_map = linear_map(np.array([-0.6, -0.5, 0.0, 2.4, 2.5, 2.6]), num_in=3)
    assert axis_map.inside.tolist() == [False, True, True, True, True, False]


def test_targets_are_the_columns_of_the_matrix():
    for sizes in SIZES:
        axis_map = resize_map(*sizes)
        matrix = np.zeros((sizes[1], sizes[0]))
        for source in range(sizes[0]):
            for target, weight in axis_map.targets(source):
                matrix[target, source] += weight
        assert np.allclose(matrix, dense(axis_map))
