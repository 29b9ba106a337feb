"""What `medray train` refuses, and that it does so before Ray or torch are there."""

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from medray import cli
from medray.datasets.split import SplitOptions
from medray.engine.train_options import TrainOptions
from medray.tasks import TASKS, get_recipe
from tests.prepared_data import shape_examples, write_prepared

TASK = "lung_classification"


def _data(root: Path, *, train: int = 6, val: int = 3, num_classes: int = 3, **facts: Any) -> Path:
    recipe = get_recipe(TASK)
    hparams = dataclasses.replace(recipe.tiny_hparams, size=16)
    examples = {
        "train": shape_examples(train, size=16, num_classes=num_classes, seed=0),
        "val": shape_examples(val, size=16, num_classes=num_classes, seed=1),
    }
    return write_prepared(root, recipe, hparams, examples, **facts)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _data(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["lr_=1"], "unknown hyperparameter 'lr_': did you mean 'lr'"),
        (["epoch=3"], "did you mean 'epochs'"),
        (["lr=fast"], "lr must be a float, got 'fast'"),
        (["batch_size=1.5"], "batch_size must be an int, got '1.5'"),
        (["cache=disk"], "cache must be one of auto, host, device, none, got 'disk'"),
        (["ema_decay=1"], "ema_decay must lie in"),
        (["size=64"], "the data were prepared with size=16; prepare them again for size=64"),
        (["gates=maybe"], "gates must be on or off"),
    ],
)
def test_wrong_settings_are_one_clear_line(
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    settings: list[str],
    sentence: str,
) -> None:
    chosen = [word for setting in settings for word in ("--set", setting)]
    code = cli.run(["train", TASK, "--tiny", "--data", str(data), "--out", str(tmp_path), *chosen])
    error = capsys.readouterr().err
    assert code == 2
    assert sentence in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        ({"task": "pancreas_segmentation"}, "was prepared for pancreas_segmentation, not for lung"),
        ({"transform_version": 99}, "was prepared by version 99 of the transform"),
        ({"verb": "index"}, "is an output of `medray index`, not of prepare"),
        ({"status": "failed"}, "holds a prepare run that failed"),
    ],
)
def test_data_of_another_kind_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], facts: dict[str, Any], sentence: str
) -> None:
    data = _data(tmp_path / "data", **facts)
    assert cli.run(["train", TASK, "--data", str(data), "--out", str(tmp_path / "o")]) == 2
    assert sentence in capsys.readouterr().err


def test_missing_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nothing = str(tmp_path / "nothing")
    assert cli.run(["train", TASK, "--data", nothing, "--out", str(tmp_path / "o")]) == 2
    assert "holds no finished `medray prepare`" in capsys.readouterr().err


def test_a_gate_stops_in_seconds_names_the_offenders_and_needs_no_torch(tmp_path: Path) -> None:
    data = _data(tmp_path / "data", num_classes=1)
    script = (
        "import sys; from medray import cli; "
        f"code = cli.run(['train', '{TASK}', '--data', {str(data)!r}, '--out', 'never']); "
        "loaded = [m for m in ('torch', 'ray') if m in sys.modules]; "
        "print('loaded', loaded); sys.exit(code)"
    )
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 3, done.stderr
    assert time.monotonic() - began < 5
    assert "labels_constant: all 9 examples have label 0: train0000" in done.stderr
    assert "loaded []" in done.stdout
    assert not (tmp_path / "never").exists()


def test_a_model_with_a_changed_byte_is_not_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "weights.safetensors").write_bytes(b"changed")
    (model / "README.md").write_text("card")
    facts = {"task": TASK, "weights_sha256": "0" * 64}
    (model / "model.json").write_text(json.dumps(facts))
    for where in (model, tmp_path):
        assert cli.run(["info", str(where)]) == 2
        assert "model_hash_mismatch" in capsys.readouterr().err
    assert cli.run(["info", str(tmp_path / "nowhere")]) == 2
    assert "model_missing" in capsys.readouterr().err


@pytest.mark.parametrize("name", TASKS)
def test_no_setting_means_two_things(name: str) -> None:
    """`--set` finds its owner by name alone."""
    owners = [get_recipe(name).hparams, SplitOptions(), TrainOptions()]
    names = [field.name for owner in owners for field in dataclasses.fields(owner)]
    assert sorted(names) == sorted(set(names))
