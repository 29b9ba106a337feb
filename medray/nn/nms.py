"""Greedy suppression of overlapping boxes: a whole batch at once, or image by image on a CPU."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """Which of an image's boxes are kept.

    Attributes:
        least_score: boxes with this score or less are dropped.
        iou_threshold: a box that overlaps a better one of its class by more is dropped.
        most: boxes of an image.
        most_candidates: boxes that enter the suppression, the best of each image.
    """

    least_score: float = 0.001
    iou_threshold: float = 0.6
    most: int = 300
    most_candidates: int = 1024


def pair_iou(
    first_xyxy: Float[Tensor, "*batch n 4"], second_xyxy: Float[Tensor, "*batch m 4"]
) -> Float[Tensor, "*batch n m"]:
    """Return intersection over union of every pair; 0 where both boxes have no area."""
    first, second = first_xyxy.unsqueeze(-2), second_xyxy.unsqueeze(-3)
    low = torch.maximum(first[..., :2], second[..., :2])
    high = torch.minimum(first[..., 2:], second[..., 2:])
    overlap = (high - low).clamp(min=0).prod(dim=-1)
    area = _area(first) + _area(second) - overlap
    return overlap / torch.where(area > 0, area, 1.0)


def suppressed(
    boxes_xyxy: Float[Tensor, "b n 4"],
    classes: Int64[Tensor, "b n"],
    usable: Bool[Tensor, "b n"],
    *,
    iou_threshold: float,
) -> Bool[Tensor, "b n"]:
    """Tell which boxes survive, of boxes sorted by falling score.

    A box goes when its IoU with a better surviving one of its class exceeds the threshold, which is
    torchvision's rule. The greedy answer is the only fixed point of "a box stays if no better one
    that stays overlaps it"; from all boxes it is reached in as many rounds as the longest chain of
    boxes that each depend on the one before, so without a loop over boxes.
    """
    overlaps = pair_iou(boxes_xyxy, boxes_xyxy) > iou_threshold
    overlaps &= classes.unsqueeze(-1) == classes.unsqueeze(-2)
    overlaps &= usable.unsqueeze(-1) & usable.unsqueeze(-2)
    overlaps = overlaps.triu(diagonal=1)
    kept = usable
    while True:
        now = usable & ~(overlaps & kept.unsqueeze(-1)).any(dim=-2)
        if torch.equal(now, kept):
            return kept
        kept = now


def suppressed_by_torchvision(
    boxes_xyxy: Float[Tensor, "b n 4"],
    scores: Float[Tensor, "b n"],
    classes: Int64[Tensor, "b n"],
    usable: Bool[Tensor, "b n"],
    *,
    iou_threshold: float,
) -> Bool[Tensor, "b n"]:
    """Tell the same as `suppressed`, image by image.

    On a CPU all pairs of a batch of 8 cost 0.6 s, as much as five training steps; this 0.01 s. On a
    GPU it would wait for each image by itself.
    """
    from torchvision.ops import batched_nms

    kept = torch.zeros_like(usable)
    for image, own in enumerate(usable):
        places = own.nonzero().flatten()
        chosen = (boxes_xyxy[image, places], scores[image, places], classes[image, places])
        kept[image, places[batched_nms(*chosen, iou_threshold)]] = True
    return kept


def best_boxes(
    boxes_xyxy: Float[Tensor, "b n 4"],
    scores: Float[Tensor, "b n"],
    classes: Int64[Tensor, "b n"],
    selection: Selection,
) -> tuple[Float[Tensor, "b k 4"], Float[Tensor, "b k"], Int64[Tensor, "b k"]]:
    """Return the best boxes of each image after suppression, by falling score.

    Args:
        boxes_xyxy: corners, in pixels.
        scores: one a box.
        classes: boxes of different classes leave one another alone.
        selection: K is its `most`; a score of 0 marks an empty place.
    """
    most = selection.most
    number = min(selection.most_candidates, scores.shape[1])
    top, order = scores.topk(number, dim=1)
    boxes = boxes_xyxy.gather(1, order.unsqueeze(-1).expand(-1, -1, 4))
    names = classes.gather(1, order)
    usable = top > selection.least_score
    limit = selection.iou_threshold
    if boxes.is_cuda:
        kept = suppressed(boxes, names, usable, iou_threshold=limit)
    else:
        kept = suppressed_by_torchvision(
            boxes.float(), top.float(), names, usable, iou_threshold=limit
        )
    final, place = torch.where(kept, top, 0.0).topk(min(most, number), dim=1)
    found = boxes.gather(1, place.unsqueeze(-1).expand(-1, -1, 4))
    empty = final <= 0
    found = found.masked_fill(empty.unsqueeze(-1), 0.0)
    labels = names.gather(1, place).masked_fill(empty, 0)
    return _padded(found, most), _padded(final, most), _padded(labels, most)


def _padded(values: Tensor, number: int) -> Tensor:
    """Return the values with zeros behind, so that every batch has one shape."""
    missing = number - values.shape[1]
    if not missing:
        return values
    shape = (values.shape[0], missing, *values.shape[2:])
    return torch.cat([values, values.new_zeros(shape)], dim=1)


def _area(boxes_xyxy: Tensor) -> Tensor:
    return (boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]).clamp(min=0).prod(dim=-1)
