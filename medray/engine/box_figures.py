"""Figures and tables of a detector's evaluation, from the rows of `medray.metrics.box_matching`."""

from collections.abc import Sequence

import numpy as np

from medray.figures import Figure, froc_figure, pr_figure
from medray.learning import Row
from medray.metrics import detection, froc
from medray.metrics.ranking import PrCurve
from medray.pages import Table

_IOU = 0.5


def has_boxes(rows: Sequence[Row]) -> bool:
    """Tell whether the rows are a detector's."""
    return bool(rows) and "box_scores" in rows[0]


def box_score(row: Row, threshold: float) -> float:
    """Return how good an image is: F1 at the threshold; 1 where rightly nothing is found."""
    found = detection.threshold_numbers(detection.ranked([row]), threshold)["f1"]
    return 1.0 if np.isnan(found) else found


def box_figures(rows: Sequence[Row]) -> list[Figure]:
    """Draw precision over recall at an IoU of 0.5, and the FROC by image and by patient."""
    boxes = detection.ranked(rows)
    if not boxes.num_true:
        return []
    hits = boxes.hits_at(_IOU)
    found = []
    if len(hits):
        right = np.cumsum(hits)
        curve = PrCurve(
            recall=right / boxes.total_true,
            precision=right / np.arange(1, len(hits) + 1),
            thresholds=boxes.scores,
        )
        found.append(pr_figure({f"boxes at IoU {_IOU}": curve}))
    curves = {
        "by image": froc.froc(boxes, rows, level="slice"),
        "by patient": froc.froc(boxes, rows, level="patient"),
    }
    return [*found, froc_figure(curves, froc.RATES)]


def size_tables(rows: Sequence[Row], threshold: float) -> list[Table]:
    """Return recall and average precision by the size of the true boxes."""
    lines = detection.size_table(rows, threshold)
    if not any(line["num_true"] for line in lines):
        return []
    return [
        Table(
            title="By size of the true box (COCO's limits, pixels of the frame)",
            columns=["size", "true boxes", "recall at the threshold", "AP50"],
            rows=[[x["size"], x["num_true"], x["recall"], x["ap"]] for x in lines],
        )
    ]
