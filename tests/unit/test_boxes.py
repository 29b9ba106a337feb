"""Boxes against slow loops and torchvision."""

import numpy as np
import pytest
import torch
import torchvision.ops

from medray import boxes

RNG = np.random.default_rng(0)


def some(count: int) -> np.ndarray:
    corner = RNG.uniform(0, 80, (count, 2))
    return np.hstack([corner, corner + RNG.uniform(0.5, 40, (count, 2))])


def test_conversions_undo_one_another_and_equal_torchvision():
    given = some(50)
    for form, there, back in (
        ("xywh", boxes.xyxy_to_xywh, boxes.xywh_to_xyxy),
        ("cxcywh", boxes.xyxy_to_cxcywh, boxes.cxcywh_to_xyxy),
    ):
        expected = torchvision.ops.box_convert(torch.from_numpy(given), "xyxy", form).numpy()
        assert np.allclose(there(given), expected)
        assert np.allclose(back(there(given)), given)


def test_iou_equals_torchvision():
    first, second = some(40), some(30)
    expected = torchvision.ops.box_iou(torch.from_numpy(first), torch.from_numpy(second)).numpy()
    assert np.allclose(boxes.box_iou(first, second), expected)


def test_iou_by_hand():
    assert boxes.box_iou([[0, 0, 2, 2]], [[1, 1, 3, 3]])[0, 0] == pytest.approx(1 / 7)
    assert boxes.box_iou([[0, 0, 2, 2]], [[2, 0, 4, 2]])[0, 0] == 0
    assert boxes.box_iou([[1, 1, 1, 1]], [[1, 1, 1, 1]])[0, 0] == 0


@pytest.mark.parametrize("count", [(0, 3), (3, 0), (0, 0)])
def test_no_boxes_are_fine(count):
    first, second = np.zeros((count[0], 4)), np.zeros((count[1], 4))
    assert boxes.box_iou(first, second).shape == count
    assert boxes.xywh_to_xyxy([]).shape == (0, 4)
    assert boxes.nms([], [], iou_threshold=0.5).shape == (0,)


def test_area_of_an_inverted_box_is_zero():
    assert boxes.box_area([[0, 0, 3, 2], [5, 5, 4, 9]]).tolist() == [6, 0]


def test_clip_and_inside():
    given = [[-3, -2, 5, 6], [1, 1, 200, 4], [2, 2, 2, 5], [1, 1, 20, 10], [0, 0, np.nan, 4]]
    clipped = boxes.clip_boxes(given[:4], (10, 20))
    assert clipped.tolist() == [[0, 0, 5, 6], [1, 1, 20, 4], [2, 2, 2, 5], [1, 1, 20, 10]]
    assert boxes.boxes_inside(given, (10, 20)).tolist() == [False, False, False, True, False]


def test_scale_shift_and_back():
    given = some(20)
    options = {"scale_yx": (0.5, 2.0), "offset_yx_px": (10.0, -3.0)}
    placed = boxes.place_boxes(given, **options)
    expected = [[x1 * 2 - 3, y1 / 2 + 10, x2 * 2 - 3, y2 / 2 + 10] for x1, y1, x2, y2 in given]
    assert np.allclose(placed, expected)
    assert np.allclose(boxes.restore_boxes(placed, **options), given)


def test_flip_follows_the_pixels():
    image = np.zeros((10, 12), np.uint8)
    image[2:5, 1:4] = 1
    rows, columns = np.nonzero(image[:, ::-1])
    found = [[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]]
    assert boxes.flip_sides([[1, 2, 4, 5]], width=12).tolist() == found


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.9])
def test_nms_equals_torchvision(threshold):
    given, scores = some(200), RNG.uniform(size=200)
    expected = torchvision.ops.nms(torch.from_numpy(given), torch.from_numpy(scores), threshold)
    assert boxes.nms(given, scores, iou_threshold=threshold).tolist() == expected.tolist()


def test_of_equal_scores_the_first_wins():
    assert boxes.nms([[0, 0, 2, 2]] * 3, [0.5, 0.5, 0.5], iou_threshold=0.5).tolist() == [0]


def test_arguments_are_left_alone():
    given = some(5)
    before = given.copy()
    boxes.clip_boxes(given, (10, 10))[:] = 0
    boxes.place_boxes(given, scale_yx=(1, 1))[:] = 0
    boxes.nms(given, np.arange(5), iou_threshold=0.5)
    assert np.array_equal(given, before)


def test_padded_boxes_say_how_many_there_are():
    examples = [{"boxes": np.ones((2, 4)), "box_labels": np.array([1, 2])}, {}]
    batch = boxes.pad_boxes(examples)
    assert batch["boxes"].shape == (2, 2, 4)
    assert batch["boxes"].dtype == np.float32
    assert batch["box_labels"].tolist() == [[1, 2], [0, 0]]
    assert batch["num_boxes"].tolist() == [2, 0]
    assert boxes.pad_boxes([{}])["boxes"].shape == (1, 1, 4)


def test_sides_of_boxes_in_mm():
    sides = boxes.box_sides_mm(np.array([[10, 20, 30, 50]]), (0.5, 2.0))
    assert sides.tolist() == [[15.0, 40.0]]
