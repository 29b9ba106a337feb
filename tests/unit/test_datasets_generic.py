import json
from dataclasses import replace

import numpy as np
import pytest

from medray.datasets import datalist, yolo_folder
from medray.datasets.box_export import (
    BoxItem,
    coco_json,
    yolo_data_yaml,
    yolo_image_path,
    yolo_label_file,
)
from medray.datasets.layouts import LAYOUTS, detect_layout, read_layout
from medray.datasets.paths import folder_of, inside, relative_path, stem_of, suffix_of
from medray.datasets.tcia_manifest import check_manifests
from medray.errors import ConfigError
from tests.unit.fake_trees import fake_series, fake_tree, parts, reasons, write

VOLUME = datalist.Wanted(
    image="volume", label="class", class_names=("normal", "ill"), modalities=("CT",)
)
MASK = datalist.Wanted(image="volume", label="mask")
BOXES = datalist.Wanted(image="image", label="boxes", class_names=("tumour",))


def dump(root, **lists):
    return write(root / "datalist.json", json.dumps(lists))


@pytest.mark.parametrize(
    ("uri", "root", "path"),
    [
        ("/d/a/b.dcm", "/d", "a/b.dcm"),
        ("/d/a/b.dcm", "/d/", "a/b.dcm"),
        ("file:///d/a/b.dcm", "/d", "a/b.dcm"),
        ("s3://bucket/x/a.dcm", "s3://bucket/x", "a.dcm"),
        ("zip://m/a.dcm::/d/x.zip", "/d/x.zip", "m/a.dcm"),
        ("zip://m/a.dcm::/d/s/x.zip", "/d", "s/x.zip/m/a.dcm"),
        ("zip://a.dcm::s3://bucket/x.zip", "s3://bucket", "x.zip/a.dcm"),
        ("/other/a.dcm", "/d", "other/a.dcm"),
        ("/d", "/d", ""),
    ],
)
def test_paths_are_relative_to_their_root(uri, root, path):
    assert relative_path(uri, root) == path


def test_names_and_suffixes():
    assert (stem_of("a/b.nii.gz"), suffix_of("a/B.NII.GZ")) == ("b", ".nii.gz")
    assert (stem_of("a/1.2.3.xml"), stem_of("a/label"), suffix_of("label")) == (
        "1.2.3",
        "label",
        "",
    )
    assert folder_of("a/b/c") == "a/b"
    assert inside("a/b", "a")
    assert inside("a/b", "")
    assert not inside("ab/c", "a")


def test_datalist_rows_become_records(tmp_path):
    for name in ("images/a.nii.gz", "images/b.nrrd", "images/c.mha"):
        write(tmp_path / name, b"x")
    dump(
        tmp_path,
        name="x",
        training=[
            {"image": "images/a.nii.gz", "label": 0, "patient_id": "p1"},
            {"image": "./images/b.nrrd", "label": "ill"},
        ],
        validation=[{"image": "dicom/p3", "label": "1", "patient_id": 3}],
        test=[{"image": "images/c.mha", "label": 1.0, "patient_id": "p4"}],
    )
    tree = fake_tree(tmp_path, [fake_series(tmp_path, "dicom/p3/study/series")])
    assert datalist.matches(tree)
    records, rejected, _ = parts(datalist.records(tree, VOLUME))
    assert not rejected
    assert [(r.patient_id, r.label, r.split, r.image.form) for r in records] == [
        ("p1", 0, "train", "volume_file"),
        ("images/b.nrrd", 1, "train", "volume_file"),
        ("3", 1, "val", "series"),
        ("p4", 1, "test", "volume_file"),
    ]


def test_training_alone_is_left_to_be_split(tmp_path):
    write(tmp_path / "a.nii", b"x")
    dump(tmp_path, training=[{"image": "a.nii", "label": 0, "patient_id": "p"}])
    records, _, _ = parts(datalist.records(fake_tree(tmp_path, []), VOLUME))
    assert records[0].split == ""


def test_datalist_masks_boxes_and_dicom_files(tmp_path):
    for name in ("a.nii.gz", "m.nii.gz", "x.png"):
        write(tmp_path / name, b"x")
    series = fake_series(tmp_path, "s", matrix=(64, 80))
    dump(tmp_path, training=[{"image": "a.nii.gz", "label": "m.nii.gz", "patient_id": "p"}])
    records, _, _ = parts(datalist.records(fake_tree(tmp_path, [series]), MASK))
    assert records[0].mask.files[0].uri.endswith("m.nii.gz")
    dump(tmp_path, training=[{"image": "a.nii.gz", "label": 1, "mask": "m.nii.gz"}])
    records, _, _ = parts(datalist.records(fake_tree(tmp_path, [series]), VOLUME))
    assert (records[0].label, records[0].mask.form) == (1, "volume_file")
    dump(
        tmp_path,
        training=[
            {"image": "x.png", "label": [[1, 2, 3.5, 4]], "patient_id": "p"},
            {"image": "s/1-02.dcm", "label": []},
        ],
    )
    records, rejected, _ = parts(datalist.records(fake_tree(tmp_path, [series]), BOXES))
    assert not rejected
    assert [(r.image.form, r.boxes_xyxy_px, r.box_labels) for r in records] == [
        ("image_file", ((1, 2, 3.5, 4),), (0,)),
        ("instance", (), ()),
    ]
    assert records[1].patient_id == "Lung_Dx-A0001"
    dump(tmp_path, training=[{"image": "s/1-02.dcm", "label": 1}])
    records, _, _ = parts(datalist.records(fake_tree(tmp_path, [series]), VOLUME))
    assert records[0].image.form == "series"


GOOD_IMAGE = "a.nii.gz"
ROWS = [
    ({"image": "../a.nii.gz", "label": 0}, "annotation_invalid"),
    ({"image": "/etc/passwd", "label": 0}, "annotation_invalid"),
    ({"image": "s/../../a.nii.gz", "label": 0}, "annotation_invalid"),
    ({"image": "s3://bucket/a.nii.gz", "label": 0}, "annotation_invalid"),
    ({"image": "missing.nii.gz", "label": 0}, "annotation_unmatched"),
    ({"label": 0}, "annotation_invalid"),
    (7, "annotation_invalid"),
    (GOOD_IMAGE, "no_label"),
    ({"image": GOOD_IMAGE}, "no_label"),
    ({"image": GOOD_IMAGE, "label": 2}, "label_unknown"),
    ({"image": GOOD_IMAGE, "label": -1}, "label_unknown"),
    ({"image": GOOD_IMAGE, "label": 0.5}, "label_unknown"),
    ({"image": GOOD_IMAGE, "label": "sick"}, "label_unknown"),
    ({"image": GOOD_IMAGE, "label": "9" * 50}, "label_unknown"),
    ({"image": GOOD_IMAGE, "label": [1]}, "annotation_invalid"),
    ({"image": "x.png", "label": 0}, "annotation_invalid"),
    ({"image": "bad", "label": 0}, "missing_slices"),
    ({"image": "single", "label": 0}, "too_few_slices"),
    ({"image": "two", "label": 0}, "annotation_unmatched"),
    ({"image": GOOD_IMAGE, "label": 0, "mask": "none.nii"}, "no_label"),
    ({"image": "mr", "label": 0}, "wrong_modality"),
]


@pytest.mark.parametrize(("row", "reason"), ROWS, ids=[str(n) for n in range(len(ROWS))])
def test_datalist_each_bad_row_has_its_reason(tmp_path, row, reason):
    for name in (GOOD_IMAGE, "x.png"):
        write(tmp_path / name, b"x")
    series = [
        fake_series(tmp_path, "bad", series_uid="1.1.1", verdict="missing_slices"),
        fake_series(tmp_path, "single", series_uid="1.1.2", kind="image"),
        fake_series(tmp_path, "two/a", series_uid="1.1.3"),
        fake_series(tmp_path, "two/b", series_uid="1.1.4"),
        fake_series(tmp_path, "mr", series_uid="1.1.5", modality="MR"),
    ]
    dump(tmp_path, training=[row])
    records, rejected, _ = parts(datalist.records(fake_tree(tmp_path, series), VOLUME))
    assert (records, reasons(rejected)) == ([], [reason])


BOX_ROWS = [
    ({"image": "x.png", "label": 1}, "annotation_invalid"),
    ({"image": "x.png", "label": [[1, 2, 3]]}, "annotation_invalid"),
    ({"image": "x.png", "label": [[1, 2, "a", 4]]}, "annotation_invalid"),
    ({"image": "x.png", "label": [[1, 2, 3, 1e12]]}, "annotation_invalid"),
    ({"image": "x.png", "label": [[1, 2, 3, 4]], "box_labels": []}, "annotation_invalid"),
    ({"image": "x.png", "label": [[1, 2, 3, 4]], "box_labels": [3]}, "label_unknown"),
    ({"image": "s/1-02.dcm", "label": [[1, 2, 300, 4]]}, "box_out_of_image"),
    ({"image": "s", "label": [[1, 2, 3, 4]]}, "annotation_invalid"),
    ({"image": "v.nii", "label": [[1, 2, 3, 4]]}, "annotation_invalid"),
    ({"image": "t/1-01.dcm", "label": []}, "unsupported_transfer_syntax"),
]


@pytest.mark.parametrize(("row", "reason"), BOX_ROWS, ids=[str(n) for n in range(len(BOX_ROWS))])
def test_datalist_each_bad_box_row_has_its_reason(tmp_path, row, reason):
    for name in ("x.png", "v.nii"):
        write(tmp_path / name, b"x")
    series = [
        fake_series(tmp_path, "s"),
        fake_series(tmp_path, "t", series_uid="1.7", verdict="unsupported_transfer_syntax"),
    ]
    dump(tmp_path, training=[row])
    records, rejected, _ = parts(datalist.records(fake_tree(tmp_path, series), BOXES))
    assert (records, reasons(rejected)) == ([], [reason])


def test_unlabelled_rows_of_the_test_list_are_no_loss(tmp_path):
    write(tmp_path / "a.nii", b"x")
    dump(tmp_path, training=[{"image": "a.nii", "label": 0}], test=["a.nii"])
    records, rejected, skipped = parts(datalist.records(fake_tree(tmp_path, []), VOLUME))
    assert (len(records), len(rejected), reasons(skipped)) == (1, 0, ["no_label"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no valid JSON"),
        ("[" * 100_000, "is no valid JSON"),
        ("[]", "has no list training, validation or test"),
        ('{"training": []}', "has no list training, validation or test"),
        ('{"training": [1], "test": {}}', "must be lists"),
    ],
)
def test_what_is_no_datalist_stops_the_run(tmp_path, text, message):
    write(tmp_path / "datalist.json", text)
    with pytest.raises(ConfigError, match=message):
        list(datalist.records(fake_tree(tmp_path, []), VOLUME))


def test_a_datalist_may_be_named_as_the_data(tmp_path):
    write(tmp_path / "a.nii", b"x")
    write(tmp_path / "mine.json", json.dumps({"training": [{"image": "a.nii", "label": 0}]}))
    tree = fake_tree(tmp_path, [], labels=tmp_path / "mine.json")
    records, _, _ = parts(datalist.records(tree, VOLUME))
    assert len(records) == 1
    with pytest.raises(ConfigError, match=r"needs a datalist.json"):
        list(datalist.records(fake_tree(tmp_path, []), VOLUME))


def test_a_list_that_lies_elsewhere_names_paths_below_the_data(tmp_path):
    """Its own neighbours are still named from where it lies: the mask here, the image there."""
    write(tmp_path / "images" / "case" / "a.nii", b"x")
    write(tmp_path / "mine" / "m.nii", b"y")
    row = {"image": "case/a.nii", "label": "m.nii"}
    named = write(tmp_path / "mine" / "datalist.json", json.dumps({"training": [row]}))
    tree = fake_tree(tmp_path / "images", [], labels=tmp_path / "mine")
    both = sorted([*fake_tree(tmp_path, []).files], key=lambda file: file.uri)
    (record,), _, _ = parts(datalist.records(replace(tree, files=both), MASK))
    assert record.image.files[0].uri.endswith("images/case/a.nii")
    assert record.mask.files[0].uri == str(named.parent / "m.nii")


def test_a_named_list_wins_over_one_that_lies_beside_it(tmp_path):
    rows = [{"image": "a.nii", "label": 0}]
    write(tmp_path / "a.nii", b"x")
    write(tmp_path / "datalist.json", json.dumps({"training": rows * 3}))
    write(tmp_path / "mine.json", json.dumps({"training": rows}))
    tree = replace(fake_tree(tmp_path, []), root=str(tmp_path / "mine.json"))
    assert len(list(datalist.records(tree, VOLUME))) == 1


def test_the_real_datalist_is_read_whole(real_data):
    root = real_data / "cls3d" / "adrenalmnist3d_64"
    records, rejected, _ = parts(datalist.records(fake_tree(root, []), VOLUME))
    assert not rejected
    assert sum(r.split == "train" for r in records) == 1188
    assert sum(r.split == "val" for r in records) == 98


YAML = "names: ['tumour']\nnc: 1\n"


def yolo_tree(root, labels, *, yaml=YAML):
    write(root / "data.yaml", yaml)
    for stem, text in labels.items():
        write(root / "images" / f"{stem}.png", b"x")
        if text is not None:
            write(root / "labels" / f"{stem}.txt", text)
    return fake_tree(root, [])


def test_yolo_folder_in(tmp_path):
    tree = yolo_tree(
        tmp_path,
        {
            "train/A0001_1": "0 0.5 0.5 0.2 0.4\n0 0.1 0.1 0.2 0.2\n",
            "val/A0002_1": "",
            "test/A3": "\n",
        },
    )
    assert yolo_folder.matches(tree)
    records, rejected, _ = parts(yolo_folder.records(tree, ("tumour",)))
    assert not rejected
    found = {r.name: r for r in records}
    first = found["images/train/A0001_1.png"]
    assert (first.split, first.patient_id, first.strata) == ("train", "A0001", "boxes")
    np.testing.assert_allclose(
        first.boxes_xyxy_px, [[0.4, 0.3, 0.6, 0.7], [0, 0, 0.2, 0.2]], atol=1e-12
    )
    assert first.meta["boxes_unit"] == "share"
    assert found["images/val/A0002_1.png"].boxes_xyxy_px == ()
    assert found["images/test/A3.png"].patient_id == "A3"


YOLO_FAULTS = {
    "a": (None, "no_label"),
    "b": ("0 0.5 0.5 0.2", "annotation_invalid"),
    "c": ("1 0.5 0.5 0.2 0.2", "label_unknown"),
    "d": ("0 0.9 0.5 0.4 0.2", "box_out_of_image"),
    "e": ("0 0.5 0.5 0 0.2", "box_out_of_image"),
    "f": ("0 nan 0.5 0.1 0.2", "annotation_invalid"),
    "g": ("x 0.5 0.5 0.1 0.2", "label_unknown"),
    "h": ("\u00e9", "annotation_invalid"),
}


def test_yolo_each_fault_has_its_reason(tmp_path):
    yolo_tree(tmp_path, {name: text for name, (text, _) in YOLO_FAULTS.items()})
    write(tmp_path / "labels" / "orphan.txt", "0 0.5 0.5 0.2 0.2")
    write(tmp_path / "labels" / "big.txt", "0 0.5 0.5 0.2 0.2\n" * 70_000)
    write(tmp_path / "images" / "big.png", b"x")
    bad = fake_series(tmp_path, "images", names=["dcm.dcm"], verdict="decode_error")
    records, rejected, _ = parts(yolo_folder.records(fake_tree(tmp_path, [bad]), ("tumour",)))
    assert not records
    expected = [reason for _, reason in YOLO_FAULTS.values()]
    expected += ["annotation_unmatched", "annotation_invalid", "decode_error"]
    assert reasons(rejected) == sorted(expected)


def test_yolo_with_more_classes_than_the_task(tmp_path):
    tree = yolo_tree(tmp_path, {"a": ""}, yaml="names: [a, b]")
    with pytest.raises(ConfigError, match=r"data.yaml names 2 classes, the task has 1"):
        list(yolo_folder.records(tree, ("tumour",)))
    with pytest.raises(ConfigError, match=r"needs a data.yaml"):
        list(yolo_folder.records(fake_tree(tmp_path / "images", []), ("tumour",)))


@pytest.mark.parametrize(
    "text",
    ["names: [a, 'b']", "names: {0: a, 1: b}", "names:\n  - a\n  - b # second\nnc: 2",
     "names:\n  0: a\n  1: \"b\"\n\ntrain: x"],
)  # fmt: skip
def test_names_of_data_yaml(text):
    assert yolo_folder.yaml_names(text) == ["a", "b"]


def test_data_yaml_without_names():
    assert yolo_folder.yaml_names("train: images") == []


def item(name="k1", split="train"):
    return BoxItem(
        name=name, split=split, height=100, width=200,
        boxes_xyxy_px=np.array([[20, 10, 60, 50]], dtype=np.float32), labels=np.array([0]),
    )  # fmt: skip


def test_yolo_folder_out_is_read_back(tmp_path):
    path, content = yolo_label_file(item())
    assert content == b"0 0.200000 0.300000 0.200000 0.400000\n"
    write(tmp_path / path, content)
    write(tmp_path / yolo_image_path(item()), b"x")
    path, content = yolo_data_yaml(("tumour",), ["train", "train"])
    write(tmp_path / path, content)
    assert b"train: images/train" in content
    records, _, _ = parts(yolo_folder.records(fake_tree(tmp_path, []), ("tumour",)))
    scaled = np.array(records[0].boxes_xyxy_px) * [200, 100, 200, 100]
    np.testing.assert_allclose(scaled, [[20, 10, 60, 50]], atol=1e-4)
    assert records[0].split == "train"


def test_coco_out():
    found = json.loads(coco_json([item("k2", "val"), item()], ("tumour",)))
    assert [image["file_name"] for image in found["images"]] == [
        "images/train/k1.png",
        "images/val/k2.png",
    ]
    assert found["annotations"][1] == {
        "id": 2, "image_id": 2, "category_id": 1, "bbox": [20, 10, 40, 40], "area": 1600,
        "iscrowd": 0,
    }  # fmt: skip
    assert found["categories"] == [{"id": 1, "name": "tumour"}]


MANIFEST = "downloadServerUrl=https://x\nincludeAnnotation=true\nListOfSeriesToDownload=\n"


def test_series_of_a_manifest_that_are_missing(tmp_path):
    write(tmp_path / "a.tcia", MANIFEST + "1.2.3.4.1\r\n1.2.3.4.2\n1.2.3.4.2\n\n")
    write(tmp_path / "b.tcia", MANIFEST)
    write(tmp_path / "c.tcia", "nothing")
    write(tmp_path / "d.tcia", MANIFEST + "1.2.x\n")
    series = [fake_series(tmp_path, "s"), fake_series(tmp_path, "extra", series_uid="1.9.9")]
    found = list(check_manifests(fake_tree(tmp_path, series)))
    assert [(f.reason, f.series_uid) for f in found] == [
        ("source_unavailable", "1.2.3.4.2"), *[("annotation_invalid", "")] * 3,
    ]  # fmt: skip


def test_layouts_are_detected(tmp_path):
    yolo_tree(tmp_path, {"a": ""})
    tree = fake_tree(tmp_path, [])
    assert detect_layout(tree) == "yolo_folder"
    with pytest.raises(ConfigError, match="fit no layout of lung_pet_ct_dx, rsna_breast"):
        detect_layout(fake_tree(tmp_path / "images", []))
    write(tmp_path / "1.2.3.4.xml", "<a/>")
    with pytest.raises(ConfigError, match="fit several layouts: lung_pet_ct_dx, yolo_folder"):
        detect_layout(fake_tree(tmp_path, []))
    assert len(LAYOUTS) == 7


def test_a_layout_must_be_one_of_the_task(tmp_path):
    write(tmp_path / "a.tcia", MANIFEST + "1.2.3.4.2\n")
    readers = {"yolo_folder": lambda tree: iter(())}
    with pytest.raises(ConfigError, match="layout 'datalist' is not one that the task reads"):
        list(read_layout(fake_tree(tmp_path, [], layout="datalist"), readers))
    with pytest.raises(ConfigError, match="layout 'nonsense' is unknown; choose from yolo_folder"):
        list(read_layout(fake_tree(tmp_path, [], layout="nonsense"), readers))
    found = list(read_layout(fake_tree(tmp_path, [], layout="yolo_folder"), readers))
    assert [f.reason for f in found] == ["source_unavailable"]
