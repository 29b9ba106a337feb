"""Points of a sweep judged on cached rows: folds of patients, the choice, its interval. No Ray."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medray.config import unknown_name
from medray.engine.tune_space import Point, Space, position
from medray.errors import ConfigError
from medray.learning import Learning, Objective, Row
from medray.metrics.bootstrap import bootstrap

_TIE = 1e-9


def patient_folds(rows: Sequence[Row], num_folds: int) -> list[int]:
    """Return the fold of each row: patients stay together, those of one label are dealt out evenly.

    Folds are fewer where there are fewer patients.
    """
    labels: dict[str, int] = {}
    for row in rows:
        who = str(row["patient_id"])
        labels[who] = max(labels.get(who, -1), int(row["label"]))
    order = sorted(labels, key=lambda who: (labels[who], who))
    fold_of = {who: place % num_folds for place, who in enumerate(order)}
    return [fold_of[str(row["patient_id"])] for row in rows]


def refined(
    learning: Learning[Any], rows: Sequence[Row], point: Mapping[str, Any], hparams: Any
) -> Sequence[Row]:
    """Return the rows as they would be under these parameters."""
    return learning.sweep.refine(rows, point, hparams) if learning.sweep.refine else rows


def fold_values(
    learning: Learning[Any],
    rows: Sequence[Row],
    folds: Sequence[int],
    metric: str,
    point: Mapping[str, Any],
) -> list[float]:
    """Return the metric of each fold's rows; NaN where it is undefined."""
    parts: dict[int, list[Row]] = {}
    for row, fold in zip(rows, folds, strict=True):
        parts.setdefault(fold, []).append(row)
    every = (learning.metrics(parts[fold], point) for fold in sorted(parts))
    return [float(numbers.get(metric, math.nan)) for numbers in every]


def mean_known(values: Sequence[float]) -> float:
    """Return the mean of the values that are finite; NaN where none is."""
    known = [value for value in values if math.isfinite(value)]
    return float(np.mean(known)) if known else math.nan


def judge_points(
    learning: Learning[Any],
    hparams: Any,
    rows: Sequence[Row],
    folds: Sequence[int],
    metric: str,
    points: Sequence[Point],
) -> list[dict[str, Any]]:
    """Return for each point its `params`, `value`, `folds` and all `metrics`.

    Neighbours that share what `refine` reads share the refined rows: a threshold costs a sort.
    """
    found = []
    last: tuple[Any, ...] | None = None
    judged: Sequence[Row] = rows
    for point in points:
        key = refined_key(learning, point)
        if key != last:
            judged, last = refined(learning, rows, point, hparams), key
        each = fold_values(learning, judged, folds, metric, point)
        numbers = learning.metrics(judged, point)
        metrics = {name: _known(value) for name, value in numbers.items()}
        value = _known(mean_known(each))
        found.append(
            {
                "params": point,
                "value": value,
                "folds": [_known(v) for v in each],
                "metrics": metrics,
            }
        )
    return found


def refined_key(learning: Learning[Any], point: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what of a point decides about the refined rows."""
    return tuple(point.get(name) for name in learning.sweep.refined_by)


def require_metric(metric: str, known: Mapping[str, Any]) -> None:
    """Refuse a metric that the task does not have.

    Raises:
        ConfigError: with the nearest name.
    """
    if metric not in known:
        raise ConfigError(unknown_name("metric", metric, known))


def best_of(judged: Sequence[Mapping[str, Any]], objective: Objective, space: Space) -> int:
    """Return the index of the best point.

    Of equals it is the one in their middle: the others lie on a plateau around it.

    Raises:
        ConfigError: the metric is undefined at every point.
    """
    sign = 1.0 if objective.mode == "max" else -1.0
    values = [-math.inf if one["value"] is None else sign * one["value"] for one in judged]
    best = max(values, default=-math.inf)
    if best == -math.inf:
        raise ConfigError(
            f"{objective.metric} is undefined on these validation cases at every point"
        )
    tied = [index for index, value in enumerate(values) if value >= best - _TIE]
    places = np.array(
        [
            [position(domain, judged[i]["params"][name]) for name, domain in space.items()]
            for i in tied
        ]
    )
    away = np.abs(places[:, None] - places[None]).sum(axis=(1, 2))
    return tied[int(np.argmin(away))]


def held_out_value(
    judged: Sequence[Mapping[str, Any]], objective: Objective, space: Space
) -> float | None:
    """Return the mean over folds of what the choice of all other folds scores on the fold itself.

    The value of the chosen point is of the cases that it was chosen on; this one is not.
    """
    number = len(judged[0]["folds"])
    scores = []
    for fold in range(number if number > 1 else 0):
        others = []
        for one in judged:
            rest = [v for k, v in enumerate(one["folds"]) if k != fold and v is not None]
            others.append(
                {"params": one["params"], "value": float(np.mean(rest)) if rest else None}
            )
        if all(one["value"] is None for one in others):
            continue
        own = judged[best_of(others, objective, space)]["folds"][fold]
        scores += [] if own is None else [own]
    return float(np.mean(scores)) if scores else None


def interval(
    learning: Learning[Any],
    rows: Sequence[Row],
    folds: Sequence[int],
    metric: str,
    point: Mapping[str, Any],
) -> list[float | None]:
    """Return the 95 % interval over patients of a point's mean over folds, from refined rows."""

    def value(drawn: np.ndarray) -> float:
        picked = [int(i) for i in drawn]
        part = [rows[i] for i in picked]
        return mean_known(fold_values(learning, part, [folds[i] for i in picked], metric, point))

    found = bootstrap(value, [row["patient_id"] for row in rows])
    return [_known(found.low), _known(found.high)]


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
