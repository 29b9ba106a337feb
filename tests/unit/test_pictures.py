"""Pictures for people: the same slice whatever the grid's axes, outlines that are seen."""

import numpy as np
import pytest

from medray.phantoms.series import known_volume, reorient
from medray.pictures import compared_tile, prediction_picture
from medray.volume import Volume

FOUND, TRUTH = (255, 96, 64), (64, 255, 64)


def body_and_mask() -> tuple[Volume, Volume]:
    volume = known_volume((9, 30, 24))
    mask = np.zeros(volume.array.shape, np.uint8)
    mask[4:7, 8:20, 5:15] = 1
    mask[5, 6:22, 5:15] = 1
    return volume, volume.with_array(mask)


def pixels_of(rgb: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return np.asarray((rgb == colour).all(axis=-1))


@pytest.mark.parametrize("axes", [(0, 1, 2), (1, 2, 0), (2, 1, 0)])
@pytest.mark.parametrize("flips", [(False, False, False), (True, False, True)])
def test_a_prediction_is_shown_alike_on_any_axes(axes, flips) -> None:
    volume, mask = body_and_mask()
    expected = prediction_picture(volume, mask, "mask", ["line"])
    turned = [reorient(one, axes=axes, flips=flips) for one in (volume, mask)]
    assert np.array_equal(prediction_picture(*turned, "mask", ["line"]), expected)


def test_a_picture_has_the_proportions_of_the_body_and_one_line_a_text() -> None:
    volume, mask = body_and_mask()
    one = prediction_picture(volume, None, "", ["a"])
    two = prediction_picture(volume, mask, "mask", ["a"])
    height_mm, width_mm = np.array(volume.array.shape[1:]) * volume.spacing_zyx_mm[1:]
    assert max(one.shape[0] - 26, one.shape[1]) == 512
    assert (one.shape[0] - 26) / one.shape[1] == pytest.approx(height_mm / width_mm, abs=0.01)
    assert two.shape[0] - one.shape[0] == 22
    assert not pixels_of(one, FOUND).any()
    shown = pixels_of(two[: one.shape[0] - 26], FOUND)
    rows = np.flatnonzero(shown.any(axis=1))
    # the widest slice of the mask covers rows 6 to 21 of 30
    scale = (one.shape[0] - 26) / 30
    assert rows[[0, -1]] == pytest.approx([6 * scale, 22 * scale], abs=0.6 * scale)


def test_both_outlines_are_seen_where_truth_and_prediction_agree() -> None:
    image = np.zeros((4, 32, 32), np.int16)
    mask = np.zeros((4, 32, 32), np.uint8)
    mask[2, 8:24, 8:24] = 1
    tile = compared_tile({"image": image, "mask": mask}, mask > 0)
    assert min(pixels_of(tile, colour).sum() for colour in (TRUTH, FOUND)) > 500
