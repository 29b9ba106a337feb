"""How well cancer is told, breast by breast."""

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
from medray.metrics import breast_rows

if TYPE_CHECKING:
    from torch import Tensor

    from medray.tasks.breast_classification.recipe import Hparams

SIDES = ("L", "R")
UNKNOWN_SIDE = 255


def probabilities(outputs: Outputs, hp: "Hparams") -> "dict[str, Tensor]":
    """Return `class` (B, 2)."""
    import torch

    del hp
    assert not isinstance(outputs, dict)
    cancer = outputs.float().sigmoid().reshape(-1)
    return {"class": torch.stack([1 - cancer, cancer], dim=1)}


def measure(probs: "Mapping[str, Tensor]", batch: Batch, hp: "Hparams") -> list[Row]:
    """Return the score of each image, and to which breast, site and machine it belongs."""
    del hp
    columns = {"score": probs["class"][:, 1], "label": batch["label"]}
    for name in ("site", "machine"):
        if name in batch:
            columns[name] = batch[name].reshape(-1)
    names = list(columns)
    values = zip(*(columns[name].tolist() for name in names), strict=True)
    rows: list[Row] = [dict(zip(names, one, strict=True)) for one in values]
    sides = batch["side"].reshape(-1).tolist() if "side" in batch else [UNKNOWN_SIDE] * len(rows)
    for row, side in zip(rows, sides, strict=True):
        row["laterality"] = SIDES[side] if side < len(SIDES) else ""
    return rows


def metrics(rows: Sequence[Row], inference: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of the breasts, aggregated and decided as chosen."""
    how = str(inference.get("aggregation", breast_rows.AGGREGATIONS[0]))
    threshold = inference.get("threshold")
    return breast_rows.breast_numbers(breast_rows.aggregate(rows, how), threshold=threshold)


def choose(rows: Sequence[Row]) -> dict[str, Any]:
    """Return aggregation and threshold of the best F1 over breasts."""
    return breast_rows.choose_aggregation(rows)


def baseline(rows: Sequence[Row], training_labels: Sequence[int]) -> dict[str, float]:
    """Return what calling every breast ill would score: pF1 2 p / (1 + p) of a share p."""
    del training_labels
    ill = [{**row, "score": 1.0} for row in rows]
    return metrics(ill, {"threshold": breast_rows.DEFAULT_THRESHOLD})


def decode(
    probs: Mapping[str, np.ndarray],
    facts: Mapping[str, Any],
    hp: "Hparams",
    inference: Mapping[str, Any],
) -> Prediction:
    """Return the image's score, judged by the threshold of its breast."""
    del facts, hp
    scores = tuple(float(score) for score in probs["class"])
    threshold = float(inference.get("threshold", breast_rows.DEFAULT_THRESHOLD))
    return Prediction(scores=scores, label=int(scores[1] >= threshold), score=scores[1])


def submission(images: Sequence[Mapping[str, Any]], inference: Mapping[str, Any]) -> str:
    """Return the challenge's table: a decision, 0 or 1, for each breast.

    Raises:
        ConfigError: an image whose header does not tell its side.
    """
    from medray.datasets.submission import mammography_csv

    how = str(inference.get("aggregation", breast_rows.AGGREGATIONS[0]))
    threshold = float(inference.get("threshold", breast_rows.DEFAULT_THRESHOLD))
    breasts: dict[tuple[str, str], list[Row]] = {}
    for one in images:
        unit = (str(one["patient_id"]), str(one["laterality"]))
        breasts.setdefault(unit, []).append({**one, "label": -1})
    decisions = {
        unit: float(breast_rows.aggregate(rows, how).scores[0] >= threshold)
        for unit, rows in breasts.items()
    }
    return mammography_csv(decisions)


SWEEP = InferenceSweep(
    space={
        "threshold": Choice(tuple(k / 50 for k in range(1, 50))),
        "aggregation": Choice(breast_rows.AGGREGATIONS),
    },
    objective=Objective("pf1", "max"),
    limits={"threshold": (0.0, 1.0)},
)
