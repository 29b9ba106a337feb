"""Boxes found in a frame, brought back to the image that the frame was made from."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from medray.boxes import clip_boxes, restore_boxes

DEFAULT_THRESHOLD = 0.25


def boxes_of_original(
    found: Mapping[str, np.ndarray], facts: Mapping[str, Any], inference: Mapping[str, Any]
) -> tuple[Float[np.ndarray, "num_boxes 4"], tuple[float, ...], tuple[int, ...]]:
    """Return boxes in pixels of the original image, scores and class indices, best first.

    Args:
        found: `boxes` (K, 4), `scores` and `classes` (K,) of one image; a score of 0 is padding.
        facts: of the example; its `meta` has `scale_yx`, `offset_yx_px` and `original_shape`.
        inference: boxes at or above its `threshold` are returned.
    """
    threshold = float(inference.get("threshold", DEFAULT_THRESHOLD))
    scores = np.asarray(found["scores"], dtype=np.float64)
    kept = np.flatnonzero((scores >= threshold) & (scores > 0))
    kept = kept[np.argsort(-scores[kept], kind="stable")]
    meta = facts["meta"]
    vertical, horizontal = meta["scale_yx"]
    top, left = meta["offset_yx_px"]
    height, width = meta["original_shape"]
    boxes = restore_boxes(
        np.asarray(found["boxes"])[kept],
        scale_yx=(vertical, horizontal),
        offset_yx_px=(top, left),
    )
    labels = tuple(int(one) for one in np.asarray(found["classes"])[kept])
    return clip_boxes(boxes, (height, width)), tuple(scores[kept].tolist()), labels
