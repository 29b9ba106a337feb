"""Defects of series: what is wrong only when slices come together."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence

from medray.phantoms.instance import SOP_CLASSES, instance_bytes
from medray.phantoms.naming import uid
from medray.phantoms.pet import SUV_CASES, write_pet_series
from medray.phantoms.series import (
    SeriesSpec,
    affine_from_dicom,
    ds_text,
    known_volume,
    slice_dataset,
    write_ct_series,
)
from medray.phantoms.zoo import Zoo
from medray.volume import Volume

_SHAPE = (7, 24, 20)


def add_stack_defects(zoo: Zoo, *, foreign: bool = True) -> None:
    """Plant series defects and series that only look wrong.

    Args:
        zoo: where to.
        foreign: whether to add modalities that no task takes.
    """
    _add_position_defects(zoo)
    _add_mixtures(zoo)
    _add_kinds(zoo, foreign=foreign)
    _add_duplicates(zoo)
    _add_survivors(zoo)


def _spec(zoo: Zoo, name: str) -> SeriesSpec:
    return SeriesSpec(
        seed=zoo.seed,
        name=name,
        study_uid=uid("zoo-study", zoo.seed, name),
        tags={"PatientID": f"ZOO-{name}"},
    )


def _volume(depth: int = _SHAPE[0]) -> Volume:
    return known_volume((depth, *_SHAPE[1:]))


def _add_position_defects(zoo: Zoo) -> None:
    def shift(offsets_mm: dict[int, float]) -> Callable[[Dataset, int], None]:
        def edit(dataset: Dataset, k: int) -> None:
            x, y, z = (float(v) for v in dataset.ImagePositionPatient)
            dataset.ImagePositionPatient = ds_text([x, y, z + offsets_mm.get(k, 0.0)])

        return edit

    for name, reason, moved in (
        ("stack_irregular", "slice_increment_inconsistent", {3: 0.9, 4: -0.6}),
        ("stack_two_spacings", "slice_increment_inconsistent", {5: 1.2, 6: 2.4}),
        ("stack_one_position", "duplicate_positions", {k: -3.0 * k for k in range(7)}),
        ("stack_repeated_position", "duplicate_positions", {4: -3.0}),
    ):
        spec = replace(_spec(zoo, name), edit=shift(moved))
        _series(zoo, name, reason, _volume(), spec)
    _series(zoo, "stack_missing_slice", "missing_slices", _volume(), _left_out(zoo, (3,)))
    for keyword, name in (
        ("ImagePositionPatient", "stack_no_positions"),
        ("ImageOrientationPatient", "stack_no_orientation"),
    ):
        for form in ("absent", "empty"):

            def edit(dataset: Dataset, k: int, keyword: str = keyword, form: str = form) -> None:  # noqa: ARG001
                if form == "absent":
                    delattr(dataset, keyword)
                else:
                    setattr(dataset, keyword, "")

            label = f"{name}_{form}"
            _series(zoo, label, "no_geometry", _volume(), replace(_spec(zoo, label), edit=edit))
    label = "stack_two_slices"
    _series(zoo, label, "too_few_slices", _volume(2), _spec(zoo, label))


def _left_out(zoo: Zoo, slices: tuple[int, ...]) -> SeriesSpec:
    return replace(_spec(zoo, "stack_missing_slice"), leave_out=slices)


def _series(zoo: Zoo, name: str, reason: str, volume: Volume, spec: SeriesSpec) -> None:
    folder = zoo.folder(name)
    write_ct_series(folder, volume, spec)
    zoo.defect(folder, reason, scope="series", stage="convert")


def _add_mixtures(zoo: Zoo) -> None:
    """Plant series that fall into stacks too small for a volume."""
    name = "stack_sizes_all_differ"
    for k in range(4):
        volume = known_volume((4, 20 + 2 * k, 24))
        spec = replace(_spec(zoo, name), leave_out=tuple(n for n in range(4) if n != k))
        spec = replace(spec, file_pattern=f"{k}-{{number:03d}}.dcm")
        write_ct_series(zoo.folder(name), volume, spec)
    zoo.defect(zoo.folder(name), "too_few_slices", scope="series", stage="convert")
    name = "stack_minority_turned"
    spec = _spec(zoo, name)
    write_ct_series(zoo.folder(name), _volume(), spec)
    turned = affine_from_dicom(orientation=(0, 1, 0, 0, 0, -1), origin_mm=(0, 0, 0))
    other = replace(
        spec, name=name + "-b", series_uid=_series_uid(spec), file_pattern="2-{number:03d}.dcm"
    )
    write_ct_series(zoo.folder(name), known_volume((2, 24, 20), turned), other)
    zoo.defect(zoo.folder(name), "mixed_orientation", scope="series", stage="convert")


def _series_uid(spec: SeriesSpec) -> str:
    return spec.series_uid or uid("series", spec.seed, spec.name)


def _add_kinds(zoo: Zoo, *, foreign: bool) -> None:
    """Plant scouts, foreign modalities and PET whose SUV cannot be known."""
    name = "localizer"
    tags = {"PatientID": "ZOO-localizer", "ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}
    write_ct_series(zoo.folder(name), _volume(2), replace(_spec(zoo, name), tags=tags))
    zoo.defect(zoo.folder(name), "localizer", scope="skip", stage="convert")
    for modality in ("MR", "US") if foreign else ():
        name = f"modality_{modality.lower()}"
        tags_of: dict[str, object] = {
            "PatientID": f"ZOO-{name}",
            "Modality": modality,
            "SOPClassUID": SOP_CLASSES[modality],
        }
        write_ct_series(zoo.folder(name), _volume(), replace(_spec(zoo, name), tags=tags_of))
        zoo.defect(zoo.folder(name), "wrong_modality", scope="series", stage="prepare")
    for case in ("no_weight", "zero_dose", "no_half_life", "not_corrected"):
        name = f"pet_{case}"
        base = replace(_spec(zoo, name), name=name)
        volume = Volume(
            array=np.abs(_volume().array).astype(np.float32) * 10, affine_lps=_volume().affine_lps
        )
        write_pet_series(zoo.folder(name), volume, replace(SUV_CASES[case], base=base))
        zoo.oddity(zoo.folder(name), "PET whose SUV cannot be known: it stays in its own unit")


def _add_duplicates(zoo: Zoo) -> None:
    name = "same_uid_other_bytes"
    spec = _spec(zoo, name)
    write_ct_series(zoo.folder(name), _volume(), spec)
    dataset = slice_dataset(_volume(), 3, spec)
    dataset.PixelData = bytes(len(dataset.PixelData))
    copy = zoo.folder(name) / "copy-of-3.dcm"
    copy.write_bytes(instance_bytes(dataset))
    zoo.defect(zoo.folder(name), "duplicate_conflict", scope="series", stage="convert")


def _add_survivors(zoo: Zoo) -> None:
    name = "ok_exact_duplicate"
    files = write_ct_series(zoo.folder(name), _volume(), _spec(zoo, name))
    (zoo.folder(name) / "again.dcm").write_bytes(files[2].read_bytes())
    zoo.oddity(zoo.folder(name), "one slice is there twice with equal bytes: counted once")
    name = "ok_shared_series_uid"
    for person in ("a", "b"):
        spec = replace(
            _spec(zoo, f"{name}-{person}"), series_uid=uid("shared", zoo.seed),
            study_uid=uid("shared-study", zoo.seed), tags={"PatientID": f"ZOO-{name}-{person}"},
        )  # fmt: skip
        write_ct_series(zoo.folder(name) / person, _volume(), spec)
    zoo.oddity(zoo.folder(name), "two patients share a series UID: two volumes")
    name = "ok_empty_uids"
    empty = {"SeriesInstanceUID": "", "StudyInstanceUID": "", "PatientID": f"ZOO-{name}"}
    write_ct_series(zoo.folder(name), _volume(), replace(_spec(zoo, name), tags=empty))
    zoo.oddity(zoo.folder(name), "empty series and study UIDs")
    name = "ok_two_acquisitions"
    spec = _spec(zoo, name)
    for number in (1, 2):
        tags = {"AcquisitionNumber": number, "PatientID": f"ZOO-{name}"}
        part = replace(
            spec, name=f"{name}-{number}", series_uid=uid("series", zoo.seed, name), tags=tags,
            file_pattern=f"{number}-{{number:03d}}.dcm",
        )  # fmt: skip
        write_ct_series(zoo.folder(name), _volume(), part)
    zoo.oddity(zoo.folder(name), "two acquisitions at the same positions: two volumes")
    name = "ok_report"
    report = Dataset()
    report.SOPClassUID, report.SOPInstanceUID = SOP_CLASSES["SR"], uid("zoo-sr", zoo.seed)
    report.Modality, report.PatientID = "SR", "ZOO-report"
    report.StudyInstanceUID, report.SeriesInstanceUID = uid("sr", zoo.seed), uid("srs", zoo.seed)
    report.ContentSequence = DicomSequence([])
    path = zoo.folder(name) / "report.dcm"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(instance_bytes(report))
    zoo.defect(path, "no_pixels", scope="skip")
