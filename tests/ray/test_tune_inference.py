"""Sweeps of inference parameters on a local Ray: predictions are made once, points are judged."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from medray.engine.evaluate import EvaluateRequest, evaluate
from medray.engine.prepared import open_prepared
from medray.engine.tune_inference import InferenceRequest, tune_inference
from medray.engine.tune_space import grid_points
from medray.engine.weights import read_model_json
from medray.errors import ConfigError
from medray.learning import Domain, Objective
from medray.recipe import Prepared, Recipe
from tests.prepared_data import mask_examples, shape_examples
from tests.ray.local import ray_with_state
from tests.tiny_models import fresh_package, tiny

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_with_state")]
__all__ = ["ray_with_state"]


def box_examples(count: int, *, size: int, seed: int) -> list[Prepared]:
    """Return slices with one bright square each and its box."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        image = rng.normal(-800, 20, (1, size, size)).astype(np.int16)
        y, x = rng.integers(4, size - 20, 2)
        image[0, y : y + 16, x : x + 16] = 40
        made.append(
            Prepared(
                arrays={
                    "image": image,
                    "boxes": np.array([[x, y, x + 16, y + 16]], dtype=np.float32),
                    "box_labels": np.zeros(1, dtype=np.int64),
                },
                spacing_mm=(1.0, 1.0),
                meta={"scale_yx": [1.0, 1.0], "offset_yx_px": [0.0, 0.0],
                      "original_shape": [size, size]},
            )
        )  # fmt: skip
    return made


MADE: dict[str, tuple[dict[str, Any], Any]] = {
    "pancreas_segmentation": (
        {"filters": (4, 8)},
        lambda n, seed: mask_examples(n, size=16, seed=seed),
    ),
    "lung_classification": (
        {"filters": (4, 8), "class_names": ("small", "big")},
        lambda n, seed: shape_examples(n, size=16, num_classes=2, seed=seed),
    ),
    "lung_detection": (
        {"size": 64, "width": 0.125, "depth": 0.33},
        lambda n, seed: box_examples(n, size=64, seed=seed),
    ),
}


def made(root: Path, task: str) -> tuple[Recipe[Any], Path]:
    """Write data and the package of a network that learned nothing."""
    changes, examples_of = MADE[task]
    recipe, hparams = tiny(task, **changes)
    examples = {name: examples_of(6, seed) for seed, name in enumerate(("train", "val"))}
    fresh_package(root / "train", recipe, hparams, examples, {"threshold": 0.5})
    return recipe, root / "train"


def sweep_of(recipe: Recipe[Any], model: Path, **space: Domain) -> InferenceRequest:
    swept = {**recipe.learning.sweep.space, **space}
    assert recipe.learning.sweep.objective is not None
    return InferenceRequest(
        evaluated=EvaluateRequest(
            recipe=recipe,
            model=str(model),
            prepared=open_prepared(str(model / "data"), recipe),
            split="val",
        ),
        space=swept,
        points=tuple(grid_points(swept)),
        objective=recipe.learning.sweep.objective,
    )


def loaded(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.mark.parametrize("task", MADE)
def test_a_sweep_of_predictions_gives_the_same_weights_with_better_parameters(
    task: str, tmp_path: Path
) -> None:
    """A second way: `medray evaluate` of the new model gives the value that the sweep promised."""
    recipe, model = made(tmp_path, task)
    request = sweep_of(recipe, model)
    out = tmp_path / "out"
    began = time.monotonic()
    summary = tune_inference(request, str(out), quiet=True)
    assert time.monotonic() - began < 120
    best = loaded(out / "best.json")
    assert summary["status"] == "done"
    assert summary["counts"]["num_done"] == 6
    rows = pq.read_table(out / "trials.parquet").to_pylist()
    assert len(rows) == len(request.points)
    assert best["value"] == max(row["metric"] for row in rows if row["metric"] is not None)
    assert best["ci95"][0] <= best["value"] <= best["ci95"][1]
    old, new = read_model_json(str(model)), read_model_json(str(out))
    assert new["weights_sha256"] == old["weights_sha256"]
    assert new["inference"] == {**old["inference"], **best["params"]}
    assert list((out / "tensorboard").glob("*/events.*"))
    assert "Sweep of inference parameters" in (out / "report.html").read_text()
    prepared = request.evaluated.prepared
    judged = EvaluateRequest(recipe=recipe, model=str(out), prepared=prepared, split="val")
    evaluate(judged, str(tmp_path / "judged"), quiet=True)
    found = loaded(tmp_path / "judged" / "report.json")["metrics"]
    for name in ("precision", "recall", "f1", "f1_50_95", "native_dice", "balanced_accuracy"):
        promised = new["metrics"].get(f"val/{name}")
        if promised is not None:
            assert found[name]["value"] == pytest.approx(promised, abs=1e-6), name
    the_same_sweep_again_predicts_and_judges_nothing(request, out)


def the_same_sweep_again_predicts_and_judges_nothing(request: InferenceRequest, out: Path) -> None:
    names = ("best.json", "trials.parquet", "report.html", "model/model.json")
    before = {name: (out / name).read_bytes() for name in names}
    again = tune_inference(request, str(out), quiet=True)
    assert again["counts"]["skipped_by_reason"] == {"already_done": 6}
    assert {name: (out / name).read_bytes() for name in names} == before


def test_a_metric_that_the_task_lacks_ends_before_the_sweep(tmp_path: Path) -> None:
    import dataclasses

    recipe, model = made(tmp_path, "lung_classification")
    request = dataclasses.replace(sweep_of(recipe, model), objective=Objective("balanced_acuracy"))
    with pytest.raises(ConfigError, match="did you mean 'balanced_accuracy'"):
        tune_inference(request, str(tmp_path / "out"), quiet=True)
    assert not (tmp_path / "out" / "best.json").exists()
