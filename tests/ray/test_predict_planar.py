"""Prediction of single images: slices of a series one by one, PNG files, boxes with their image."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image

import medray
from medray.engine import predict as engine
from medray.engine.predict import PredictRequest, predict
from medray.errors import ConfigError
from medray.recipe import Prepared
from medray.tasks import get_recipe
from tests.ray.local import answers_in_process
from tests.tiny_models import fresh_package, tiny

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]
SIZE = 64


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One patient's series; one of its slices is cut."""
    root = tmp_path_factory.mktemp("source")
    recipe = get_recipe("lung_detection")
    recipe.phantom(root, num_patients=1, seed=3, defects=False, size="tiny")
    return root


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A network that learned nothing, at a threshold where it finds something everywhere."""
    out = tmp_path_factory.mktemp("detector")
    recipe, hparams = tiny("lung_detection", size=SIZE)
    example = Prepared(
        arrays={
            "image": np.zeros((1, SIZE, SIZE), np.int16),
            "boxes": np.array([[8, 8, 30, 30]], np.float32),
            "box_labels": np.zeros(1, np.int64),
        },
        meta={"scale_yx": [1.0, 1.0], "offset_yx_px": [0, 0], "original_shape": [SIZE, SIZE]},
    )
    return fresh_package(out, recipe, hparams, {"train": [example]}, {"threshold": 0.001})


def answer(model: str, source: Path, out: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    recipe = get_recipe("lung_detection")
    request = PredictRequest(recipe=recipe, model=model, sources=(str(source),))
    summary = predict(request, str(out), quiet=True)
    results = [
        json.loads(path.read_text())["results"][0] for path in sorted(out.glob("*/prediction.json"))
    ]
    return summary, results


@pytest.fixture(autouse=True)
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "map_with_actors", answers_in_process)


def test_each_box_names_its_slice_in_pixels_and_mm(
    detector: str, source: Path, tmp_path: Path
) -> None:
    summary, results = answer(detector, source, tmp_path)
    # The fused colour series and the PET beside the CT are not what the network takes.
    assert summary["counts"]["rejected_by_reason"] == {"wrong_modality": 2}
    slices = {}
    for path in source.rglob("*.dcm"):
        dataset = pydicom.dcmread(path, stop_before_pixels=True)
        slices[dataset.SOPInstanceUID] = dataset
    boxes = [box for result in results for box in result["boxes"]]
    assert len({box["sop_uid"] for box in boxes}) > 1
    for box in boxes:
        dataset = slices[box["sop_uid"]]
        x1, y1, x2, y2 = box["box_xyxy_px"]
        assert 0 <= x1 < x2 <= dataset.Columns
        assert 0 <= y1 < y2 <= dataset.Rows
        dy, dx = (float(mm) for mm in dataset.PixelSpacing)
        assert box["box_xyxy_mm"] == pytest.approx([x1 * dx, y1 * dy, x2 * dx, y2 * dy])
        assert box["label"] == "tumour"
    for result in results:
        scores = [box["score"] for box in result["boxes"]]
        assert scores == sorted(scores, reverse=True)
        assert result["score"] == pytest.approx(scores[0])
        assert result["status"] == "complete"


def test_a_cut_slice_leaves_the_case_partial_and_said_so(
    detector: str, source: Path, tmp_path: Path
) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(source, copy)
    series = max(
        (folder for folder in copy.rglob("*") if folder.is_dir()),
        key=lambda folder: len(list(folder.glob("*.dcm"))),
    )
    victim = sorted(series.glob("*.dcm"))[3]
    victim.write_bytes(victim.read_bytes()[:-200])
    _, results = answer(detector, copy, tmp_path / "out")
    hurt = [result for result in results if result["status"] == "partial"]
    assert len(hurt) == 1
    assert set(hurt[0]["flags"]) & {"truncated", "pixel_length_mismatch"}
    gone = {box["sop_uid"] for box in hurt[0]["boxes"]}
    assert pydicom.dcmread(victim, stop_before_pixels=True, force=True).SOPInstanceUID not in gone


def test_an_image_file_is_answered_as_by_the_loaded_model(
    detector: str, source: Path, tmp_path: Path
) -> None:
    picture = tmp_path / "slice.png"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (90, 120), dtype=np.uint8)).save(picture)
    # A network of Hounsfield units has no use for 8 bit: refused with a reason, not guessed.
    summary, results = answer(detector, picture, tmp_path / "out")
    assert not results
    assert summary["counts"]["rejected_by_reason"] == {"wrong_modality": 1}
    Image.fromarray(np.zeros((90, 120), dtype=np.uint8)).save(picture)
    summary, _ = answer(detector, picture, tmp_path / "black")
    assert summary["counts"]["rejected_by_reason"] == {"image_constant": 1}
    one = sorted(source.rglob("*.dcm"))[10]
    found = medray.load_model(detector).predict(one)
    assert found.boxes_xyxy_px is not None
    assert len(found.boxes_xyxy_px) == len(found.box_scores)


def test_a_submission_names_each_breast_once(tmp_path: Path) -> None:
    recipe = get_recipe("breast_classification")
    hparams = dataclasses.replace(recipe.tiny_hparams, height=32, width=32)
    example = Prepared(arrays={"image": np.full((1, 32, 32), 9, np.uint16)}, label=1)
    inference = {"threshold": 0.0, "aggregation": "mean"}
    model = fresh_package(tmp_path / "m", recipe, hparams, {"train": [example]}, inference)
    card = Path(model) / "model" / "model.json"
    facts = json.loads(card.read_text())
    seen = {"modalities": {"MG": 1, "unknown": 1}}
    card.write_text(json.dumps({**facts, "fingerprint": seen}))
    recipe.phantom(tmp_path / "d", num_patients=2, seed=1, defects=False, size="tiny")
    get_recipe("lung_detection").phantom(
        tmp_path / "ct", num_patients=1, seed=3, defects=False, size="tiny"
    )
    picture = tmp_path / "nobody.png"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (90, 120), dtype=np.uint8)).save(picture)
    request = PredictRequest(
        recipe=recipe,
        model=model,
        sources=(str(tmp_path / "d"), str(tmp_path / "ct"), str(picture)),
        formats=("json", "submission"),
    )
    summary = predict(request, str(tmp_path / "out"), quiet=True)
    assert set(summary["counts"]["rejected_by_reason"]) == {"wrong_modality"}
    assert summary["submission_left_out"] == {"patient_id": 1}
    lines = (tmp_path / "out" / "submission.csv").read_text().splitlines()
    assert lines[0] == "prediction_id,cancer"
    assert len(lines) == 1 + 2 * 2
    assert {line.rpartition(",")[0][-2:] for line in lines[1:]} == {"_L", "_R"}
    assert all(line.endswith(",1") for line in lines[1:]), "threshold 0 calls every breast ill"


def test_a_task_without_a_challenge_has_no_submission(detector: str, source: Path) -> None:
    with pytest.raises(ConfigError, match="lung_detection belongs to no challenge"):
        PredictRequest(
            recipe=get_recipe("lung_detection"),
            model=detector,
            sources=(str(source),),
            formats=("submission",),
        )
