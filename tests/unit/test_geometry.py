import itertools

import numpy as np
import pytest

from medray.dicom.geometry import check_increments, stack_geometry
from medray.dicom.header import Plane
from medray.errors import DataError

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def planes(distances, orientation=AXIAL, spacing=(0.8, 0.7)):
    normal = np.cross(orientation[:3], orientation[3:])
    return [
        Plane(
            position_mm=tuple(np.array([-10.0, 5.0, 3.0]) + normal * d),
            orientation=orientation,
            spacing_yx_mm=spacing,
        )
        for d in distances
    ]


def test_slices_are_ordered_by_position_whatever_order_they_come_in():
    distances = np.arange(7) * 2.5
    for seed in range(20):
        order = np.random.default_rng(seed).permutation(7)
        geometry = stack_geometry(planes(distances[order]))
        assert [int(order[n]) for n in geometry.order] == list(range(7))
        assert geometry.spacing_zyx_mm == pytest.approx((2.5, 0.8, 0.7))


def test_affine_maps_pixel_centres_as_the_standard_says():
    """PS3.3 C.7.6.2.1.1: position + column index x row cosines x column spacing + ..."""
    turned = (0.8, 0.6, 0.0, 0.0, 0.0, -1.0)
    stack = planes(np.arange(5) * 3.0, turned, (0.5, 0.25))
    geometry = stack_geometry(stack)
    for k, j, i in itertools.product((0, 4), (0, 9), (0, 11)):
        plane = stack[geometry.order[k]]
        row, column = np.array(turned[:3]), np.array(turned[3:])
        expected = np.array(plane.position_mm) + i * 0.25 * row + j * 0.5 * column
        assert (geometry.affine_lps @ [k, j, i, 1])[:3] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("distances", "reason"),
    [
        ([0, 5, 10, 20], "missing_slices"),
        ([0, 2, 4, 10, 12], "missing_slices"),
        ([0, 4, 8, 15, 22], "slice_increment_inconsistent"),
        ([0, 5, 5, 10], "duplicate_positions"),
        ([0, 0, 0, 0], "duplicate_positions"),
        ([0, 1], "too_few_slices"),
        ([0, 3, 6, 9.31, 12.31], "slice_increment_inconsistent"),
    ],
)
def test_irregular_stacks_are_refused_with_their_reason(distances, reason):
    with pytest.raises(DataError, match=f"^{reason}: "):
        stack_geometry(planes(distances))


def test_rounded_positions_pass_and_their_drift_is_measured_against_the_whole_stack():
    rounded = np.round(np.arange(200) * 0.625, 1)
    check_increments(rounded)
    growing = np.concatenate([[0], np.cumsum(np.linspace(0.955, 1.045, 200))])
    with pytest.raises(DataError, match=r"slice_increment_inconsistent: slices drift"):
        check_increments(growing)


def test_tolerance_is_hit_from_both_sides():
    check_increments(np.array([0, 4.0, 8.0, 12.19]))
    with pytest.raises(DataError, match="slice_increment_inconsistent"):
        check_increments(np.array([0, 4.0, 8.0, 12.21]))


@pytest.mark.parametrize("missing", ["position_mm", "orientation", "spacing_yx_mm"])
def test_absent_geometry_is_refused(missing):
    stack = planes([0, 1, 2])
    holes = [
        Plane(
            **{
                **{n: getattr(p, n) for n in ("position_mm", "orientation", "spacing_yx_mm")},
                missing: None,
            }
        )
        for p in stack
    ]
    with pytest.raises(DataError, match="^no_geometry: "):
        stack_geometry(holes)


def test_a_small_tilt_is_straightened_where_it_moves_a_slice_by_more_than_half_a_pixel():
    def tilted(slices, shift_px):
        stack = planes(np.arange(slices) * 2.0)
        return [
            Plane(
                position_mm=(
                    p.position_mm[0],
                    p.position_mm[1] + n * shift_px * 0.8,
                    p.position_mm[2],
                ),
                orientation=p.orientation,
                spacing_yx_mm=p.spacing_yx_mm,
            )
            for n, p in enumerate(stack)
        ]

    few, many = stack_geometry(tilted(10, 0.01)), stack_geometry(tilted(100, 0.01))
    assert not few.is_tilted
    assert many.is_tilted
    for geometry in (few, many):
        axes = geometry.affine_lps[:3, :3] / np.linalg.norm(geometry.affine_lps[:3, :3], axis=0)
        assert np.allclose(axes.T @ axes, np.eye(3), atol=1e-12)


def test_rounded_direction_cosines_still_give_a_right_angle():
    rounded = (0.9998, 0.0175, 0.0, -0.0175, 0.9998, 0.0)
    geometry = stack_geometry(planes(np.arange(5) * 2.0, rounded))
    axes = geometry.affine_lps[:3, :3] / np.linalg.norm(geometry.affine_lps[:3, :3], axis=0)
    assert np.allclose(axes.T @ axes, np.eye(3), atol=1e-12)
