"""How well the breast is boxed."""

from collections.abc import Mapping, Sequence
from typing import Any

from medray.learning import Row
from medray.metrics.box_rows import best_box_iou, detector_numbers, one_box_rows
from medray.metrics.detection import ranked


def metrics(rows: Sequence[Row], inference: Mapping[str, Any]) -> dict[str, float]:
    """Return the detector's numbers, and `iou` of the best box, which is what is cut out."""
    return {**detector_numbers(ranked(rows), inference), "iou": best_box_iou(rows)}


def baseline(rows: Sequence[Row], training_labels: Sequence[int]) -> dict[str, float]:
    """Return what one box in every mammogram would score, the median of all true ones."""
    del training_labels
    return metrics(one_box_rows(rows), {})
