"""report.html of a sweep: what each parameter does, the chosen point and its interval."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from medray import storage
from medray.engine.package import model_warnings
from medray.engine.tune_results import Trial, counts_by_status
from medray.engine.tune_space import Space
from medray.figures import Figure
from medray.learning import Choice, LogUniform
from medray.pages import MetricRow, Page, Table, render_page
from medray.sweep_figures import point_figure, shown, slice_figure, trials_figure

REPORT = "report.html"
_SHOWN_TRIALS = 15
_MOST_NAMED = 2
_FACTOR = 5
# What a threshold trades, where a task measures it.
_TRADED = ("precision", "recall", "f1", "sensitivity", "specificity")


def write_inference_page(
    out: str,
    space: Space,
    judged: Sequence[Mapping[str, Any]],
    best: Mapping[str, Any],
    model: Mapping[str, Any],
) -> None:
    """Write the page of a sweep of inference parameters.

    Args:
        out: of the sweep.
        space: what was swept.
        judged: points with `params`, `value`, `folds` and `metrics`.
        best: content of best.json.
        model: content of the new model.json.
    """
    metric, params = best["metric"], best["params"]
    curves = [_curve(name, domain, judged, best) for name, domain in space.items()]
    page = Page(
        task=model["task"],
        title="Sweep of inference parameters",
        split=best["split"],
        model_version=model["version"],
        weights_sha256=model["weights_sha256"],
        facts={
            "Points": best["num_points"],
            "Folds of patients": best["num_folds"],
            "Held out": best["held_out"],
            **params,
        },
        warnings=[*model_warnings(model), *_flat_warning(best)],
        metrics=[_chosen_row(best)],
        figures=[
            *(figure for figure in curves if figure is not None),
            *_slices(space, judged, metric, params),
        ],
        tables=[_table(space, judged, best)],
        notes=[
            "Predictions were made once; every point was judged on them, the weights are the same.",
            f"A point's value: the mean of {metric} over folds of patients.",
            "Of equal points the one amid the others was chosen.",
            "Interval: 1000 resamples of the patients, of the cases that the point was chosen on.",
            "Held out: what the choice of all other folds scores on a fold, mean of the folds.",
            *_grid_note(metric, judged),
        ],
    )
    storage.write_atomic(storage.join(out, REPORT), render_page(page).encode())


def write_training_page(
    out: str,
    space: Space,
    trials: Sequence[Trial],
    curves: Mapping[str, Sequence[tuple[float, float]]],
    best: Mapping[str, Any],
    model: Mapping[str, Any],
) -> None:
    """Write the page of a sweep of trainings.

    Args:
        out: of the sweep.
        space: what was swept.
        trials: all of them.
        curves: validation metric by trial, (epoch, value).
        best: content of best.json.
        model: content of the best trial's model.json.
    """
    known = [
        {"params": trial.params, "value": trial.value, "metrics": trial.metrics}
        for trial in trials
        if trial.value is not None
    ]
    metric, params, counts = best["metric"], best["params"], counts_by_status(trials)
    drawn = [_curve(name, domain, known, best) for name, domain in space.items()]
    page = Page(
        task=model["task"],
        title="Sweep of trainings",
        split="val",
        model_version=model["version"],
        weights_sha256=model["weights_sha256"],
        facts={**{name.capitalize(): n for name, n in counts.items()}, **params},
        warnings=model_warnings(model),
        metrics=[_chosen_row(best)],
        figures=[
            *_slices(space, known, metric, params),
            *(figure for figure in drawn if figure is not None and len(space) == 1),
            _learning_curves(space, trials, curves, best),
        ],
        tables=[_table(space, known, best), *_lost(trials)],
        notes=["A trial's value is of its best epoch on the validation split: optimistic."],
    )
    storage.write_atomic(storage.join(out, REPORT), render_page(page).encode())


def _chosen_row(best: Mapping[str, Any]) -> MetricRow:
    low, high = best.get("ci95") or (None, None)
    ends = None if low is None or high is None else (low, high)
    return MetricRow(name=best["metric"], value=best["value"], ci95=ends, n=best.get("num_cases"))


def _flat_warning(best: Mapping[str, Any]) -> list[str]:
    flat = best["makes_no_difference"]
    return ["No parameter made a difference on these cases."] if flat else []


def _grid_note(metric: str, judged: Sequence[Mapping[str, Any]]) -> list[str]:
    """Tell measures of the original images from those of the grid that was learned on."""
    names = [name for name in _TRADED if judged and name in judged[0]["metrics"]]
    if not metric.startswith("native_") or not names:
        return []
    return [f"{metric} is measured on the images' own grid, {', '.join(names)} on the training's."]


def _slices(
    space: Space, judged: Sequence[Mapping[str, Any]], metric: str, chosen: Mapping[str, Any]
) -> list[Figure]:
    known = [one for one in judged if one["value"] is not None and math.isfinite(one["value"])]
    scores = [one["value"] for one in known]
    return [
        slice_figure(
            name,
            [one["params"][name] for one in known],
            scores,
            metric=metric,
            chosen=chosen[name],
            logarithmic=_is_logarithmic(domain),
        )
        for name, domain in space.items()
    ]


def _is_logarithmic(domain: Any) -> bool:
    """Tell whether values of a domain differ by factors rather than by steps."""
    if not isinstance(domain, Choice):
        return isinstance(domain, LogUniform)
    values = [v for v in domain.values if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(values) < len(domain.values) or len(values) < 3 or min(values) <= 0:
        return False
    values = sorted(values)
    return values[-1] - values[-2] > _FACTOR * (values[1] - values[0])


def _curve(
    name: str, domain: Any, judged: Sequence[Mapping[str, Any]], best: Mapping[str, Any]
) -> Figure | None:
    """Draw precision, recall and the objective over a parameter, the others being as chosen."""
    chosen = best["params"]
    numbers = isinstance(chosen[name], int | float) and not isinstance(chosen[name], bool)
    if not numbers or (isinstance(domain, Choice) and len(domain.values) < 2):
        return None
    others = {other: value for other, value in chosen.items() if other != name}
    same = [one for one in judged if {k: one["params"][k] for k in others} == others]
    same = sorted(same, key=lambda one: float(one["params"][name]))
    if len(same) < 2:
        return None
    lines = {best["metric"]: [one["value"] for one in same]}
    for metric in _TRADED:
        if metric in same[0]["metrics"] and metric != best["metric"]:
            lines[metric] = [one["metrics"].get(metric) for one in same]
    ends = best.get("ci95")
    return point_figure(
        name,
        [float(one["params"][name]) for one in same],
        lines,
        chosen=float(chosen[name]),
        interval=(best["metric"], ends) if ends else None,
    )


def _table(space: Space, judged: Sequence[Mapping[str, Any]], best: Mapping[str, Any]) -> Table:
    sign = -1.0 if best["mode"] == "max" else 1.0
    known = [one for one in judged if one["value"] is not None]
    known = sorted(known, key=lambda one: sign * one["value"])[:_SHOWN_TRIALS]
    first = known[0]["metrics"] if known else {}
    extra = [name for name in _TRADED if name in first and name != best["metric"]]
    return Table(
        title=f"Best of {len(judged)}",
        columns=[*space, best["metric"], *extra],
        rows=[
            [
                *(one["params"][n] for n in space),
                one["value"],
                *(one["metrics"].get(n) for n in extra),
            ]
            for one in known
        ],
    )


def _learning_curves(
    space: Space,
    trials: Sequence[Trial],
    curves: Mapping[str, Sequence[tuple[float, float]]],
    best: Mapping[str, Any],
) -> Figure:
    named = {trial.trial_id: _called(trial, space) for trial in trials}
    return trials_figure(
        {named[trial]: pairs for trial, pairs in curves.items()},
        metric=best["metric"],
        best=named[str(best["trial_id"])],
    )


def _called(trial: Trial, space: Space) -> str:
    """Name a trial by its parameters while they are few enough to read."""
    if len(space) > _MOST_NAMED:
        return trial.trial_id
    return ", ".join(f"{name} {shown(trial.params[name])}" for name in space)


def _lost(trials: Sequence[Trial]) -> list[Table]:
    rows = [[t.trial_id, t.status, t.reason] for t in trials if t.status != "done"]
    return (
        [Table(title="Not finished", columns=["trial", "status", "reason"], rows=rows)]
        if rows
        else []
    )
