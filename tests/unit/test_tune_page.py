"""The report of a sweep: drawn from plain values, the same bytes again."""

import pytest

from medray.engine.tune_page import _is_logarithmic, write_inference_page, write_training_page
from medray.engine.tune_results import Trial
from medray.learning import Choice, LogUniform, Uniform
from medray.sweep_figures import slice_figure

MODEL = {
    "task": "t",
    "version": "0.1.0",
    "weights_sha256": "ab",
    "gates": {"mode": "on", "found": []},
    "data": {"split": "patient"},
    "options": {"shuffle_labels": False},
}


def test_a_sweep_of_predictions_is_drawn(tmp_path):
    space = {"threshold": Choice((0.2, 0.4, 0.6)), "parts": Choice(("all", "largest"))}
    judged = [
        {
            "params": {"threshold": t, "parts": parts},
            "value": 1 - abs(t - 0.4) if parts == "all" else None,
            "folds": [0.5],
            "metrics": {"precision": t, "recall": 1 - t, "f1": 0.5},
        }
        for parts in ("all", "largest")
        for t in (0.2, 0.4, 0.6)
    ]
    best = {
        "params": {"threshold": 0.4, "parts": "all"},
        "metric": "dice",
        "mode": "max",
        "value": 1.0,
        "ci95": [0.9, 1.0],
        "held_out": 0.8,
        "num_points": 6,
        "num_cases": 23,
        "makes_no_difference": False,
        "num_folds": 1,
        "split": "val",
    }
    write_inference_page(str(tmp_path), space, judged, best, MODEL)
    page = (tmp_path / "report.html").read_bytes()
    text = page.decode()
    for said in ("Curves over threshold", "precision, recall, f1", "Parameter parts", "chosen 0.4",
                 "95 % interval of dice", "0.9000 to 1.000", "Held out", ">23<"):  # fmt: skip
        assert said in text
    assert "No parameter made a difference" not in text
    write_inference_page(str(tmp_path), space, judged, best, MODEL)
    assert (tmp_path / "report.html").read_bytes() == page


def test_a_sweep_of_trainings_is_drawn_with_what_was_lost(tmp_path):
    trials = [
        Trial(
            trial_id=f"id{n}",
            params={"dice_weight": w},
            value=0.5 + n / 10,
            status="done",
            metrics={"precision": 0.9 - n / 10, "recall": 0.6 + n / 10, "f1": 0.7},
        )
        for n, w in enumerate((1.0, 7.0, 10.0))
    ]
    lost = Trial(
        trial_id="id9", params={"dice_weight": 3.0}, value=None, status="failed",
        reason="train_non_finite: <3 steps>", metrics={},
    )  # fmt: skip
    best = {"params": {"dice_weight": 10.0}, "trial_id": "id2", "metric": "dice", "mode": "max",
            "value": 0.7, "ci95": None}  # fmt: skip
    curves = {"id0": [(1.0, 0.2), (2.0, 0.5)], "id1": [], "id2": [(1.0, 0.3), (2.0, 0.7)]}
    space = {"dice_weight": LogUniform(1.0, 15.0)}
    write_training_page(str(tmp_path), space, [*trials, lost], curves, best, MODEL)
    text = (tmp_path / "report.html").read_text()
    for said in ("Learning curves", "best: dice_weight 10", "Curves over dice_weight",
                 "Not finished", "train_non_finite: &lt;3 steps&gt;", "precision"):  # fmt: skip
        assert said in text


@pytest.mark.parametrize(
    ("domain", "is_log"),
    [
        (LogUniform(1e-4, 1e-2), True),
        (Uniform(0.01, 1.0), False),
        (Choice((1e-4, 1e-3, 1e-2)), True),
        (Choice(tuple(k / 128 for k in range(1, 128))), False),
        (Choice((1, 7, 10)), False),
        (Choice((0.0, 0.1, 10.0)), False),
        (Choice(("a", "b", "c")), False),
    ],
)
def test_what_differs_by_factors_is_drawn_so(domain, is_log):
    assert _is_logarithmic(domain) is is_log


def test_labels_of_a_logarithmic_axis_are_plain_numbers(tmp_path):
    """An SVG shows the source of matplotlib's formulas."""
    figure = slice_figure(
        "lr", [1e-4, 2e-3, 1e-2], [0.1, 0.3, 0.2], metric="dice", chosen=2e-3, logarithmic=True
    )
    assert "mathdefault" not in figure.svg
    assert "0.001" in figure.svg
