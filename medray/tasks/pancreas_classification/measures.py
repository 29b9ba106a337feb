"""How well cancer is told; under `joint` also how well the organ is outlined."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from medray.learning import (
    Batch,
    Choice,
    InferenceSweep,
    Objective,
    Outputs,
    Prediction,
    Row,
)
from medray.metrics import mask_rows, overlap
from medray.metrics.class_rows import two_class_numbers, youden_threshold
from medray.metrics.classes import majority_baseline
from medray.preprocess.native_mask import mask_on_grid

if TYPE_CHECKING:
    from torch import Tensor

    from medray.tasks.pancreas_classification.recipe import Hparams

DEFAULT_THRESHOLD = 0.5


def probabilities(outputs: Outputs, hp: "Hparams") -> "dict[str, Tensor]":
    """Return `class` (B, 2) and, under `joint`, the organ's `mask` (B, D, H, W)."""
    import torch

    del hp
    logits = outputs["class"] if isinstance(outputs, dict) else outputs
    cancer = logits.float().sigmoid().reshape(-1)
    found = {"class": torch.stack([1 - cancer, cancer], dim=1)}
    if isinstance(outputs, dict):
        found["mask"] = outputs["mask"].float().softmax(dim=1)[:, 1]
    return found


def measure(probs: "Mapping[str, Tensor]", batch: Batch, hp: "Hparams") -> list[Row]:
    """Return the score and label of each case, under `joint` with the mask's voxel counts."""
    del hp
    scores, labels = probs["class"][:, 1].tolist(), batch["label"].tolist()
    rows: list[Row] = [
        {"score": score, "label": label} for score, label in zip(scores, labels, strict=True)
    ]
    if "mask" in probs:
        counts = mask_rows.voxel_counts(probs["mask"], batch["mask"])
        rows = [{**row, **count} for row, count in zip(rows, counts, strict=True)]
    return rows


def metrics(rows: Sequence[Row], inference: Mapping[str, Any]) -> dict[str, float]:
    """Return the classifier's numbers, and under `joint` those of the mask."""
    threshold = float(inference.get("threshold", DEFAULT_THRESHOLD))
    numbers = two_class_numbers(*_columns(rows), threshold=threshold)
    if rows and "found_true" in rows[0]:
        cut = float(inference.get("mask_threshold", DEFAULT_THRESHOLD))
        numbers.update(mask_rows.mask_numbers(mask_rows.counts_at(rows, cut)))
    return numbers


def choose(rows: Sequence[Row]) -> dict[str, Any]:
    """Return Youden's threshold, and under `joint` the mask's threshold of the best Dice."""
    chosen = {"threshold": youden_threshold(*_columns(rows))}
    if rows and "found_true" in rows[0]:
        chosen["mask_threshold"] = mask_rows.best_mask_threshold(rows)
    return chosen


def baseline(rows: Sequence[Row], training_labels: Sequence[int]) -> dict[str, float]:
    """Return what the training split's share of cancer, said of every case, would score."""
    labels = _columns(rows)[1]
    share = float(np.mean(training_labels))
    numbers = two_class_numbers(np.full(len(labels), share), labels, threshold=DEFAULT_THRESHOLD)
    majority = majority_baseline(labels, known=np.asarray(training_labels), num_classes=2)
    numbers.update({name: majority[name] for name in ("accuracy", "balanced_accuracy")})
    if rows and "found_true" in rows[0]:
        numbers.update(mask_rows.mask_numbers(mask_rows.all_foreground(rows)))
    return numbers


def decode(
    probs: Mapping[str, np.ndarray],
    facts: Mapping[str, Any],
    hp: "Hparams",
    inference: Mapping[str, Any],
) -> Prediction:
    """Return the class, under `joint` with the organ's mask on the CT's own grid."""
    del hp
    scores = tuple(float(score) for score in probs["class"])
    label = int(scores[1] >= float(inference.get("threshold", DEFAULT_THRESHOLD)))
    if "mask" not in probs:
        return Prediction(scores=scores, label=label, score=scores[1])
    affine = np.reshape(facts["meta"]["original_affine_lps"], (4, 4))
    mask = mask_on_grid(
        probs["mask"],
        np.reshape(facts["affine_lps"], (4, 4)),
        grid=(facts["meta"]["original_shape"], affine),
        threshold=float(inference.get("mask_threshold", DEFAULT_THRESHOLD)),
    )
    spacing = np.linalg.norm(affine[:3, :3], axis=0).tolist()
    return Prediction(
        scores=scores,
        label=label,
        score=scores[1],
        mask=mask,
        affine_lps=affine,
        volume_ml=overlap.volume_ml(int(np.count_nonzero(mask)), spacing),
    )


def _columns(rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
    scores = np.array([row["score"] for row in rows], dtype=np.float64)
    return scores, np.array([row["label"] for row in rows], dtype=np.int64)


SWEEP = InferenceSweep(
    space={"threshold": Choice(tuple(k / 50 for k in range(1, 50)))},
    # Of the joint network alone: --space mask_threshold --metric dice
    on_request={"mask_threshold": Choice(tuple(k / 32 for k in range(1, 32)))},
    objective=Objective("balanced_accuracy", "max"),
    limits={"threshold": (0.0, 1.0), "mask_threshold": mask_rows.THRESHOLD_LIMITS},
    further_metrics=("dice", "dice_sd", "precision", "recall", "f1"),
)
