from zlib import crc32

import pytest

from medray.datasets import rsna_breast, rsna_pneumonia
from medray.errors import ConfigError
from tests.unit.fake_trees import fake_series, fake_tree, parts, reasons, write

HEADER = "patientId,x,y,width,height,Target\n"


def images(root, names, *, folder="stage_2_train_images", verdicts=None, patient=""):
    verdicts = verdicts or {}
    return [
        fake_series(
            root,
            folder,
            series_uid=f"1.2.3.{patient}{n}.{crc32(folder.encode())}",
            patient_id=patient or name,
            kind="image",
            modality="MG",
            matrix=(1024, 1024),
            names=[f"{name}.dcm"],
            verdict=verdicts.get(name, "ok"),
        )
        for n, name in enumerate(names)
    ]


def test_pneumonia_one_record_per_image(tmp_path):
    write(
        tmp_path / "stage_2_train_labels.csv",
        HEADER + "a,10,20,30,40,1\na,500.5,1,2,3,1\nb,,,,,0\n",
    )
    write(
        tmp_path / "stage_2_detailed_class_info.csv",
        "patientId,class\na,Lung Opacity\na,Lung Opacity\nb,No Lung Opacity / Not Normal\n",
    )
    tree = fake_tree(tmp_path, images(tmp_path, ["a", "b"]))
    assert rsna_pneumonia.matches(tree)
    records, rejected, skipped = parts(rsna_pneumonia.records(tree))
    assert not rejected
    assert not skipped
    assert [r.label for r in records] == [1, 0]
    assert records[0].boxes_xyxy_px == ((10, 20, 40, 60), (500.5, 1, 502.5, 4))
    assert records[1].boxes_xyxy_px == ()
    assert [r.strata for r in records] == ["Lung Opacity", "No Lung Opacity / Not Normal"]


PNEUMONIA_FAULTS = {
    "f1": ("f1,1,2,3,4,1\nf1,,,,,0\n", "annotation_invalid"),
    "f2": ("f2,1,2,3,4,0\n", "annotation_invalid"),
    "f3": ("f3,,,,,1\n", "annotation_invalid"),
    "f4": ("f4,1000,2,30,4,1\n", "box_out_of_image"),
    "f5": ("f5,1,2,-3,4,1\n", "box_out_of_image"),
    "f6": ("f6,nan,2,3,4,1\n", "annotation_invalid"),
    "f7": ("f7,1,2,3,4,2\n", "label_unknown"),
    "f8": ("f8,,,,,\n", "no_label"),
    "f9": ("f9,1,2,3,4,1\n", "annotation_invalid"),
    "g1": ("g1,,,,,0\n", "annotation_invalid"),
    "g2": ("g2,,,,,0\n", "decode_error"),
}


def test_pneumonia_each_fault_has_its_reason(tmp_path):
    rows = "".join(text for text, _ in PNEUMONIA_FAULTS.values())
    rows += "missing,,,,,0\nshort,1\n,1,2,3,4,1\nlong,1,2,3,4,1,5\ngood,,,,,0\n"
    write(tmp_path / "deep" / "stage_2_train_labels.csv", HEADER + rows)
    write(
        tmp_path / "deep" / "stage_2_detailed_class_info.csv",
        "patientId,class\nf9,Normal\ng1,Normal\ng1,Lung Opacity\n",
    )
    names = [*PNEUMONIA_FAULTS, "good", "rowless"]
    series = images(tmp_path, names, verdicts={"g2": "decode_error"})
    series += images(tmp_path, ["t1", "t2"], folder="stage_2_test_images")
    records, rejected, skipped = parts(rsna_pneumonia.records(fake_tree(tmp_path, series)))
    assert [r.patient_id for r in records] == ["good"]
    expected = [reason for _, reason in PNEUMONIA_FAULTS.values()]
    expected += ["annotation_unmatched", "no_label"] + ["annotation_invalid"] * 3
    assert reasons(rejected) == sorted(expected)
    assert reasons(skipped) == ["no_label"] * 2
    # offered: 13 ids with rows, 3 unreadable rows, one image without row; two test images skipped
    assert len(records) + len(rejected) == 17


def test_tables_of_other_layouts_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"needs stage_2_train_labels.csv"):
        list(rsna_pneumonia.records(fake_tree(tmp_path, [])))
    with pytest.raises(ConfigError, match=r"needs a train.csv with patient_id, image_id"):
        list(rsna_breast.records(fake_tree(tmp_path, [])))
    write(tmp_path / "stage_2_train_labels.csv", "patientId,x\n")
    with pytest.raises(ConfigError, match="lacks the columns y, width, height, Target"):
        list(rsna_pneumonia.records(fake_tree(tmp_path, [])))
    write(tmp_path / "stage_2_train_labels.csv", b"\xff\xfe\x00patientId")
    with pytest.raises(ConfigError, match="is no UTF-8 CSV table"):
        list(rsna_pneumonia.records(fake_tree(tmp_path, [])))


BREAST = "site_id,patient_id,image_id,laterality,view,age,cancer,biopsy,machine_id,implant\n"


def breast_tree(root, rows, names):
    write(root / "train.csv", BREAST + rows)
    series = []
    for patient, image in names:
        series += images(root, [image], folder=f"train_images/{patient}", patient=patient)
    return series


def test_breast_one_record_per_image(tmp_path):
    rows = "2,10,101,L,CC,61.0,0,0,49,0\n2,10,102,R,MLO,61.0,1,1,49,0\n1,11,103,L,CC,,0,0,21,\n"
    series = breast_tree(tmp_path, rows, [("10", "101"), ("10", "102"), ("11", "103")])
    tree = fake_tree(tmp_path, series)
    assert rsna_breast.matches(tree)
    records, rejected, skipped = parts(rsna_breast.records(tree))
    assert not rejected
    assert not skipped
    assert [(r.patient_id, r.label, r.strata) for r in records] == [
        ("10", 0, "cancer1_site2"),
        ("10", 1, "cancer1_site2"),
        ("11", 0, "cancer0_site1"),
    ]
    meta = {
        "laterality": "L",
        "view": "CC",
        "site_id": "2",
        "machine_id": "49",
        "age": 61.0,
        "implant": "0",
    }
    assert dict(records[0].meta) == meta
    assert "biopsy" not in records[1].meta


def test_breast_each_fault_has_its_reason(tmp_path):
    rows = (
        "2,10,1,L,CC,61,0,0,49,0\n"  # good
        "2,10,1,L,CC,61,0,0,49,0\n"  # the same row again: no contradiction
        "2,11,2,L,CC,61,0,0,49,0\n2,11,3,L,MLO,61,1,0,49,0\n"  # one breast, two labels
        "2,12,4,L,CC,61,,0,49,0\n"
        "2,13,5,L,CC,61,9,0,49,0\n"
        "2,14,6,X,CC,61,0,0,49,0\n"
        "2,15,7,L,CC,old,0,0,49,0\n"
        "2,16,8,L,CC,61,0,0,49,0\n"  # image missing
        "2,17,9,L,CC,61,0,0,49,0\n2,17,9,R,CC,61,0,0,49,0\n"  # one image, two rows
        "2,18\n"
    )
    names = [("10", "1"), ("11", "2"), ("11", "3"), ("12", "4"), ("13", "5"), ("14", "6")]
    series = breast_tree(tmp_path, rows, [*names, ("15", "7"), ("17", "9"), ("18", "99")])
    series += images(tmp_path, ["77"], folder="test_images/20", patient="20")
    records, rejected, skipped = parts(rsna_breast.records(fake_tree(tmp_path, series)))
    assert [r.patient_id for r in records] == ["10"]
    assert reasons(rejected) == sorted(
        ["annotation_invalid"] * 6
        + ["no_label", "label_unknown", "annotation_unmatched", "no_label"]
    )
    assert reasons(skipped) == ["no_label"]


def test_breast_without_labels_serves_for_its_images(tmp_path):
    write(tmp_path / "train.csv", "patient_id,image_id,laterality,view\n10,1,L,CC\n")
    tree = fake_tree(tmp_path, images(tmp_path, ["1"], folder="train_images/10", patient="10"))
    records, _, _ = parts(rsna_breast.records(tree, with_label=False))
    assert records[0].label == -1
    with pytest.raises(ConfigError, match="lacks the columns cancer"):
        list(rsna_breast.records(tree))
