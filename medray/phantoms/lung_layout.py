"""The folder tree of Lung-PET-CT-Dx, filled with synthetic chests (SEEDS_SPEC 1.1)."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from pydicom.uid import (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    RLELossless,
)

from medray.phantoms.fields import Grid
from medray.phantoms.instance import SOP_CLASSES, new_dataset, set_pixels, write_instance
from medray.phantoms.naming import date, patient_name, stream, uid
from medray.phantoms.pet import PetSpec, suv_per_modality_unit, write_pet_series
from medray.phantoms.series import (
    GE,
    PHILIPS,
    SIEMENS,
    TOSHIBA,
    SeriesSpec,
    Vendor,
    common_tags,
    plane_tags,
    sop_uid,
    write_ct_series,
)
from medray.phantoms.thorax import Chest, chest_hu, chest_suv, focus_boxes, make_chest
from medray.volume import Volume

IMAGES = "manifest-1608669183333/Lung-PET-CT-Dx"
ANNOTATIONS = "Lung-PET-CT-Dx-Annotations-XML-Files-rev12222020/Annotation"
# Signed makers stay uncompressed, as in most archives.
_HABITS: tuple[tuple[Vendor, str], ...] = (
    (PHILIPS, ExplicitVRLittleEndian),
    (GE, ExplicitVRLittleEndian),
    (SIEMENS, JPEGLosslessSV1),
    (PHILIPS, JPEG2000Lossless),
    (TOSHIBA, ImplicitVRLittleEndian),
    (SIEMENS, RLELossless),
)
_LETTERS = ("A", "B", "G")
_RARE_LETTER, _RARE_EVERY = "E", 8  # the collection has five large-cell patients


@dataclass(frozen=True, slots=True, kw_only=True)
class LungSize:
    """Grids of a preset: thick CT, thin CT, PET; None leaves a series out."""

    thick: Grid
    thin: Grid | None
    pet: Grid | None


SIZES: dict[str, LungSize] = {
    "tiny": LungSize(
        thick=Grid(shape=(16, 88, 104), spacing_zyx_mm=(12.0, 3.4, 3.4)), thin=None,
        pet=Grid(shape=(12, 40, 40), spacing_zyx_mm=(16.0, 9.6, 9.6)),
    ),
    "small": LungSize(
        thick=Grid(shape=(24, 128, 152), spacing_zyx_mm=(8.0, 2.4, 2.4)),
        thin=Grid(shape=(40, 128, 144), spacing_zyx_mm=(4.8, 2.4, 2.4)),
        pet=Grid(shape=(24, 64, 64), spacing_zyx_mm=(8.0, 6.0, 6.0)),
    ),
    "full": LungSize(
        thick=Grid(shape=(64, 512, 512), spacing_zyx_mm=(3.0, 0.742, 0.742)),
        thin=Grid(shape=(192, 512, 512), spacing_zyx_mm=(1.0, 0.742, 0.742)),
        pet=Grid(shape=(64, 200, 200), spacing_zyx_mm=(3.0, 4.07, 4.07)),
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class LungPatient:
    """Identity and anatomy of one patient."""

    number: int
    patient_id: str
    letter: str
    seed: int
    chest: Chest
    study_date: str
    offset_xyz_mm: tuple[float, float, float]
    vendor: Vendor
    syntax: str

    @property
    def study_uid(self) -> str:
        """Study Instance UID."""
        return uid("lung-study", self.seed, self.number)

    @property
    def identity(self) -> dict[str, object]:
        """Tags that name the patient and the study."""
        return {
            "PatientName": patient_name(self.number + 1),
            "PatientID": self.patient_id,
            "StudyDate": self.study_date,
            "SeriesDate": self.study_date,
            "AcquisitionDate": self.study_date,
            "StudyInstanceUID": self.study_uid,
            "FrameOfReferenceUID": uid("lung-frame", self.seed, self.number),
            "PatientAge": f"{40 + self.number * 7 % 45:03d}Y",
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenSeries:
    """A series on disk and the boxes of its tumour.

    Attributes:
        kind: `ct_thick`, `ct_thin`, `pet`, `fused` or `localizer`.
        folder: its folder.
        files: its files in the order of k.
        sop_uids: of the files.
        grid: where it lies; None for the localizer.
        boxes: slice index and box of the tumour where the series is annotated.
    """

    kind: str
    folder: Path
    files: list[Path]
    sop_uids: list[str]
    grid: Grid | None = None
    boxes: tuple[tuple[int, tuple[int, int, int, int]], ...] = ()


def make_patient(seed: int, number: int) -> LungPatient:
    """Return the patient of a running number; the letters cycle, the rare one comes seldom."""
    letter = _letter(number)
    per_letter = sum(_letter(earlier) == letter for earlier in range(number))
    rng = stream(seed, "lung-patient", number)
    vendor, syntax = _HABITS[number % len(_HABITS)]
    return LungPatient(
        number=number,
        patient_id=f"Lung_Dx-{letter}{per_letter + 1:04d}",
        letter=letter,
        seed=seed,
        chest=make_chest(seed, number=number, histology=letter, group=number // len(_LETTERS)),
        study_date=date(rng),
        offset_xyz_mm=tuple(np.round(rng.uniform(-40, 40, 3), 1).tolist()),
        vendor=vendor,
        syntax=syntax,
    )


def _letter(number: int) -> str:
    if number % _RARE_EVERY == _RARE_EVERY - 1:
        return _RARE_LETTER
    return _LETTERS[(number - number // _RARE_EVERY) % len(_LETTERS)]


def write_lung_layout(
    root: Path, *, num_patients: int, seed: int, size: str
) -> Iterator[tuple[LungPatient, list[WrittenSeries]]]:
    """Write the tree patient by patient, and yield what was written."""
    (root / IMAGES).mkdir(parents=True, exist_ok=True)
    (root / ANNOTATIONS).mkdir(parents=True, exist_ok=True)
    (root / IMAGES / "LICENSE").write_text("Synthetic data without any restriction on use.\n")
    for number in range(num_patients):
        patient = make_patient(seed, number)
        series = list(_write_patient(root, patient, SIZES[size]))
        for one in series:
            write_annotations(root, patient, one)
        yield patient, series


def _study_folder(root: Path, patient: LungPatient) -> Path:
    day = patient.study_date
    name = f"{day[4:6]}-{day[6:]}-{day[:4]}-NA-Chest-{patient.study_uid[-5:]}"
    return root / IMAGES / patient.patient_id / name


def _spec(patient: LungPatient, number: int, name: str) -> SeriesSpec:
    series_uid = uid("lung-series", patient.seed, patient.number, number)
    return SeriesSpec(
        seed=patient.seed * 1000 + patient.number,
        name=name,
        vendor=patient.vendor,
        syntax=patient.syntax,
        study_uid=patient.study_uid,
        series_uid=series_uid,
        file_pattern="1-{number:02d}.dcm" if patient.number % 2 == 0 else "1-{number:03d}.dcm",
        tags=patient.identity | {"SeriesNumber": number, "SeriesDescription": name},
    )


def _folder(study: Path, spec: SeriesSpec) -> Path:
    return study / f"{spec.tags['SeriesNumber']}.000000-{spec.name}-{spec.series_uid[-5:]}"


def _write_patient(root: Path, patient: LungPatient, size: LungSize) -> Iterator[WrittenSeries]:
    study = _study_folder(root, patient)
    tumour = patient.chest.foci[0]
    thick_hu = chest_hu(size.thick, patient.chest)
    yield _write_localizer(study, patient, size.thick, thick_hu)
    thick_boxes = tuple(focus_boxes(tumour, size.thick))
    yield _write_ct(study, patient, size.thick, thick_hu, number=2, boxes=thick_boxes)
    if size.thin is not None:
        thin_hu = chest_hu(size.thin, patient.chest, noise_hu=20)
        # Adjacent series of a study may lack annotations in the collection.
        boxes = tuple(focus_boxes(tumour, size.thin)) if patient.number % 2 == 0 else ()
        yield _write_ct(study, patient, size.thin, thin_hu, number=3, boxes=boxes)
    if size.pet is not None:
        yield _write_pet(study, patient, size.pet)
    yield _write_fused(study, patient, size.thick, thick_hu, boxes=thick_boxes)


def _write_ct(
    study: Path,
    patient: LungPatient,
    grid: Grid,
    hu: np.ndarray,
    *,
    number: int,
    boxes: tuple[tuple[int, tuple[int, int, int, int]], ...],
) -> WrittenSeries:
    name = f"{grid.spacing_zyx_mm[0]:g}mm" if number == 2 else "thin"
    spec = _spec(patient, number, name)
    if patient.vendor.padding is not None:
        hu = hu.copy()
        rows, columns = np.indices(grid.shape[1:])
        middle = (np.array(grid.shape[1:]) - 1) / 2
        circle = np.hypot(rows - middle[0], columns - middle[1]) > max(grid.shape[1:]) / 2 + 1
        hu[:, circle] = patient.vendor.padding + patient.vendor.intercept
    volume = Volume(array=hu, affine_lps=grid.affine_lps(patient.offset_xyz_mm))
    folder = _folder(study, spec)
    files = write_ct_series(folder, volume, spec)
    return WrittenSeries(
        kind="ct_thick" if number == 2 else "ct_thin",
        folder=folder,
        files=files,
        sop_uids=[sop_uid(spec, k) for k in range(len(files))],
        grid=grid,
        boxes=boxes,
    )


def _write_localizer(
    study: Path, patient: LungPatient, grid: Grid, hu: np.ndarray
) -> WrittenSeries:
    """Write the scout: one frontal projection, its rows running from head to feet."""
    view = np.log1p(np.maximum(hu + 1000, 0).sum(axis=1))[::-1]
    stored = np.round(view / max(float(view.max()), 1e-6) * 1500).astype(np.uint16)
    affine = grid.affine_lps(patient.offset_xyz_mm)
    spec = _spec(patient, 1, "Topogram")
    scout = np.eye(4)
    scout[:3, 0] = (0, 1, 0)
    scout[:3, 1] = -affine[:3, 0]
    scout[:3, 2] = affine[:3, 2]
    scout[:3, 3] = affine[:3, 3] + affine[:3, 0] * (grid.shape[0] - 1)
    tags = common_tags(spec) | dict(spec.tags) | plane_tags(scout, 0)
    tags |= {
        "SOPInstanceUID": sop_uid(spec, 0),
        "ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"],
        "InstanceNumber": 1,
        "RescaleSlope": "1",
        "RescaleIntercept": "-1024",
    }
    dataset = new_dataset(tags)
    set_pixels(dataset, stored[None], syntax=ExplicitVRLittleEndian, bits_stored=12)
    folder = _folder(study, spec)
    path = write_instance(folder / "1-1.dcm", dataset)
    return WrittenSeries(kind="localizer", folder=folder, files=[path], sop_uids=[sop_uid(spec, 0)])


def _write_pet(study: Path, patient: LungPatient, grid: Grid) -> WrittenSeries:
    day = patient.study_date
    spec = PetSpec(
        base=replace(_spec(patient, 4, "PET-WB"), syntax=ExplicitVRLittleEndian),
        weight_kg=55.0 + patient.number % 7 * 6,
        dose_bq=3.2e8 + 1e7 * (patient.number % 5),
        series=(day, "101700"),
        acquisition=(day, "101700"),
        injection=("", "091500"),
    )
    factor = suv_per_modality_unit(spec)
    assert factor is not None
    volume = Volume(
        array=chest_suv(grid, patient.chest) / factor,
        affine_lps=grid.affine_lps(patient.offset_xyz_mm),
    )
    folder = _folder(study, spec.base)
    files = write_pet_series(folder, volume, spec)
    uids = [uid("sop", spec.base.seed, spec.base.name, k) for k in range(len(files))]
    return WrittenSeries(kind="pet", folder=folder, files=files, sop_uids=uids, grid=grid)


def _write_fused(
    study: Path,
    patient: LungPatient,
    grid: Grid,
    hu: np.ndarray,
    *,
    boxes: tuple[tuple[int, tuple[int, int, int, int]], ...],
) -> WrittenSeries:
    """Write CT with PET laid over in colour, as RGB secondary captures."""
    spec = _spec(patient, 5, "Fused")
    grey = np.clip((hu + 1000) / 1400, 0, 1)[..., None]
    heat = np.clip(chest_suv(grid, patient.chest) / 8, 0, 1)[..., None]
    colour = np.concatenate([heat, np.clip(heat * 2 - 1, 0, 1), np.zeros_like(heat)], axis=-1)
    rgb = np.round((0.6 * grey + 0.4 * colour) * 255).astype(np.uint8)
    affine = grid.affine_lps(patient.offset_xyz_mm)
    numbers = stream(spec.seed, "fused-files").permutation(grid.shape[0])
    folder, files = _folder(study, spec), []
    for k in range(grid.shape[0]):
        tags = common_tags(spec) | dict(spec.tags) | plane_tags(affine, k)
        tags |= {
            "SOPClassUID": SOP_CLASSES["SC"],
            "SOPInstanceUID": sop_uid(spec, k),
            "ImageType": ["DERIVED", "SECONDARY", "FUSED"],
            "Modality": "CT" if patient.number % 2 == 0 else "PT",
            "InstanceNumber": k + 1,
            "PhotometricInterpretation": "RGB",
        }
        dataset = new_dataset(tags)
        syntax = ExplicitVRLittleEndian
        set_pixels(dataset, rgb[k][None], syntax=syntax, bits_stored=8, rgb=True)
        path = folder / spec.file_pattern.format(number=int(numbers[k]) + 1)
        files.append(write_instance(path, dataset))
    uids = [sop_uid(spec, k) for k in range(len(files))]
    return WrittenSeries(
        kind="fused", folder=folder, files=files, sop_uids=uids, grid=grid, boxes=boxes
    )


def write_annotations(root: Path, patient: LungPatient, series: WrittenSeries) -> None:
    """Write one VOC file per tumour-bearing slice of an annotated series."""
    for k, box in series.boxes:
        assert series.grid is not None
        name = (patient.letter, patient.letter.lower())[k % 2]
        text = voc_xml(
            series.files[k].name,
            width=series.grid.shape[2],
            height=series.grid.shape[1],
            depth=3 if series.kind == "fused" else 1,
            objects=[(name, box)],
        )
        write_voc(root, patient.patient_id, series.sop_uids[k], text)


def write_voc(root: Path, patient_id: str, sop_instance_uid: str, text: str) -> Path:
    """Write an annotation under the patient's folder, which lacks the collection's prefix."""
    folder = root / ANNOTATIONS / patient_id.removeprefix("Lung_Dx-")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{sop_instance_uid}.xml"
    path.write_text(text)
    return path


def voc_xml(
    filename: str,
    *,
    width: int,
    height: int,
    depth: int,
    objects: list[tuple[str, tuple[int, int, int, int]]],
) -> str:
    """Return a PASCAL VOC annotation as LabelImg writes it."""
    lines = [
        "<annotation>",
        "\t<folder>IMAGES</folder>",
        f"\t<filename>{filename}</filename>",
        "\t<source><database>Unknown</database></source>",
        f"\t<size><width>{width}</width><height>{height}</height><depth>{depth}</depth></size>",
        "\t<segmented>0</segmented>",
    ]
    for name, (x1, y1, x2, y2) in objects:
        corners = f"<xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
        lines.append(
            f"\t<object><name>{name}</name><pose>Unspecified</pose><truncated>0</truncated>"
            f"<difficult>0</difficult><bndbox>{corners}</bndbox></object>"
        )
    return "\n".join([*lines, "</annotation>", ""])
