"""What a sweep makes of boxes that were cached before their suppression, and a model of the choice.

`refined_rows` says of cached rows what `settled_boxes` and the suppression say of a model's boxes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medray.boxes import class_nms, scale_boxes
from medray.metrics.box_matching import box_row


def settled_boxes(
    found: Mapping[str, np.ndarray], inference: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Return one image's `boxes` (K, 4) with their sides multiplied by `box_scale`."""
    factor = float(inference.get("box_scale", 1.0))
    if factor == 1.0:
        return dict(found)
    return {**found, "boxes": scale_boxes(found["boxes"], factor).astype(np.float32)}


def refined_rows(
    rows: Sequence[Mapping[str, Any]], inference: Mapping[str, Any], *, most: int
) -> list[dict[str, Any]]:
    """Return the rows after suppression and scaling, matched anew.

    Args:
        rows: of `box_row`.
        inference: `nms_iou`, without which nothing is suppressed, and `box_scale`.
        most: boxes that an image keeps, the best ones.
    """
    return [_refined(row, inference, most) for row in rows]


def _refined(row: Mapping[str, Any], inference: Mapping[str, Any], most: int) -> dict[str, Any]:
    boxes = np.array(row["boxes_xyxy"], dtype=np.float64).reshape(-1, 4)
    scores = np.array(row["box_scores"], dtype=np.float64)
    classes = np.array(row["box_classes"], dtype=np.int64)
    kept = np.arange(len(boxes))
    if "nms_iou" in inference:
        kept = class_nms(boxes, scores, classes, iou_threshold=float(inference["nms_iou"]))
    kept = kept[:most]
    made = box_row(
        scale_boxes(boxes[kept], float(inference.get("box_scale", 1.0))),
        scores[kept],
        np.array(row["true_boxes_xyxy"], dtype=np.float64).reshape(-1, 4),
        classes=classes[kept],
        true_classes=np.array(row["true_classes"], dtype=np.int64),
        levels=row["iou_levels"],
    )
    return {**row, **made}
