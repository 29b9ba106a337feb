"""How well opacities are found, by box and by image."""

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
from medray.metrics import ranking
from medray.metrics.box_matching import box_row
from medray.metrics.box_placing import boxes_of_original
from medray.metrics.box_refining import refined_rows, settled_boxes
from medray.metrics.box_rows import one_box_rows
from medray.metrics.challenge_map import best_submission, challenge_hits, challenge_map
from medray.metrics.detection import precision_numbers, ranked, threshold_numbers
from medray.metrics.froc import froc_numbers

if TYPE_CHECKING:
    from torch import Tensor

    from medray.tasks.pneumonia_detection.recipe import Hparams

PNEUMONIA, NORMAL = 0, 1
DEFAULT_THRESHOLD = 0.5
_MOST_BOXES = 1000


def probabilities(outputs: Outputs, hp: "Hparams") -> "dict[str, Tensor]":
    """Return `boxes` (B, K, 4) in the frame's pixels, `scores`, `classes` (B, K), `image` (B, 1).

    The last is how likely the image shows pneumonia at all: the gate's answer, or the best score.
    """
    assert isinstance(outputs, dict)
    found = {name: outputs[name] for name in ("boxes", "scores", "classes")}
    best = (found["scores"] * (found["classes"] == PNEUMONIA)).amax(dim=1)
    found["image"] = (outputs["gate"].sigmoid() if hp.gate == "head" else best)[:, None]
    return found


def measure(probs: "Mapping[str, Tensor]", batch: Batch, hp: "Hparams") -> list[Row]:
    """Return the opacities found in each image and at which overlaps they are right.

    A whole-image box of a healthy image is no opacity, neither found nor true.
    """
    columns = {name: tensor.cpu().numpy() for name, tensor in probs.items()}
    rows: list[Row] = []
    for index, scores in enumerate(columns["scores"]):
        opaque = columns["classes"][index] == PNEUMONIA
        truth = _truth(batch, index, hp)
        row: Row = box_row(columns["boxes"][index], scores * opaque, truth)
        boxes = np.array(row["boxes_xyxy"]).reshape(-1, 4)
        row["hits_challenge"] = challenge_hits(boxes, truth)
        row["image_score"] = float(columns["image"][index, 0])
        rows.append(row)
    return rows


def _truth(batch: Batch, index: int, hp: "Hparams") -> np.ndarray:
    if "boxes" not in batch:
        return np.zeros((0, 4))
    boxes = batch["boxes"][index].cpu().numpy()
    number = int(batch["num_boxes"][index]) if "num_boxes" in batch else len(boxes)
    healthy = hp.compat == "original" and int(batch["label"][index]) == 0
    opaque = batch["box_labels"][index, :number].cpu().numpy() == PNEUMONIA
    return np.asarray(boxes[:number][opaque & (not healthy)], dtype=np.float64)


def metrics(rows: Sequence[Row], inference: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of boxes, of images, and of the challenge.

    `challenge_map`, precision, recall and F1 judge what is handed in at threshold and gate.
    """
    threshold = float(inference.get("threshold", DEFAULT_THRESHOLD))
    gate = float(inference.get("gate", 0.0))
    boxes = ranked(rows, rule="coco")
    ill = np.array([bool(row["true_boxes_xyxy"]) for row in rows])
    scores = np.array([row["image_score"] for row in rows], dtype=np.float64)
    handed_in = ranked([row if row["image_score"] >= gate else _emptied(row) for row in rows])
    return {
        "challenge_map": challenge_map(rows, threshold=threshold, gate=gate),
        **precision_numbers(boxes),
        "image_auroc": ranking.auroc(scores, ill),
        "image_auprc": ranking.average_precision(scores, ill),
        **threshold_numbers(handed_in, threshold),
        **froc_numbers(boxes, rows),
    }


def _emptied(row: Row) -> Row:
    """Return the row of an image whose gate is closed."""
    lists = ("boxes_xyxy", "box_scores", "box_classes", "hits", "hits_coco", "hit_truth")
    return {**row, **{name: [] for name in lists}}


def refine(rows: Sequence[Row], inference: Mapping[str, Any], hp: "Hparams") -> list[Row]:
    """Return the rows of boxes after scaling."""
    del hp
    made = refined_rows(rows, {"box_scale": inference.get("box_scale", 1.0)}, most=_MOST_BOXES)
    for row in made:
        boxes = np.array(row["boxes_xyxy"]).reshape(-1, 4)
        truth = np.array(row["true_boxes_xyxy"]).reshape(-1, 4)
        row["hits_challenge"] = challenge_hits(boxes, truth)
    return made


def choose(rows: Sequence[Row]) -> dict[str, Any]:
    """Return threshold and gate of the best challenge score."""
    best = best_submission(rows, with_gate=True)
    return {"threshold": best.threshold, "gate": best.gate}


def baseline(rows: Sequence[Row], training_labels: Sequence[int]) -> dict[str, float]:
    """Return what one box in every image would score, the median of all true ones."""
    del training_labels
    trivial = [
        {
            **row,
            "hits_challenge": challenge_hits(
                np.array(row["boxes_xyxy"]).reshape(-1, 4),
                np.array(row["true_boxes_xyxy"]).reshape(-1, 4),
            ),
            "image_score": 1.0,
        }
        for row in one_box_rows(rows)
    ]
    return metrics(trivial, {})


def decode(
    probs: Mapping[str, np.ndarray],
    facts: Mapping[str, Any],
    hp: "Hparams",
    inference: Mapping[str, Any],
) -> Prediction:
    """Return the opacities in pixels of the original image, if the gate is open.

    The label is `pneumonia` where there are any; a healthy image has none of this task's labels.
    With `compat=whole_image` an image without any gets one box over the whole of it, `normal`.
    """
    image_score = float(probs["image"][0])
    opaque = np.where(probs["classes"] == PNEUMONIA, probs["scores"], 0.0)
    if image_score < float(inference.get("gate", 0.0)):
        opaque = np.zeros_like(opaque)
    chosen = {"threshold": float(inference.get("threshold", DEFAULT_THRESHOLD))}
    boxes, scores, labels = boxes_of_original({**probs, "scores": opaque}, facts, chosen)
    label = PNEUMONIA if len(boxes) else -1
    if not len(boxes) and hp.compat == "whole_image":
        height, width = facts["meta"]["original_shape"]
        boxes, label = np.array([[0.0, 0.0, width, height]]), NORMAL
        scores, labels = (1 - image_score,), (NORMAL,)
    return Prediction(
        label=label,
        score=image_score,
        boxes_xyxy_px=boxes,
        box_scores=scores,
        box_labels=labels,
    )


def submission(images: Sequence[Mapping[str, Any]], inference: Mapping[str, Any]) -> str:
    """Return the challenge's table; the boxes are those at or above the chosen threshold."""
    from medray.datasets.submission import pneumonia_csv

    del inference
    return pneumonia_csv(
        {str(one["patient_id"]): (one["boxes_xyxy_px"], one["box_scores"]) for one in images}
    )


# Boxes of experts are drawn tighter than what is learnt from several of them.
SWEEP = InferenceSweep(
    space={
        "threshold": Choice(tuple(k / 20 for k in range(1, 20))),
        "gate": Choice((0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)),
        "box_scale": Choice((0.8, 0.85, 0.875, 0.9, 0.95, 1.0, 1.05)),
    },
    objective=Objective("challenge_map", "max"),
    raw={"box_scale": 1.0},
    refine=refine,
    refined_by=("box_scale",),
    settle=settled_boxes,
    limits={"threshold": (0.0, 1.0), "gate": (0.0, 1.0), "box_scale": (0.1, 10.0)},
)
