"""Predictions as the challenges want them: the text of a submission.csv."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from medray.boxes import xyxy_to_xywh
from medray.errors import ConfigError


def mammography_csv(scores: Mapping[tuple[str, str], float]) -> str:
    """Return `prediction_id,cancer` lines, one a breast, sorted.

    Args:
        scores: probability, or decision as 0 and 1, by (patient id, side `L` or `R`).

    Raises:
        ConfigError: a side is neither, or a score is not within 0..1.
    """
    rows = []
    for (patient_id, side), score in sorted(scores.items()):
        if side not in {"L", "R"}:
            raise ConfigError(f"a breast is L or R, got {side!r}")
        if not 0 <= score <= 1:
            raise ConfigError(f"a probability must lie in 0..1, got {score}")
        rows.append((f"{patient_id}_{side}", f"{score:.6g}"))
    return _table(("prediction_id", "cancer"), rows)


def pneumonia_csv(
    images: Mapping[str, tuple[Sequence[Sequence[float]] | np.ndarray, Sequence[float]]],
) -> str:
    """Return `patientId,PredictionString` lines, one an image, sorted.

    The string is `confidence x y width height` for each box, best first; empty where there is none.

    Args:
        images: (n, 4) boxes xyxy in pixels of the original image and n scores, by patientId.

    Raises:
        ConfigError: boxes and scores of an image differ in number.
    """
    rows = []
    for name, (boxes, scores) in sorted(images.items()):
        places = xyxy_to_xywh(np.asarray(boxes, dtype=np.float64).reshape(-1, 4))
        if len(places) != len(scores):
            raise ConfigError(f"{len(places)} boxes and {len(scores)} scores of one image")
        order = np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable")
        words = (
            f"{scores[index]:.4g} " + " ".join(f"{value:.1f}" for value in places[index].tolist())
            for index in order.tolist()
        )
        rows.append((name, " ".join(words)))
    return _table(("patientId", "PredictionString"), rows)


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return out.getvalue()
