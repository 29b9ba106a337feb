"""Figures of an evaluation's rows: masks, classes and boxes, told from the rows' columns."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medray.engine.box_figures import box_figures, box_score, has_boxes
from medray.figures import (
    Figure,
    bland_altman_figure,
    confusion_figure,
    dice_histogram_figure,
    pr_figure,
    reliability_figure,
    roc_figure,
    threshold_figure,
    volume_figure,
)
from medray.learning import Row, mask_threshold
from medray.metrics import calibration, classes, mask_rows, overlap, ranking

# Fewer in a bin of the reliability curve say nothing of a share.
_CASES_PER_BIN = 8


def case_figures(rows: Sequence[Row], facts: Mapping[str, Any]) -> list[Figure]:
    """Draw what the rows of an evaluation hold.

    Args:
        rows: one a case.
        facts: content of model.json: class names and inference parameters.
    """
    found = []
    if is_classified(rows):
        found += _class_figures(rows, facts["labels"])
    if rows and "found_true" in rows[0]:
        found += _mask_figures(rows, mask_threshold(facts["inference"]))
    if has_boxes(rows):
        found += box_figures(rows)
    return found


def is_classified(rows: Sequence[Row]) -> bool:
    """Tell whether the rows hold a class's truth and scores."""
    return bool(rows) and all(row["label"] >= 0 and len(row["scores"]) > 1 for row in rows)


def case_score(row: Row, inference: Mapping[str, Any]) -> float:
    """Return how good a case is, 0 to 1: its boxes' F1, the true class's score, or its Dice."""
    if has_boxes([row]):
        return box_score(row, mask_threshold(inference))
    if is_classified([row]):
        return float(row["scores"][row["label"]])
    if "native_dice" in row:
        return float(row["native_dice"])
    return float(overlap.dice(mask_rows.counts_at([row], 0.5))[0]) if "found_true" in row else 0.0


def _mask_figures(rows: Sequence[Row], threshold: float) -> list[Figure]:
    dice = overlap.dice(mask_rows.counts_at(rows, threshold))
    if "native_dice" in rows[0]:
        dice = np.array([row["native_dice"] for row in rows])
    found = [
        threshold_figure(mask_rows.mask_curve(rows), chosen=threshold),
        dice_histogram_figure(dice),
    ]
    if "native_volume_error_ml" in rows[0]:
        volumes = np.array([row["volume_ml"] for row in rows], dtype=np.float64)
        truth = volumes - np.array([row["native_volume_error_ml"] for row in rows])
        found += [volume_figure(volumes, truth), bland_altman_figure(volumes, truth)]
    return found


def _class_figures(rows: Sequence[Row], names: Sequence[str]) -> list[Figure]:
    scores = np.clip([row["scores"] for row in rows], 0.0, 1.0).astype(np.float64)
    labels = np.array([row["label"] for row in rows], dtype=np.int64)
    said = np.array([row["predicted_label"] for row in rows], dtype=np.int64)
    matrix = classes.confusion_matrix(labels, said, num_classes=scores.shape[1])
    two = scores.shape[1] == 2
    judged = [1] if two else list(range(scores.shape[1]))
    # A class that nobody or everybody has gives no curve.
    curves = [one for one in judged if 0 < np.count_nonzero(labels == one) < len(labels)]
    found = []
    if curves:
        prevalence = float(np.mean(labels == 1)) if two else None
        roc = {names[one]: ranking.roc_curve(scores[:, one], labels == one) for one in curves}
        pr = {names[one]: ranking.pr_curve(scores[:, one], labels == one) for one in curves}
        found.append(roc_figure(roc, point=_operating_point(matrix) if two else None))
        found.append(pr_figure(pr, prevalence=prevalence))
    judged_score = scores[:, 1] if two else scores.max(axis=1)
    came_true = labels == 1 if two else scores.argmax(axis=1) == labels
    num_bins = int(np.clip(len(labels) // _CASES_PER_BIN, 2, calibration.NUM_BINS))
    curve = calibration.reliability(judged_score, came_true, num_bins=num_bins)
    return [*found, reliability_figure(curve), confusion_figure(matrix, names)]


def _operating_point(matrix: np.ndarray) -> tuple[float, float]:
    """Return (1 - specificity, sensitivity) of the decisions of two classes."""
    recalls = classes.class_recalls(matrix)
    return float(1 - recalls[0]), float(recalls[1])
