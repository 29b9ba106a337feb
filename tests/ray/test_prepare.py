"""Every task's phantom through prepare: counts, equality with a plain call, resume, gates."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from medray.config import override
from medray.datasets.loading import load_sample
from medray.datasets.record import Record
from medray.datasets.split import SplitOptions
from medray.dicom.decoder import process_decoder
from medray.engine.examples import decode_example
from medray.engine.prepare import PrepareOptions, prepare, work_key
from medray.engine.prepare_task import CountingReader, Transform
from medray.engine.run import Run
from medray.engine.source_tree import TreeOptions, read_tree
from medray.errors import ConfigError, GateError
from medray.tasks import TASKS, get_recipe

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


@pytest.fixture(scope="module", params=list(TASKS))
def prepared(request, tmp_path_factory):
    """One task's phantom, prepared through Ray Data."""
    recipe = get_recipe(request.param)
    root = tmp_path_factory.mktemp(request.param)
    truth = recipe.phantom(root / "data", num_patients=8, seed=2, defects=False, size="tiny")
    options = PrepareOptions(data=str(root / "data"), gates="off")
    out = root / "out"
    summary = prepare(recipe, recipe.tiny_hparams, SplitOptions(), str(out), options, quiet=True)
    return recipe, root, truth, options, summary


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and ".medray" not in p.parts and p.name not in {"run.json", ".medray-lock"}
    }


def test_examples_are_complete_and_described(prepared):
    _, root, _, _, summary = prepared
    counts = summary["counts"]
    assert (
        counts["num_inputs"] == counts["num_done"] + counts["num_skipped"] + counts["num_rejected"]
    )
    assert counts["num_done"] > 0
    assert counts["num_rejected"] == 0
    rows = pq.read_table(root / "out" / "examples.parquet").to_pylist()
    assert len(rows) == counts["num_done"]
    splits = {}
    for row in rows:
        data = (root / "out" / row["uri"]).read_bytes()
        arrays, facts = decode_example(data)
        assert json.loads(row["shapes"]) == {n: list(a.shape) for n, a in arrays.items()}
        assert facts["key"] == row["key"]
        assert row["value_min"] < row["value_max"]
        assert all(a.dtype.kind != "f" or np.isfinite(a).all() for a in arrays.values())
        splits.setdefault(row["patient_id"], set()).add(row["split"])
    assert all(len(found) == 1 for found in splits.values())
    assert (root / "out" / "contact_sheet.png").read_bytes()[:4] == b"\x89PNG"
    assert json.loads((root / "out" / "fingerprint.json").read_text())["num_examples"] == len(rows)


def test_a_plain_call_gives_the_same_bits_as_ray_data(prepared):
    recipe, root, _, options, _ = prepared
    hparams = recipe.tiny_hparams
    ledger = {
        path.stem: json.loads(path.read_text())
        for path in (root / "out" / ".medray" / "ledger").rglob("*.json")
    }
    with Run(verb="prepare", out=str(root / "direct"), parameters={}, inputs=()) as run:
        index = TreeOptions(data=options.data)
        records = [
            r
            for r in recipe.records(read_tree(run, index, quiet=True), hparams)
            if isinstance(r, Record)
        ]
    for record in records[:12]:
        row = ledger[work_key(Transform(recipe, hparams), record)]["row"]
        stored, _ = decode_example((root / "out" / row["uri"]).read_bytes())
        direct = recipe.prepare(
            load_sample(record, CountingReader(process_decoder())), hparams
        ).arrays
        assert set(direct) == set(stored)
        for name, array in direct.items():
            assert array.dtype == stored[name].dtype
            assert np.array_equal(array, stored[name]), name


def test_half_a_run_is_finished_without_doing_the_rest_again(prepared, tmp_path):
    recipe, root, _, options, summary = prepared
    out = tmp_path / "out"
    shutil.copytree(root / "out", out)
    records = sorted((out / ".medray" / "ledger").rglob("*.json"))
    lost = records[::2]
    for path in lost:
        row = json.loads(path.read_text())["row"]
        (out / row["uri"]).unlink(missing_ok=True)
        path.unlink()
    for name in ("examples.parquet", "split.parquet", "run.json", "contact_sheet.png"):
        (out / name).unlink()
    kept = {path: path.stat().st_mtime_ns for path in records if path not in lost}
    again = prepare(recipe, recipe.tiny_hparams, SplitOptions(), str(out), options, quiet=True)
    assert again["counts"]["num_done"] == len(lost)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert tree(out) == tree(root / "out")
    assert again["counts"]["num_inputs"] == summary["counts"]["num_inputs"]


def test_other_hyperparameters_on_the_same_output_are_refused(prepared):
    recipe, root, _, options, _ = prepared
    with pytest.raises(ConfigError, match="was made with another value of split_seed"):
        split = SplitOptions(split_seed=9)
        prepare(recipe, recipe.tiny_hparams, split, str(root / "out"), options, quiet=True)


def test_gates_stop_what_must_not_be_trained_on(tmp_path):
    """One class alone: all labels are equal; the table that shows it is written all the same."""
    recipe = get_recipe("pancreas_classification")
    recipe.phantom(tmp_path / "data", num_patients=6, seed=3, defects=False, size="tiny")
    for path in (tmp_path / "data").rglob("label"):
        path.write_text("1")
    options = PrepareOptions(data=str(tmp_path / "data"))
    with pytest.raises(GateError, match="labels_constant"):
        prepare(
            recipe, recipe.tiny_hparams, SplitOptions(), str(tmp_path / "o"), options, quiet=True
        )
    assert json.loads((tmp_path / "o" / "run.json").read_text())["status"] == "stopped"
    assert pq.read_table(tmp_path / "o" / "examples.parquet").num_rows == 6


def test_boxes_of_the_real_patient_all_match_and_lie_on_the_tumour(real_data, tmp_path):
    recipe = get_recipe("lung_detection")
    options = PrepareOptions(
        data=str(real_data / "ct_series" / "lung_pet_ct_dx_A0001"), gates="off"
    )
    hparams = override(recipe.hparams, [])
    split = SplitOptions(split="none")
    summary = prepare(recipe, hparams, split, str(tmp_path / "o"), options, quiet=True)
    assert summary["counts"]["num_rejected"] == 0
    rows = pq.read_table(tmp_path / "o" / "examples.parquet").to_pylist()
    assert sum(row["num_boxes"] for row in rows) == 20
    inside = []
    for row in rows:
        arrays, _ = decode_example((tmp_path / "o" / row["uri"]).read_bytes())
        for left, top, right, bottom in np.round(arrays["boxes"]).astype(int):
            inside.append(np.median(arrays["image"][0, top:bottom, left:right]))
    # Soft tissue inside the boxes, not the lung round them.
    assert -100 < np.median(inside) < 100


@pytest.mark.parametrize("form", ["yolo", "coco"])
def test_boxes_are_exported_and_yolo_folders_come_back(tmp_path, form):
    recipe = get_recipe("breast_roi")
    recipe.phantom(tmp_path / "data", num_patients=3, seed=4, defects=False, size="tiny")
    options = PrepareOptions(data=str(tmp_path / "data"), gates="off", export=form)
    split = SplitOptions(split="none")
    prepare(recipe, recipe.tiny_hparams, split, str(tmp_path / "o"), options, quiet=True)
    rows = pq.read_table(tmp_path / "o" / "examples.parquet").to_pylist()
    boxes = sum(row["num_boxes"] for row in rows)
    if form == "coco":
        found = json.loads((tmp_path / "o" / "coco" / "annotations.json").read_text())
        assert len(found["annotations"]) == boxes
        return
    again = PrepareOptions(data=str(tmp_path / "o" / "yolo"), gates="off")
    prepare(recipe, recipe.tiny_hparams, split, str(tmp_path / "p"), again, quiet=True)
    back = pq.read_table(tmp_path / "p" / "examples.parquet").to_pylist()
    assert sum(row["num_boxes"] for row in back) == boxes
