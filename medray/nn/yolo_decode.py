"""Raw outputs of YOLOv5 to boxes in the frame's pixels."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from medray.nn.nms import Selection, best_boxes
from medray.nn.yolo import LEVELS, STRIDES


def decode_outputs(outputs: Mapping[str, Tensor]) -> Float[Tensor, "b n o"]:
    """Return (centre x, centre y, width, height, objectness, classes ...) of every place.

    Boxes in pixels of the frame, the rest in [0, 1]; rows by level, anchor, row, column:

        centre = (2 sigmoid(t) - 0.5 + cell) x stride;  size = (2 sigmoid(t))^2 x anchor
    """
    rows = []
    for name, stride, anchors in zip(LEVELS, STRIDES, outputs["anchors_px"], strict=True):
        raw = outputs[name]
        share = (raw.float() if raw.dtype in {torch.float16, torch.bfloat16} else raw).sigmoid()
        _, _, height, width, size = share.shape
        cell = torch.stack(
            torch.meshgrid(
                torch.arange(width, device=raw.device),
                torch.arange(height, device=raw.device),
                indexing="xy",
            ),
            dim=-1,
        ).to(share.dtype)
        center = (2 * share[..., :2] - 0.5 + cell) * stride
        sides = (2 * share[..., 2:4]) ** 2 * anchors.to(share.dtype).view(1, 3, 1, 1, 2)
        rows.append(torch.cat([center, sides, share[..., 4:]], dim=-1).flatten(1, 3))
        assert rows[-1].shape[-1] == size
    return torch.cat(rows, dim=1)


def detect(
    outputs: Mapping[str, Tensor], selection: Selection, *, multi_label: bool = False
) -> dict[str, Tensor]:
    """Return `boxes` (B, K, 4) xyxy in the frame's pixels, `scores` and `classes` (B, K) float32.

    Args:
        outputs: of the network.
        selection: objectness, and score = objectness x class, must exceed its `least_score`; K is
            its `most`, and a score of 0 marks an empty place.
        multi_label: whether one place may give a box of several classes.
    """
    rows = decode_outputs(outputs).float()
    half = rows[..., 2:4] / 2
    boxes = torch.cat([rows[..., :2] - half, rows[..., :2] + half], dim=-1)
    objectness, by_class = rows[..., 4:5], rows[..., 5:]
    scores = torch.where(objectness > selection.least_score, objectness * by_class, 0.0)
    number = scores.shape[-1]
    if multi_label and number > 1:
        classes = torch.arange(number, device=scores.device).expand(scores.shape).flatten(1)
        boxes, flat = boxes.repeat_interleave(number, dim=1), scores.flatten(1)
    else:
        flat, classes = scores.max(dim=-1)
    found, kept, labels = best_boxes(boxes, flat, classes, selection)
    return {"boxes": found, "scores": kept, "classes": labels.float()}
