"""The loss of YOLOv5, as sums that add over examples and workers, and its value.

Of each level the sums are: sum of 1 - CIoU over matches, number of matches, sum of the objectness'
binary cross entropy over all places, number of places, and sum and number of the classes' binary
cross entropies at matches (over matches x classes). The last sum is the number of images. The value
of added sums is the loss of the whole batch,

    box:    g_box x sum over levels of mean(1 - CIoU) over matches
    object: g_obj x sum over levels of balance x mean BCE over places, towards the CIoU of the match
    class:  g_cls x sum over levels of mean BCE over matches x classes, with two classes or more

The original multiplies this by the batch size, and by the number of workers since it averages their
gradients; `times_images` does so too (with the images of all workers together). Without it, which
is the default, the loss does not grow with the batch. The original takes each mean over the matches
of one worker and averages those; here it is the mean over all matches, so that two workers are
exactly one with the doubled batch.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional

_LEVELS, _STRIDES = ("p3", "p4", "p5"), (8, 16, 32)
_BALANCE = (4.0, 1.0, 0.4)  # fine levels have many places and few objects
_MOST_RATIO = 4.0  # between the sides of a box and of an anchor that match
_EPSILON = 1e-7
_SUMS_A_LEVEL = 6
_HALF = {torch.float16, torch.bfloat16}
_CLASSES_OF_GAIN, _SIDE_OF_GAIN_PX = 80, 640


@dataclass(frozen=True, kw_only=True, slots=True)
class YoloGains:
    """Weights of the three terms.

    Attributes:
        box, objectness, classes: as published, for 640 pixels and 80 classes.
        image_px: side of the frame; the objectness' gain grows with its square.
        num_classes: the classes' gain grows with it.
        times_images: multiply the loss by the number of images, as the original did.
    """

    box: float = 0.05
    objectness: float = 1.0
    classes: float = 0.5
    image_px: int = 640
    num_classes: int = 1
    times_images: bool = False

    @property
    def scaled(self) -> tuple[float, float, float]:
        """The three gains at this size and number of classes."""
        return (
            self.box,
            self.objectness * (self.image_px / _SIDE_OF_GAIN_PX) ** 2,
            self.classes * self.num_classes / _CLASSES_OF_GAIN,
        )


@dataclass(frozen=True, slots=True)
class Targets:
    """True boxes of a batch in one list, by image.

    Attributes:
        image: index of the image in the batch.
        classes: class index.
        boxes: centre and size, in pixels of the frame.
    """

    image: Int64[Tensor, " n"]
    classes: Int64[Tensor, " n"]
    boxes: Float[Tensor, "n 4"]


@dataclass(frozen=True, slots=True)
class Matches:
    """Places of one level that answer for a true box.

    Attributes:
        image, anchor, row, column: of the place.
        target: centre relative to the chosen cell, and size, in cells.
        anchor_size: width and height of the anchor, in cells.
        classes: class index of the true box.
    """

    image: Int64[Tensor, " m"]
    anchor: Int64[Tensor, " m"]
    row: Int64[Tensor, " m"]
    column: Int64[Tensor, " m"]
    target: Float[Tensor, "m 4"]
    anchor_size: Float[Tensor, "m 2"]
    classes: Int64[Tensor, " m"]


def padded_targets(
    boxes_xyxy: Float[Tensor, "b m 4"],
    num_boxes: Int64[Tensor, " b"],
    classes: Int64[Tensor, "b m"] | None = None,
) -> Targets:
    """Return the true boxes of a batch that is padded to one number of boxes."""
    there = torch.arange(boxes_xyxy.shape[1], device=boxes_xyxy.device) < num_boxes[:, None]
    image = there.nonzero()[:, 0]
    boxes = boxes_xyxy[there]
    half = (boxes[:, 2:] - boxes[:, :2]) / 2
    names = torch.zeros_like(image) if classes is None else classes[there].long()
    return Targets(image, names, torch.cat([boxes[:, :2] + half, 2 * half], dim=1))


def yolo_sums(outputs: Mapping[str, Tensor], targets: Targets) -> Float[Tensor, " 19"]:
    """Return a batch's sums, in float32 also of half-precision outputs.

    Args:
        outputs: `p3`, `p4`, `p5` (batch, 3, rows, columns, 5 + classes) before any sigmoid, and
            `anchors_px` (3, 3, 2).
        targets: true boxes.
    """
    parts = []
    for level, name in enumerate(_LEVELS):
        raw = outputs[name].float() if outputs[name].dtype in _HALF else outputs[name]
        anchors = outputs["anchors_px"][level].to(raw.dtype) / _STRIDES[level]
        found = match_level(targets, anchors, _STRIDES[level], (raw.shape[2], raw.shape[3]))
        parts += _level_sums(raw, found)
    parts.append(parts[0].new_full((), float(outputs[_LEVELS[0]].shape[0])))
    return torch.stack(parts)


def yolo_value(sums: Float[Tensor, " 19"], gains: YoloGains) -> Float[Tensor, ""]:
    """Return the loss that the added sums of all parts amount to."""
    total = torch.stack(yolo_terms(sums, gains)).sum()
    return total * sums[-1] if gains.times_images else total


def yolo_terms(sums: Float[Tensor, " 19"], gains: YoloGains) -> tuple[Tensor, Tensor, Tensor]:
    """Return the terms of box, objectness and classes, with their gains."""
    levels = sums[:-1].view(len(_LEVELS), _SUMS_A_LEVEL)
    means = levels[:, ::2] / levels[:, 1::2].clamp(min=1)
    balance = torch.tensor(_BALANCE, dtype=means.dtype, device=means.device)
    box, objectness, classes = gains.scaled
    return (
        box * means[:, 0].sum(),
        objectness * (balance * means[:, 1]).sum(),
        classes * means[:, 2].sum(),
    )


def match_level(
    targets: Targets, anchors: Float[Tensor, "3 2"], stride: int, grid_yx: tuple[int, int]
) -> Matches:
    """Return which places of a level answer for which true boxes.

    An anchor answers for a box when no side is 4 times the other's. Its places are the cell of the
    box's centre and the nearest cell on either axis. The target is relative to the chosen cell even
    where that lies beyond the grid, whose border cell then answers.

    Args:
        targets: true boxes.
        anchors: width and height in cells.
        stride: pixels a cell.
        grid_yx: rows and columns.
    """
    boxes = targets.boxes.to(anchors.dtype) / stride
    ratio = boxes[None, :, 2:] / anchors[:, None]
    anchor, which = (torch.maximum(ratio, 1 / ratio).amax(dim=2) < _MOST_RATIO).nonzero(
        as_tuple=True
    )
    center = boxes[which, :2]
    size = torch.tensor([grid_yx[1], grid_yx[0]], dtype=center.dtype, device=center.device)
    steps, chosen = _cells(center, size)
    anchor, which = anchor[chosen], which[chosen]
    cell = (center[chosen] - steps).floor()
    inside = torch.minimum(cell.clamp(min=0), size - 1).long()
    return Matches(
        image=targets.image[which],
        anchor=anchor,
        row=inside[:, 1],
        column=inside[:, 0],
        target=torch.cat([boxes[which, :2] - cell, boxes[which, 2:]], dim=1),
        anchor_size=anchors[anchor],
        classes=targets.classes[which],
    )


def complete_iou(
    first_xywh: Float[Tensor, "n 4"], second_xywh: Float[Tensor, "n 4"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Return IoU and CIoU of pairs of boxes given by centre and size.

    CIoU = IoU - (distance of centres)^2 / c^2 - a v, with c the diagonal of the enclosing box, v =
    4 / pi^2 (atan(w2 / h2) - atan(w1 / h1))^2 and a = v / (v - IoU + 1), which has no gradient
    (Zheng et al. 2020, arXiv:1911.08287).
    """
    low1, high1 = _corners(first_xywh)
    low2, high2 = _corners(second_xywh)
    overlap = (torch.minimum(high1, high2) - torch.maximum(low1, low2)).clamp(min=0).prod(dim=1)
    size1, size2 = first_xywh[:, 2:], second_xywh[:, 2:]
    iou = overlap / (size1.prod(dim=1) + size2.prod(dim=1) - overlap + _EPSILON)
    enclosing = torch.maximum(high1, high2) - torch.minimum(low1, low2)
    diagonal = enclosing.square().sum(dim=1) + _EPSILON
    distance = (first_xywh[:, :2] - second_xywh[:, :2]).square().sum(dim=1)
    angles = [torch.atan(size[:, 0] / (size[:, 1] + _EPSILON)) for size in (size1, size2)]
    v = (4 / math.pi**2) * (angles[1] - angles[0]).square()
    with torch.no_grad():
        alpha = v / (v - iou + 1 + _EPSILON)
    return iou, iou - distance / diagonal - alpha * v


def _cells(center: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """Return the steps back from a centre and which centre each is for: own, left, up, right, down.

    A neighbour is chosen where the centre lies in the half of its cell towards it, and not in the
    grid's outermost cell.
    """
    mirrored = size - center
    near = (center % 1 < 0.5) & (center > 1)
    far = (mirrored % 1 < 0.5) & (mirrored > 1)
    flags: Bool[Tensor, "5 n"] = torch.stack(
        [torch.ones_like(near[:, 0]), near[:, 0], near[:, 1], far[:, 0], far[:, 1]]
    )
    half = [[0.0, 0.0], [0.5, 0.0], [0.0, 0.5], [-0.5, 0.0], [0.0, -0.5]]
    side, which = flags.nonzero(as_tuple=True)
    steps = torch.tensor(half, dtype=center.dtype, device=center.device)[side]
    return steps, which


def _level_sums(raw: Tensor, found: Matches) -> list[Tensor]:
    number = found.image.shape[0]
    wanted = torch.zeros(raw.shape[:4], dtype=raw.dtype, device=raw.device)
    box = classes = raw.new_zeros(())
    count = raw.shape[-1] - 5
    if number:
        own = raw[found.image, found.anchor, found.row, found.column]
        share = own[:, :4].sigmoid()
        predicted = torch.cat(
            [2 * share[:, :2] - 0.5, (2 * share[:, 2:]) ** 2 * found.anchor_size], dim=1
        )
        _, ciou = complete_iou(predicted, found.target)
        box = (1 - ciou).sum()
        wanted = _last_writer(wanted, found, ciou.detach().clamp(min=0))
        if count > 1:
            one_hot = functional.one_hot(found.classes, count).to(raw.dtype)
            classes = functional.binary_cross_entropy_with_logits(
                own[:, 5:], one_hot, reduction="sum"
            )
    objectness = functional.binary_cross_entropy_with_logits(raw[..., 4], wanted, reduction="sum")
    counts = [raw.new_full((), float(n)) for n in (number, wanted.numel(), number * count)]
    return [box, counts[0], objectness, counts[1], classes, counts[2]]


def _last_writer(wanted: Tensor, found: Matches, values: Tensor) -> Tensor:
    """Return the objectness wanted; of several matches of one place the last one decides.

    Plain assignment with repeated indices has no order on a GPU; the greatest match number has.
    """
    _, anchors, rows, columns = wanted.shape
    place = ((found.image * anchors + found.anchor) * rows + found.row) * columns + found.column
    order = torch.arange(len(values), device=values.device)
    last = torch.full((wanted.numel(),), -1, dtype=torch.int64, device=values.device)
    last = last.scatter_reduce(0, place, order, reduce="amax")
    flat = torch.where(last >= 0, values[last.clamp(min=0)], wanted.flatten())
    return flat.view(wanted.shape)


def _corners(boxes_xywh: Tensor) -> tuple[Tensor, Tensor]:
    half = boxes_xywh[:, 2:] / 2
    return boxes_xywh[:, :2] - half, boxes_xywh[:, :2] + half
