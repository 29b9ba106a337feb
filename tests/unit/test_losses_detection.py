"""The YOLO loss against numbers of the published one, and over parts of a batch."""

import pytest
import torch

from medray.losses.detection import (
    Targets,
    YoloGains,
    complete_iou,
    match_level,
    padded_targets,
    yolo_sums,
    yolo_terms,
    yolo_value,
)
from medray.nn.yolo import ANCHORS_PX

SIDE_PX = 128
GRIDS = (16, 8, 4)


def numbers(count: int, p: int) -> torch.Tensor:
    i = torch.arange(count, dtype=torch.int64)
    return ((2654435761 * i + 40503 * p + 12345) % 2**32).double() / 2**32 - 0.5


def golden_outputs(num_classes: int) -> dict[str, torch.Tensor]:
    outputs = {}
    for level, grid in enumerate(GRIDS):
        shape = (2, 3, grid, grid, 5 + num_classes)
        count = torch.Size(shape).numel()
        outputs[f"p{level + 3}"] = (2 * numbers(count, level + 1)).view(shape)
    return outputs | {"anchors_px": torch.tensor(ANCHORS_PX, dtype=torch.float64)}


def golden_targets(num_classes: int) -> Targets:
    rows = torch.tensor(
        [
            [0, 0, 0.30, 0.40, 0.20, 0.30],
            [0, num_classes - 1, 0.71, 0.66, 0.50, 0.40],
            [1, 0, 0.95, 0.05, 0.08, 0.09],
            [1, num_classes // 2, 0.5, 0.5, 0.9, 0.05],
        ],
        dtype=torch.float64,
    )
    return Targets(rows[:, 0].long(), rows[:, 1].long(), rows[:, 2:] * SIDE_PX)


@pytest.mark.parametrize(
    ("num_classes", "expected"),
    [
        (1, (0.124416, 2.529166, 0.0, 5.307163)),
        (3, (0.123754, 2.520041, 0.036734, 5.361059)),
    ],
)
def test_the_loss_is_the_published_one(num_classes: int, expected: tuple[float, ...]) -> None:
    # the published case has the objectness' gain of 512 pixels with outputs of 128
    gains = YoloGains(image_px=512, num_classes=num_classes, times_images=True)
    sums = yolo_sums(golden_outputs(num_classes), golden_targets(num_classes))
    terms = [term.item() for term in yolo_terms(sums, gains)]
    if num_classes == 1:
        assert terms[2] == 0.0
    assert [*terms, yolo_value(sums, gains).item()] == pytest.approx(expected, abs=1e-6)


def test_places_match_as_published() -> None:
    targets = golden_targets(1)
    anchors = torch.tensor(ANCHORS_PX, dtype=torch.float64)
    found = [
        match_level(targets, anchors[n] / stride, stride, (GRIDS[n], GRIDS[n]))
        for n, stride in enumerate((8, 16, 32))
    ]
    assert [len(one.image) for one in found] == [26, 18, 6]
    fine = found[0]
    places = torch.stack([fine.image, fine.anchor, fine.row, fine.column], dim=1)[:8]
    assert [tuple(place) for place in places.tolist()] == [
        (0, 0, 6, 4), (1, 0, 0, 15), (0, 1, 6, 4), (1, 1, 0, 15),
        (0, 2, 6, 4), (0, 2, 10, 11), (1, 2, 0, 15), (1, 2, 8, 8),
    ]  # fmt: skip


def test_complete_iou_is_the_published_one() -> None:
    one = torch.tensor([[10.0, 10, 4, 6]], dtype=torch.float64)
    other = torch.tensor([[11.0, 9, 5, 3]], dtype=torch.float64)
    iou, ciou = complete_iou(one, other)
    assert iou.item() == pytest.approx(0.368421, abs=1e-6)
    assert ciou.item() == pytest.approx(0.329384, abs=1e-6)


def _random_batch(seed: int) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    outputs = {f"p{n + 3}": torch.randn(4, 3, g, g, 6, requires_grad=True)
               for n, g in enumerate(GRIDS)}  # fmt: skip
    corner = torch.rand(4, 3, 2) * 80
    boxes = torch.cat([corner, corner + 4 + torch.rand(4, 3, 2) * 40], dim=-1)
    num_boxes = torch.tensor([3, 0, 1, 2])
    return outputs | {"anchors_px": torch.tensor(ANCHORS_PX)}, boxes, num_boxes


@pytest.mark.parametrize("times_images", [False, True])
def test_sums_of_two_workers_are_those_of_one_with_the_whole_batch(times_images: bool) -> None:
    outputs, boxes, num_boxes = _random_batch(0)
    gains = YoloGains(image_px=SIDE_PX, times_images=times_images)
    levels = [outputs[f"p{n}"] for n in (3, 4, 5)]
    whole = yolo_value(yolo_sums(outputs, padded_targets(boxes, num_boxes)), gains)
    wanted = torch.autograd.grad(whole, levels)
    parts = []
    for part in (slice(0, 1), slice(1, 4)):
        own = {name: value[part] if name != "anchors_px" else value
               for name, value in outputs.items()}  # fmt: skip
        parts.append(yolo_sums(own, padded_targets(boxes[part], num_boxes[part])))
    both = yolo_value(parts[0] + parts[1], gains)
    assert both.item() == pytest.approx(whole.item(), rel=1e-6)
    for got, expected in zip(torch.autograd.grad(both, levels), wanted, strict=True):
        assert torch.allclose(got, expected, rtol=1e-4, atol=1e-7)


def test_a_batch_without_boxes_teaches_objectness_alone() -> None:
    outputs, boxes, _ = _random_batch(1)
    targets = padded_targets(boxes, torch.zeros(4, dtype=torch.int64))
    box, objectness, classes = yolo_terms(yolo_sums(outputs, targets), YoloGains())
    assert box.item() == classes.item() == 0.0
    assert objectness.item() > 0.0
    objectness.backward()
    assert not outputs["p3"].grad[..., :4].any()  # type: ignore[index]


def test_padding_is_no_box_and_classes_follow() -> None:
    _, boxes, num_boxes = _random_batch(2)
    classes = torch.arange(12).view(4, 3)
    targets = padded_targets(boxes, num_boxes, classes)
    assert targets.image.tolist() == [0, 0, 0, 2, 3, 3]
    assert targets.classes.tolist() == [0, 1, 2, 6, 9, 10]
    assert torch.allclose(targets.boxes[3, 2:], boxes[2, 0, 2:] - boxes[2, 0, :2])


def test_of_two_boxes_on_one_place_the_last_one_decides() -> None:
    """Two boxes with one centre, matched to the same places of the finest level."""
    outputs = {f"p{n + 3}": torch.ones(1, 3, g, g, 6) for n, g in enumerate(GRIDS)}
    outputs["anchors_px"] = torch.tensor(ANCHORS_PX)

    def objectness(*sides: tuple[float, float]) -> float:
        size = torch.tensor(sides)
        boxes = torch.cat([36 - size / 2, 36 + size / 2], dim=1)[None]
        return float(yolo_sums(outputs, padded_targets(boxes, torch.tensor([len(sides)])))[2])

    small, wide = (10.0, 13.0), (20.0, 20.0)
    assert abs(objectness(small) - objectness(wide)) > 0.1
    assert objectness(small, wide) == pytest.approx(objectness(wide), rel=1e-6)
    assert objectness(wide, small) == pytest.approx(objectness(small), rel=1e-6)


def test_half_precision_outputs_are_summed_in_full() -> None:
    outputs, boxes, num_boxes = _random_batch(3)
    half = {name: value.detach().bfloat16() for name, value in outputs.items()}
    half["anchors_px"] = outputs["anchors_px"]
    sums = yolo_sums(half, padded_targets(boxes, num_boxes))
    assert sums.dtype == torch.float32
    full = yolo_sums({n: v.float() for n, v in half.items()}, padded_targets(boxes, num_boxes))
    assert torch.equal(sums, full)
