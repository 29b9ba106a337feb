"""How well the classes are told apart."""

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
from medray.metrics.class_rows import many_class_numbers, youden_threshold
from medray.metrics.classes import majority_baseline

if TYPE_CHECKING:
    from torch import Tensor

    from medray.tasks.lung_classification.recipe import Hparams


def probabilities(outputs: Outputs, hp: "Hparams") -> "dict[str, Tensor]":
    """Return `class` (B, C)."""
    del hp
    assert not isinstance(outputs, dict)
    return {"class": outputs.float().softmax(dim=1)}


def measure(probs: "Mapping[str, Tensor]", batch: Batch, hp: "Hparams") -> list[Row]:
    """Return the scores and the label of each case."""
    del hp
    pairs = zip(probs["class"].tolist(), batch["label"].tolist(), strict=True)
    return [{"scores": scores, "label": label} for scores, label in pairs]


def metrics(rows: Sequence[Row], inference: Mapping[str, Any]) -> dict[str, float]:
    """Return the classifier's numbers."""
    threshold = inference.get("threshold")
    return many_class_numbers(*_columns(rows), threshold=threshold)


def choose(rows: Sequence[Row]) -> dict[str, Any]:
    """Return Youden's threshold of class 1 where there are two; else the greatest score decides."""
    scores, labels = _columns(rows)
    if scores.shape[1] != 2:
        return {}
    return {"threshold": youden_threshold(scores[:, 1], labels)}


def baseline(rows: Sequence[Row], training_labels: Sequence[int]) -> dict[str, float]:
    """Return what the training split's shares of the classes, said of every case, would score."""
    scores, labels = _columns(rows)
    known = np.asarray(training_labels, dtype=np.int64)
    num_classes = scores.shape[1]
    shares = np.bincount(known, minlength=num_classes) / max(1, len(known))
    numbers = many_class_numbers(np.tile(shares, (len(labels), 1)), labels)
    numbers.update(majority_baseline(labels, known=known, num_classes=num_classes))
    return numbers


def decode(
    probs: Mapping[str, np.ndarray],
    facts: Mapping[str, Any],
    hp: "Hparams",
    inference: Mapping[str, Any],
) -> Prediction:
    """Return the class; of two, class 1 where its score reaches the threshold."""
    del facts, hp
    scores = tuple(float(score) for score in probs["class"])
    label = int(np.argmax(scores))
    if len(scores) == 2 and "threshold" in inference:
        label = int(scores[1] >= float(inference["threshold"]))
    return Prediction(scores=scores, label=label, score=scores[1] if len(scores) == 2 else None)


def _columns(rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
    num_classes = len(rows[0]["scores"]) if rows else 0
    scores = np.array([row["scores"] for row in rows], dtype=np.float64).reshape(
        len(rows), num_classes
    )
    return scores, np.array([row["label"] for row in rows], dtype=np.int64)


SWEEP = InferenceSweep(
    space={
        "threshold": Choice(tuple(k / 50 for k in range(1, 50))),
    },
    objective=Objective("balanced_accuracy", "max"),
    limits={"threshold": (0.0, 1.0)},
)
