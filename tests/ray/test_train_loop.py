"""The training loop in Ray Train's local mode: resume, canaries, refusals, options."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from medray import storage
from medray.engine import checkpoint as cp
from medray.engine.package import Training
from medray.engine.prepared import open_prepared
from medray.engine.train import TrainRequest, train
from medray.engine.train_options import TrainOptions, Workers
from medray.errors import ConfigError, DataError
from medray.recipe import Recipe
from medray.tasks import get_recipe
from tests.prepared_data import mask_examples, shape_examples, write_prepared

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


@pytest.fixture(scope="module")
def lung() -> tuple[Recipe[Any], Any]:
    recipe = get_recipe("lung_classification")
    hparams = dataclasses.replace(
        recipe.tiny_hparams, size=16, epochs=4, batch_size=2, filters=(4, 8), lr=1e-3
    )
    return recipe, hparams


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, lung: tuple[Recipe[Any], Any]) -> Path:
    recipe, hparams = lung
    examples = {
        "train": shape_examples(7, size=16, num_classes=3, seed=0),
        "val": shape_examples(5, size=16, num_classes=3, seed=1),
    }
    return write_prepared(tmp_path_factory.mktemp("lung"), recipe, hparams, examples)


def request(
    lung: tuple[Recipe[Any], Any],
    data: Path,
    *,
    weights: str = "",
    keep: str = "best",
    **changes: Any,
) -> TrainRequest:
    recipe, hparams = lung
    names = {field.name for field in dataclasses.fields(TrainOptions)}
    options = TrainOptions(**{n: v for n, v in changes.items() if n in names})
    own = {n: v for n, v in changes.items() if n not in names}
    training = Training(
        recipe=recipe,
        hparams=dataclasses.replace(hparams, **own),
        options=options,
        workers=Workers(num_workers=0),
        prepared=open_prepared(str(data), recipe),
        gates="on",
    )
    return TrainRequest(training=training, weights=weights, keep=keep)


def weights_of(out: Path) -> str:
    facts: dict[str, Any] = json.loads((out / "model" / "model.json").read_text())
    return str(facts["weights_sha256"])


def losses_of(out: Path) -> list[float]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [r["value"] for r in rows if r["split"] == "train" and r["name"] == "loss"]


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory, lung: Any, data: Path) -> Path:
    out = tmp_path_factory.mktemp("clean")
    train(request(lung, data), str(out), quiet=True)
    return out


def test_a_run_leaves_what_the_contract_names(clean: Path) -> None:
    run = json.loads((clean / "run.json").read_text())
    assert run["status"] == "done"
    assert run["counts"]["num_inputs"] == 12
    assert {p.name for p in (clean / "model").iterdir()} == {
        "README.md", "model.json", "weights.safetensors",
    }  # fmt: skip
    names = cp.checkpoint_names(str(clean))
    best = run["train"]["best"]["epoch"]
    assert names == {cp.name_of(4), cp.name_of(best)}
    assert list((clean / "tensorboard").glob("events.out.tfevents.*"))
    rows = [json.loads(line) for line in (clean / "metrics.jsonl").read_text().splitlines()]
    assert all(set(row) == {"step", "epoch", "split", "name", "value"} for row in rows)
    assert [r["step"] for r in rows if r["name"] == "loss" and r["split"] == "train"] == [
        4,
        8,
        12,
        16,
    ]


def test_one_seed_gives_one_model_and_another_seed_another(
    clean: Path, lung: Any, data: Path, tmp_path: Path
) -> None:
    train(request(lung, data), str(tmp_path / "again"), quiet=True)
    train(request(lung, data, seed=1), str(tmp_path / "other"), quiet=True)
    assert weights_of(tmp_path / "again") == weights_of(clean)
    assert losses_of(tmp_path / "again") == losses_of(clean)
    assert weights_of(tmp_path / "other") != weights_of(clean)


@pytest.mark.parametrize("cache", ["none", "device"])
def test_where_examples_are_kept_changes_nothing(
    clean: Path, lung: Any, data: Path, tmp_path: Path, cache: str
) -> None:
    train(request(lung, data, cache=cache), str(tmp_path), quiet=True)
    assert losses_of(tmp_path) == losses_of(clean)
    assert weights_of(tmp_path) == weights_of(clean)


@pytest.mark.parametrize("cache", ["host", "none"])
def test_an_interrupted_run_ends_with_the_same_weights(
    clean: Path, lung: Any, data: Path, tmp_path: Path, cache: str
) -> None:
    """The last checkpoint is torn, the one before counts; everything is kept of it."""
    wanted = request(lung, data, keep="all", cache=cache)
    train(wanted, str(tmp_path), quiet=True)
    whole = (tmp_path / "checkpoints" / cp.name_of(4) / cp.WEIGHTS).read_bytes()
    (tmp_path / "checkpoints" / cp.name_of(4) / "COMPLETE.json").unlink()
    (tmp_path / "checkpoints" / cp.name_of(3) / cp.WEIGHTS).write_bytes(b"torn")
    train(wanted, str(tmp_path), quiet=True)
    assert (tmp_path / "checkpoints" / cp.name_of(4) / cp.WEIGHTS).read_bytes() == whole
    assert losses_of(tmp_path) == losses_of(clean)
    assert weights_of(tmp_path) == weights_of(clean)


def test_a_finished_run_again_trains_nothing(lung: Any, data: Path, tmp_path: Path) -> None:
    train(request(lung, data, epochs=1), str(tmp_path), quiet=True)
    before = (tmp_path / "checkpoints" / cp.name_of(1) / "COMPLETE.json").stat().st_mtime_ns
    train(request(lung, data, epochs=1), str(tmp_path), quiet=True)
    assert (tmp_path / "checkpoints" / cp.name_of(1) / "COMPLETE.json").stat().st_mtime_ns == before


def test_other_hyperparameters_do_not_touch_a_finished_run(
    lung: Any, data: Path, tmp_path: Path
) -> None:
    train(request(lung, data, epochs=1), str(tmp_path), quiet=True)
    with pytest.raises(ConfigError, match="another value of lr"):
        train(request(lung, data, epochs=1, lr=0.5), str(tmp_path), quiet=True)


def test_two_halves_added_train_as_the_whole_batch(lung: Any, data: Path, tmp_path: Path) -> None:
    still = {"dropout": 0.0, "flip": 0.0, "scale": 0.0, "rotate_deg": 0.0, "jitter": 0.0}
    train(request(lung, data, batch_size=4, **still), str(tmp_path / "whole"), quiet=True)
    train(
        request(lung, data, batch_size=2, accumulate=2, **still),
        str(tmp_path / "halves"),
        quiet=True,
    )
    assert losses_of(tmp_path / "halves") == pytest.approx(losses_of(tmp_path / "whole"), abs=1e-5)


def test_the_moving_average_is_what_is_kept(lung: Any, data: Path, tmp_path: Path) -> None:
    train(request(lung, data, ema_decay=0.5, epochs=2, keep="all"), str(tmp_path), quiet=True)
    last = cp.newest_checkpoint(str(tmp_path))
    assert last is not None
    averaged, raw = last.tensors(cp.WEIGHTS), last.tensors("raw.safetensors")
    assert any(not averaged[name].equal(raw[name]) for name in averaged)


def test_no_better_epochs_end_the_training(lung: Any, data: Path, tmp_path: Path) -> None:
    frozen = request(lung, data, lr=1e-12, epochs=50, early_stop=2)
    summary = train(frozen, str(tmp_path), quiet=True)
    assert summary["train"]["epoch"] < 10
    assert summary["train"]["stopped_early"]


def test_a_diverging_training_stops_in_three_steps_and_keeps_the_last_good_epoch(
    lung: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, hparams = lung
    learning = recipe.learning
    calls = {"n": 0}

    def poisoned(sums: Any, hp: Any) -> Any:
        import torch

        if torch.is_grad_enabled():
            calls["n"] += 1
        value = learning.loss_value(sums, hp)
        return value * float("nan") if calls["n"] > 6 else value

    broken = dataclasses.replace(
        recipe, learning=dataclasses.replace(learning, loss_value=poisoned)
    )
    with pytest.raises(DataError, match="train_non_finite: 3 steps in a row.*epoch-000001"):
        train(request((broken, hparams), data), str(tmp_path), quiet=True)
    assert calls["n"] == 9
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["status"] == "failed"
    last = cp.newest_checkpoint(str(tmp_path))
    assert last is not None
    assert last.epoch == 1
    assert not (tmp_path / "model").exists()


def test_a_full_disk_at_a_checkpoint_loses_nothing(
    clean: Path, lung: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = storage.write_atomic

    def full(uri: str, data: Any) -> Any:
        if "epoch-000003/weights" in uri:
            raise DataError("sink_full", "the output takes no more bytes (ENOSPC)")
        return real(uri, data)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_atomic", full)
        with pytest.raises(DataError, match="sink_full"):
            train(request(lung, data), str(tmp_path), quiet=True)
    last = cp.newest_checkpoint(str(tmp_path))
    assert last is not None
    assert last.epoch == 2
    train(request(lung, data), str(tmp_path), quiet=True)
    assert weights_of(tmp_path) == weights_of(clean)


def test_weights_of_another_task_network_or_format_do_not_start(
    clean: Path, lung: Any, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="weights of another network"):
        train(
            request(lung, data, weights=str(clean), filters=(8, 16)),
            str(tmp_path / "a"),
            quiet=True,
        )
    pickled = tmp_path / "w.pt"
    pickled.write_bytes(b"\x80\x02")
    with pytest.raises(DataError, match="weights_refused"):
        train(request(lung, data, weights=str(pickled)), str(tmp_path / "b"), quiet=True)


def test_given_weights_are_where_training_starts(
    clean: Path, lung: Any, data: Path, tmp_path: Path
) -> None:
    train(request(lung, data, weights=str(clean), lr=1e-12, epochs=1), str(tmp_path), quiet=True)
    run = json.loads((tmp_path / "run.json").read_text())
    first = json.loads((clean / "model" / "model.json").read_text())
    assert run["metrics"]["val/auroc"] == pytest.approx(first["metrics"]["val/auroc"])


def test_shuffled_labels_are_marked_in_the_card(lung: Any, data: Path, tmp_path: Path) -> None:
    train(request(lung, data, shuffle_labels=True, epochs=1), str(tmp_path), quiet=True)
    assert "Canary: trained on shuffled labels" in (tmp_path / "model" / "README.md").read_text()


def test_an_example_with_a_changed_byte_is_not_trained_on(lung: Any, tmp_path: Path) -> None:
    recipe, hparams = lung
    examples = {
        "train": shape_examples(3, size=16, num_classes=3, seed=0),
        "val": shape_examples(3, size=16, num_classes=3, seed=1),
    }
    data = write_prepared(tmp_path / "data", recipe, hparams, examples)
    victim = sorted((data / "examples").glob("train*"))[1]
    raw = bytearray(victim.read_bytes())
    raw[-1] ^= 1
    victim.write_bytes(bytes(raw))
    with pytest.raises(Exception, match="checksum_mismatch"):
        train(request(lung, data), str(tmp_path / "out"), quiet=True)


def test_masks_learn_too_and_choose_a_threshold(tmp_path: Path) -> None:
    recipe = get_recipe("pancreas_segmentation")
    hparams = dataclasses.replace(
        recipe.tiny_hparams, size=16, filters=(4, 8), epochs=2, batch_size=1
    )
    examples = {
        "train": mask_examples(3, size=16, seed=0),
        "val": mask_examples(2, size=16, seed=1),
    }
    data = write_prepared(tmp_path / "data", recipe, hparams, examples)
    summary = train(request((recipe, hparams), data), str(tmp_path / "out"), quiet=True)
    assert 0 < summary["inference"]["threshold"] < 1
    assert summary["train"]["best"]["value"] is not None


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
