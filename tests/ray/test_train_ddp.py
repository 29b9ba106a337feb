"""Ray Train itself: two workers are one with twice the batch, and kills change nothing."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from medray.engine.chaos import train_kills
from medray.engine.package import Training
from medray.engine.prepared import open_prepared
from medray.engine.train import TrainRequest, train
from medray.engine.train_options import TrainOptions, Workers
from medray.tasks import get_recipe
from tests.local_ray import local_ray_of
from tests.prepared_data import mask_examples, shape_examples, write_prepared

pytestmark = [pytest.mark.ray, pytest.mark.slow]

STILL = {"flip": 0.0, "scale": 0.0, "rotate_deg": 0.0}


@pytest.fixture(scope="module")
def ray_with_state() -> Iterator[None]:
    """A local Ray whose state API can be asked."""
    with local_ray_of(num_cpus=4, dashboard=True):
        yield


def _request(
    task: str, data: Path, num_workers: int, batch_size: int, **changes: Any
) -> TrainRequest:
    recipe = get_recipe(task)
    prepared = open_prepared(str(data), recipe)
    size = prepared.facts["hyperparameters"]["size"]
    hparams = dataclasses.replace(
        recipe.tiny_hparams, size=size, epochs=3, batch_size=batch_size, **STILL, **changes
    )
    training = Training(
        recipe=recipe,
        hparams=hparams,
        options=TrainOptions(cache="none"),
        workers=Workers(num_workers=num_workers),
        prepared=prepared,
        gates="on",
    )
    return TrainRequest(training=training)


def _losses(out: Path) -> list[tuple[str, str, float]]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [(r["split"], r["name"], r["value"]) for r in rows if r["name"] == "loss"]


CASES = {
    "pancreas_segmentation": {"network": "g1", "loss": "weighted_dice", "lr": 1e-3},
    "lung_classification": {
        "norm": "instance",
        "dropout": 0.0,
        "jitter": 0.0,
        "lr": 1e-3,
        "filters": (8, 16),
    },
}


@pytest.mark.parametrize("task", CASES)
def test_two_workers_are_one_with_twice_the_batch(
    ray_with_state: None, task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same loss curve to 1e-5, streamed by Ray Data in an order that every run repeats.

    Five examples over two workers: an equal split would lose one, the padded order does not.
    """
    recipe = get_recipe(task)
    hparams = dataclasses.replace(recipe.tiny_hparams, size=16)
    if task == "pancreas_segmentation":
        examples = {s: mask_examples(n, size=16, seed=n) for s, n in (("train", 5), ("val", 3))}
    else:
        examples = {
            s: shape_examples(n, size=16, num_classes=3, seed=n)
            for s, n in (("train", 5), ("val", 3))
        }
    data = write_prepared(tmp_path / "data", recipe, hparams, examples)
    train(_request(task, data, 0, 2, **CASES[task]), str(tmp_path / "one"), quiet=True)
    # Train workers do not share the driver's working directory.
    monkeypatch.chdir(tmp_path)
    train(_request(task, Path("data"), 2, 1, **CASES[task]), "two", quiet=True)
    one, two = _losses(tmp_path / "one"), _losses(tmp_path / "two")
    assert [row[:2] for row in one] == [row[:2] for row in two]
    assert [row[2] for row in two] == pytest.approx([row[2] for row in one], abs=1e-5)
    assert one[0][2] != one[-2][2], "nothing was learned, so nothing was compared"
    _ranks_were_their_own_processes()


def _ranks_were_their_own_processes() -> None:
    import os

    import ray
    from ray.util.state import list_actors, list_tasks

    address = ray.get_runtime_context().gcs_address
    ranks = [a for a in list_actors(address=address, limit=500) if "RayTrainWorker" in a.class_name]
    assert len({actor.pid for actor in ranks}) >= 2
    assert os.getpid() not in {actor.pid for actor in ranks}
    readers = [
        t for t in list_tasks(address=address, limit=1000, detail=True) if "read_examples" in t.name
    ]
    assert readers
    assert os.getpid() not in {task.worker_pid for task in readers}


@pytest.mark.chaos
def test_a_killed_rank_a_torn_checkpoint_and_a_killed_driver_change_nothing(tmp_path: Path) -> None:
    """Three kills in one training; the weights are those of a run that nobody disturbed."""
    recipe = get_recipe("lung_classification")
    hparams = dataclasses.replace(recipe.tiny_hparams, size=16)
    examples = {
        "train": shape_examples(8, size=16, num_classes=3, seed=0),
        "val": shape_examples(4, size=16, num_classes=3, seed=1),
    }
    data = write_prepared(tmp_path / "data", recipe, hparams, examples)
    arguments = ["lung_classification", "--tiny", "--data", str(data), "--epochs", "40"]
    arguments += ["--set", "size=16", "--set", "batch_size=2", "--set", "filters=16,64"]
    outcomes = train_kills(arguments, tmp_path, kills=1)
    assert [outcome.target for outcome in outcomes] == ["worker", "checkpoint", "driver"]
    for outcome in outcomes:
        assert outcome.passed, outcome
        assert outcome.num_runs == 2, "the killed driver was started again, nothing else"
