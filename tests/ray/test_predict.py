"""Prediction on a local Ray: masks where the series lies, by independent readers and convert."""

import dataclasses
import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import highdicom
import nibabel
import numpy as np
import pyarrow.parquet as pq
import pytest
import SimpleITK as sitk
from PIL import Image

from medray import cli
from medray.datasets.fingerprint import merge_fingerprints, partial_fingerprint
from medray.datasets.loading import load_sample
from medray.dicom.decoder import process_decoder
from medray.engine import predict as engine
from medray.engine.case_listing import one_record
from medray.engine.convert import ConvertOptions, convert
from medray.engine.index import index
from medray.engine.predict import Failed, PredictRequest, predict
from medray.engine.prepare_task import CountingReader
from medray.engine.upstream import packed_upstream
from medray.engine.weights import read_model_json
from medray.errors import ConfigError, DataError
from medray.tasks import get_recipe
from medray.verbs.prediction import failed_reason
from tests.prepared_data import mask_examples, shape_examples
from tests.ray.local import answers_in_process
from tests.tiny_models import fresh_package, tiny

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and ".medray" not in p.parts and p.name not in {"run.json", ".medray-lock"}
    }


def request(model: str, *sources: Path | str, **changes: Any) -> PredictRequest:
    facts = read_model_json(model)
    return PredictRequest(
        recipe=get_recipe(facts["task"]),
        model=model,
        sources=tuple(str(source) for source in sources),
        upstream=packed_upstream(model, facts, get_recipe),
        **changes,
    )


def rows(out: Path, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(out / f"{name}.parquet").to_pylist()
    return found


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four patients with their label files beside; the last one's slice is cut."""
    root = tmp_path_factory.mktemp("source")
    recipe = get_recipe("pancreas_segmentation")
    truth = recipe.phantom(root, num_patients=4, seed=3, defects=False, size="tiny")
    victim = sorted((root / truth["cases"][-1]["path"]).rglob("*.dcm"))[5]
    victim.write_bytes(victim.read_bytes()[:-200])
    return root


@pytest.fixture(scope="module")
def masker(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A network that learned nothing, at a threshold where it draws something."""
    out = tmp_path_factory.mktemp("masker")
    recipe, hparams = tiny("pancreas_segmentation", filters=(4, 8))
    examples = {"train": mask_examples(1, size=16, seed=0)}
    return fresh_package(out, recipe, hparams, examples, {"threshold": 0.5})


@pytest.fixture(scope="module")
def predicted(
    masker: str, source: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("predicted")
    return out, predict(request(masker, source), str(out), quiet=True)


@pytest.fixture(scope="module")
def converted(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("converted")
    convert([str(source)], str(out), ConvertOptions(), quiet=True)
    return out


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "map_with_actors", answers_in_process)


def test_every_series_is_answered_or_refused(predicted: tuple[Path, dict[str, Any]]) -> None:
    out, summary = predicted
    counts = summary["counts"]
    assert (counts["num_inputs"], counts["num_done"], counts["num_rejected"]) == (4, 3, 1)
    assert sum(counts["rejected_by_reason"].values()) == 1
    (refused,) = rows(out, "rejected")
    assert refused["reason"] in {"truncated", "pixel_length_mismatch"}
    assert len(refused["key"]) == 16
    assert not (out / refused["key"]).exists()
    results = rows(out, "results")
    assert [row["status"] for row in results] == ["complete"] * 3
    assert [row["key"] for row in results] == sorted(row["key"] for row in results)
    for row in results:
        assert row["outputs"] == [
            f"{row['key']}/{name}"
            for name in (
                "prediction.json",
                "prediction.nii.gz",
                "prediction.seg.dcm",
                "preview.png",
            )
        ]
        assert all((out / name).is_file() for name in row["outputs"])


def test_masks_lie_where_the_series_does_by_other_readers(
    predicted: tuple[Path, dict[str, Any]], converted: Path
) -> None:
    out, _ = predicted
    partly = 0
    for row in rows(out, "results"):
        mask = nibabel.load(out / row["key"] / "prediction.nii.gz")
        volume = nibabel.load(converted / f"{row['key']}.nii.gz")
        assert mask.shape == volume.shape
        assert np.array_equal(mask.affine, volume.affine)
        assert mask.get_data_dtype() == np.uint8
        values = np.asarray(mask.dataobj)
        assert set(np.unique(values)) <= {0, 1}
        partly += 0 < values.mean() < 1
        voxel_ml = abs(np.linalg.det(mask.affine[:3, :3])) / 1000
        assert row["volume_ml"] == pytest.approx(values.sum() * voxel_ml, rel=1e-5)
        theirs = sitk.ReadImage(str(out / row["key"] / "prediction.nii.gz"))
        ours = sitk.ReadImage(str(converted / f"{row['key']}.nii.gz"))
        assert theirs.GetOrigin() == ours.GetOrigin()
        assert theirs.GetDirection() == ours.GetDirection()
    assert partly


def test_segmentations_lie_on_their_slices_by_another_reader(
    predicted: tuple[Path, dict[str, Any]],
) -> None:
    out, _ = predicted
    for row in rows(out, "results"):
        seg = highdicom.seg.segread(out / row["key"] / "prediction.seg.dcm")
        volume = seg.get_volume(combine_segments=True)
        mask = nibabel.load(out / row["key"] / "prediction.nii.gz")
        found = np.argwhere(volume.array > 0) @ volume.affine[:3, :3].T + volume.affine[:3, 3]
        ours = (
            np.argwhere(np.asarray(mask.dataobj) > 0) @ mask.affine[:3, :3].T + mask.affine[:3, 3]
        )
        ours = ours * [-1, -1, 1]  # NIfTI's RAS to DICOM's LPS
        assert len(found) == len(ours) > 0
        order = [np.lexsort(np.round(points, 2).T) for points in (found, ours)]
        assert np.abs(found[order[0]] - ours[order[1]]).max() < 0.01
        assert row["weights_sha256"] in json.dumps(seg.to_json_dict())


def test_results_and_pictures_tell_what_the_model_said(
    predicted: tuple[Path, dict[str, Any]], masker: str
) -> None:
    out, _ = predicted
    for row in rows(out, "results"):
        document = json.loads((out / row["key"] / "prediction.json").read_text())
        assert set(document) == {"model", "version", "weights_sha256", "notice", "results"}
        (result,) = document["results"]
        assert result["key"] == row["key"]
        assert result["volume_ml"] == row["volume_ml"]
        assert result["threshold"] == 0.5
        assert result["status"] == "complete"
        assert row["weights_sha256"] == read_model_json(masker)["weights_sha256"]
        picture = np.asarray(Image.open(out / row["key"] / "preview.png"))
        assert picture.shape[1] == 512
        assert (picture == (255, 96, 64)).all(axis=-1).sum() > 20


def test_nothing_of_a_patient_is_in_a_case(
    predicted: tuple[Path, dict[str, Any]], source: Path
) -> None:
    truth = json.loads((source / "truth.json").read_text())
    ids = [case["patient_id"].encode() for case in truth["cases"]]
    for name, data in tree(predicted[0]).items():
        # A segmentation must file under its patient's study.
        if not name.endswith((".parquet", ".seg.dcm")):
            plain = gzip.decompress(data) if name.endswith(".gz") else data
            assert not any(one in plain or one in name.encode() for one in ids)


def test_a_finished_run_again_asks_no_model(
    masker: str,
    source: Path,
    predicted: tuple[Path, dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def forbidden(*_: Any) -> Any:
        raise AssertionError("an actor was started")

    before = tree(predicted[0])
    with monkeypatch.context() as patch:
        patch.setattr("medray.engine.actor_pool.put_blocks", forbidden)
        again = predict(request(masker, source), str(predicted[0]), quiet=True)
    assert tree(predicted[0]) == before
    assert again["counts"]["num_done"] == 0
    assert again["counts"]["skipped_by_reason"] == {"already_done": 3}
    assert again["counts"]["num_rejected"] == 1
    with pytest.raises(ConfigError, match="another value of formats"):
        predict(request(masker, source, formats=("json",)), str(predicted[0]), quiet=True)


@pytest.mark.usefixtures("in_process")
def test_ray_and_a_plain_call_give_the_same_bytes(
    masker: str, source: Path, predicted: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    predict(request(masker, source), str(tmp_path), quiet=True)
    assert tree(tmp_path) == tree(predicted[0])


@pytest.mark.usefixtures("in_process")
def test_volume_files_are_answered_alike_and_named_by_their_bytes(
    masker: str, predicted: tuple[Path, dict[str, Any]], converted: Path, tmp_path: Path
) -> None:
    """A folder without DICOM; a copy and a broken file among them, and a named file."""
    folder = tmp_path / "volumes"
    folder.mkdir()
    paths = sorted(converted.glob("*.nii.gz"))
    shutil.copy(paths[0], folder / "a.nii.gz")
    shutil.copy(paths[0], folder / "copy.nii.gz")
    (folder / "broken.nii").write_bytes(b"no NIfTI")
    summary = predict(request(masker, folder, paths[1]), str(tmp_path / "out"), quiet=True)
    counts = summary["counts"]
    assert counts["num_inputs"] == 4
    assert (counts["num_done"], counts["skipped_by_reason"]) == (2, {"already_done": 1})
    assert counts["rejected_by_reason"] == {"unreadable": 1}
    for path in paths[:2]:
        key = sitk_sha(path)
        mine = nibabel.load(tmp_path / "out" / key / "prediction.nii.gz")
        series = nibabel.load(predicted[0] / path.name.split(".")[0] / "prediction.nii.gz")
        same = np.asarray(mine.dataobj) == np.asarray(series.dataobj)
        assert same.mean() > 0.9999  # a NIfTI's affine is float32
        assert np.allclose(mine.affine, series.affine, atol=1e-3)


def sitk_sha(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


@pytest.mark.usefixtures("in_process")
def test_an_index_and_some_of_its_series_will_do(
    masker: str, source: Path, predicted: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    index([str(source)], str(tmp_path / "index"), quiet=True)
    key = rows(predicted[0], "results")[1]["key"]
    one = request(masker, tmp_path / "index", series_keys=(key,))
    summary = predict(one, str(tmp_path / "out"), quiet=True)
    assert summary["counts"]["num_inputs"] == summary["counts"]["num_done"] == 1
    for name in ("prediction.nii.gz", "prediction.json", "preview.png"):
        same = (predicted[0] / key / name).read_bytes()
        assert (tmp_path / "out" / key / name).read_bytes() == same


@pytest.mark.usefixtures("in_process")
def test_a_classifier_gives_scores_and_no_mask(source: Path, tmp_path: Path) -> None:
    recipe, hparams = tiny("lung_classification", filters=(4, 8))
    examples = {"train": shape_examples(3, size=16, num_classes=3, seed=0)}
    model = fresh_package(tmp_path / "model", recipe, hparams, examples, {})
    summary = predict(request(model, source), str(tmp_path / "out"), quiet=True)
    assert summary["counts"]["num_done"] == 3
    for row in rows(tmp_path / "out", "results"):
        assert row["label"] in {"adenocarcinoma", "small_cell", "squamous_cell"}
        document = json.loads((tmp_path / "out" / row["key"] / "prediction.json").read_text())
        scores = document["results"][0]["class_scores"]
        assert sum(scores.values()) == pytest.approx(1, abs=1e-5)
        assert row["score"] == max(scores.values()) == scores[row["label"]]
        assert {Path(name).name for name in row["outputs"]} == {"prediction.json", "preview.png"}


@pytest.mark.usefixtures("in_process")
def test_a_mask_comes_from_the_packed_model_or_the_run_says_what_is_missing(
    source: Path, masker: str, tmp_path: Path
) -> None:
    recipe, hparams = tiny("pancreas_classification", filters=(4, 8))
    examples = {"train": shape_examples(2, size=16, num_classes=2, seed=0)}
    chosen = {"threshold": 0.5}
    alone = fresh_package(tmp_path / "alone", recipe, hparams, examples, chosen)
    with pytest.raises(ConfigError, match="takes the organ mask"):
        predict(request(alone, source), str(tmp_path / "refused"), quiet=True)
    first = {
        "name": "mask",
        "task": "pancreas_segmentation",
        "uri": f"{masker}/model",
        "sha256": read_model_json(masker)["weights_sha256"],
    }
    whole = fresh_package(tmp_path / "whole", recipe, hparams, examples, chosen, upstream=[first])
    summary = predict(request(whole, source), str(tmp_path / "out"), quiet=True)
    assert summary["counts"]["num_done"] == 3
    assert all(0 < row["score"] < 1 for row in rows(tmp_path / "out", "results"))


@pytest.mark.usefixtures("in_process")
def test_a_mask_that_reads_back_otherwise_does_not_count(
    masker: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def differs(*_: Any) -> None:
        raise DataError("output_mismatch", "the file that was written holds other values")

    monkeypatch.setattr("medray.engine.convert_task.verify_nifti", differs)
    summary = predict(request(masker, source), str(tmp_path), quiet=True)
    assert summary["counts"]["num_done"] == 0
    assert summary["counts"]["rejected_by_reason"]["output_mismatch"] == 3
    assert not list(tmp_path.glob("*/*.nii.gz"))


@pytest.mark.usefixtures("in_process")
def test_another_modality_is_refused_before_anything_is_decoded(
    masker: str, source: Path, tmp_path: Path
) -> None:
    shutil.copytree(Path(masker) / "model", tmp_path / "model")
    where = tmp_path / "model" / "model.json"
    facts = json.loads(where.read_text())
    facts["fingerprint"]["modalities"] = {"MR": 9}
    where.write_text(json.dumps(facts))
    summary = predict(request(str(tmp_path / "model"), source), str(tmp_path / "o"), quiet=True)
    assert summary["counts"]["rejected_by_reason"] == {"wrong_modality": 4}


def test_wrong_arguments_are_one_clear_line(masker: str, source: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        predict(request(masker, tmp_path / "nowhere"), str(tmp_path / "a"), quiet=True)
    with pytest.raises(ConfigError, match="niftii.*nifti"):
        request(masker, source, formats=("niftii",))
    shutil.copytree(Path(masker) / "model", tmp_path / "model")
    (tmp_path / "model" / "weights.safetensors").write_bytes(b"other")
    with pytest.raises(DataError, match="model_hash_mismatch"):
        predict(request(str(tmp_path / "model"), source), str(tmp_path / "b"), quiet=True)
    assert not any((tmp_path / name).exists() for name in "ab")


@pytest.mark.usefixtures("in_process")
def test_the_command_ends_with_4_where_something_was_refused(
    masker: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["predict", masker, str(source), "--quiet", "--json", "--format", "json,png"]
    assert cli.run([*arguments, "--out", str(tmp_path / "out")]) == 4
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (said["verb"], said["counts"]["num_done"]) == ("predict", 3)
    assert not list((tmp_path / "out").glob("*/*.nii.gz"))
    wrong = ["predict", str(tmp_path), str(source), "--out", str(tmp_path / "other")]
    assert cli.run(wrong) == 2
    assert "model_missing" in capsys.readouterr().err


@pytest.fixture(scope="module")
def knowing(masker: str, source: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The network of masks with a fingerprint of more of the same phantom."""
    out = tmp_path_factory.mktemp("knowing")
    recipe = get_recipe("pancreas_segmentation")
    recipe.phantom(out / "more", num_patients=8, seed=77, defects=False, size="tiny")
    folders = sorted({path.parent for path in (out / "more").rglob("*.dcm")})
    io = CountingReader(process_decoder())
    parts = [partial_fingerprint(load_sample(one_record(str(f)), io)) for f in folders]
    shutil.copytree(Path(masker) / "model", out / "model")
    where = out / "model" / "model.json"
    facts = {**json.loads(where.read_text()), "fingerprint": merge_fingerprints(parts)}
    where.write_text(json.dumps(facts))
    del source
    return str(out / "model")


@pytest.mark.usefixtures("in_process")
def test_what_is_unlike_the_training_is_flagged_or_refused(
    knowing: str, source: Path, converted: Path, tmp_path: Path
) -> None:
    """A volume of stored values that nobody rescaled, beside the series."""
    volume = nibabel.load(sorted(converted.glob("*.nii.gz"))[0])
    stored = nibabel.Nifti1Image(np.asarray(volume.dataobj) + np.int16(1024), volume.affine)
    nibabel.save(stored, tmp_path / "stored.nii")
    unlike = tmp_path / "stored.nii"
    predict(request(knowing, source, unlike), str(tmp_path / "flag"), quiet=True)
    found = {row["series_uid"]: row for row in rows(tmp_path / "flag", "results")}
    odd = found.pop("")
    assert odd["conformity"] < 0.5
    assert "intensity_differs" in odd["flags"]
    assert all(row["conformity"] > 0.5 for row in found.values())
    document = json.loads((tmp_path / "flag" / odd["key"] / "prediction.json").read_text())
    assert "intensity_differs" in document["results"][0]["conformity"]["flags"]
    refusing = request(knowing, source, unlike, policy="refuse")
    summary = predict(refusing, str(tmp_path / "refuse"), quiet=True)
    assert summary["counts"]["rejected_by_reason"]["out_of_distribution"] == 1
    assert summary["counts"]["num_done"] == 3


@pytest.mark.usefixtures("in_process")
def test_only_what_failed_is_tried_again(masker: str, source: Path, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path / "source")
    asked = request(masker, tmp_path / "source")
    out = str(tmp_path / "out")
    with pytest.raises(ConfigError, match="needs the output of an earlier run"):
        predict(dataclasses.replace(asked, only=Failed()), out, quiet=True)
    predict(asked, out, quiet=True)
    (refused,) = rows(tmp_path / "out", "rejected")
    again = dataclasses.replace(asked, only=Failed("decode_timeout"))
    counts = predict(again, out, quiet=True)["counts"]
    assert (counts["num_done"], counts["num_rejected"]) == (0, 1)
    again = dataclasses.replace(asked, only=Failed(refused["reason"]))
    counts = predict(again, out, quiet=True)["counts"]
    assert counts["rejected_by_reason"] == {refused["reason"]: 1}
    assert counts["skipped_by_reason"] == {"already_done": 3}
    for name in ("failed", "failed:truncated"):
        assert failed_reason(name) == name.partition(":")[2]
    with pytest.raises(ConfigError, match="did you mean 'truncated'"):
        failed_reason("failed:truncatd")


@pytest.mark.usefixtures("in_process")
def test_the_originals_file_is_there_under_compat(
    masker: str, source: Path, predicted: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    key = rows(predicted[0], "results")[0]["key"]
    asked = request(masker, source, formats=("nifti", "compat"), series_keys=(key,))
    predict(asked, str(tmp_path), quiet=True)
    mask = nibabel.load(tmp_path / key / "prediction.nii")
    assert mask.get_data_dtype() == np.uint8
    packed = nibabel.load(tmp_path / key / "prediction.nii.gz")
    assert np.array_equal(np.asarray(mask.dataobj), np.asarray(packed.dataobj))
    assert np.array_equal(mask.affine, packed.affine)
