"""The tree of the RSNA pneumonia challenge, stage 2: two tables and 8-bit JPEG radiographs."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pydicom.uid import JPEGBaseline8Bit

from medray.phantoms.breast_layout import write_csv
from medray.phantoms.instance import SOP_CLASSES, new_dataset, set_pixels, write_instance
from medray.phantoms.naming import patient_name, stream, uid
from medray.phantoms.radiograph import Radiograph, radiograph

LABEL_COLUMNS = ("patientId", "x", "y", "width", "height", "Target")
CLASS_COLUMNS = ("patientId", "class")
LABELS, CLASSES = "stage_2_train_labels.csv", "stage_2_detailed_class_info.csv"
IMAGES = "stage_2_train_images"
SIDES_PX = {"tiny": 160, "small": 256, "full": 1024}


def write_pneumonia_layout(
    root: Path, *, num_patients: int, seed: int, size: str
) -> Iterator[tuple[str, Radiograph, Path]]:
    """Write images and, at the end, both tables; yield id, film and file of each image.

    As in the public data, `patientId` names an image. Every second image has opacities, one to
    three of them.
    """
    rows: list[dict[str, str]] = []
    classes: list[dict[str, str]] = []
    for number in range(num_patients):
        rng = stream(seed, "pneumonia", number)
        count = 1 + int(rng.integers(3)) if number % 2 == 0 else 0
        view = "AP" if rng.random() < 0.6 else "PA"
        film = radiograph(seed, number, side_px=SIDES_PX[size], num_opacities=count, view=view)
        image_id = rng.bytes(16).hex()
        name = (
            f"{image_id[:8]}-{image_id[8:12]}-{image_id[12:16]}-{image_id[16:20]}-{image_id[20:]}"
        )
        path = root / IMAGES / f"{name}.dcm"
        _write_film(path, film, name=name, view=view, number=number, seed=seed)
        rows.extend(label_rows(name, film))
        classes.extend({"patientId": name, "class": film.finding} for _ in film.boxes or (0,))
        yield name, film, path
    write_csv(root / LABELS, LABEL_COLUMNS, rows)
    write_csv(root / CLASSES, CLASS_COLUMNS, classes)


def label_rows(name: str, film: Radiograph) -> list[dict[str, str]]:
    """Return one row a box, or one empty row for a healthy image."""
    if not film.boxes:
        return [{"patientId": name, "x": "", "y": "", "width": "", "height": "", "Target": "0"}]
    return [
        {
            "patientId": name,
            "x": f"{x1:.1f}",
            "y": f"{y1:.1f}",
            "width": f"{x2 - x1:.1f}",
            "height": f"{y2 - y1:.1f}",
            "Target": "1",
        }
        for x1, y1, x2, y2 in film.boxes
    ]


def _write_film(
    path: Path, film: Radiograph, *, name: str, view: str, number: int, seed: int
) -> None:
    pixel_mm = 0.143 * 1024 / film.image.shape[0]
    dataset = new_dataset(
        {
            "SpecificCharacterSet": "ISO_IR 100",
            "SOPClassUID": SOP_CLASSES["SC"],
            "SOPInstanceUID": uid("pneumonia", seed, number),
            "StudyDate": "19010101",
            "Modality": "CR",
            "ConversionType": "WSD",
            "PatientName": patient_name(number + 1),
            "PatientID": name,
            "PatientSex": "FM"[number % 2],
            # The public data have a few ages above 120.
            "PatientAge": "148" if number % 23 == 22 else f"{25 + number * 11 % 60}",
            "BodyPartExamined": "CHEST",
            "ViewPosition": view,
            "StudyInstanceUID": uid("pneumonia-study", seed, number),
            "SeriesInstanceUID": uid("pneumonia-series", seed, number),
            "SeriesDescription": f"view: {view}",
            "InstanceNumber": 1,
            "PatientOrientation": "",
            "PixelSpacing": [f"{pixel_mm:.6g}", f"{pixel_mm:.6g}"],
            "PhotometricInterpretation": "MONOCHROME2",
            "LossyImageCompression": "01",
            "LossyImageCompressionMethod": "ISO_10918_1",
        }
    )
    stored = np.round(film.image * 255).astype(np.uint8)
    set_pixels(dataset, stored[None], syntax=JPEGBaseline8Bit, bits_stored=8)
    write_instance(path, dataset)
