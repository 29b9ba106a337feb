"""Patient and study of a source, cleaned for a new object: what is legal stays, the rest goes.

Headers of the wild hold dates that are none, names in undeclared character sets and texts that are
too long. A new object must be legal, and must file where its source does, so values are decoded
and checked one by one; only those that no legal value stands for are left out.
"""

import re
from collections.abc import Callable, Iterable
from datetime import date

from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence as ItemSequence
from pydicom.tag import BaseTag

from medray.dicom.dataset import text

# Patient, General Study, Patient Study and Clinical Trial modules (PS3.3 C.7.1, C.7.2).
STUDY_KEYWORDS: tuple[str, ...] = (
    "PatientName", "PatientID", "IssuerOfPatientID", "TypeOfPatientID",
    "IssuerOfPatientIDQualifiersSequence", "PatientBirthDate", "PatientBirthTime", "PatientSex",
    "QualityControlSubject", "OtherPatientNames", "OtherPatientIDsSequence",
    "EthnicGroupCodeSequence", "PatientSpeciesDescription", "PatientSpeciesCodeSequence",
    "PatientBreedDescription", "PatientBreedCodeSequence", "ResponsiblePerson",
    "ResponsiblePersonRole", "ResponsibleOrganization", "PatientComments",
    "PatientIdentityRemoved", "DeidentificationMethod", "DeidentificationMethodCodeSequence",
    "StudyInstanceUID", "StudyDate", "StudyTime", "AccessionNumber",
    "IssuerOfAccessionNumberSequence", "ReferringPhysicianName", "ConsultingPhysicianName",
    "StudyDescription", "ProcedureCodeSequence", "PhysiciansOfRecord",
    "NameOfPhysiciansReadingStudy", "ReferencedStudySequence", "StudyID", "RequestingService",
    "AdmittingDiagnosesDescription", "AdmittingDiagnosesCodeSequence", "PatientAge",
    "PatientSize", "PatientWeight", "MedicalAlerts", "Allergies", "Occupation", "SmokingStatus",
    "AdditionalPatientHistory", "PregnancyStatus", "LastMenstrualDate", "PatientSexNeutered",
    "ReasonForVisit", "AdmissionID", "IssuerOfAdmissionIDSequence", "ServiceEpisodeID",
    "PatientState", "ClinicalTrialSponsorName", "ClinicalTrialProtocolID",
    "ClinicalTrialProtocolName", "ClinicalTrialSiteID", "ClinicalTrialSiteName",
    "ClinicalTrialSubjectID", "ClinicalTrialSubjectReadingID", "ClinicalTrialTimePointID",
    "ClinicalTrialTimePointDescription",
)  # fmt: skip
# Type 2: there, be it without a value.
_REQUIRED = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime",
    "AccessionNumber", "ReferringPhysicianName", "StudyID",
)  # fmt: skip
_MOMENTS = ("Content", "Acquisition", "Series", "Study")
MOMENT_KEYWORDS: tuple[str, ...] = tuple(
    f"{name}{part}" for name in _MOMENTS for part in ("Date", "Time")
)
# Content Date and Time may not be empty; a source without any date gets one that nobody believes.
_NO_MOMENT = ("19000101", "000000")
_MAX_DEPTH = 4
_MAX_ITEMS = 64
_MAX_ELEMENTS = 64
_MAX_UID_CHARS = 64
_SEXES = frozenset({"M", "F", "O"})
_DATE = re.compile(r"(\d{4})[.]?(\d{2})[.]?(\d{2})")
_TIME = re.compile(r"([01]\d|2[0-3])(?::?([0-5]\d)(?::?([0-5]\d)(\.\d{1,6})?)?)?")
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_CODE = re.compile(r"[A-Z0-9 _]{1,16}")
_DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_AGE = re.compile(r"\d{3}[DWMY]")


def study_of(header: Dataset) -> Dataset:
    """Return the patient and study modules of a source; text is str, meant for UTF-8.

    Args:
        header: of a source instance, as `source_header` reads it.
    """
    kept = clean_dataset(header, [tag_for_keyword(keyword) or 0 for keyword in STUDY_KEYWORDS])
    if kept.get("PatientSex", "") not in _SEXES:
        kept.PatientSex = ""
    for keyword in _REQUIRED:
        if keyword not in kept:
            setattr(kept, keyword, "")
    return kept


def content_moment(header: Dataset) -> tuple[str, str]:
    """Return date and time that stand for a source, as DICOM writes them; never the clock's."""
    for name in _MOMENTS:
        day = clean_date(text(header, f"{name}Date"))
        if day:
            return day, clean_time(text(header, f"{name}Time")) or _NO_MOMENT[1]
    return _NO_MOMENT


def clean_dataset(dataset: Dataset, tags: Iterable[int], depth: int = 0) -> Dataset:
    """Return a data set of the legal values among some of its tags, decoded and re-checked."""
    kept = Dataset()
    for tag in tags:
        element = _clean_element(dataset, BaseTag(tag), depth) if tag in dataset else None
        if element is not None:
            kept[element.tag] = element
    return kept


def _clean_element(dataset: Dataset, tag: BaseTag, depth: int) -> DataElement | None:
    try:
        if tag.is_private:
            return None
        vr, value = dictionary_VR(tag), dataset[tag].value
        if vr == "SQ":
            return _clean_sequence(tag, value, depth)
        many = list(value) if isinstance(value, (list, MultiValue)) else [value]
        found = [_CLEANERS[vr](str(item).strip("\0 ")) for item in many[:_MAX_ITEMS]]
    except Exception:  # noqa: BLE001 - a foreign value raises anything; it is left out
        return None
    if not any(found):
        return None
    return DataElement(tag, vr, found if len(found) > 1 else found[0])


def _clean_sequence(tag: BaseTag, value: object, depth: int) -> DataElement | None:
    if not isinstance(value, ItemSequence) or depth >= _MAX_DEPTH:
        return None
    found = [
        clean_dataset(item, sorted(item.keys())[:_MAX_ELEMENTS], depth + 1)
        for item in value[:_MAX_ITEMS]
    ]
    found = [item for item in found if len(item)]
    return DataElement(tag, "SQ", ItemSequence(found)) if found else None


def clean_text(value: str, max_chars: int) -> str:
    """Return one line of printable text of at most so many characters, no backslash."""
    printable = "".join(c if c.isprintable() and c != "\\" else " " for c in value)
    return printable.strip()[:max_chars].strip()


def clean_date(value: str) -> str:
    """Return a date as YYYYMMDD, "" where it is none."""
    found = _DATE.fullmatch(value)
    try:
        return f"{date(*map(int, found.groups())):%Y%m%d}".zfill(8) if found else ""
    except ValueError:
        return ""


def clean_time(value: str) -> str:
    """Return a time as HH[MM[SS[.F]]], "" where it is none."""
    found = _TIME.fullmatch(value)
    return "".join(part or "" for part in found.groups()) if found else ""


def clean_uid(value: str) -> str:
    """Return a UID, "" where it is none; leading zeros are left, since references must match."""
    return value if len(value) <= _MAX_UID_CHARS and _UID.fullmatch(value) else ""


def _paragraph(max_chars: int) -> Callable[[str], str]:
    def clean(value: str) -> str:
        lines = "".join(c if c.isprintable() or c in "\r\n\t" else " " for c in value)
        return lines[:max_chars].rstrip()

    return clean


def _line(max_chars: int) -> Callable[[str], str]:
    return lambda value: clean_text(value, max_chars)


def _name(value: str) -> str:
    return "=".join(clean_text(group, 64) for group in value.split("=")[:3])


def _code(value: str) -> str:
    upper = value.upper()
    return upper if _CODE.fullmatch(upper) else ""


def _decimal(value: str) -> str:
    return value if len(value) <= 16 and _DECIMAL.fullmatch(value) else ""


def _whole(value: str) -> str:
    return str(int(value)) if -(2**31) <= int(value) < 2**31 else ""


def _short(value: str) -> int | None:
    return int(value) if 0 <= int(value) < 2**16 else None


def _age(value: str) -> str:
    return value if _AGE.fullmatch(value) else ""


_CLEANERS: dict[str, Callable[[str], str | int | None]] = {
    "AS": _age, "CS": _code, "DA": clean_date, "DS": _decimal, "IS": _whole, "LO": _line(64),
    "LT": _paragraph(10240), "PN": _name, "SH": _line(16), "ST": _paragraph(1024),
    "TM": clean_time, "UC": _line(10240), "UI": clean_uid, "US": _short, "UT": _paragraph(10240),
}  # fmt: skip
