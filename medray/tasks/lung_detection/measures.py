"""How well tumours are found: in slices and in patients."""

from collections.abc import Mapping, Sequence
from typing import Any

from medray.learning import Row
from medray.metrics.box_rows import detector_numbers, one_box_rows
from medray.metrics.detection import ranked
from medray.metrics.froc import froc_numbers


def metrics(rows: Sequence[Row], inference: Mapping[str, Any]) -> dict[str, float]:
    """Return the detector's numbers, and the sensitivities of slices and of patients."""
    boxes = ranked(rows)
    return {**detector_numbers(boxes, inference), **froc_numbers(boxes, rows)}


def baseline(rows: Sequence[Row], training_labels: Sequence[int]) -> dict[str, float]:
    """Return what one box in every slice would score, the median of all true ones."""
    del training_labels
    return metrics(one_box_rows(rows), {})
