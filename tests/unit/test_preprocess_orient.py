"""48 axis orders and flips of an asymmetric volume, told by physical points."""

import itertools

import numpy as np
import pytest
import SimpleITK as sitk

from medray.preprocess.orient import canonical_axes, flipped, to_canonical, transposed
from medray.preprocess.spatial import resample_to_grid
from medray.volume import Volume
from tests.unit.test_formats_nifti import ORIENTATIONS, affine_of, oblique

SHAPE = (3, 4, 5)


def numbered(affine) -> Volume:
    return Volume(array=np.arange(60, dtype=np.int16).reshape(SHAPE), affine_lps=affine)


def by_place(volume: Volume) -> dict:
    """Return value by physical point, rounded to 1e-4 mm."""
    return {
        tuple(np.round((volume.affine_lps @ [*index, 1])[:3], 4) + 0.0): value
        for index, value in np.ndenumerate(volume.array)
    }


@pytest.mark.parametrize(("axes", "signs"), ORIENTATIONS)
def test_values_stay_at_their_place_in_all_48(axes, signs):
    volume = numbered(affine_of(axes, signs))
    out = to_canonical(volume)
    assert by_place(out) == by_place(volume)
    assert np.allclose(out.affine_lps[:3, :3] / out.spacing_zyx_mm, np.eye(3)[:, ::-1])
    assert out.array.flags.c_contiguous
    back = resample_to_grid(out, volume.affine_lps, SHAPE, order="nearest")
    assert np.array_equal(back.array, volume.array)


@pytest.mark.parametrize(("axes", "signs"), ORIENTATIONS)
def test_canonical_equals_itk(axes, signs):
    volume = numbered(affine_of(axes, signs))
    image = sitk.GetImageFromArray(volume.array)
    spacing = np.array(volume.spacing_zyx_mm)
    image.SetSpacing(spacing[::-1].tolist())
    image.SetDirection((volume.affine_lps[:3, :3] / spacing)[:, ::-1].ravel().tolist())
    image.SetOrigin(volume.affine_lps[:3, 3].tolist())
    expected = sitk.DICOMOrient(image, "LPS")
    out = to_canonical(volume)
    assert np.array_equal(out.array, sitk.GetArrayFromImage(expected))
    assert np.allclose(out.affine_lps[:3, 3], expected.GetOrigin())


@pytest.mark.parametrize("seed", range(20))
def test_oblique_volumes_get_each_axis_once(seed):
    angles = np.random.default_rng(seed).uniform(-3.1, 3.1, 3)
    volume = numbered(oblique(angles))
    out = to_canonical(volume)
    assert by_place(out) == by_place(volume)
    axes, signs = canonical_axes(out.affine_lps)
    assert (axes, signs) == ((0, 1, 2), (1, 1, 1))


def test_a_grid_between_two_axes_still_gets_each_once():
    axes, _ = canonical_axes(oblique((np.pi / 4, 0, 0)))
    assert sorted(axes) == [0, 1, 2]


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("flip", list(itertools.product((False, True), repeat=3)))
def test_turns_and_flips_keep_places(axes, flip):
    volume = numbered(oblique())
    out = flipped(transposed(volume, axes), flip)
    assert by_place(out) == by_place(volume)
    assert out.array.shape == tuple(SHAPE[axis] for axis in axes)
