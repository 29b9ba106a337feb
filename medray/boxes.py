"""Boxes as arrays: (n, 4) in pixels, edge coordinates, so that width = x2 - x1.

A pixel (row r, column c) covers [c, c + 1] x [r, r + 1].
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int64, Real

Boxes = Float[np.ndarray, "num_boxes 4"]


def xywh_to_xyxy(boxes_xywh: Real[np.ndarray, "num_boxes 4"]) -> Boxes:
    """Return corners from the upper left corner and the size."""
    boxes = _rows(boxes_xywh)
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def xyxy_to_xywh(boxes_xyxy: Real[np.ndarray, "num_boxes 4"]) -> Boxes:
    """Return the upper left corner and the size from corners."""
    boxes = _rows(boxes_xyxy)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def cxcywh_to_xyxy(boxes_cxcywh: Real[np.ndarray, "num_boxes 4"]) -> Boxes:
    """Return corners from centre and size."""
    boxes = _rows(boxes_cxcywh)
    half = boxes[:, 2:] / 2
    return np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], axis=1)


def xyxy_to_cxcywh(boxes_xyxy: Real[np.ndarray, "num_boxes 4"]) -> Boxes:
    """Return centre and size from corners."""
    boxes = _rows(boxes_xyxy)
    return np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], axis=1)


def box_area(boxes_xyxy: Real[np.ndarray, "num_boxes 4"]) -> Float[np.ndarray, "num_boxes"]:
    """Return areas in square pixels; a box without extent has none."""
    boxes = _rows(boxes_xyxy)
    area: np.ndarray = np.maximum(boxes[:, 2:] - boxes[:, :2], 0).prod(axis=1)
    return area


def box_iou(
    first_xyxy: Real[np.ndarray, "num_first 4"], second_xyxy: Real[np.ndarray, "num_second 4"]
) -> Float[np.ndarray, "num_first num_second"]:
    """Return intersection over union of every pair; 0 where both have no area."""
    first, second = _rows(first_xyxy), _rows(second_xyxy)
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    overlap = np.maximum(high - low, 0).prod(axis=2)
    union = box_area(first)[:, None] + box_area(second)[None] - overlap
    iou: np.ndarray = np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)
    return iou


def clip_boxes(boxes_xyxy: Real[np.ndarray, "num_boxes 4"], shape_yx: tuple[int, int]) -> Boxes:
    """Return the boxes cut off at the image's border."""
    boxes = _rows(boxes_xyxy)
    limit = np.array([shape_yx[1], shape_yx[0]] * 2, dtype=np.float64)
    clipped: np.ndarray = np.clip(boxes, 0, limit)
    return clipped


def boxes_inside(
    boxes_xyxy: Real[np.ndarray, "num_boxes 4"], shape_yx: tuple[int, int]
) -> Bool[np.ndarray, "num_boxes"]:
    """Tell which boxes are finite, have an area and lie wholly in the image."""
    boxes = _rows(boxes_xyxy)
    finite = np.isfinite(boxes).all(axis=1)
    size = [shape_yx[1], shape_yx[0]]
    inside = (boxes[:, :2] >= 0).all(axis=1) & (boxes[:, 2:] <= size).all(axis=1)
    proper: np.ndarray = finite & inside & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    return proper


def place_boxes(
    boxes_xyxy: Real[np.ndarray, "num_boxes 4"],
    *,
    scale_yx: tuple[float, float],
    offset_yx_px: tuple[float, float] = (0.0, 0.0),
) -> Boxes:
    """Return boxes after an image was scaled, then shifted: new = old * scale + offset."""
    scale = np.array([scale_yx[1], scale_yx[0]] * 2)
    offset = np.array([offset_yx_px[1], offset_yx_px[0]] * 2)
    placed: np.ndarray = _rows(boxes_xyxy) * scale + offset
    return placed


def restore_boxes(
    boxes_xyxy: Real[np.ndarray, "num_boxes 4"],
    *,
    scale_yx: tuple[float, float],
    offset_yx_px: tuple[float, float] = (0.0, 0.0),
) -> Boxes:
    """Return boxes in the original image: the inverse of `place_boxes`."""
    scale = np.array([scale_yx[1], scale_yx[0]] * 2)
    offset = np.array([offset_yx_px[1], offset_yx_px[0]] * 2)
    restored: np.ndarray = (_rows(boxes_xyxy) - offset) / scale
    return restored


def flip_sides(boxes_xyxy: Real[np.ndarray, "num_boxes 4"], *, width: int) -> Boxes:
    """Return boxes of an image that was mirrored left to right."""
    boxes = _rows(boxes_xyxy)
    return np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)


def nms(
    boxes_xyxy: Real[np.ndarray, "num_boxes 4"],
    scores: Real[np.ndarray, "num_boxes"],
    *,
    iou_threshold: float,
) -> Int64[np.ndarray, "num_kept"]:
    """Return the indices kept by greedy suppression, best score first.

    A box goes when its IoU with a better one exceeds the threshold (torchvision's rule); of equal
    scores the first wins.
    """
    boxes = _rows(boxes_xyxy)
    order = np.argsort(-np.asarray(scores), kind="stable")
    kept: list[int] = []
    while len(order):
        best = order[0]
        kept.append(int(best))
        overlap = box_iou(boxes[best : best + 1], boxes[order[1:]])[0]
        order = order[1:][overlap <= iou_threshold]
    return np.array(kept, dtype=np.int64)


def class_nms(
    boxes_xyxy: Real[np.ndarray, "num_boxes 4"],
    scores: Real[np.ndarray, "num_boxes"],
    classes: Real[np.ndarray, "num_boxes"],
    *,
    iou_threshold: float,
) -> Int64[np.ndarray, "num_kept"]:
    """Return the indices kept by `nms` among the boxes of each class, best score first."""
    boxes, names = _rows(boxes_xyxy), np.asarray(classes)
    kept = np.zeros(len(boxes), dtype=bool)
    for name in np.unique(names):
        own = np.flatnonzero(names == name)
        kept[own[nms(boxes[own], np.asarray(scores)[own], iou_threshold=iou_threshold)]] = True
    left = np.flatnonzero(kept)
    order: np.ndarray = left[np.argsort(-np.asarray(scores)[left], kind="stable")]
    return order


def scale_boxes(boxes_xyxy: Real[np.ndarray, "num_boxes 4"], factor: float) -> Boxes:
    """Return boxes whose sides are multiplied, their centres kept."""
    boxes = _rows(boxes_xyxy)
    middle, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2 * factor
    return np.concatenate([middle - half, middle + half], axis=1)


def pad_boxes(examples: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return the boxes of several examples as one batch.

    Args:
        examples: with `boxes` (n, 4) and `box_labels` (n,) each; an example without them has none.

    Returns:
        `boxes` (B, M, 4) float32 and `box_labels` (B, M) int64, zeros behind each image's own, M at
        least 1, and `num_boxes` (B,) int64.
    """
    numbers = [len(example["boxes"]) if "boxes" in example else 0 for example in examples]
    most = max(1, *numbers)
    boxes = np.zeros((len(examples), most, 4), dtype=np.float32)
    labels = np.zeros((len(examples), most), dtype=np.int64)
    for index, (example, number) in enumerate(zip(examples, numbers, strict=True)):
        if number:
            boxes[index, :number] = example["boxes"]
            labels[index, :number] = example.get("box_labels", 0)
    return {
        "boxes": boxes,
        "box_labels": labels,
        "num_boxes": np.array(numbers, dtype=np.int64),
    }


def box_sides_mm(
    boxes_xyxy: Real[np.ndarray, "num_boxes 4"], spacing_yx_mm: tuple[float, float]
) -> Float[np.ndarray, "num_boxes 2"]:
    """Return height and width of boxes in mm."""
    boxes = _rows(boxes_xyxy)
    height_width = (boxes[:, 2:] - boxes[:, :2])[:, ::-1]
    sides: np.ndarray = height_width * np.asarray(spacing_yx_mm, dtype=np.float64)
    return sides


def _rows(boxes: np.ndarray) -> np.ndarray:
    """Return (n, 4) float64, also for an empty list of boxes."""
    return np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
