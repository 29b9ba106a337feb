"""Standardised uptake values: what a PET header must say, and the body-weight formula.

SUVbw = activity concentration [Bq/ml] x body weight [g] / dose at scan time [Bq]
(QIBA FDG-PET profile, appendix G; RELIABILITY INT-9). Nothing is guessed: a value that is missing,
empty or zero makes the series `suv_not_computable`.
"""

import math
from collections.abc import Sequence
from typing import Any

from pydicom.dataset import Dataset

from medray.dicom.dataset import number, text
from medray.errors import DataError

_DAY_S = 86400.0
_PHILIPS_SUV = (0x7053, 0x1000)
_PHILIPS_BQML = (0x7053, 0x1009)
# Longer than any PET protocol: a larger difference is a wrong date, not a long uptake.
_MAX_UPTAKE_S = 3 * _DAY_S


def pet_facts(dataset: Dataset) -> dict[str, Any]:
    """Return units, weight, dose and times of one PET instance; absent values are None.

    Times are seconds after the injection, so that no date leaves the header.

    Raises:
        DataError: `bad_tag_value` for numbers that are not finite or out of range.
    """
    items = dataset.get("RadiopharmaceuticalInformationSequence")
    drug = items[0] if items else Dataset()
    injected = _moment(drug, "RadiopharmaceuticalStartDateTime") or _joined(
        text(dataset, "SeriesDate"), text(drug, "RadiopharmaceuticalStartTime")
    )
    return {
        "units": text(dataset, "Units").upper(),
        "decay": text(dataset, "DecayCorrection").upper(),
        "weight_kg": number(dataset, "PatientWeight", low=0, high=1000),
        "dose_bq": number(drug, "RadionuclideTotalDose", low=0, high=1e13),
        "half_life_s": number(drug, "RadionuclideHalfLife", low=0, high=1e9),
        "series_s": _after(injected, dataset, "Series"),
        "acquisition_s": _after(injected, dataset, "Acquisition"),
        "philips_suv": _private(dataset, _PHILIPS_SUV),
        "philips_bqml": _private(dataset, _PHILIPS_BQML),
    }


def suv_factor(facts: Sequence[dict[str, Any] | None]) -> float:
    """Return what rescaled PET values are multiplied by to become SUVbw (g/ml).

    Args:
        facts: `InstanceHeader.pet` of every slice of one series.

    Raises:
        DataError: `suv_not_computable`.
    """
    known = [item for item in facts if item]
    if len(known) != len(facts) or not known:
        raise DataError("suv_not_computable", "a slice is no PET slice")
    first = known[0]
    units = first["units"]
    if any(item["units"] != units for item in known):
        raise DataError("suv_not_computable", "slices differ in their units")
    if units == "GML":
        return 1.0
    if units == "CNTS":
        if first["philips_suv"]:
            return float(first["philips_suv"])
        if not first["philips_bqml"]:
            raise DataError("suv_not_computable", "counts without a scale factor")
        return float(first["philips_bqml"]) * _body_weight_factor(known)
    if units == "BQML":
        return _body_weight_factor(known)
    raise DataError("suv_not_computable", "units are neither BQML, CNTS nor GML")


def _body_weight_factor(facts: Sequence[dict[str, Any]]) -> float:
    """Return grams of body weight over the dose at the time that activities refer to."""
    first = facts[0]
    for name in ("weight_kg", "dose_bq"):
        if not first[name]:
            raise DataError("suv_not_computable", f"{name} is missing or zero")
    dose_bq = float(first["dose_bq"])
    decay = first["decay"]
    if decay not in {"START", "ADMIN"}:
        raise DataError("suv_not_computable", "DecayCorrection is neither START nor ADMIN")
    if decay == "START":
        if not first["half_life_s"]:
            raise DataError("suv_not_computable", "half_life_s is missing or zero")
        dose_bq *= 2.0 ** (-_uptake_s(facts) / float(first["half_life_s"]))
    return float(first["weight_kg"]) * 1000.0 / dose_bq


def _uptake_s(facts: Sequence[dict[str, Any]]) -> float:
    """Return seconds from injection to the scan: series time unless it is after the first slice."""
    acquisitions = [item["acquisition_s"] for item in facts if item["acquisition_s"] is not None]
    series_s = facts[0]["series_s"]
    if series_s is None and len(acquisitions) < len(facts):
        raise DataError("suv_not_computable", "a time of injection or scan is missing")
    earliest = min(acquisitions) if acquisitions else None
    uptake: float = series_s if series_s is not None else earliest  # type: ignore[assignment]
    if earliest is not None and uptake > earliest:
        uptake = earliest
    if not 0 <= uptake <= _MAX_UPTAKE_S:
        raise DataError("suv_not_computable", "the scan does not follow the injection")
    return float(uptake)


def _after(injected: float | None, dataset: Dataset, event: str) -> float | None:
    """Return seconds from the injection to the event; an event past midnight is the next day's."""
    when = _joined(
        text(dataset, f"{event}Date") or text(dataset, "SeriesDate"), text(dataset, f"{event}Time")
    )
    if injected is None or when is None:
        return None
    seconds = when - injected
    # Without a date of its own the injection was given the scan's: then it was the day before.
    return seconds + _DAY_S if -_DAY_S < seconds < 0 else seconds


def _private(dataset: Dataset, tag: tuple[int, int]) -> float | None:
    """Return a factor of a maker's own tag; what is no positive number is absent."""
    if tag not in dataset:
        return None
    value = dataset[tag].value
    try:
        factor = float(value.decode("ascii") if isinstance(value, bytes) else value)
    except (TypeError, ValueError):
        return None
    return factor if math.isfinite(factor) and factor > 0 else None


def _moment(dataset: Dataset, keyword: str) -> float | None:
    value = text(dataset, keyword)
    return _joined(value[:8], value[8:]) if len(value) >= 14 else None


def _joined(date: str, clock: str) -> float | None:
    """Return seconds of a DICOM date (YYYYMMDD) and time (HHMMSS.FFFFFF); None if either is odd."""
    digits = clock.split("+", maxsplit=1)[0].split("-", maxsplit=1)[0]
    if len(date) != 8 or not date.isdigit() or len(digits) < 6 or not digits[:6].isdigit():
        return None
    try:
        day = _ordinal(int(date[:4]), int(date[4:6]), int(date[6:8]))
        fraction = float("0" + digits[6:]) if digits[6:] else 0.0
    except ValueError:
        return None
    return (
        day * _DAY_S + int(digits[:2]) * 3600 + int(digits[2:4]) * 60 + int(digits[4:6]) + fraction
    )


def _ordinal(year: int, month: int, day: int) -> int:
    from datetime import date

    return date(year, month, day).toordinal()
