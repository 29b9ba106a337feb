"""Index and convert on a local Ray: truth from phantoms and from other readers."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pyarrow.parquet as pq
import pytest

from medray.engine.convert import ConvertOptions, convert
from medray.engine.index import index
from medray.errors import ConfigError
from medray.phantoms.series import (
    SeriesSpec,
    affine_from_dicom,
    known_volume,
    write_ct_series,
    write_enhanced_ct,
)
from medray.volume import Volume

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_with_state")]
J2K = "1.2.840.10008.1.2.4.90"


@pytest.fixture(scope="module")
def ray_with_state():
    """Local Ray with its state API, which the dashboard serves."""
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=256 << 20,
        include_dashboard=True,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def messy(tmp_path_factory) -> tuple[Path, dict[str, Volume]]:
    """A folder as found in the wild: good series, odd ones, and files that are none."""
    root = tmp_path_factory.mktemp("messy")
    oblique = affine_from_dicom(orientation=(0.8, 0.6, 0.0, 0.0, 0.0, -1.0))
    good = {
        "plain": known_volume((12, 40, 32)),
        "oblique": known_volume((9, 30, 24), oblique),
        "j2k": known_volume((8, 40, 32)),
    }
    write_ct_series(root / "a", good["plain"], SeriesSpec(seed=1))
    write_ct_series(root / "a", good["oblique"], SeriesSpec(seed=2, file_pattern="x{number}"))
    write_ct_series(root / "b", good["j2k"], SeriesSpec(seed=3, syntax=J2K))
    write_ct_series(root / "gap", known_volume(), SeriesSpec(seed=4, leave_out=(5,)))
    (root / "notes.txt").write_text("not an image")
    (root / "broken.dcm").write_bytes(b"no DICOM either")
    (root / "empty.dcm").write_bytes(b"")
    cut = write_ct_series(root / "cut", known_volume((4, 10, 8)), SeriesSpec(seed=5))[2]
    cut.write_bytes(cut.read_bytes()[:-50])
    return root, good


@pytest.fixture(scope="module")
def converted(messy, tmp_path_factory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("converted") / "out"
    return out, convert([str(messy[0])], str(out), ConvertOptions(), quiet=True)


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and ".medray" not in p.parts and p.name not in {"run.json", ".medray-lock"}
    }


def test_every_input_is_accounted_for(messy, converted):
    counts = converted[1]["counts"]
    assert (
        counts["num_inputs"] == counts["num_done"] + counts["num_skipped"] + counts["num_rejected"]
    )
    assert counts["num_done"] == 3
    assert counts["rejected_by_reason"] == {
        "empty_file": 1, "missing_slices": 1, "not_dicom": 1, "truncated": 1,
    }  # fmt: skip
    assert converted[1]["status"] == "done_with_rejects"
    rows = pq.read_table(converted[0] / "rejected.parquet").to_pylist()
    assert len(rows) == 4
    assert all(row["detail"] and row["key"] for row in rows)


def test_volumes_equal_the_phantom_where_an_independent_reader_puts_them(messy, converted):
    out, _ = converted
    found = {}
    for path in out.glob("*.nii.gz"):
        image = nibabel.load(path)
        found[image.shape] = image
        assert image.header["qform_code"] == image.header["sform_code"] == 1
        assert np.allclose(image.get_qform(), image.get_sform(), atol=1e-3)
    for name, truth in messy[1].items():
        image = found[truth.array.shape[::-1]]
        assert np.array_equal(np.asarray(image.dataobj).T, truth.array), name
        ras = np.diag([-1, -1, 1, 1]) @ truth.affine_lps[:, [2, 1, 0, 3]]
        assert np.abs(image.affine - ras).max() < 1e-4, name


def test_a_second_run_does_nothing_and_changes_no_byte(messy, converted):
    out, first = converted
    before = tree(out)
    again = convert([str(messy[0])], str(out), ConvertOptions(), quiet=True)
    assert tree(out) == before
    assert again["counts"]["skipped_by_reason"] == {"already_done": 3}
    assert again["counts"]["rejected_by_reason"] == first["counts"]["rejected_by_reason"]


def test_other_parameters_on_the_same_output_are_refused_by_name(messy, converted):
    with pytest.raises(ConfigError, match="was made with another value of format"):
        convert([str(messy[0])], str(converted[0]), ConvertOptions(format="nifti"), quiet=True)


def test_a_zip_and_an_index_give_the_same_volumes(messy, converted, tmp_path):
    archive = tmp_path / "all.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as target:
        for path in sorted(messy[0].rglob("*"), reverse=True):
            if path.is_file():
                target.write(path, path.relative_to(messy[0]))
    convert([str(archive)], str(tmp_path / "zip"), ConvertOptions(), quiet=True)
    index([str(messy[0])], str(tmp_path / "index"), quiet=True)
    convert([str(tmp_path / "index")], str(tmp_path / "from-index"), ConvertOptions(), quiet=True)
    volumes = {n: b for n, b in tree(converted[0]).items() if n.endswith(".nii.gz")}
    for folder in ("zip", "from-index"):
        found = {n: b for n, b in tree(tmp_path / folder).items() if n.endswith(".nii.gz")}
        assert found == volumes


def test_index_reads_only_what_is_new_or_changed(messy, tmp_path):
    source, out = tmp_path / "source", tmp_path / "index"
    shutil.copytree(messy[0] / "a", source)
    first = index([str(source)], str(out), quiet=True)
    assert first["counts"]["num_done"] == 21
    again = index([str(source)], str(out), quiet=True)
    assert again["counts"]["skipped_by_reason"] == {"already_done": 21}
    write_ct_series(source / "new", known_volume((5, 10, 8)), SeriesSpec(seed=9))
    third = index([str(source)], str(out), quiet=True)
    assert third["counts"]["num_done"] == 5
    assert third["series"] == {"ok": 3}
    shutil.rmtree(source / "new")
    fourth = index([str(source)], str(out), quiet=True)
    assert fourth["series"] == {"ok": 2}


def test_enhanced_multi_frame_and_resampling_keep_physical_places(tmp_path):
    truth = known_volume((12, 40, 32))
    write_enhanced_ct(tmp_path / "in" / "one.dcm", truth)
    options = ConvertOptions(spacing_zyx_mm=(2.0, 2.0, 2.0))
    convert([str(tmp_path / "in")], str(tmp_path / "out"), options, quiet=True)
    (path,) = (tmp_path / "out").glob("*.nii.gz")
    image = nibabel.load(path)
    assert np.allclose(image.header.get_zooms(), 2.0)

    def centre_of_bright(values, affine):
        where = np.argwhere(values > 1000).mean(axis=0)
        return affine[:3, :3] @ where + affine[:3, 3]

    ras = np.diag([-1, -1, 1, 1]) @ truth.affine_lps[:, [2, 1, 0, 3]]
    expected = centre_of_bright(truth.array.T, ras)
    found = centre_of_bright(np.asarray(image.dataobj), image.affine)
    assert np.abs(found - expected).max() < 1.0


def test_duplicates_with_equal_bytes_count_once_and_others_are_a_conflict(tmp_path):
    volume = known_volume((6, 20, 16))
    paths = write_ct_series(tmp_path / "good", volume, SeriesSpec(seed=1))
    (tmp_path / "good" / "copy").mkdir()
    shutil.copy(paths[3], tmp_path / "good" / "copy" / "again.dcm")
    paths = write_ct_series(tmp_path / "bad", volume, SeriesSpec(seed=2))
    changed = bytearray(paths[3].read_bytes())
    changed[-1] ^= 1
    (tmp_path / "bad" / "other.dcm").write_bytes(bytes(changed))
    summary = convert([str(tmp_path)], str(tmp_path / "out"), ConvertOptions(), quiet=True)
    assert summary["counts"]["num_done"] == 1
    assert summary["counts"]["rejected_by_reason"] == {"duplicate_conflict": 1}


def test_work_happens_in_tasks_of_other_processes(converted):
    import ray
    from ray.util.state import list_tasks

    address = ray.get_runtime_context().gcs_address
    tasks = list_tasks(address=address, limit=1000, detail=True)
    pids = {
        task.worker_pid
        for name in ("convert_series", "read_headers", "judge_series")
        for task in tasks
        if name in task.name and task.worker_pid
    }
    assert pids
    assert os.getpid() not in pids


def test_command_line_exit_codes_and_one_line_errors(tmp_path):
    write_ct_series(tmp_path / "in", known_volume((6, 20, 16)))

    def run(*arguments):
        command = [sys.executable, "-m", "medray.cli", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr

    code, _, err = run(
        "convert", str(tmp_path / "nowhere"), "--out", str(tmp_path / "o"), "--quiet"
    )
    assert (code, err.count("\n")) == (2, 1)
    assert "does not exist" in err
    code, _, err = run(
        "convert", str(tmp_path / "in"), "--out", str(tmp_path / "o"), "--spacing", "x"
    )
    assert (code, err.count("\n")) == (2, 1)
    code, _, err = run("convert", str(tmp_path / "in"), "--outt", "x")
    assert code == 2
    code, out, _ = run(
        "convert", str(tmp_path / "in"), "--out", str(tmp_path / "p"), "--json", "--quiet"
    )
    assert code == 0
    assert json.loads(out.splitlines()[-1])["counts"]["num_done"] == 1


def test_real_series_agree_with_dcm2niix_and_simpleitk(real_data, tmp_path):
    import SimpleITK as sitk

    source = real_data / "ct_series" / "lung_pet_ct_dx_A0001"
    summary = convert([str(source)], str(tmp_path / "ours"), ConvertOptions(), quiet=True)
    assert summary["counts"]["num_done"] == 2
    folder = next(p for p in source.rglob("*") if p.is_dir() and len(list(p.glob("*.dcm"))) == 64)
    (tmp_path / "theirs").mkdir()
    binary = Path(sys.executable).parent / "dcm2niix"
    subprocess.run(
        [binary, "-z", "n", "-f", "x", "-o", tmp_path / "theirs", folder],
        check=True, capture_output=True,
    )  # fmt: skip
    theirs = nibabel.load(next((tmp_path / "theirs").glob("*.nii")))
    ours = next(
        image
        for image in map(nibabel.load, (tmp_path / "ours").glob("*.nii.gz"))
        if image.shape[2] == 64
    )
    to_theirs = np.linalg.inv(theirs.affine) @ ours.affine
    assert np.allclose(np.abs(to_theirs[:3, :3]), np.eye(3), atol=1e-4)
    mine = np.asarray(ours.dataobj)
    for axis in range(3):
        mine = np.flip(mine, axis) if to_theirs[axis, axis] < 0 else mine
    assert np.array_equal(mine, theirs.get_fdata())
    corners = np.array([[i, j, k, 1] for i in (0, 511) for j in (0, 511) for k in (0, 63)])
    moved = np.round(corners @ to_theirs.T)
    assert np.abs(moved @ theirs.affine.T - corners @ ours.affine.T).max() < 1e-3

    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
    image = sitk.ReadImage(names)
    assert np.array_equal(sitk.GetArrayFromImage(image), np.asarray(ours.dataobj).T)
    lps = np.diag([-1, -1, 1, 1]) @ ours.affine
    assert np.abs(np.array(image.GetOrigin()) - lps[:3, 3]).max() < 1e-3
    assert np.allclose(image.GetSpacing(), ours.header.get_zooms(), atol=1e-3)


def test_real_folders_get_their_verdicts(real_data, tmp_path):
    expected = {
        "ct_series/missing_slice_ge": {"missing_slices": 1},
        "ct_series/same_position_siemens": {"duplicate_positions": 1},
        "ct_series/orientations_ny_sbu": {"too_few_slices": 12},
    }
    for folder, verdicts in expected.items():
        out = tmp_path / folder.replace("/", "-")
        assert index([str(real_data / folder)], str(out), quiet=True)["series"] == verdicts


def test_tilted_real_series_is_straightened_and_flagged(real_data, tmp_path):
    source = real_data / "ct_series" / "ge_tilt_variable_spacing"
    summary = convert([str(source)], str(tmp_path / "o"), ConvertOptions(), quiet=True)
    assert summary["counts"]["num_done"] == 2
    rows = pq.read_table(tmp_path / "o" / "results.parquet").to_pylist()
    assert all("tilt_resampled" in row["flags"] for row in rows)
    for path in (tmp_path / "o").glob("*.nii.gz"):
        axes = nibabel.load(path).affine[:3, :3]
        axes = axes / np.linalg.norm(axes, axis=0)
        assert np.allclose(axes.T @ axes, np.eye(3), atol=1e-5)


def test_j2k_series_with_empty_uids_meets_its_flipped_mask_in_physical_space(real_data, tmp_path):
    source = real_data / "masks" / "totalsegmentator_dicom"
    convert([str(source / "dicom")], str(tmp_path / "o"), ConvertOptions(), quiet=True)
    (path,) = (tmp_path / "o").glob("*.nii.gz")
    ct, mask = nibabel.load(path), nibabel.load(source / "seg.nii.gz")
    hu, labels = np.asarray(ct.dataobj), np.asarray(mask.dataobj)
    for label, low, high in ((5, 20, 160), (7, -20, 160)):  # liver, pancreas
        where = np.argwhere(labels == label)
        world = where @ mask.affine[:3, :3].T + mask.affine[:3, 3]
        inverse = np.linalg.inv(ct.affine)
        at = np.rint(world @ inverse[:3, :3].T + inverse[:3, 3]).astype(int)
        values = hu[tuple(at.T)]
        assert low < np.median(values) < high
        unflipped = hu[tuple(where.T)]
        assert np.std(values) < np.std(unflipped)


def test_broken_files_all_end_as_output_or_record(real_data, tmp_path):
    source = real_data / "broken"
    summary = convert([str(source)], str(tmp_path / "o"), ConvertOptions(), quiet=True)
    counts = summary["counts"]
    assert (
        counts["num_inputs"] == counts["num_done"] + counts["num_skipped"] + counts["num_rejected"]
    )
    assert counts["num_rejected"] > 0


def test_values_that_change_between_listing_and_reading_are_refused(tmp_path):
    paths = write_ct_series(tmp_path / "in", known_volume((6, 20, 16)))
    index([str(tmp_path / "in")], str(tmp_path / "index"), quiet=True)
    moved = replace(known_volume((6, 20, 16)))
    affine = moved.affine_lps.copy()
    affine[2, 3] += 0.25
    write_ct_series(tmp_path / "in", replace(moved, affine_lps=affine))
    assert paths[0].exists()
    summary = convert([str(tmp_path / "index")], str(tmp_path / "o"), ConvertOptions(), quiet=True)
    assert set(summary["counts"]["rejected_by_reason"]) <= {"checksum_mismatch", "truncated"}
    assert summary["counts"]["num_done"] == 0
