"""The dirty zoo of the image layouts: tables and label files that do not fit their images."""

from collections.abc import Mapping
from pathlib import Path

from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLosslessSV1, RLELossless

from medray.phantoms.breast_layout import CSV_COLUMNS
from medray.phantoms.instance import SOP_CLASSES
from medray.phantoms.radiograph_layout import CLASSES, IMAGES, LABELS
from medray.phantoms.roi_layout import png_bytes, yolo_row
from medray.phantoms.truth import Truth
from medray.phantoms.zoo import Zoo
from medray.phantoms.zoo_archives import add_archive_defects
from medray.phantoms.zoo_files import add_file_defects, damaged, declared_large
from medray.phantoms.zoo_stacks import add_stack_defects


def _add_shared(root: Path, truth: Truth, *, foreign: bool = True) -> Zoo:
    zoo = Zoo(root, truth)
    add_file_defects(zoo)
    add_archive_defects(zoo)
    add_stack_defects(zoo, foreign=foreign)
    return zoo


def _append(path: Path, lines: list[str]) -> None:
    with path.open("a", newline="") as table:
        table.writelines(line + "\n" for line in lines)


def _image(zoo: Zoo, path: Path, tags: Mapping[str, object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(zoo.image(path.stem, tags=tags))
    return path


def _add_spoilt_images(
    zoo: Zoo, folder: Path, tags: Mapping[str, object]
) -> list[tuple[str, Path]]:
    """Plant images that are labelled rightly and cannot be decoded; return name and file."""
    written = []
    for name, syntax, spoil, reason in (
        ("9100011", JPEG2000Lossless, damaged, "decode_error"),
        ("9100012", JPEGLosslessSV1, damaged, "decode_error"),
        ("9100013", RLELossless, declared_large, "bomb_suspected"),
        ("9100014", ExplicitVRLittleEndian, lambda data: data[:-700], "truncated"),
    ):
        path = folder / f"{name}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(spoil(zoo.image(name, tags=tags, syntax=syntax)))
        zoo.defect(path, reason, scope="file", stage="prepare")
        written.append((name, path))
    return written


def add_breast_defects(root: Path, truth: Truth) -> None:
    """Plant everything, and rows of `train.csv` that are wrong."""
    zoo = _add_shared(root, truth)
    table = root / "train.csv"
    good = {
        "site_id": "1", "patient_id": "", "image_id": "", "laterality": "L", "view": "CC",
        "age": "50", "cancer": "0", "biopsy": "0", "invasive": "0", "BIRADS": "", "implant": "0",
        "density": "", "machine_id": "49", "difficult_negative_case": "False",
    }  # fmt: skip
    wrong: tuple[tuple[str, dict[str, str], str], ...] = (
        ("900001", {"cancer": "7"}, "label_unknown"),
        ("900002", {"cancer": ""}, "no_label"),
        ("900003", {"cancer": "perhaps"}, "label_unknown"),
    )
    mammogram: dict[str, object] = {"Modality": "MG", "SOPClassUID": SOP_CLASSES["MG"]}
    for patient, change, reason in wrong:
        image_id = patient + "1"
        path = root / "train_images" / patient / f"{image_id}.dcm"
        _image(zoo, path, mammogram | {"PatientID": patient})
        row = good | {"patient_id": patient, "image_id": image_id} | change
        _append(table, [",".join(row[column] for column in CSV_COLUMNS)])
        zoo.defect(path, reason, scope="label", stage="prepare", row=image_id)
    folder = root / "train_images" / "910001"
    for name, _ in _add_spoilt_images(zoo, folder, mammogram | {"PatientID": "910001"}):
        row = good | {"patient_id": "910001", "image_id": name}
        _append(table, [",".join(row[column] for column in CSV_COLUMNS)])
    lost = good | {"patient_id": "900004", "image_id": "9000041"}
    short = "1,900005,9000051,L"
    _append(table, [",".join(lost[column] for column in CSV_COLUMNS), short])
    zoo.defect(table, "annotation_unmatched", scope="label", stage="prepare", row="9000041")
    zoo.defect(table, "annotation_invalid", scope="label", stage="prepare", row="9000051")
    path = root / "train_images" / "900006" / "9000061.dcm"
    _image(zoo, path, mammogram | {"PatientID": "900006"})
    zoo.defect(path, "no_label", scope="label", stage="prepare", row="9000061")


def add_pneumonia_defects(root: Path, truth: Truth) -> None:
    """Plant everything, and rows of the label table that are wrong."""
    zoo = _add_shared(root, truth)
    table, classes = root / LABELS, root / CLASSES
    wrong = (
        ("zoo-box-outside", "30,20,400,10,1", "box_out_of_image"),
        ("zoo-box-negative", "30,20,-5,10,1", "box_out_of_image"),
        ("zoo-box-empty", ",,,,1", "annotation_invalid"),
        ("zoo-box-text", "a,b,5,5,1", "annotation_invalid"),
        ("zoo-target-unknown", "3,2,5,5,4", "label_unknown"),
    )
    for name, rest, reason in wrong:
        path = _image(zoo, root / IMAGES / f"{name}.dcm", {"PatientID": name})
        _append(table, [f"{name},{rest}"])
        _append(classes, [f"{name},Lung Opacity"])
        zoo.defect(path, reason, scope="label", stage="prepare", row=name)
    for name, _ in _add_spoilt_images(zoo, root / IMAGES, {"PatientID": "zoo-spoilt"}):
        _append(table, [f"{name},,,,,0"])
        _append(classes, [f"{name},Normal"])
    _append(table, ["zoo-lost,1,2,3,4,1", "zoo-short,1"])
    zoo.defect(table, "annotation_unmatched", scope="label", stage="prepare", row="zoo-lost")
    zoo.defect(table, "annotation_invalid", scope="label", stage="prepare", row="zoo-short")
    path = _image(zoo, root / IMAGES / "zoo-no-row.dcm", {"PatientID": "zoo-no-row"})
    zoo.defect(path, "no_label", scope="label", stage="prepare", row="zoo-no-row")


def add_roi_defects(root: Path, truth: Truth) -> None:
    """Plant everything, and label files that do not fit their images."""
    # This layout looks below `images` alone: a foreign series elsewhere is none of its business.
    zoo = _add_shared(root, truth, foreign=False)
    good = yolo_row((4, 4, 20, 24), (32, 40))
    wrong = (
        ("zooclass_1", "7 0.5 0.5 0.2 0.2\n", "label_unknown"),
        ("zooutside_1", "0 0.95 0.5 0.4 0.2\n", "box_out_of_image"),
        ("zooflat_1", "0 0.5 0.5 0 0.2\n", "box_out_of_image"),
        ("zoofields_1", "0 0.5 0.5\n", "annotation_invalid"),
        ("zootext_1", "breast here\n", "annotation_invalid"),
        ("zoonan_1", "0 nan 0.5 0.2 0.2\n", "annotation_invalid"),
    )
    pixels = (zoo.pixels("roi")[0] >> 4).astype("uint8")
    for name, text, reason in wrong:
        (root / "images" / f"{name}.png").write_bytes(png_bytes(pixels))
        path = root / "labels" / f"{name}.txt"
        path.write_text(text)
        zoo.defect(path, reason, scope="label", stage="prepare")
    path = root / "images" / "zoonolabel_1.png"
    path.write_bytes(png_bytes(pixels))
    zoo.defect(path, "no_label", scope="label", stage="prepare")
    path = root / "labels" / "zoolost_1.txt"
    path.write_text(good)
    zoo.defect(path, "annotation_unmatched", scope="label", stage="prepare")
    path = root / "images" / "zoocut_1.png"
    path.write_bytes(png_bytes(pixels)[:200])
    (root / "labels" / "zoocut_1.txt").write_text(good)
    zoo.defect(path, "truncated", scope="file", stage="prepare")
