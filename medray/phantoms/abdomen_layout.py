"""Abdominal CT in the trees of Pancreas-CT and of the classifier's second generation."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless

from medray.phantoms.abdomen import AbdomenImage, Belly, abdomen, make_belly
from medray.phantoms.fields import Grid
from medray.phantoms.masks import nifti_bytes, nrrd_bytes, physical_nifti, write_gz
from medray.phantoms.naming import date, patient_name, stream, uid
from medray.phantoms.series import GE, PHILIPS, SIEMENS, SeriesSpec, Vendor, write_ct_series
from medray.volume import Volume

SEGMENTATION_IMAGES = "Pancreas-CT"
SEGMENTATION_LABELS = "TCIA_pancreas_labels-02-05-2017"

GRIDS: dict[str, Grid] = {
    "tiny": Grid(shape=(24, 72, 88), spacing_zyx_mm=(6.6, 4.0, 4.0)),
    "small": Grid(shape=(40, 104, 128), spacing_zyx_mm=(4.0, 2.8, 2.8)),
    "full": Grid(shape=(200, 512, 512), spacing_zyx_mm=(0.8, 0.7, 0.7)),
}

# Makers that write unsigned values may compress; the codecs here take nothing else.
_HABITS: tuple[tuple[Vendor, str], ...] = (
    (PHILIPS, ExplicitVRLittleEndian),
    (replace(GE, descending=False), ExplicitVRLittleEndian),
    (replace(SIEMENS, descending=False), JPEG2000Lossless),
    (PHILIPS, JPEGLSLossless),
    (replace(SIEMENS, descending=False), RLELossless),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AbdomenPatient:
    """Identity, anatomy and voxels of one patient."""

    number: int
    patient_id: str
    seed: int
    belly: Belly
    image: AbdomenImage
    affine_lps: np.ndarray

    @property
    def lesion_center_mm(self) -> list[float] | None:
        """LPS place of the mass; None without one."""
        if self.belly.lesion != "mass":
            return None
        return self.organ_place(self.belly.lesion_center_zyx_mm)

    def organ_place(self, zyx_mm: tuple[float, float, float]) -> list[float]:
        """Return the LPS place of a body coordinate."""
        corner = self.affine_lps @ [*((np.array(self.image.mask.shape) - 1) / 2), 1]
        return [float(m + v) for m, v in zip(corner[:3], reversed(zyx_mm), strict=True)]


def _patient(number: int, patient_id: str, seed: int, grid: Grid, belly: Belly) -> AbdomenPatient:
    rng = stream(seed, "abdomen-offset", number)
    return AbdomenPatient(
        number=number,
        patient_id=patient_id,
        seed=seed,
        belly=belly,
        image=abdomen(grid, belly),
        affine_lps=grid.affine_lps(np.round(rng.uniform(-60, 60, 3), 1).tolist()),
    )


def _spec(patient: AbdomenPatient, name: str) -> SeriesSpec:
    vendor, syntax = _HABITS[patient.number % len(_HABITS)]
    day = date(stream(patient.seed, "abdomen-date", patient.number))
    return SeriesSpec(
        seed=patient.seed * 1000 + patient.number,
        name=name,
        vendor=vendor,
        syntax=syntax,
        study_uid=uid(name, "study", patient.seed, patient.number),
        series_uid=uid(name, "series", patient.seed, patient.number),
        tags={
            "PatientName": patient_name(patient.number + 1),
            "PatientID": patient.patient_id,
            "StudyDate": day,
            "SeriesDate": day,
            "AcquisitionDate": day,
            "ContrastBolusAgent": "IODINE",
            "FrameOfReferenceUID": uid(name, "frame", patient.seed, patient.number),
        },
    )


def write_segmentation_layout(
    root: Path, *, num_patients: int, seed: int, size: str
) -> Iterator[tuple[AbdomenPatient, Path, Path]]:
    """Write the Pancreas-CT tree; yield each patient with series folder and label file."""
    for number in range(num_patients):
        name = f"PANCREAS_{number + 1:04d}"
        patient = _patient(number, name, seed, GRIDS[size], make_belly(seed, number))
        spec = _spec(patient, "Pancreas")
        day = str(spec.tags["StudyDate"])
        study = f"{day[4:6]}-{day[6:]}-{day[:4]}-NA-Abdomen-{spec.study_uid[-5:]}"
        folder = root / SEGMENTATION_IMAGES / name / study / f"Pancreas-{spec.series_uid[-5:]}"
        write_ct_series(folder, Volume(array=patient.image.hu, affine_lps=patient.affine_lps), spec)
        label = root / SEGMENTATION_LABELS / f"label{number + 1:04d}.nii.gz"
        write_gz(label, collection_label(patient.image.mask, GRIDS[size]))
        yield patient, folder, label


def collection_label(mask: np.ndarray, grid: Grid) -> bytes:
    """Return a label as the collection has it: index [column, row, k], no usable geometry.

    k counts slices from the feet; the affine is diagonal with a zero origin (SEEDS_SPEC 4.1).
    """
    z, y, x = grid.spacing_zyx_mm
    return nifti_bytes(mask.astype(np.uint8).transpose(2, 1, 0), np.diag([x, y, z, 1.0]))


def write_classification_layout(
    root: Path, *, num_patients: int, seed: int, size: str
) -> Iterator[tuple[AbdomenPatient, Path, Path]]:
    """Write one folder a patient: slices, organ mask, label; yield it with folder and mask.

    Patients come in pairs, one sick and one healthy, whose hypodense voxels are equally many.
    """
    for number in range(num_patients):
        group = number // 2
        sick = (number + group) % 2 == 0
        belly = make_belly(seed, number, lesion="mass" if sick else "duct", group=group)
        name = f"POMC-{number + 1:04d}"
        patient = _patient(number, name, seed, GRIDS[size], belly)
        folder = root / name
        spec = _spec(patient, "Portal")
        write_ct_series(folder, Volume(array=patient.image.hu, affine_lps=patient.affine_lps), spec)
        mask = _write_mask(folder, patient)
        (folder / "label").write_text(f"{int(sick)}\n")
        yield patient, folder, mask


def _write_mask(folder: Path, patient: AbdomenPatient) -> Path:
    """Write the mask as NRRD for every third patient, else as NIfTI with reversed axes."""
    mask, affine = patient.image.mask, patient.affine_lps
    if patient.number % 3 == 2:
        path = folder / "segmentation.nrrd"
        path.write_bytes(nrrd_bytes(mask, affine))
        return path
    flips = (patient.number % 2 == 0, patient.number % 3 == 0, patient.number % 4 == 1)
    data = physical_nifti(mask, affine, flips=flips)
    return write_gz(folder / "segmentation.nii.gz", data)
