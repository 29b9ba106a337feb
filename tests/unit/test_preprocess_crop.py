"""Crops and pads: every kept voxel stays where it was in the patient."""

import numpy as np
import pytest

from medray.preprocess.crop import crop_box, crop_or_pad, mask_box, pad_to
from medray.volume import Volume
from tests.unit.test_formats_nifti import oblique

SHAPE = (6, 7, 9)


def numbered() -> Volume:
    array = np.arange(1, 1 + np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
    return Volume(array=array, affine_lps=oblique())


def slow_check(volume: Volume, out: Volume, fill) -> None:
    """Each voxel of the result is the one of the source at the same point, or the fill."""
    to_source = np.linalg.inv(volume.affine_lps) @ out.affine_lps
    for index, value in np.ndenumerate(out.array):
        place = np.rint((to_source @ [*index, 1])[:3]).astype(int)
        inside = (place >= 0).all() and (place < volume.array.shape).all()
        assert value == (volume.array[tuple(place)] if inside else fill)


@pytest.mark.parametrize(
    "box",
    [[(0, 6), (0, 7), (0, 9)], [(1, 3), (2, 7), (4, 5)], [(-2, 4), (3, 11), (-1, 12)],
     [(-5, -2), (0, 7), (0, 9)], [(8, 10), (0, 7), (0, 9)]],
)  # fmt: skip
def test_boxes_inside_across_and_outside(box):
    out = crop_box(numbered(), box, fill=-9)
    assert out.array.shape == tuple(stop - start for start, stop in box)
    assert out.array.dtype == np.int16
    slow_check(numbered(), out, -9)


def test_a_box_without_extent_is_a_mistake_of_the_caller():
    with pytest.raises(ValueError, match="box_kji must have stop > start"):
        crop_box(numbered(), [(3, 3), (0, 7), (0, 9)])


@pytest.mark.parametrize(
    "shape", [(6, 7, 9), (4, 4, 4), (3, 3, 3), (9, 10, 12), (2, 12, 9), (1, 1, 1)]
)
@pytest.mark.parametrize("center", [None, (2.0, 3.0, 4.0), (0.0, 6.0, 8.0), (-4.0, 20.0, 4.5)])
def test_crop_or_pad_around_any_voxel(shape, center):
    out = crop_or_pad(numbered(), shape, center_index=center, fill=-9)
    assert out.array.shape == shape
    slow_check(numbered(), out, -9)
    if center is not None:
        middle = (
            np.linalg.inv(numbered().affine_lps)
            @ out.affine_lps
            @ [*((np.array(shape) - 1) / 2), 1]
        )
        assert (np.abs(middle[:3] - center) <= 0.5 + 1e-9).all()


@pytest.mark.slow  # importing MONAI takes 20 s
@pytest.mark.parametrize(
    "shape", [(6, 7, 9), (4, 4, 4), (3, 3, 3), (9, 10, 12), (2, 12, 8), (7, 6, 10)]
)
def test_the_middle_is_that_of_monai(shape):
    from monai.transforms import ResizeWithPadOrCrop

    peer = ResizeWithPadOrCrop(shape)(numbered().array[None])
    assert np.array_equal(crop_or_pad(numbered(), shape).array, np.asarray(peer)[0])


def test_pad_to_never_cuts():
    out = pad_to(numbered(), (4, 12, 9), fill=-9)
    assert out.array.shape == (6, 12, 9)
    assert np.isin(numbered().array, out.array).all()
    slow_check(numbered(), out, -9)


def test_mask_box_holds_the_mask():
    mask = np.zeros(SHAPE, np.uint8)
    assert mask_box(mask) is None
    mask[2, 3:5, 8] = 7
    assert mask_box(mask) == ((2, 3), (3, 5), (8, 9))
    assert mask_box(mask, margin=(1, 9, 2)) == ((1, 4), (0, 7), (6, 9))


def test_sources_are_left_alone():
    volume = numbered()
    before = (volume.array.copy(), volume.affine_lps.copy())
    crop_or_pad(volume, (3, 3, 3)).array[:] = 0
    crop_box(volume, [(0, 6), (0, 7), (0, 9)]).array[:] = 0
    assert np.array_equal(before[0], volume.array)
    assert np.array_equal(before[1], volume.affine_lps)
