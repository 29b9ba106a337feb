"""The phantoms of all tasks: repeatable, well-formed, in their layout, hard for thresholds."""

import csv
import gzip
import hashlib
import importlib
import json
import struct

import numpy as np
import pydicom
import pytest
from defusedxml.ElementTree import parse

from medray.phantoms import blobs, score
from medray.phantoms.naming import CANARY

pytestmark = pytest.mark.slow

LIMITS = {"dice": 0.5, "ap50": 0.5, "auroc": 0.75}
TASKS = {
    "lung_detection": "lung_pet_ct_dx",
    "lung_classification": "lung_pet_ct_dx",
    "breast_roi": "yolo_folder",
    "breast_classification": "rsna_breast",
    "pneumonia_detection": "rsna_pneumonia",
    "pancreas_segmentation": "pancreas_ct",
    "pancreas_classification": "dicom_mask_folders",
}


def phantom_of(task):
    return importlib.import_module(f"medray.tasks.{task}.phantom")


def digests(root):
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """Return a function that writes a tiny data set once per task."""
    made = {}

    def of(task):
        if task not in made:
            root = tmp_path_factory.mktemp(task)
            made[task] = (
                root,
                phantom_of(task).write_phantom(
                    root, num_patients=4, seed=3, defects=False, size="tiny"
                ),
            )
        return made[task]

    return of


@pytest.mark.parametrize("task", TASKS)
def test_two_runs_write_the_same_bytes(task, written, tmp_path):
    root, _ = written(task)
    phantom_of(task).write_phantom(tmp_path, num_patients=4, seed=3, defects=False, size="tiny")
    assert digests(root) == digests(tmp_path)


@pytest.mark.parametrize("task", TASKS)
def test_another_seed_writes_other_images(task, written, tmp_path):
    root, _ = written(task)
    phantom_of(task).write_phantom(tmp_path, num_patients=1, seed=4, defects=False, size="tiny")
    first, second = digests(root), digests(tmp_path)
    images = {value for name, value in first.items() if name.endswith((".dcm", ".png"))}
    assert images.isdisjoint(second.values())


@pytest.mark.parametrize("task", TASKS)
def test_truth_names_files_that_are_there(task, written):
    root, truth = written(task)
    assert truth == json.loads((root / "truth.json").read_text())
    assert truth["layout"] == TASKS[task]
    assert truth["defects"] == []
    assert truth["cases"]
    assert all((root / case["path"]).exists() for case in truth["cases"])
    assert all((root / case["mask"]).is_file() for case in truth["cases"] if case["mask"])
    assert len({case["patient_id"] for case in truth["cases"]}) == 4


@pytest.mark.parametrize("task", TASKS)
def test_every_dicom_file_decodes_and_carries_the_canary(task, written):
    root, _ = written(task)
    for path in root.rglob("*.dcm"):
        header = pydicom.dcmread(path, stop_before_pixels=True)
        assert str(header.PatientName).startswith(CANARY)
        frame = blobs.read_frame(path)
        assert frame.shape[:2] == (header.Rows, header.Columns)
        assert frame.min() < frame.max()


@pytest.mark.parametrize("task", TASKS)
def test_thresholds_and_blobs_do_not_solve_it(task, tmp_path):
    # An AUROC of a handful of patients is chance; twelve are the fewest that say anything.
    module = phantom_of(task)
    module.write_phantom(tmp_path, num_patients=12, seed=0, defects=False, size="tiny")
    for name, value in module.baseline(tmp_path).items():
        assert value < LIMITS[name], name


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("seed", [1, 2])
def test_thresholds_and_blobs_do_not_solve_other_seeds(task, seed, tmp_path):
    module = phantom_of(task)
    module.write_phantom(tmp_path, num_patients=12, seed=seed, defects=False, size="small")
    for name, value in module.baseline(tmp_path).items():
        assert value < LIMITS[name], name


@pytest.mark.parametrize("task", TASKS)
def test_wrong_arguments_raise(task, tmp_path):
    write = phantom_of(task).write_phantom
    with pytest.raises(ValueError, match="size must be one of tiny, small, full, got 'huge'"):
        write(tmp_path, num_patients=1, seed=0, defects=False, size="huge")
    with pytest.raises(ValueError, match="num_patients must be >= 1, got 0"):
        write(tmp_path, num_patients=0, seed=0, defects=False)


def test_lung_boxes_are_the_annotations(written):
    root, truth = written("lung_detection")
    xml = {path.stem: path for path in root.rglob("*.xml")}
    assert set(xml) == {case["sop_uid"] for case in truth["cases"]}
    for case in truth["cases"]:
        header = pydicom.dcmread(root / case["path"], stop_before_pixels=True)
        assert header.SOPInstanceUID == case["sop_uid"]
        tree = parse(xml[case["sop_uid"]])
        box = [float(tree.find(f".//{name}").text) for name in ("xmin", "ymin", "xmax", "ymax")]
        assert [box] == case["boxes_xyxy_px"]
        assert box[0] < box[2] <= header.Columns
        assert int(tree.find("size/width").text) == header.Columns
        # The box holds the lesion's place; its middle need not: spikes are uneven.
        x = (case["lesion_center_mm"][0] - float(header.ImagePositionPatient[0])) / float(
            header.PixelSpacing[1]
        )
        assert box[0] <= x + 0.5 <= box[2]


def test_lung_study_has_many_kinds_of_series(written):
    root, _ = written("lung_detection")
    found = set()
    for path in root.rglob("*.dcm"):
        header = pydicom.dcmread(path, stop_before_pixels=True)
        found.add((header.Modality, header.SamplesPerPixel, "LOCALIZER" in header.ImageType))
    assert {("CT", 1, False), ("PT", 1, False), ("CT", 3, False), ("CT", 1, True)} <= found
    pet = [p for p in root.rglob("*.dcm") if "PET-WB" in str(p)]
    slopes = {str(pydicom.dcmread(p, stop_before_pixels=True).RescaleSlope) for p in pet}
    assert len(slopes) > 4


def test_rsna_breast_table_fits_the_images(written):
    root, truth = written("breast_classification")
    rows = list(csv.DictReader((root / "train.csv").open()))
    labels = {case["path"]: case["label"] for case in truth["cases"]}
    assert len(rows) == len(labels) == 16
    for row in rows:
        path = f"train_images/{row['patient_id']}/{row['image_id']}.dcm"
        assert labels[path] == int(row["cancer"])
    headers = [pydicom.dcmread(root / path, stop_before_pixels=True) for path in labels]
    assert {h.PhotometricInterpretation for h in headers} == {"MONOCHROME1", "MONOCHROME2"}
    assert {str(h.file_meta.TransferSyntaxUID) for h in headers} == {
        "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.70",
    }  # fmt: skip
    assert {h.VOILUTFunction for h in headers} == {"LINEAR", "SIGMOID"}


def test_pneumonia_tables_agree(written):
    root, truth = written("pneumonia_detection")
    rows = list(csv.DictReader((root / "stage_2_train_labels.csv").open()))
    classes = list(csv.DictReader((root / "stage_2_detailed_class_info.csv").open()))
    assert [row["patientId"] for row in rows] == [row["patientId"] for row in classes]
    boxes = sum(len(case["boxes_xyxy_px"]) for case in truth["cases"])
    assert boxes == sum(row["Target"] == "1" for row in rows)


def test_pancreas_label_lies_by_index_on_the_slices(written):
    root, truth = written("pancreas_segmentation")
    for case in truth["cases"]:
        raw = gzip.decompress((root / case["mask"]).read_bytes())
        columns, rows, depth = struct.unpack_from("<3h", raw, 42)
        array = np.frombuffer(raw, np.uint8, offset=352).reshape(depth, rows, columns)
        volume, affine = blobs.read_stack(root / case["path"])
        assert volume.shape == array.shape
        assert ((volume[array > 0] > -50) & (volume[array > 0] < 250)).mean() > 0.95
        middle = affine @ [*np.argwhere(array).mean(axis=0), 1]
        np.testing.assert_allclose(middle[:3], case["lesion_center_mm"], atol=1e-2)


def test_pancreas_masks_lie_on_the_organ_in_physical_space(written):
    sitk = pytest.importorskip("SimpleITK")
    root, truth = written("pancreas_classification")
    assert {case["label"] for case in truth["cases"]} == {0, 1}
    for case in truth["cases"]:
        mask = sitk.ReadImage(str(root / case["mask"]))
        volume, affine = blobs.read_stack(root / case["path"])
        points = np.argwhere(sitk.GetArrayFromImage(mask) > 0)[::7, ::-1]
        inverse = np.linalg.inv(affine)
        values = []
        for point in points:
            place = mask.TransformIndexToPhysicalPoint([int(v) for v in point])
            k, j, i = np.round((inverse @ [*place, 1])[:3]).astype(int)
            values.append(volume[k, j, i])
        assert np.median(values) == pytest.approx(90, abs=25)
        assert int((root / case["path"] / "label").read_text()) == case["label"]


def test_scores_are_right_on_small_numbers():
    mask = np.zeros((4, 4), bool)
    mask[:2] = True
    assert score.dice(mask, mask.T) == 0.5
    assert score.box_iou((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)
    columns = np.array([[1, 5], [2, 4], [2, 6]])
    assert score.best_auroc(columns, np.array([False, True, True])) == 1
    assert score.best_auroc(columns, np.array([True, True, True])) == 0.5
    found = [[(0.9, (0, 0, 2, 2)), (0.8, (5, 5, 6, 6))], [(0.7, (0, 0, 2, 2))]]
    truth = [[(0, 0, 2, 2)], [(0, 0, 2, 2)]]
    assert score.average_precision(found, truth, 0.5) == pytest.approx((1 + 2 / 3) / 2)
