import gzip
import struct

import numpy as np
import pytest

from medray.datasets import dicom_mask_folders, pancreas_ct
from medray.datasets.mask_on_image import mask_on_image
from medray.datasets.mask_values import organ_mask
from medray.datasets.pancreas_align import align_label
from medray.errors import DataError
from medray.volume import Volume
from tests.unit.fake_trees import fake_series, fake_tree, parts, reasons, write


def case_series(root, case, *, n=0, **options):
    options = {"patient_id": f"PANCREAS_{case:04d}", "series_uid": f"1.2.5.{case}.{n}", **options}
    return fake_series(root, f"Pancreas-CT/PANCREAS_{case:04d}/study/series{n}", **options)


def nifti_header(shape):
    head = bytearray(352)
    struct.pack_into("<i", head, 0, 348)
    struct.pack_into("<8h", head, 40, 3, *shape, 1, 1, 1, 1)
    return bytes(head)


def label(root, case, content=b"", suffix=".nii.gz"):
    return write(root / "labels" / f"label{case:04d}{suffix}", content)


def test_labels_are_matched_by_case_number(tmp_path):
    label(tmp_path, 1)
    label(tmp_path, 2, suffix=".nii")
    series = [case_series(tmp_path, 1), case_series(tmp_path, 2)]
    tree = fake_tree(tmp_path, series)
    assert pancreas_ct.matches(tree)
    records, rejected, skipped = parts(pancreas_ct.records(tree))
    assert not rejected
    assert not skipped
    assert [r.meta for r in records] == [{}, {}]
    assert [r.mask.files[0].uri.rpartition("/")[2] for r in records] == [
        "label0001.nii.gz",
        "label0002.nii",
    ]
    assert {r.mask.align for r in records} == {"pancreas_ct"}


def test_pancreas_what_is_left_out_has_a_reason(tmp_path):
    for case in (1, 3, 4, 25, 70):
        label(tmp_path, case)
    label(tmp_path, 1, suffix=".nii")
    series = [
        case_series(tmp_path, 1),
        case_series(tmp_path, 1, n=1, verdict="localizer"),
        case_series(tmp_path, 2),  # no label
        case_series(tmp_path, 4, verdict="missing_slices"),
        case_series(tmp_path, 25),
        case_series(tmp_path, 70),
        fake_series(tmp_path, "elsewhere", patient_id="X"),
    ]
    records, rejected, skipped = parts(pancreas_ct.records(fake_tree(tmp_path, series)))
    assert [r.meta for r in records] == [{}]
    assert reasons(rejected) == sorted(
        ["annotation_invalid", "no_label", "annotation_unmatched", "missing_slices", "no_label"]
    )
    assert reasons(skipped) == sorted(
        ["no_label", *["duplicate_conflict", "annotation_unmatched"] * 2]
    )


def test_several_series_are_told_apart_by_the_number_of_slices(tmp_path):
    label(tmp_path, 1, gzip.compress(nifti_header((80, 64, 7))))
    series = [case_series(tmp_path, 1, n=0, num=5), case_series(tmp_path, 1, n=1, num=7)]
    records, _, skipped = parts(pancreas_ct.records(fake_tree(tmp_path, series)))
    assert [r.image.series_uid for r in records] == ["1.2.5.1.1"]
    assert reasons(skipped) == ["no_label"]
    twins = [case_series(tmp_path, 1, n=0, num=7), case_series(tmp_path, 1, n=1, num=7)]
    _, rejected, _ = parts(pancreas_ct.records(fake_tree(tmp_path, twins)))
    assert reasons(rejected) == ["annotation_unmatched"]


@pytest.mark.parametrize("data", [b"", b"\x1f\x8bbroken", b"x" * 20])
def test_shape_of_what_is_no_nifti(data):
    assert pancreas_ct.nifti_shape(data) == (0, 0, 0)


def organ_and_ct(shape=(12, 32, 32)):
    """A body of fat with one organ low, left and in front of the middle."""
    label_kji = np.zeros(shape, dtype=np.uint8)
    label_kji[2:7, 5:12, 16:28] = 1
    hu = np.full(shape, -100, dtype=np.int16)
    hu[label_kji == 1] = 90
    return label_kji, hu


WAYS = {
    "index": lambda a: a,
    "flip_y": lambda a: a[:, ::-1],
    "flip_z": lambda a: a[::-1],
    "flip_y+flip_z": lambda a: a[::-1, ::-1],
    "transpose": lambda a: a.transpose(0, 2, 1),
    # The label is first transposed, then flipped, so the fault is made the other way round.
    "transpose+flip_y": lambda a: a[:, ::-1].transpose(0, 2, 1),
    "transpose+flip_z": lambda a: a[::-1].transpose(0, 2, 1),
    "transpose+flip_y+flip_z": lambda a: a[::-1, ::-1].transpose(0, 2, 1),
}


@pytest.mark.parametrize("way", WAYS)
def test_each_way_to_lay_a_label_is_found(way):
    truth, hu = organ_and_ct()
    aligned, how = align_label(np.ascontiguousarray(WAYS[way](truth)), hu)
    assert how == way
    np.testing.assert_array_equal(aligned, truth)
    assert aligned.dtype == np.uint8


def test_labels_that_fit_nowhere_are_refused():
    truth, hu = organ_and_ct()
    with pytest.raises(DataError, match="label_geometry_mismatch: label and image differ"):
        align_label(truth[:-1], hu)
    with pytest.raises(
        DataError, match="label_geometry_mismatch: the label does not lie on soft tissue"
    ):
        align_label(np.roll(truth, (4, 9, -14), axis=(0, 1, 2)), hu)
    with pytest.raises(DataError, match="label_geometry_mismatch: label and image differ"):
        align_label(np.zeros((3, 3, 3)), hu)


def test_a_label_without_continuity_is_refused():
    _, hu = organ_and_ct()
    hu[:] = 50
    scattered = np.zeros(hu.shape, dtype=np.uint8)
    scattered[::2, 3:6, 3:6] = 1
    with pytest.raises(DataError, match="label_geometry_mismatch: the label is not continuous"):
        align_label(scattered, hu)


def test_an_even_body_keeps_the_usual_way():
    truth, hu = organ_and_ct()
    hu[:] = 50
    assert align_label(truth, hu)[1] == "index"
    empty, how = align_label(np.zeros_like(truth), hu)
    assert (empty.any(), how) == (False, "index")


def volume(array, *, flip=(1, 1, 1), origin=(0.0, 0.0, 0.0), spacing=(2.0, 1.0, 1.5)):
    affine = np.eye(4)
    affine[2, 0], affine[1, 1], affine[0, 2] = np.array(spacing) * flip
    affine[3, :3] = 0
    affine[0, 0] = 0
    affine[2, 2] = 0
    affine[:3, 3] = origin
    return Volume(array=array, affine_lps=affine)


def test_masks_are_laid_by_physical_place():
    truth, hu = organ_and_ct((12, 24, 32))
    image = volume(hu)
    flipped = volume(truth[:, ::-1].copy(), flip=(1, -1, 1), origin=(0.0, 23.0, 0.0))
    np.testing.assert_array_equal(mask_on_image(flipped, image).array, truth)
    cropped = volume(truth[1:8].copy(), origin=(0.0, 0.0, 2.0))
    np.testing.assert_array_equal(mask_on_image(cropped, image).array, truth)


def test_masks_off_their_image_are_refused():
    truth, hu = organ_and_ct()
    image = volume(hu)
    with pytest.raises(DataError, match="label_geometry_mismatch: the mask lies outside"):
        mask_on_image(volume(truth, origin=(500.0, 0.0, 0.0)), image)
    with pytest.raises(DataError, match="label_geometry_mismatch: a part of the mask lies outside"):
        mask_on_image(volume(truth, origin=(12.0, 0.0, 0.0)), image)
    lost = Volume(array=truth, affine_lps=image.affine_lps, geometry="unverified")
    with pytest.raises(
        DataError, match="label_geometry_mismatch: image or mask has no proven place"
    ):
        mask_on_image(lost, image)
    assert not mask_on_image(volume(np.zeros_like(truth)), image).array.any()


def test_the_organ_is_one_value():
    mask = np.array([0, 1, 7, 7])
    assert organ_mask(mask, 7).tolist() == [0, 0, 1, 1]
    assert organ_mask(np.array([0, 255]), 0).tolist() == [0, 1]
    with pytest.raises(DataError, match="label_unknown: the mask has several labels"):
        organ_mask(mask, 0)


def folder_case(root, name, *, mask="mask.nrrd", label_text="1", n=0, **options):
    if mask:
        write(root / name / mask, b"x")
    if label_text is not None:
        write(root / name / "label", label_text)
    return fake_series(root, name, series_uid=f"1.2.6.{name}.{n}", patient_id=name, **options)


def test_folders_with_masks(tmp_path):
    series = [
        folder_case(tmp_path, "p1"),
        folder_case(tmp_path, "p2", mask="segmentation.nii.gz", label_text="0\n"),
    ]
    tree = fake_tree(tmp_path, series)
    assert dicom_mask_folders.matches(tree)
    records, rejected, _ = parts(dicom_mask_folders.records(tree, with_label=True))
    assert not rejected
    assert [(r.patient_id, r.label, r.strata) for r in records] == [("p1", 1, "1"), ("p2", 0, "0")]
    plain, _, _ = parts(dicom_mask_folders.records(tree))
    assert [r.label for r in plain] == [-1, -1]


def test_masks_under_another_root(tmp_path):
    images, labels = tmp_path / "images", tmp_path / "labels"
    series = [fake_series(images, "p1/study", patient_id="p1")]
    write(labels / "p1" / "m.nrrd", b"x")
    records, _, _ = parts(dicom_mask_folders.records(fake_tree(images, series, labels=labels)))
    assert records[0].mask.files[0].uri.endswith("labels/p1/m.nrrd")


FOLDER_FAULTS = {
    "a": ({"label_text": None}, "no_label"),
    "b": ({"label_text": ""}, "no_label"),
    "c": ({"label_text": "2"}, "label_unknown"),
    "d": ({"label_text": "1" * 100}, "annotation_invalid"),
    "e": ({"label_text": "\u00e9"}, "annotation_invalid"),
    "m": ({"label_text": "maybe"}, "annotation_invalid"),
    "f": ({"mask": ""}, "no_label"),
    "g": ({"verdict": "duplicate_positions"}, "duplicate_positions"),
    "h": ({"kind": "image"}, "annotation_unmatched"),
}


def test_folders_each_fault_has_its_reason(tmp_path):
    series = [folder_case(tmp_path, name, **how) for name, (how, _) in FOLDER_FAULTS.items()]
    series += [folder_case(tmp_path, "i"), folder_case(tmp_path, "i", n=1)]
    series.append(folder_case(tmp_path, "j", mask="", label_text=None))
    write(tmp_path / "k" / "x.nrrd", b"x")
    series.append(folder_case(tmp_path, "l"))
    write(tmp_path / "l" / "second.nrrd", b"x")
    found = dicom_mask_folders.records(fake_tree(tmp_path, series), with_label=True)
    records, rejected, _ = parts(found)
    assert not records
    expected = [reason for _, reason in FOLDER_FAULTS.values()]
    expected += ["annotation_unmatched", "no_label", "annotation_unmatched", "annotation_invalid"]
    assert reasons(rejected) == sorted(expected)


def test_masks_need_a_ct(tmp_path):
    series = [folder_case(tmp_path, "a", modality="MR")]
    _, rejected, _ = parts(dicom_mask_folders.records(fake_tree(tmp_path, series)))
    assert reasons(rejected) == ["wrong_modality"]
