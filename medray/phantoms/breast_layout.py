"""The tree of the RSNA screening mammography data: `train.csv` and DICOM by patient."""

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1

from medray.phantoms.breast import (
    Film,
    Mammogram,
    burn_frame,
    burn_text,
    make_view,
    mammogram,
)
from medray.phantoms.instance import SOP_CLASSES, new_dataset, set_pixels, write_instance
from medray.phantoms.naming import date, patient_name, stream, uid

CSV_COLUMNS = (
    "site_id", "patient_id", "image_id", "laterality", "view", "age", "cancer", "biopsy",
    "invasive", "BIRADS", "implant", "density", "machine_id", "difficult_negative_case",
)  # fmt: skip
FILMS: dict[str, Film] = {
    "tiny": Film(shape=(320, 256), pixel_mm=0.75),
    "small": Film(shape=(640, 512), pixel_mm=0.375),
    "full": Film(shape=(3328, 2560), pixel_mm=0.07),
}
BITS_STORED = 12
_MAX_STORED = (1 << BITS_STORED) - 1
_MACHINES = {1: (49, 170), 2: (29, 48)}
_VIEWS = (("L", "CC"), ("L", "MLO"), ("R", "CC"), ("R", "MLO"))


@dataclass(frozen=True, slots=True, kw_only=True)
class BreastImage:
    """One mammogram with its table row, before it is written."""

    row: dict[str, str]
    mammogram: Mammogram
    monochrome1: bool
    site: int
    patient_number: int
    seed: int

    @property
    def patient_id(self) -> str:
        """The patient's number as text."""
        return self.row["patient_id"]

    @property
    def cancer(self) -> int:
        """Label of the breast."""
        return int(self.row["cancer"])


def breast_images(*, num_patients: int, seed: int, size: str) -> Iterator[BreastImage]:
    """Yield four images a patient: two breasts, two views.

    Half of the patients have a cancer in one breast. Sites, makers and sides are spread so that
    none of them tells the label.
    """
    film = FILMS[size]
    for number in range(num_patients):
        rng = stream(seed, "breast-patient", number)
        sick_side = ("L", "R")[int(rng.integers(2))] if number % 4 in (0, 3) else ""
        site = 1 + number % 2
        machine = _MACHINES[site][int(rng.integers(2))]
        image_ids = np.cumsum(rng.integers(1, 400_000_000, 4))
        for (side, view), image_id in zip(_VIEWS, image_ids, strict=True):
            cancer = side == sick_side
            shape = make_view(
                seed,
                patient=number,
                side=side,
                view=view,
                malignant=cancer,
                height_mm=film.shape[0] * film.pixel_mm,
            )
            row = _row(number, side, view, cancer=cancer)
            row |= {"site_id": str(site), "machine_id": str(machine)}
            yield BreastImage(
                row=row | {"image_id": str(image_id)},
                mammogram=_finish(mammogram(film, shape), number, side, view),
                monochrome1=number % 3 == 1,
                site=site,
                patient_number=number,
                seed=seed,
            )


def _row(number: int, side: str, view: str, *, cancer: bool) -> dict[str, str]:
    """Return a row of the table; site 2 leaves density and BIRADS empty, as the public one does."""
    second = number % 2 == 1
    return {
        "patient_id": str(10_000 + number * 37),
        "laterality": side,
        "view": view,
        "age": f"{45 + number * 7 % 40:.1f}" if number % 9 != 8 else "",
        "cancer": str(int(cancer)),
        "biopsy": str(int(cancer)),
        "invasive": str(int(cancer and number % 2 == 0)),
        "BIRADS": "" if second else ("0.0" if cancer else "1.0"),
        "implant": "0",
        "density": "" if second else "ABCD"[number // 2 % 4],
        "difficult_negative_case": str(not cancer and number % 6 == 4),
    }


def _finish(found: Mammogram, number: int, side: str, view: str) -> Mammogram:
    """Turn the image to its stored side and burn markers and borders in."""
    mirrored = (side == "R") != (number % 5 == 2)
    if mirrored:
        found = found.mirrored()
    image = found.image.copy()
    height, width = image.shape
    dot = max(1, height // 210)
    text = f"{side} {view}"
    left = 2 * dot if mirrored else width - 6 * dot * len(text) - 2 * dot
    burn_text(image, text, corner_yx=(3 * dot, left), dot_px=dot)
    if number % 3 == 2:
        burn_frame(image, width_px=max(2, height // 160))
    return Mammogram(image=image, breast=found.breast, mass_box=found.mass_box)


def write_breast_dicom(path: Path, one: BreastImage) -> Path:
    """Write one mammogram; syntax, photometric and VOI depend on site and machine."""
    stored = np.round(one.mammogram.image * (_MAX_STORED - 60) + 30).astype(np.uint16)
    if one.monochrome1:
        stored = _MAX_STORED - stored
    row, number = one.row, one.patient_number
    day = date(stream(one.seed, "breast-date", number))
    pixel = FILMS_BY_SHAPE[stored.shape].pixel_mm
    first = one.site == 1
    tags: dict[str, object] = {
        "SpecificCharacterSet": "ISO_IR 100",
        "ImageType": ["ORIGINAL", "PRIMARY"],
        "SOPClassUID": SOP_CLASSES["MG"],
        "SOPInstanceUID": uid("breast", one.seed, row["image_id"]),
        "StudyDate": day,
        "ContentDate": day,
        "Modality": "MG",
        "PresentationIntentType": "FOR PRESENTATION",
        "Manufacturer": "PHANTOM",
        "PatientName": patient_name(number + 1),
        "PatientID": row["patient_id"],
        "StudyInstanceUID": uid("breast-study", one.seed, number),
        "SeriesInstanceUID": uid("breast-series", one.seed, row["image_id"]),
        "InstanceNumber": 1,
        "ImageLaterality": row["laterality"],
        "ViewPosition": row["view"],
        "ImagerPixelSpacing": [f"{pixel:g}", f"{pixel:g}"],
        "PhotometricInterpretation": "MONOCHROME1" if one.monochrome1 else "MONOCHROME2",
        "RescaleSlope": "1",
        "RescaleIntercept": "0",
        "WindowCenter": ["2048", "1800"] if first else "2000",
        "WindowWidth": ["4096", "3000"] if first else "1400",
        "VOILUTFunction": "LINEAR" if first else "SIGMOID",
    }
    dataset = new_dataset(tags)
    syntax = JPEG2000Lossless if first else JPEGLosslessSV1
    set_pixels(dataset, stored[None], syntax=syntax, bits_stored=BITS_STORED)
    return write_instance(path, dataset)


FILMS_BY_SHAPE = {film.shape: film for film in FILMS.values()}


def write_breast_layout(
    root: Path, *, num_patients: int, seed: int, size: str
) -> Iterator[tuple[BreastImage, Path]]:
    """Write images and, at the end, `train.csv`; yield each image with its file."""
    rows = []
    for one in breast_images(num_patients=num_patients, seed=seed, size=size):
        path = root / "train_images" / one.patient_id / f"{one.row['image_id']}.dcm"
        rows.append(one.row)
        yield one, write_breast_dicom(path, one)
    write_csv(root / "train.csv", CSV_COLUMNS, rows)


def write_csv(path: Path, columns: tuple[str, ...], rows: list[dict[str, str]]) -> Path:
    """Write a table with the same bytes on every system."""
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(out.getvalue().encode())
    return path
