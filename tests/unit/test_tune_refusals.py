"""`medray tune` refuses wrong words in one line, before Ray starts."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from medray import cli
from medray.engine.interpreter import inferred_hparams
from medray.engine.run import Run
from medray.engine.tune_results import Trial, refuse_foreign_state, write_trials
from medray.errors import ConfigError
from medray.storage import read_parquet
from medray.tasks import get_recipe
from tests.prepared_data import mask_examples, write_prepared
from tests.tiny_models import fresh_package, tiny

TASK = "pancreas_segmentation"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A package with its data below, untrained."""
    root = tmp_path_factory.mktemp("model")
    recipe, hparams = tiny(TASK, filters=(4, 8))
    examples = {
        "train": mask_examples(2, size=16, seed=0),
        "val": mask_examples(2, size=16, seed=1),
    }
    fresh_package(root, recipe, hparams, examples, {"threshold": 0.5})
    return root


def refused(capsys, monkeypatch, *words: str) -> str:
    """Run `medray tune` without Ray and return the one line that it ends with."""

    def no_ray(*args, **kwargs):
        raise AssertionError("Ray was about to start")

    monkeypatch.setattr("medray.verbs.tuning.with_ray", no_ray)
    assert cli.run(["tune", *words]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--space", "dice_wieght=choice(1,7)"], "did you mean 'dice_weight'"),
        (["--space", "lr=loguniform(1e-2,1e-4)"], "is empty"),
        (["--space", "lr=choice()"], "is empty"),
        (["--metric", "dicee"], "unknown metric 'dicee': did you mean 'dice'"),
        (["--metric", "dice:most"], "min or max"),
        (["--metric", "dice_weight"], "unknown metric 'dice_weight'"),
        (["--metric", "native_dice"], "unknown metric 'native_dice'"),
        (["--search", "bayes"], "--search must be one of tpe, random, grid"),
        (["--stop", "pbt"], "--stop must be one of asha, median, none"),
        (["--model", "x"], "--model is for --inference"),
        (["--inference"], "--inference needs --model"),
        (["--set", "lr=0.1", "--space", "lr"], "lr cannot be set and swept"),
    ],
)
def test_wrong_words(model, capsys, monkeypatch, tmp_path, words, said):
    where = ["--data", str(model / "data"), "--out", str(tmp_path), "--set", "filters=4,8"]
    if "--inference" in words:
        where = where[:4]
    assert said in refused(capsys, monkeypatch, TASK, *where, *words)


@pytest.mark.parametrize(
    ("task", "words", "said"),
    [
        (TASK, ["--set", "lr=1"], "leave out lr=1"),
        (TASK, ["--search", "tpe"], "--search grid or random"),
        (TASK, ["--space", "treshold=uniform(0,1)"], "did you mean 'threshold'"),
        (TASK, ["--trials", "3"], "the grid has 62 points"),
        (TASK, ["--metric", "auc"], "unknown metric 'auc'"),
        (TASK, ["--metric", "native_dise"], "did you mean 'native_dice'"),
        (TASK, ["--space", "threshold=uniform(-1,0.5)"], "-1 lies beyond 0.0078125 to 0.992188"),
        (TASK, ["--space", "threshold=choice(0.5,1)"], "1 lies beyond"),
        ("lung_classification", [], f"is a model of {TASK}, not of lung_classification"),
    ],
)
def test_wrong_words_of_a_sweep_of_predictions(
    model, capsys, monkeypatch, tmp_path, task, words, said
):
    where = ["--data", str(model / "data"), "--out", str(tmp_path), "--model", str(model)]
    assert said in refused(capsys, monkeypatch, task, *where, "--inference", *words)


def test_an_empty_validation_split(model, capsys, monkeypatch, tmp_path):
    recipe, hparams = tiny(TASK, filters=(4, 8))
    data = write_prepared(
        tmp_path / "data", recipe, hparams, {"train": mask_examples(2, size=16, seed=0)}
    )
    where = ["--data", str(data), "--out", str(tmp_path / "out")]
    line = refused(capsys, monkeypatch, TASK, *where, "--model", str(model), "--inference")
    assert "no example in split val" in line
    assert "no example in split val" in refused(capsys, monkeypatch, TASK, *where)


def test_state_of_ray_tune_itself_is_refused(tmp_path):
    refuse_foreign_state(str(tmp_path))
    (tmp_path / "tuner.pkl").write_bytes(b"\x80\x04.")
    with pytest.raises(ConfigError, match="pickled and never read; choose a new --out"):
        refuse_foreign_state(str(tmp_path))


def test_an_output_of_another_verb_is_named(tmp_path):
    with Run(verb="prepare", task=TASK, out=str(tmp_path), parameters={}, inputs=()) as run:
        run.finish()
    with (
        pytest.raises(ConfigError, match="is an output of `medray prepare`"),
        Run(verb="tune", task=TASK, out=str(tmp_path), parameters={}, inputs=()),
    ):
        raise AssertionError("the output was taken")


def test_trials_have_a_column_a_parameter(tmp_path):
    trials = [
        Trial(
            trial_id="b",
            params={"lr": 0.1, "f": (4, 8)},
            value=0.5,
            status="done",
            metrics={"recall": 0.7},
        ),
        Trial(trial_id="a", params={"lr": 1}, value=None, status="failed", reason="x", metrics={}),
    ]
    write_trials(str(tmp_path), trials, ("lr", "f"))
    rows = read_parquet(str(tmp_path / "trials.parquet")).to_pylist()
    assert [list(row) for row in rows] == [
        ["trial_id", "lr", "f", "metric", "status", "reason", "seconds", "recall"]
    ] * 2
    assert [row["recall"] for row in rows] == [None, 0.7]
    assert [row["trial_id"] for row in rows] == ["a", "b"]
    assert rows[1]["f"] == json.dumps([4, 8])
    assert [row["metric"] for row in rows] == [None, 0.5]


def test_chosen_parameters_stand_in_for_hyperparameters_of_that_meaning_alone():
    detector = get_recipe("lung_detection")
    chosen = {"nms_iou": 0.4, "threshold": 0.3, "box_scale": 0.9}
    assert inferred_hparams(detector, detector.hparams, chosen) == dataclasses.replace(
        detector.hparams, nms_iou=0.4
    )
    # its `gate` is a threshold, the hyperparameter of that name the kind of network
    pneumonia = get_recipe("pneumonia_detection")
    assert inferred_hparams(pneumonia, pneumonia.hparams, {"gate": 0.3}) == pneumonia.hparams
    with pytest.raises(ConfigError, match="do not hold here"):
        inferred_hparams(detector, detector.hparams, {"nms_iou": 7.0})


def test_counts_for_a_sweep_are_those_of_the_mask_that_is_written():
    recipe, _ = tiny(TASK)
    learning = recipe.learning
    example = mask_examples(1, size=16, seed=3)[0]
    rng = np.random.default_rng(0)
    probs = {"mask": rng.random((16, 16, 16)).astype(np.float32)}
    probs["mask"][example.arrays["mask"] == 1] **= 0.2
    facts = {"meta": example.meta, "affine_lps": example.affine_lps.ravel().tolist()}
    row = learning.sweep.survey(probs, example.arrays, facts)
    for parts in ("all", "largest"):
        for threshold in (0.25, 0.5, 0.75):
            point = {"threshold": threshold, "parts": parts}
            judged = learning.sweep.refine([row], point, None)[0]
            prediction = learning.decode(probs, facts, None, point)
            direct = learning.compare(prediction, example.arrays, facts)
            assert judged["native_dice"] == pytest.approx(direct["native_dice"])
            assert judged["native_volume_error_ml"] == pytest.approx(
                direct["native_volume_error_ml"]
            )


def test_an_interrupted_sweep_says_that_it_can_go_on(model, capsys, monkeypatch, tmp_path):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("medray.verbs.tuning.with_ray", interrupted)
    where = ["--data", str(model / "data"), "--out", str(tmp_path), "--set", "filters=4,8"]
    assert cli.run(["tune", TASK, *where]) == 130
    assert "interrupted; finished work is kept" in capsys.readouterr().err
