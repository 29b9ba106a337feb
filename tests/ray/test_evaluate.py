"""Evaluation end to end on a local Ray: numbers by a second way, intervals, resume, refusals."""

import base64
import dataclasses
import io
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from medray.engine import evaluate as engine
from medray.engine import example_pool
from medray.engine.evaluate import EvaluateRequest, evaluate
from medray.engine.examples import decode_example
from medray.engine.predictor import Predictor
from medray.engine.prepared import open_prepared
from medray.errors import ConfigError, DataError
from medray.recipe import Prepared, Recipe
from tests.prepared_data import mask_examples, shape_examples, write_prepared
from tests.ray.local import answers_in_process, ray_with_state
from tests.tiny_models import fresh_package, tiny

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_with_state")]
__all__ = ["ray_with_state"]


@dataclasses.dataclass(frozen=True)
class Trained:
    """A model with the data that it was made of."""

    recipe: Recipe[Any]
    hparams: Any
    data: Path
    model: Path

    def request(self, **changes: Any) -> EvaluateRequest:
        plain = {
            "recipe": self.recipe,
            "model": str(self.model),
            "prepared": open_prepared(str(changes.pop("data", self.data)), self.recipe),
            "split": "test",
        }
        return EvaluateRequest(**{**plain, **changes})


def untrained(
    root: Path, recipe: Recipe[Any], hparams: Any, examples: dict[str, list[Prepared]], name: str
) -> Trained:
    """Write the package of a network that learned nothing, its threshold amid its answers."""
    fresh_package(root / "train", recipe, hparams, examples, {"threshold": 0.5})
    found = Predictor(recipe, str(root / "train")).probabilities(
        [example.arrays for example in examples["test"]]
    )
    answers = [one["mask"] if name == "mask" else one["class"][1] for one in found]
    where = root / "train" / "model" / "model.json"
    facts = json.loads(where.read_text())
    facts["inference"]["threshold"] = float(np.quantile(answers, 0.7))
    where.write_text(json.dumps(facts))
    return Trained(recipe, hparams, root / "train" / "data", root / "train")


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    recipe, hparams = tiny("pancreas_segmentation", filters=(4, 8))
    sizes = {"train": 2, "val": 2, "test": 8}
    examples = {
        name: mask_examples(count, size=16, seed=seed)
        for seed, (name, count) in enumerate(sizes.items())
    }
    made = untrained(tmp_path_factory.mktemp("masks"), recipe, hparams, examples, "mask")
    log = [
        {"step": epoch, "epoch": epoch, "split": split, "name": name, "value": 1 / epoch}
        for epoch in (1, 2, 3)
        for split in ("train", "val")
        for name in ("loss", "dice", "f1")
    ]
    (made.model / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))
    return made


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    recipe, hparams = tiny("lung_classification", filters=(4, 8), class_names=("small", "big"))
    sizes = {"train": 4, "val": 4, "test": 14}
    examples = {
        name: shape_examples(count, size=16, num_classes=2, seed=seed)
        for seed, (name, count) in enumerate(sizes.items())
    }
    return untrained(tmp_path_factory.mktemp("classes"), recipe, hparams, examples, "class")


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(example_pool, "map_with_actors", answers_in_process)


@pytest.fixture(scope="module")
def masks_out(masks: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("masks-out")
    evaluate(masks.request(), str(out), quiet=True)
    return out


@pytest.fixture(scope="module")
def classes_out(classes: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("classes-out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(example_pool, "map_with_actors", answers_in_process)
        evaluate(classes.request(), str(out), quiet=True)
    return out


def report_of(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "report.json").read_text())
    return found


def test_a_report_has_what_the_contract_names(masks_out: Path, classes_out: Path) -> None:
    for out, number, name in ((masks_out, 8, "native_dice"), (classes_out, 14, "auroc")):
        report = report_of(out)
        assert set(report) == {
            "task", "split", "num_patients", "num_cases", "threshold", "metrics", "baseline",
            "bootstrap", "weights_sha256", "data_sha256",
        }  # fmt: skip
        assert (report["num_cases"], report["num_patients"]) == (number, number)
        assert report["split"] == "test"
        assert 0 < report["threshold"] < 1
        assert set(report["metrics"][name]) == {"value", "ci95", "n"}
        for metric in report["metrics"].values():
            low, high = metric["ci95"]
            assert metric["value"] is None or low <= metric["value"] <= high
        run = json.loads((out / "run.json").read_text())
        assert run["counts"]["num_done"] == run["counts"]["num_inputs"] == number
    assert report_of(masks_out)["baseline"]["dice"] < 0.5
    assert report_of(classes_out)["baseline"]["balanced_accuracy"] == pytest.approx(0.5)


def test_predictions_hold_one_row_a_case(masks_out: Path, classes_out: Path) -> None:
    first = {"key", "patient_id", "split", "label", "score", "scores"}
    rows = pq.read_table(masks_out / "predictions.parquet").to_pylist()
    assert first | {"native_dice", "native_hd95_mm", "volume_ml", "found_true"} <= set(rows[0])
    assert [row["key"] for row in rows] == sorted(row["key"] for row in rows)
    rows = pq.read_table(classes_out / "predictions.parquet").to_pylist()
    assert first | {"predicted_label"} <= set(rows[0])
    assert all(sum(row["scores"]) == pytest.approx(1, abs=1e-5) for row in rows)
    assert all(row["patient_id"] == f"P-{row['key']}" for row in rows)


def test_native_dice_is_what_counting_voxel_by_voxel_gives(masks: Trained, masks_out: Path) -> None:
    """Here the example's grid is the original one, so the network's own output is the mask."""
    predictor = Predictor(masks.recipe, str(masks.model))
    threshold = predictor.interpreter.inference["threshold"]
    rows = {row["key"]: row for row in pq.read_table(masks_out / "predictions.parquet").to_pylist()}
    for path in sorted((masks.data / "examples").glob("test*")):
        arrays, _ = decode_example(path.read_bytes())
        found = predictor.probabilities([arrays])[0]["mask"] >= threshold
        both = inside = 0
        for here, true in zip(found.ravel().tolist(), arrays["mask"].ravel().tolist(), strict=True):
            both += bool(here) and bool(true)
            inside += bool(here) + bool(true)
        row = rows[path.name.removesuffix(".safetensors")]
        assert row["native_dice"] == pytest.approx(2 * both / inside, abs=1e-12)
        assert row["volume_ml"] == pytest.approx(found.sum() * 8 / 1000)


@pytest.mark.usefixtures("in_process")
def test_ray_and_a_plain_call_give_the_same_bytes(
    masks: Trained, masks_out: Path, tmp_path: Path
) -> None:
    evaluate(masks.request(), str(tmp_path), quiet=True)
    for name in ("report.json", "report.html", "predictions.parquet", "rejected.parquet"):
        assert (tmp_path / name).read_bytes() == (masks_out / name).read_bytes(), name


def test_a_finished_run_again_asks_no_model(
    masks: Trained, masks_out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: Any) -> Any:
        raise AssertionError("an actor was started")

    before = (masks_out / "report.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("medray.engine.actor_pool.put_blocks", forbidden)
        again = evaluate(masks.request(), str(masks_out), quiet=True)
    assert again["counts"]["num_done"] == 0
    assert again["counts"]["skipped_by_reason"] == {"already_done": 8}
    assert (masks_out / "report.json").read_bytes() == before


@pytest.mark.usefixtures("in_process")
def test_a_lost_case_alone_is_measured_again(
    masks: Trained, masks_out: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(masks_out, out)
    sorted((out / ".medray" / "ledger").rglob("*.json"))[0].unlink()
    again = evaluate(masks.request(), str(out), quiet=True)
    assert again["counts"]["num_done"] == 1
    assert (out / "report.html").read_bytes() == (masks_out / "report.html").read_bytes()


@pytest.mark.usefixtures("in_process")
def test_the_operating_point_of_the_package_is_applied_untouched(
    classes: Trained, classes_out: Path, tmp_path: Path
) -> None:
    shutil.copytree(classes.model / "model", tmp_path / "model")
    facts = json.loads((tmp_path / "model" / "model.json").read_text())
    assert report_of(classes_out)["threshold"] == facts["inference"]["threshold"]
    facts["inference"]["threshold"] = 0.0
    (tmp_path / "model" / "model.json").write_text(json.dumps(facts))
    request = classes.request(model=str(tmp_path / "model"))
    evaluate(request, str(tmp_path / "out"), quiet=True)
    changed, usual = report_of(tmp_path / "out"), report_of(classes_out)
    assert changed["threshold"] == 0.0
    assert changed["metrics"]["accuracy"]["value"] == pytest.approx(0.5)
    assert changed["metrics"]["auroc"] == usual["metrics"]["auroc"]
    assert changed["metrics"]["accuracy"] != usual["metrics"]["accuracy"]


@pytest.mark.usefixtures("in_process")
def test_a_split_without_one_class_gives_null_and_a_page(classes: Trained, tmp_path: Path) -> None:
    rows = [e for e in shape_examples(6, size=16, num_classes=2, seed=4) if e.label == 1]
    data = write_prepared(tmp_path / "data", classes.recipe, classes.hparams, {"test": rows})
    evaluate(classes.request(data=data), str(tmp_path / "out"), quiet=True)
    report = report_of(tmp_path / "out")
    assert report["metrics"]["auroc"] == {"value": None, "ci95": [None, None], "n": 3}
    assert report["metrics"]["accuracy"]["value"] is not None
    assert "Confusion matrix" in (tmp_path / "out" / "report.html").read_text()


def test_data_that_do_not_fit_are_one_clear_line(
    masks: Trained, classes: Trained, tmp_path: Path
) -> None:
    other = dataclasses.replace(masks.hparams, size=32)
    examples = {"test": mask_examples(1, size=32, seed=0)}
    data = write_prepared(tmp_path / "size", masks.recipe, other, examples)
    with pytest.raises(ConfigError, match="prepared with size=32, the model needs 16"):
        evaluate(masks.request(data=data), str(tmp_path / "a"), quiet=True)
    with pytest.raises(ConfigError, match="was prepared for lung_classification, not for pancreas"):
        masks.request(data=classes.data)
    with pytest.raises(ConfigError, match="a model of lung_classification, not of pancreas"):
        evaluate(masks.request(model=str(classes.model)), str(tmp_path / "b"), quiet=True)
    examples = {"train": mask_examples(1, size=16, seed=0)}
    data = write_prepared(tmp_path / "empty", masks.recipe, masks.hparams, examples)
    with pytest.raises(ConfigError, match="no example in split test"):
        evaluate(masks.request(data=data), str(tmp_path / "c"), quiet=True)
    assert not any((tmp_path / name).exists() for name in "abc")


def test_a_changed_byte_of_the_weights_stops_before_any_actor(
    masks: Trained, tmp_path: Path
) -> None:
    shutil.copytree(masks.model / "model", tmp_path / "model")
    weights = tmp_path / "model" / "weights.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(bytes(raw))
    with pytest.raises(DataError, match="model_hash_mismatch"):
        evaluate(masks.request(model=str(tmp_path / "model")), str(tmp_path / "out"), quiet=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("in_process")
def test_an_example_with_a_changed_byte_is_counted_and_left_out(
    masks: Trained, tmp_path: Path
) -> None:
    shutil.copytree(masks.data, tmp_path / "data")
    victim = sorted((tmp_path / "data" / "examples").glob("test*"))[0]
    raw = bytearray(victim.read_bytes())
    raw[-1] ^= 1
    victim.write_bytes(bytes(raw))
    summary = evaluate(masks.request(data=tmp_path / "data"), str(tmp_path / "out"), quiet=True)
    assert summary["status"] == "done_with_rejects"
    assert summary["counts"]["rejected_by_reason"] == {"checksum_mismatch": 1}
    assert report_of(tmp_path / "out")["num_cases"] == 7


def test_actors_are_processes_of_their_own(masks_out: Path) -> None:
    import ray
    from ray.util.state import list_actors

    here = ray.get_runtime_context().gcs_address  # other people's Ray may run on this machine
    found = list_actors(address=here, limit=1000)
    actors = [one for one in found if "EvaluateActor" in one.class_name]
    assert masks_out.exists()
    assert actors
    assert os.getpid() not in {one.pid for one in actors}


def test_the_pages_show_cases_and_curves_and_no_patient(masks_out: Path, classes_out: Path) -> None:
    pages = {out: (out / "report.html").read_text() for out in (masks_out, classes_out)}
    for page in pages.values():
        assert "P-test" not in page
        assert "/tmp" not in page
        for uri in re.findall(r"data:image/png;base64,([^\"]+)", page):
            assert Image.open(io.BytesIO(base64.b64decode(uri))).size == (384, 384)
    for title in (
        "Threshold", "Dice of each case", "Volumes", "Volume differences", "Training: loss",
        "Training: dice",
    ):  # fmt: skip
        assert f"<strong>{title}</strong>" in pages[masks_out]
        assert f"<strong>{title}</strong>" not in pages[classes_out]
    for title in ("ROC", "Precision and recall", "Reliability", "Confusion matrix"):
        assert f"<strong>{title}</strong>" in pages[classes_out]
        assert f"<strong>{title}</strong>" not in pages[masks_out]
    for kind in ("Worst", "Random", "Best"):
        assert all(f"<h2>{kind} cases" in page for page in pages.values())
    worst = pq.read_table(masks_out / "predictions.parquet").to_pylist()
    worst.sort(key=lambda row: row["native_dice"])
    grid = pages[masks_out].partition("<h2>Worst cases")[2].partition("<h2>")[0]
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", grid)
    assert [line.rpartition("; ")[2] for line in captions] == [row["key"] for row in worst[:6]]


@pytest.mark.usefixtures("in_process")
def test_warnings_of_the_model_stand_above_the_numbers(classes: Trained, tmp_path: Path) -> None:
    shutil.copytree(classes.model / "model", tmp_path / "model")
    where = tmp_path / "model" / "model.json"
    facts = json.loads(where.read_text())
    facts["gates"] = {"mode": "off", "found": [["class_missing", "split val has none of class 1"]]}
    facts["data"]["split"] = "none"
    facts["options"]["shuffle_labels"] = True
    where.write_text(json.dumps(facts))
    request = classes.request(model=str(tmp_path / "model"), split="val")
    evaluate(request, str(tmp_path / "out"), quiet=True)
    head = (tmp_path / "out" / "report.html").read_text().partition("<h2>")[0]
    for words in ("Gates were off", "class_missing", "overfit check", "Canary", "chosen on this"):
        assert words in head


def test_intervals_come_from_patients_not_cases() -> None:
    """Two cases of each patient that agree: the interval is as wide as with one case each."""
    recipe, _ = tiny("pancreas_segmentation")
    rng = np.random.default_rng(0)
    rows = [
        {"patient_id": str(n), "found_true": [9, int(rng.integers(1, 9))] + [0] * 126,
         "found_false": [50, 3] + [0] * 126}
        for n in range(12)
    ]  # fmt: skip
    chosen = {"threshold": 1 / 128}
    once = engine.intervals(recipe, rows, chosen)
    assert engine.intervals(recipe, [*rows, *rows], chosen)["dice"] == pytest.approx(once["dice"])
    others = [{**row, "patient_id": f"{row['patient_id']}b"} for row in rows]
    low, high = engine.intervals(recipe, [*rows, *others], chosen)["dice"]
    assert high - low < 0.9 * (once["dice"][1] - once["dice"][0])
