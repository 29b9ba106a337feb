"""report.html of an evaluation; what is drawn follows from the columns of the rows alone."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medray import storage
from medray.engine.box_figures import has_boxes, size_tables
from medray.engine.evaluate_figures import case_figures, case_score, is_classified
from medray.engine.package import model_warnings
from medray.engine.train_log import METRICS, read_metrics
from medray.engine.weights import package_uri
from medray.errors import DataError
from medray.figures import Figure, training_figure
from medray.learning import Row, mask_threshold
from medray.pages import Page, Picture, Pictures, metric_rows, render_page

_PER_GRID = 6
_SEED = 0
# Resampling few patients repeats the same few values.
_FEW_PATIENTS = 20
_OUTLINES = "; truth outlined green, prediction orange"


def write_page(
    out: str,
    tiles: str,
    report: Mapping[str, Any],
    facts: Mapping[str, Any],
    rows: Sequence[Row],
    model: str,
) -> None:
    """Write the page; one self-contained file.

    Args:
        out: of the evaluation.
        tiles: where the cases' pictures lie, `<key>.png`.
        report: content of report.json.
        facts: content of model.json.
        rows: one a case, sorted by key.
        model: URI of the package, beside which its training may have left metrics.jsonl.
    """
    page = Page(
        task=report["task"],
        title="Evaluation",
        split=report["split"],
        model_version=facts["version"],
        weights_sha256=report["weights_sha256"],
        facts={
            "Cases": report["num_cases"],
            "Patients": report["num_patients"],
            **{name.replace("_", " ").capitalize(): v for name, v in facts["inference"].items()},
            "Epoch": facts["epoch"],
        },
        warnings=_warnings(facts, report),
        metrics=metric_rows(report["metrics"], report["baseline"]),
        figures=[*case_figures(rows, facts), *_training_figures(facts, model)],
        pictures=_pictures(tiles, rows, facts),
        tables=size_tables(rows, mask_threshold(facts["inference"])) if has_boxes(rows) else [],
        notes=_notes(report),
    )
    storage.write_atomic(storage.join(out, "report.html"), render_page(page).encode())


def _warnings(facts: Mapping[str, Any], report: Mapping[str, Any]) -> list[str]:
    found = model_warnings(facts)
    found += [f"Gate {reason}: {sentence}." for reason, sentence in facts["gates"]["found"]]
    if report["split"] == "val":
        found.append("The epoch and the inference parameters were chosen on this split.")
    if report["num_patients"] < _FEW_PATIENTS:
        found.append(
            f"{report['num_patients']} patients: so few give intervals that are too narrow."
        )
    return found


def _notes(report: Mapping[str, Any]) -> list[str]:
    how = report["bootstrap"]
    return [
        f"Intervals: {how['resamples']} resamples of the {how['unit']}s, seed {how['seed']}.",
        "Inference parameters were chosen on the validation split and applied untouched.",
        "The baseline is what a trivial answer would score on the same cases.",
        f"Data SHA-256 {report['data_sha256']}.",
    ]


def _training_figures(facts: Mapping[str, Any], model: str) -> list[Figure]:
    """Draw the loss and what the best epoch was chosen by, if a log is at hand."""
    rows = _training_rows(model)
    known = {row["name"] for row in rows}
    names = ("loss", facts.get("objective", ""))
    return [training_figure(rows, name) for name in names if name in known]


def _training_rows(model: str) -> list[dict[str, Any]]:
    where = storage.normalise(package_uri(model))
    if where.startswith("zip://"):
        return []
    out = where.rpartition("/")[0]
    try:
        return read_metrics(out) if storage.exists(storage.join(out, METRICS)) else []
    except (DataError, ValueError):
        return []  # the log is of another run, or was cut: the report does without it


def _pictures(tiles: str, rows: Sequence[Row], facts: Mapping[str, Any]) -> list[Pictures]:
    """Return the worst, some random and the best cases, none of them twice in one grid."""
    names, inference = facts["labels"], facts["inference"]
    scored = [(case_score(row, inference), row) for row in rows]
    ranked = [row for _, row in sorted(scored, key=lambda pair: (pair[0], str(pair[1]["key"])))]
    what = "score of the true class" if is_classified(rows) else "Dice"
    if has_boxes(rows):
        what = "F1 of the boxes"
    outlined = has_boxes(rows) or any("found_true" in row for row in rows)
    colours = _OUTLINES if outlined else ""
    if len(ranked) <= _PER_GRID:
        return [_grid(tiles, f"All cases by {what}, worst first{colours}", ranked, names)]
    drawn = np.random.default_rng(_SEED).choice(len(rows), _PER_GRID, replace=False)
    some = [rows[i] for i in sorted(drawn)]
    return [
        _grid(tiles, f"Worst cases: lowest {what}{colours}", ranked[:_PER_GRID], names),
        _grid(tiles, f"Random cases{colours}", some, names),
        _grid(tiles, f"Best cases: highest {what}{colours}", ranked[: -_PER_GRID - 1 : -1], names),
    ]


def _grid(tiles: str, title: str, rows: Sequence[Row], names: Sequence[str]) -> Pictures:
    shown = []
    for row in rows:
        rgb = _tile(storage.join(tiles, f"{row['key']}.png"))
        if rgb is not None:
            shown.append(Picture(rgb=rgb, caption=_caption(row, names)))
    return Pictures(title=title, pictures=shown)


def _tile(uri: str) -> np.ndarray | None:
    from PIL import Image

    if not storage.exists(uri):
        return None
    with Image.open(io.BytesIO(storage.read_bytes(uri))) as image:
        return np.asarray(image.convert("RGB"))


def _caption(row: Row, names: Sequence[str]) -> str:
    parts = []
    if is_classified([row]):
        truth, found = (names[row[name]] for name in ("label", "predicted_label"))
        said = "right" if truth == found else f"taken for {found}"
        parts.append(f"{truth}, {said}; score {row['scores'][row['label']]:.2f}")
    if has_boxes([row]):
        best = max(row["box_scores"], default=0.0)
        parts.append(f"{len(row['true_classes'])} true, best score {best:.2f}")
    if "native_dice" in row:
        parts.append(f"Dice {row['native_dice']:.3f}")
    if "native_hd95_mm" in row and np.isfinite(row["native_hd95_mm"]):
        parts.append(f"HD95 {row['native_hd95_mm']:.1f} mm")
    return "; ".join([*parts, str(row["key"])])
