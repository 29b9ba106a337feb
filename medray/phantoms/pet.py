"""PET series with a slope per slice, and the factor that turns their values into SUV."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence

from medray.phantoms.instance import SOP_CLASSES, new_dataset, set_pixels, write_instance
from medray.phantoms.naming import stream, uid
from medray.phantoms.series import SeriesSpec, common_tags, ds_text, plane_tags
from medray.volume import Volume

F18_HALF_LIFE_S = 6586.2
_STORED_MAX = 32767


@dataclass(frozen=True, slots=True, kw_only=True)
class PetSpec:
    """What a PET series says of patient, dose and time; None leaves the tag out.

    Attributes:
        base: identity, file names, syntax.
        units: `BQML`, `CNTS` (Philips) or `GML`.
        decay: DecayCorrection: `START`, `ADMIN` or `NONE`.
        weight_kg: PatientWeight.
        dose_bq: RadionuclideTotalDose.
        half_life_s: RadionuclideHalfLife.
        injection: date (DA) and time (TM) of injection; an empty date leaves it out.
        series: date and time of the series.
        acquisition: date and time of the earliest acquisition.
        suv_factor: Philips (7053,1000), SUV per stored unit.
        activity_factor: Philips (7053,1009), Bq/ml per stored unit.
        tags: further keywords for every slice; they win.
    """

    base: SeriesSpec = field(default_factory=SeriesSpec)
    units: str = "BQML"
    decay: str = "START"
    weight_kg: float | None = 72.0
    dose_bq: float | None = 370e6
    half_life_s: float | None = F18_HALF_LIFE_S
    injection: tuple[str, str] | None = ("", "090000")
    series: tuple[str, str] = ("20050312", "100000")
    acquisition: tuple[str, str] = ("20050312", "100000")
    suv_factor: float | None = None
    activity_factor: float | None = None
    tags: Mapping[str, object] = field(default_factory=dict)


def _seconds(date: str, time: str) -> float:
    day = int(np.datetime64(f"{date[:4]}-{date[4:6]}-{date[6:8]}", "D").astype(int))
    clock = int(time[:2]) * 3600 + int(time[2:4]) * 60 + float(time[4:])
    return day * 86400.0 + clock


def suv_per_modality_unit(spec: PetSpec) -> float | None:
    """Return SUVbw per modality value (stored times slope), None where it cannot be known.

    Formula: value * weight_g / (dose * 2^(-(scan - injection) / half life)); with decay correction
    to administration the dose is not decayed.
    """
    if spec.units == "GML":
        return 1.0
    to_bqml = 1.0
    if spec.units == "CNTS":
        if spec.suv_factor:
            return spec.suv_factor
        if not spec.activity_factor:
            return None
        to_bqml = spec.activity_factor
    if not spec.weight_kg or not spec.dose_bq or spec.decay not in ("START", "ADMIN"):
        return None
    if spec.decay == "ADMIN":
        return to_bqml * spec.weight_kg * 1000 / spec.dose_bq
    if not spec.half_life_s or spec.injection is None:
        return None
    scan = min(_seconds(*spec.series), _seconds(*spec.acquisition))
    injected = _seconds(spec.injection[0] or spec.series[0], spec.injection[1])
    if not spec.injection[0] and injected > scan:  # before midnight, scanned after it
        injected -= 86400
    dose = spec.dose_bq * 2 ** (-(scan - injected) / spec.half_life_s)
    return to_bqml * spec.weight_kg * 1000 / dose


def write_pet_series(folder: Path, volume: Volume, spec: PetSpec) -> list[Path]:
    """Write modality values (Bq/ml, counts or g/ml) with a slope of its own for each slice.

    Returns:
        The files in the order of k.
    """
    depth = volume.array.shape[0]
    numbers = stream(spec.base.seed, spec.base.name, "files").permutation(depth)
    written = []
    for k in range(depth):
        dataset = _pet_slice(volume, k, spec)
        if spec.base.edit is not None:
            spec.base.edit(dataset, k)
        name = spec.base.file_pattern.format(number=int(numbers[k]) + 1)
        written.append(write_instance(folder / name, dataset))
    return written


def _pet_slice(volume: Volume, k: int, spec: PetSpec) -> Dataset:
    values = np.maximum(volume.array[k].astype(np.float64), 0)
    slope_text = ds_text([max(float(values.max()), 1e-3) / _STORED_MAX])[0]
    stored = np.clip(np.round(values / float(slope_text)), 0, _STORED_MAX).astype(np.int16)
    tags: dict[str, object] = common_tags(spec.base) | {
        "SOPClassUID": SOP_CLASSES["PT"],
        "SOPInstanceUID": uid("sop", spec.base.seed, spec.base.name, k),
        "ImageType": ["ORIGINAL", "PRIMARY"],
        "Modality": "PT",
        "InstanceNumber": volume.array.shape[0] - k,
        "NumberOfSlices": volume.array.shape[0],
        "RescaleSlope": slope_text,
        "RescaleIntercept": "0",
        **_pet_tags(spec),
        **plane_tags(volume.affine_lps, k),
    }
    dataset = new_dataset(tags | dict(spec.base.tags) | dict(spec.tags))
    for element, factor in ((0x1000, spec.suv_factor), (0x1009, spec.activity_factor)):
        if factor is not None:
            block = dataset.private_block(0x7053, "Philips PET Private Group", create=True)
            block.add_new(element & 0xFF, "DS", ds_text([factor])[0])
    set_pixels(dataset, stored[None], syntax=spec.base.syntax, bits_stored=16)
    return dataset


def _pet_tags(spec: PetSpec) -> dict[str, object]:
    """Return the tags that SUV depends on, those of value None left out."""
    drug: dict[str, object] = {
        "Radiopharmaceutical": "Fluorodeoxyglucose F^18^",
        "RadionuclideTotalDose": None if spec.dose_bq is None else ds_text([spec.dose_bq])[0],
        "RadionuclideHalfLife": None
        if spec.half_life_s is None
        else ds_text([spec.half_life_s])[0],
    }
    if spec.injection is not None:
        drug["RadiopharmaceuticalStartTime"] = spec.injection[1]
        if spec.injection[0]:
            drug["RadiopharmaceuticalStartDateTime"] = "".join(spec.injection)
    item = new_dataset({key: value for key, value in drug.items() if value is not None})
    tags: dict[str, object] = {
        "Units": spec.units,
        "DecayCorrection": spec.decay,
        "CorrectedImage": ["DECY", "ATTN", "SCAT"],
        "SeriesType": ["WHOLE BODY", "IMAGE"],
        "SeriesDate": spec.series[0],
        "SeriesTime": spec.series[1],
        "AcquisitionDate": spec.acquisition[0],
        "AcquisitionTime": spec.acquisition[1],
        "RadiopharmaceuticalInformationSequence": DicomSequence([item]),
    }
    if spec.weight_kg is not None:
        tags["PatientWeight"] = ds_text([spec.weight_kg])[0]
    return tags


SUV_CASES: dict[str, PetSpec] = {
    "start": PetSpec(),
    "administration": PetSpec(decay="ADMIN"),
    "series_after_acquisition": PetSpec(series=("20050312", "110000")),
    "acquisition_after_series": PetSpec(acquisition=("20050312", "101500.25")),
    "across_midnight": PetSpec(
        injection=("20050311", "233000"), series=("20050312", "003500"),
        acquisition=("20050312", "003500"),
    ),
    "across_midnight_no_date": PetSpec(
        injection=("", "233000"), series=("20050312", "003500"),
        acquisition=("20050312", "003500"),
    ),
    "grams_per_ml": PetSpec(units="GML", weight_kg=None),
    "philips_suv_factor": PetSpec(units="CNTS", suv_factor=0.00125),
    "philips_activity_factor": PetSpec(units="CNTS", activity_factor=1.75),
    "counts_only": PetSpec(units="CNTS"),
    "not_corrected": PetSpec(decay="NONE"),
    "no_weight": PetSpec(weight_kg=None),
    "zero_weight": PetSpec(weight_kg=0.0),
    "no_dose": PetSpec(dose_bq=None),
    "zero_dose": PetSpec(dose_bq=0.0),
    "no_half_life": PetSpec(half_life_s=None),
    "no_injection_time": PetSpec(injection=None),
}  # fmt: skip
"""SUV situations by name; `suv_per_modality_unit` gives the hand formula's answer for each."""
