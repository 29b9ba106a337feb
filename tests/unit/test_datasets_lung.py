from pathlib import Path

import numpy as np
import pytest

from medray.datasets.lung_pet_ct_dx import matches, series_records, slice_records
from medray.datasets.lung_series import letter_of
from tests.unit.fake_trees import fake_series, fake_tree, parts, reasons, write
from tests.unit.source_trees import tree_of

STUDY = "manifest/Lung-PET-CT-Dx/Lung_Dx-A0001/04-04-2007-NA-Chest-07990"


def voc(boxes, *, size=(80, 64)) -> str:
    objects = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax>"
        f"<ymax>{d}</ymax></bndbox></object>"
        for name, (a, b, c, d) in boxes
    )
    matrix = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
    return f"<annotation>{matrix}{objects}</annotation>"


def annotate(root: Path, uid: str, text: str | bytes, patient: str = "A0001") -> None:
    write(root / "Annotation" / patient / f"{uid}.xml", text)


BOX = ("A", (10, 20, 30, 40))


def test_layout_is_told_by_xml_named_with_uids(tmp_path):
    write(tmp_path / "notes.xml", "<a/>")
    assert not matches(fake_tree(tmp_path, []))
    annotate(tmp_path, "1.2.3.4.1.0", voc([BOX]))
    assert matches(fake_tree(tmp_path, []))


def test_one_record_per_annotated_slice(tmp_path):
    series = fake_series(tmp_path, f"{STUDY}/2.000000-5mm-40805")
    annotate(tmp_path, "1.2.3.4.1.2", voc([BOX, ("zz", (1, 2, 3, 4))]))
    annotate(tmp_path, "1.2.3.4.1.3", voc([("a", (0, 0, 80, 64))]))
    records, rejected, _ = parts(slice_records(fake_tree(tmp_path, [series])))
    assert not rejected
    assert [r.image.form for r in records] == ["instance", "instance"]
    assert [r.image.files[0].uri[-9:] for r in records] == ["/1-02.dcm", "/1-03.dcm"]
    assert records[0].boxes_xyxy_px == ((10, 20, 30, 40), (1, 2, 3, 4))
    assert records[0].box_labels == (0, 0)
    assert records[0].meta["xml_agreement"] == 0.5
    assert {r.patient_id for r in records} == {"Lung_Dx-A0001"}
    assert {r.strata for r in records} == {"A"}


FAULTS = {
    "9.9.9.9.9": (voc([BOX]), "annotation_unmatched"),
    "1.2.3.4.1.0": ("<annotation><object>", "annotation_invalid"),
    "1.2.3.4.1.1": (voc([("A", (10, 20, 81, 40))]), "box_out_of_image"),
    "1.2.3.4.1.2": (voc([("A", (30, 20, 10, 40))]), "box_out_of_image"),
    "1.2.3.4.1.3": (voc([]), "no_label"),
    "1.2.3.4.1.4": (voc([BOX], size=(512, 512)), "annotation_invalid"),
}


def test_each_fault_costs_its_own_file_alone(tmp_path):
    series = fake_series(tmp_path, STUDY, num=7)
    for uid, (text, _) in FAULTS.items():
        annotate(tmp_path, uid, text)
    annotate(tmp_path, "1.2.3.4.1.5", voc([BOX]))
    annotate(tmp_path, "1.2.3.4.1.5", voc([BOX]), patient="copy")
    annotate(tmp_path, "1.2.3.4.1.6", voc([BOX]), patient="B0004")
    offered = len(list(tmp_path.rglob("*.xml")))
    records, rejected, skipped = parts(slice_records(fake_tree(tmp_path, [series])))
    assert len(records) == 1
    expected = [reason for _, reason in FAULTS.values()]
    assert reasons(rejected) == sorted([*expected, "annotation_invalid", "annotation_unmatched"])
    assert len(records) + len(rejected) + len(skipped) == offered
    assert not any("Lung_Dx" in r.detail or "1.2.3" in r.detail for r in rejected)


def test_streams_are_told_by_pixels(tmp_path):
    grey = fake_series(tmp_path, f"{STUDY}/2", series_uid="1.2.3.1")
    fused = fake_series(
        tmp_path, f"{STUDY}/3", series_uid="1.2.3.2", pixel_layout="rgb", modality="CT"
    )
    pet = fake_series(tmp_path, f"{STUDY}/4", series_uid="1.2.3.3", modality="PT")
    bad = fake_series(
        tmp_path, f"{STUDY}/5", series_uid="1.2.3.5", verdict="unsupported_transfer_syntax"
    )
    stacked = fake_series(
        tmp_path, f"{STUDY}/6", series_uid="1.2.3.6", verdict="duplicate_positions"
    )
    everything = [grey, fused, pet, bad, stacked]
    for series in everything:
        annotate(tmp_path, f"{series.series_uid}.0", voc([BOX]))
    tree = fake_tree(tmp_path, everything)
    for stream, uids in {
        "ct": {"1.2.3.1", "1.2.3.6"},
        "fused": {"1.2.3.2"},
        "both": {"1.2.3.1", "1.2.3.2", "1.2.3.6"},
    }.items():
        records, rejected, skipped = parts(slice_records(tree, stream=stream))
        assert {r.image.series_uid for r in records} == uids
        assert reasons(rejected) == ["unsupported_transfer_syntax"]
        assert reasons(skipped) == ["wrong_modality"] * (4 - len(uids))


def test_background_slices_keep_their_distance(tmp_path):
    series = fake_series(tmp_path, STUDY, num=20)
    for n in (8, 9, 10):
        annotate(tmp_path, f"1.2.3.4.1.{n}", voc([BOX]))
    tree = fake_tree(tmp_path, [series])
    records, _, _ = parts(slice_records(tree, background_per_series=5, margin_mm=20))
    empty = [int(r.name[-6:-4]) for r in records if r.meta["background"]]
    assert len(empty) == 5
    assert all(n <= 4 or n >= 14 for n in empty)
    assert all(r.boxes_xyxy_px == () for r in records if r.meta["background"])
    assert all(r.name.startswith("manifest/") for r in records)
    assert parts(slice_records(tree, background_per_series=5, margin_mm=20))[0] == records


def test_no_background_from_a_series_annotated_with_gaps(tmp_path):
    series = fake_series(tmp_path, STUDY, num=20)
    for n in (8, 10):
        annotate(tmp_path, f"1.2.3.4.1.{n}", voc([BOX]))
    records, _, _ = parts(slice_records(fake_tree(tmp_path, [series]), background_per_series=5))
    assert len(records) == 2


def test_no_background_from_a_series_with_a_refused_file(tmp_path):
    """The refused slice lies at the tumour's edge: it leaves no gap, and may show the tumour."""
    series = fake_series(tmp_path, STUDY, num=20)
    for n in (8, 9):
        annotate(tmp_path, f"1.2.3.4.1.{n}", voc([BOX]))
    annotate(tmp_path, "1.2.3.4.1.10", '<!DOCTYPE a [<!ENTITY b "c">]>' + voc([BOX]))
    records, rejected, _ = parts(
        slice_records(fake_tree(tmp_path, [series]), background_per_series=5, margin_mm=1)
    )
    assert len(records) == 2
    assert reasons(rejected) == ["annotation_invalid"]


def test_one_record_per_annotated_series(tmp_path):
    series = fake_series(tmp_path, STUDY)
    annotate(tmp_path, "1.2.3.4.1.1", voc([("a", (10, 20, 30, 40))]))
    annotate(tmp_path, "1.2.3.4.1.3", voc([("G", (12, 20, 32, 44))]))
    records, _, _ = parts(series_records(fake_tree(tmp_path, [series])))
    (record,) = records
    assert (record.label, record.strata, record.image.form) == (0, "A", "series")
    assert len(record.image.files) == 5
    assert record.meta["xml_agreement"] == 0.5
    # The larger box (12..32, 20..44) on slice 3 and (10..30, 20..40) on slice 1; edges minus half.
    np.testing.assert_allclose(record.meta["tumour_centre_lps_mm"], (20.5, 31.5, 10.0))


@pytest.mark.parametrize(
    ("patient", "name", "label"),
    [("B0002", "a", 1), ("G0002", "", 2), ("X0001", "b", 1), ("A0001", "zz", 0)],
)
def test_class_is_the_letter_of_the_patient(tmp_path, patient, name, label):
    series = fake_series(tmp_path, STUDY.replace("A0001", patient), patient_id=f"Lung_Dx-{patient}")
    annotate(tmp_path, "1.2.3.4.1.1", voc([(name, (10, 20, 30, 40))]), patient=patient)
    records, _, _ = parts(series_records(fake_tree(tmp_path, [series])))
    assert [r.label for r in records] == [label]


def test_what_is_left_out_of_classification_is_counted(tmp_path):
    patient = {
        "large": "E0001",
        "unknown": "X0001",
        "bad": "A0002",
        "fused": "A0003",
        "plain": "A0004",
    }
    series = [
        fake_series(
            tmp_path,
            STUDY.replace("A0001", letter),
            series_uid=f"1.2.3.7.{n}",
            patient_id=f"Lung_Dx-{letter}",
            verdict="missing_slices" if kind == "bad" else "ok",
            pixel_layout="rgb" if kind == "fused" else "mono",
        )
        for n, (kind, letter) in enumerate(patient.items())
    ]
    for n, (kind, letter) in enumerate(patient.items()):
        if kind != "plain":
            name = "?" if kind == "unknown" else "A"
            annotate(tmp_path, f"1.2.3.7.{n}.0", voc([(name, (10, 20, 30, 40))]), patient=letter)
    tree = fake_tree(tmp_path, series)
    records, rejected, skipped = parts(series_records(tree))
    assert not records
    assert reasons(rejected) == ["label_unknown", "missing_slices"]
    assert reasons(skipped) == ["label_unknown", "no_label", "wrong_modality"]
    kept, _, _ = parts(series_records(tree, large_cell=True))
    assert [r.label for r in kept] == [3]


def test_pet_of_the_same_study_is_a_channel(tmp_path):
    ct = fake_series(tmp_path, f"{STUDY}/2", series_uid="1.2.3.1")
    short = fake_series(tmp_path, f"{STUDY}/3", series_uid="1.2.3.2", modality="PT", num=3)
    whole = fake_series(tmp_path, f"{STUDY}/4", series_uid="1.2.3.3", modality="PT", num=9)
    other = fake_series(tmp_path, "x", series_uid="1.2.3.4", modality="PT", study_uid="1.9", num=12)
    annotate(tmp_path, "1.2.3.1.0", voc([BOX]))
    records, _, _ = parts(
        series_records(fake_tree(tmp_path, [ct, short, whole, other]), pet_channel=True)
    )
    assert records[0].extra_images["pet"].series_uid == "1.2.3.3"
    _, rejected, _ = parts(series_records(fake_tree(tmp_path, [ct, other]), pet_channel=True))
    assert reasons(rejected) == ["wrong_modality"]


def test_letter_of_without_names():
    assert letter_of("A0001", ()) == ("A", 0.0)
    assert letter_of("", ("b", "G", "b")) == ("B", 0.6667)
    assert letter_of("X1", ()) == ("", 0.0)


def test_the_real_boxes_lie_on_real_slices(real_data):
    root = real_data / "ct_series" / "lung_pet_ct_dx_A0001"
    tree = tree_of(root)
    records, rejected, _ = parts(slice_records(tree))
    assert not rejected
    assert len(records) == 20
    assert sorted(
        sum(r.image.series_uid == s.series_uid for r in records) for s in tree.series
    ) == [9, 11]
    assert all(len(r.boxes_xyxy_px) == 1 for r in records)
    classes, rejected, _ = parts(series_records(tree))
    assert [r.label for r in classes] == [0] * len(classes)
    assert len(classes) + len(rejected) == 2


def test_foreign_series_are_told_from_unannotated_ones(tmp_path):
    series = [
        fake_series(tmp_path, "a", series_uid="1.2.1", modality="PT"),
        fake_series(tmp_path, "b", series_uid="1.2.2", modality="MR"),
        fake_series(tmp_path, "c", series_uid="1.2.3", modality="OT", pixel_layout="rgb"),
        fake_series(tmp_path, "d", series_uid="1.2.4", verdict="missing_slices"),
    ]
    _, rejected, skipped = parts(slice_records(fake_tree(tmp_path, series)))
    assert reasons(rejected) == ["wrong_modality"]
    assert reasons(skipped) == ["missing_slices", "no_label", "no_label"]
