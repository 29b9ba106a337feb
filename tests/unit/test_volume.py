import itertools
from dataclasses import replace

import numpy as np
import pytest

from medray.dicom.series import split_series
from medray.dicom.volume import VolumeBuilder, assemble_volume
from medray.errors import DataError
from medray.phantoms.series import (
    GE,
    PHILIPS,
    SeriesSpec,
    affine_from_dicom,
    known_volume,
    reorient,
    write_ct_series,
    write_enhanced_ct,
)
from medray.volume import Volume
from tests.unit.dicom_fixtures import decode_plainly, read_header, read_instances

ORDERS = list(itertools.permutations(range(3)))
FLIPS = list(itertools.product((False, True), repeat=3))


def world_values(volume: Volume) -> dict[tuple[float, ...], float]:
    index = np.indices(volume.array.shape).reshape(3, -1)
    world = volume.affine_lps[:3, :3] @ index + volume.affine_lps[:3, 3:]
    return dict(zip(map(tuple, np.round(world.T, 3) + 0.0), volume.array.ravel(), strict=True))


@pytest.mark.parametrize("axes", ORDERS)
def test_48_axis_orders_and_flips_land_where_they_came_from(tmp_path, axes):
    """Asymmetric, non-square; a stack has a direction of its own, so a flip of k is turned back."""
    truth = known_volume((6, 10, 8))
    expected = world_values(truth)
    for flips in FLIPS:
        turned = reorient(truth, axes=axes, flips=flips)
        folder = tmp_path / "".join(str(int(f)) for f in flips)
        paths = write_ct_series(folder, turned)
        (stack,) = split_series(read_instances(paths))
        assert stack.verdict == "ok"
        volume = assemble_volume(decode_plainly(path) for path in sorted(folder.iterdir()))
        assert world_values(volume) == expected


def test_oblique_stacks_keep_their_place(tmp_path):
    angle = np.deg2rad(23)
    oblique = (np.cos(angle), np.sin(angle), 0.0, 0.0, 0.0, -1.0)
    truth = known_volume((6, 10, 8), affine_from_dicom(orientation=oblique))
    paths = write_ct_series(tmp_path, truth)
    volume = assemble_volume(decode_plainly(path) for path in paths)
    assert np.allclose(volume.affine_lps, truth.affine_lps, atol=1e-6)
    assert np.array_equal(volume.array, truth.array)


def test_values_are_hu_exactly_once_with_slope_and_intercept_per_slice(tmp_path):
    truth = known_volume((6, 10, 8))
    even = replace(truth, array=(truth.array // 6) * 6)
    spec = SeriesSpec(slopes=(1.0, 2.0, 3.0), intercepts=(-1002.0, -1200.0, -1002.0))
    volume = assemble_volume(decode_plainly(p) for p in write_ct_series(tmp_path, even, spec))
    assert volume.array.dtype == np.int16
    assert np.array_equal(volume.array, even.array)


def test_fractional_slopes_become_float32_and_keep_small_values(tmp_path):
    truth = known_volume((6, 10, 8))
    small = Volume(array=np.abs(truth.array) * 0.001, affine_lps=truth.affine_lps)
    spec = SeriesSpec(slopes=(0.001, 0.0005), intercepts=(0.0,))
    volume = assemble_volume(decode_plainly(p) for p in write_ct_series(tmp_path, small, spec))
    assert volume.array.dtype == np.float32
    assert np.abs(volume.array - small.array).max() < 1e-3


def test_padding_becomes_air(tmp_path):
    truth = known_volume((6, 10, 8))
    padded = truth.array.copy()
    padded[:, 0, :] = -2000
    paths = write_ct_series(tmp_path, truth.with_array(padded), SeriesSpec(vendor=GE))
    volume = assemble_volume(decode_plainly(path) for path in paths)
    assert (volume.array[:, 0, :] == -1000).all()
    assert np.array_equal(volume.array[:, 1:], truth.array[:, 1:])


def test_values_beyond_int16_widen_the_volume(tmp_path):
    truth = known_volume((6, 10, 8))
    vendor = replace(PHILIPS, bits_stored=16, intercept=0.0)
    hot = truth.array.astype(np.int32) + 1000
    hot[3, 4, 5] = 60000
    paths = write_ct_series(tmp_path, truth.with_array(hot), SeriesSpec(vendor=vendor))
    volume = assemble_volume(decode_plainly(path) for path in paths)
    assert volume.array.dtype == np.float32
    assert volume.array[3, 4, 5] == 60000
    assert np.array_equal(volume.array, hot.astype(np.float32))


def test_enhanced_multi_frame_is_read_through_its_functional_groups(tmp_path):
    truth = known_volume((7, 12, 9))
    path = write_enhanced_ct(tmp_path / "one.dcm", truth)
    (stack,) = split_series(read_instances([path]))
    assert (stack.verdict, stack.num_slices) == ("ok", 7)
    volume = assemble_volume([decode_plainly(path)])
    assert np.array_equal(volume.array, truth.array)
    assert np.allclose(volume.affine_lps, truth.affine_lps, atol=1e-6)


@pytest.mark.parametrize("tilt_deg", [18.5, -12.0])
def test_tilted_gantry_is_resampled_to_an_orthogonal_grid(tmp_path, tilt_deg):
    """Truth is a smooth field of physical position, so it is known on every grid."""

    def field(world):
        return np.round(100 * np.sin(world[1] / 17.0) + 2 * world[0] - 1.5 * world[2])

    affine = affine_from_dicom(tilt_deg=tilt_deg)
    index = np.indices((9, 48, 32)).reshape(3, -1)
    values = field(affine[:3, :3] @ index + affine[:3, 3:]).reshape(9, 48, 32)
    sheared = Volume(array=values.astype(np.int16), affine_lps=affine)
    paths = write_ct_series(tmp_path, sheared)
    (stack,) = split_series(read_instances(paths))
    assert stack.flags[0] == "tilt"
    volume = assemble_volume(decode_plainly(path) for path in paths)
    assert volume.flags == ("tilt_resampled",)
    axes = volume.affine_lps[:3, :3] / np.linalg.norm(volume.affine_lps[:3, :3], axis=0)
    assert np.allclose(axes.T @ axes, np.eye(3), atol=1e-9)
    index = np.indices(volume.array.shape).reshape(3, -1)
    world = volume.affine_lps[:3, :3] @ index + volume.affine_lps[:3, 3:]
    expected = field(world).reshape(volume.array.shape)
    inside = volume.array > volume.array.min() + 1
    inside[:, :1], inside[:, -1:] = False, False
    seen = np.abs(volume.array - expected)[:, 12:36, 2:-2]
    assert inside.mean() > 0.5
    assert np.median(seen) <= 2


def test_same_uid_with_equal_bytes_counts_once_and_with_other_bytes_is_refused(tmp_path):
    truth = known_volume((5, 10, 8))
    paths = write_ct_series(tmp_path / "a", truth)
    decoded = [decode_plainly(path) for path in paths]
    assert assemble_volume([*decoded, decoded[2]]).array.shape == (5, 10, 8)
    forged = replace_hash(decoded[2])
    with pytest.raises(DataError, match="^duplicate_conflict: "):
        assemble_volume([*decoded, forged])


def replace_hash(item):
    return type(item)(item.header, item.frames + 1, "0" * 64)


def test_a_slice_that_never_arrives_is_missed(tmp_path):
    paths = write_ct_series(tmp_path, known_volume((5, 10, 8)))
    builder = VolumeBuilder([read_header(path) for path in paths])
    for path in paths[:-1]:
        builder.add(decode_plainly(path))
    with pytest.raises(DataError, match="missing_slices: 1 slices did not arrive"):
        builder.finish()


def test_a_file_that_changed_since_it_was_indexed_is_noticed(tmp_path):
    truth = known_volume((5, 10, 8))
    paths = write_ct_series(tmp_path / "a", truth)
    headers = [read_header(path) for path in paths]
    moved = truth.affine_lps.copy()
    moved[0, 3] += 1
    other = write_ct_series(tmp_path / "b", replace(truth, affine_lps=moved))
    builder = VolumeBuilder(headers)
    with pytest.raises(DataError, match="checksum_mismatch: a file differs"):
        builder.add(decode_plainly(other[0]))
