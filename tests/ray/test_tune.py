"""Sweeps of trainings on a local Ray: trials of their own, failures, time, killed drivers."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from medray.engine.package import Training
from medray.engine.prepared import open_prepared
from medray.engine.train_options import TrainOptions, Workers
from medray.engine.tune import TuneRequest, tune_training
from medray.engine.tune_space import grid_points
from medray.errors import MedrayError
from medray.learning import Choice, Domain
from tests.prepared_data import shape_examples, write_prepared
from tests.ray.local import ray_with_state
from tests.tiny_models import tiny

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("ray_with_state")]
__all__ = ["ray_with_state"]


def loaded(path: Path) -> Any:
    return json.loads(path.read_text())


def sweep_of_trainings(data: Path, space: dict[str, Domain], **changes: Any) -> TuneRequest:
    recipe, hparams = tiny(
        "lung_classification", filters=(4, 8), epochs=changes.pop("epochs", 2), batch_size=2
    )
    training = Training(
        recipe=recipe,
        hparams=hparams,
        options=TrainOptions(max_failures=0),
        workers=Workers(num_workers=1),
        prepared=open_prepared(str(data), recipe),
        gates="on",
    )
    plain: dict[str, Any] = {
        "search": "grid",
        "points": tuple(grid_points(space)),
        "stopper": "none",
        "objective": recipe.learning.objective,
        "trials": 2,
        "concurrent": 2,
    }
    return TuneRequest(training=training, space=space, **{**plain, **changes})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe, hparams = tiny("lung_classification", filters=(4, 8))
    examples = {
        name: shape_examples(6, size=16, num_classes=3, seed=seed)
        for seed, name in enumerate(("train", "val"))
    }
    return write_prepared(tmp_path_factory.mktemp("lung"), recipe, hparams, examples)


RATES = (1e-3, 1e-4, 1e30)


@pytest.fixture(scope="module")
def swept(data: Path, tmp_path_factory: pytest.TempPathFactory, ray_with_state: None) -> Any:
    """A sweep that nobody disturbed, what it said, and the actors that it started."""
    import ray
    from ray.util.state import list_actors

    where = ray.get_runtime_context().gcs_address
    before = {actor.actor_id for actor in list_actors(where, limit=1000)}
    out = tmp_path_factory.mktemp("swept")
    request = sweep_of_trainings(data, {"lr": Choice(RATES)}, epochs=3, concurrent=1)
    summary = tune_training(request, str(out), quiet=True)
    known = list_actors(where, limit=1000, detail=True)
    return out, summary, [actor for actor in known if actor.actor_id not in before]


def test_trials_are_actors_of_their_own_with_train_ranks_of_their_own(swept: Any) -> None:
    _, _, actors = swept
    trials = [a for a in actors if "ImplicitFunc" in a.class_name or "run_trial" in a.class_name]
    ranks = [a for a in actors if "RayTrainWorker" in a.class_name]
    assert len(trials) >= 3
    assert len(ranks) >= 3
    assert len({a.pid for a in trials} & {a.pid for a in ranks}) == 0


def test_a_trial_that_diverges_is_marked_and_the_sweep_goes_on(swept: Any) -> None:
    out, summary, _ = swept
    rows = {row["lr"]: row for row in pq.read_table(out / "trials.parquet").to_pylist()}
    assert [rows[lr]["status"] for lr in RATES] == ["done", "done", "failed"]
    assert "not finite" in rows[1e30]["reason"]
    best = loaded(out / "best.json")
    assert best["value"] == max(rows[1e-3]["metric"], rows[1e-4]["metric"])
    assert summary["counts"]["num_done"] == 2
    won = loaded(out / "trials" / best["trial_id"] / "model" / "model.json")
    assert loaded(out / "model" / "model.json")["weights_sha256"] == won["weights_sha256"]
    report = (out / "report.html").read_text()
    assert "Learning curves" in report
    assert "not finite" in report


def test_where_all_trials_fail_the_first_cause_is_named(data: Path, tmp_path: Path) -> None:
    """No trial can write: a file lies where their folder should be."""
    request = sweep_of_trainings(data, {"lr": Choice((1e-3,))})
    (tmp_path / "trials").write_text("in the way")
    with pytest.raises(MedrayError, match="1 of 1 trials failed, none is done: .*sink_denied"):
        tune_training(request, str(tmp_path), quiet=True)
    assert not (tmp_path / "best.json").exists()
    assert loaded(tmp_path / "run.json")["status"] == "failed"


def test_tpe_goes_on_where_it_was_and_asha_stops_trials(data: Path, tmp_path: Path) -> None:
    import dataclasses

    space = {"lr": sweep_space()["lr"], "dropout": Choice((0.0, 0.3))}
    request = sweep_of_trainings(
        data, space, search="tpe", points=(), stopper="asha", trials=2, epochs=4
    )
    tune_training(request, str(tmp_path), quiet=True)
    first = {row["trial_id"] for row in pq.read_table(tmp_path / "trials.parquet").to_pylist()}
    more = dataclasses.replace(request, trials=3)
    summary = tune_training(more, str(tmp_path), quiet=True)
    rows = pq.read_table(tmp_path / "trials.parquet").to_pylist()
    assert len(rows) == 3
    assert first < {row["trial_id"] for row in rows}
    assert summary["counts"]["skipped_by_reason"]["already_done"] == 2
    assert {row["status"] for row in rows} <= {"done", "stopped"}


def sweep_space() -> dict[str, Domain]:
    return dict(tiny("lung_classification")[0].learning.search_space)


def test_time_that_is_over_leaves_what_can_go_on(data: Path, tmp_path: Path) -> None:
    request = sweep_of_trainings(data, {"lr": Choice((1e-3, 1e-4))}, epochs=500, time_budget_s=1.0)
    with pytest.raises(MedrayError, match="no trial was finished in time"):
        tune_training(request, str(tmp_path), quiet=True)
    rows = pq.read_table(tmp_path / "trials.parquet").to_pylist()
    assert {row["status"] for row in rows} == {"unfinished"}


def test_a_killed_driver_costs_no_finished_trial(data: Path, swept: Any, tmp_path: Path) -> None:
    """The rest is trained, nothing twice, and the best is that of the sweep left in peace."""
    options = (
        "--tiny --epochs 3 --search grid --space lr=choice(1e-3,1e-4) --set filters=4,8 "
        "--set size=16 --set batch_size=2 --stop none --concurrent 1 --quiet"
    )
    out = tmp_path / "killed"
    words = ["tune", "lung_classification", "--data", str(data), "--out", str(out)]
    command = [sys.executable, "-m", "medray.cli", *words, *options.split()]
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    ledger = out / ".medray" / "ledger" / "trials"
    driver = subprocess.Popen(command, env=environment, start_new_session=True)
    limit = time.monotonic() + 240
    while not list(ledger.glob("*/*.json")) and time.monotonic() < limit:
        time.sleep(0.2)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    finished = {path: path.stat().st_mtime_ns for path in ledger.glob("*/*.json")}
    assert len(finished) == 1
    assert not (out / "run.json").exists()
    again = subprocess.run(
        command, env=environment, check=True, timeout=400, stdout=subprocess.PIPE, text=True
    )
    # Neither Tune's own table nor the raylet's warnings of many processes.
    assert not any(word in again.stdout for word in ("Configuration", "TensorBoard", "raylet"))
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert loaded(out / "run.json")["num_trials_run"] == 1
    killed, quiet = loaded(out / "best.json"), loaded(swept[0] / "best.json")
    assert {name: killed[name] for name in ("trial_id", "value", "params")} == {
        name: quiet[name] for name in ("trial_id", "value", "params")
    }
