"""The facts of one DICOM instance that medray works with, read without touching its pixels.

Every number is finite and in range before it leaves this module: `nan`, `inf` and 1e308 are legal
text in DICOM and are `bad_tag_value` here (docs/DESIGN section 9).
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import UID

from medray.dicom.dataset import number, numbers, text, whole
from medray.dicom.pet import pet_facts
from medray.errors import DataError

# Rows and Columns are 16 bit in DICOM; frames beyond this are no clinical object.
_MAX_FRAMES = 100_000
_MAX_MM = 1e5  # 100 m: no scanner's coordinate system reaches further
_MAX_SPACING_MM = 100.0
_MAX_RESCALE = 1e9
_COSINE_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Plane:
    """Where one frame lies and how its stored values become modality values.

    Attributes:
        position_mm: centre of the first pixel, LPS mm; None where the file does not say.
        orientation: direction cosines of a row, then of a column.
        spacing_yx_mm: distance between rows, then between columns.
        slope, intercept: Modality LUT (rescale) of this frame.
    """

    position_mm: tuple[float, float, float] | None = None
    orientation: tuple[float, ...] | None = None
    spacing_yx_mm: tuple[float, float] | None = None
    slope: float = 1.0
    intercept: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceHeader:
    """What is known of one instance; plain values only, so that it travels as JSON."""

    transfer_syntax_uid: str
    sop_class_uid: str
    sop_uid: str
    study_uid: str
    series_uid: str
    patient_id: str
    modality: str
    image_type: str
    rows: int
    columns: int
    num_frames: int
    samples_per_pixel: int
    bits_allocated: int
    bits_stored: int
    signed: bool
    photometric: str
    has_pixels: bool
    instance_number: int | None
    acquisition: str
    echo: str
    planes: tuple[Plane, ...]
    tilt_deg: float = 0.0
    padding_value: int | None = None
    padding_limit: int | None = None
    window_center: tuple[float, ...] = ()
    window_width: tuple[float, ...] = ()
    voi_function: str = ""
    laterality: str = ""
    view: str = ""
    contrast: bool = False
    num_in_acquisition: int | None = None
    pet: dict[str, Any] | None = None

    @property
    def pixel_layout(self) -> str:
        """`mono`, `rgb` or `palette`, told from the pixels' description, never from Modality."""
        if self.photometric == "PALETTE COLOR":
            return "palette"
        return "rgb" if self.samples_per_pixel == 3 else "mono"

    @property
    def native_bytes(self) -> int:
        """Size of the decoded pixels as the header declares it."""
        bytes_each = max(1, (self.bits_allocated + 7) // 8)
        return self.rows * self.columns * self.num_frames * self.samples_per_pixel * bytes_each

    def to_json(self) -> str:
        """Return a canonical JSON text."""
        # Not asdict: its deep copies cost more than all the rest of an index row.
        plain = {name: getattr(self, name) for name in HEADER_FIELDS}
        plain["planes"] = [{name: getattr(p, name) for name in _PLANE_FIELDS} for p in self.planes]
        return json.dumps(plain, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, value: str) -> "InstanceHeader":
        """Return the header that `to_json` wrote."""
        raw = json.loads(value)
        planes = tuple(Plane(**_with_tuples(plane)) for plane in raw.pop("planes"))
        return cls(planes=planes, **_with_tuples(raw))


def _with_tuples(raw: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(v) if isinstance(v, list) else v for name, v in raw.items()}


HEADER_TAGS: tuple[str | int, ...] = (
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "PatientID",
    "Modality", "ImageType", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel",
    "BitsAllocated", "BitsStored", "PixelRepresentation", "PhotometricInterpretation",
    "InstanceNumber", "AcquisitionNumber", "EchoNumbers", "EchoTime", "ImagePositionPatient",
    "ImageOrientationPatient", "PixelSpacing", "ImagerPixelSpacing", "RescaleSlope",
    "RescaleIntercept", "GantryDetectorTilt", "PixelPaddingValue", "PixelPaddingRangeLimit",
    "WindowCenter", "WindowWidth", "VOILUTFunction", "ImageLaterality", "Laterality",
    "ViewPosition", "ContrastBolusAgent", "ImagesInAcquisition",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
    "SeriesTime", "SeriesDate", "AcquisitionTime", "AcquisitionDate", "Units",
    "DecayCorrection", "PatientWeight", "RadiopharmaceuticalInformationSequence",
    "FrameOfReferenceUID", "ModalityLUTSequence",
    0x70531000, 0x70531009,  # Philips: SUV and activity factors of PET counts
)  # fmt: skip


def parse_header(dataset: Dataset, *, has_pixels: bool) -> InstanceHeader:
    """Read the facts of one instance.

    Raises:
        DataError: `bad_tag_value` for a number that is not finite, out of range or malformed.
    """
    frames = whole(dataset, "NumberOfFrames", low=1, high=_MAX_FRAMES, default=1)
    assert frames is not None
    return InstanceHeader(
        transfer_syntax_uid=_transfer_syntax(dataset),
        sop_class_uid=text(dataset, "SOPClassUID"),
        sop_uid=text(dataset, "SOPInstanceUID"),
        study_uid=text(dataset, "StudyInstanceUID"),
        series_uid=text(dataset, "SeriesInstanceUID"),
        patient_id=text(dataset, "PatientID"),
        modality=text(dataset, "Modality"),
        image_type=text(dataset, "ImageType"),
        rows=whole(dataset, "Rows", low=1, high=65535, default=0) or 0,
        columns=whole(dataset, "Columns", low=1, high=65535, default=0) or 0,
        num_frames=frames,
        samples_per_pixel=whole(dataset, "SamplesPerPixel", low=1, high=4, default=1) or 1,
        bits_allocated=whole(dataset, "BitsAllocated", low=1, high=64, default=0) or 0,
        bits_stored=whole(dataset, "BitsStored", low=1, high=64, default=0) or 0,
        signed=bool(whole(dataset, "PixelRepresentation", low=0, high=1, default=0)),
        photometric=text(dataset, "PhotometricInterpretation"),
        has_pixels=has_pixels,
        instance_number=_instance_number(dataset),
        acquisition=text(dataset, "AcquisitionNumber"),
        echo=text(dataset, "EchoNumbers") or text(dataset, "EchoTime"),
        planes=_planes(dataset, frames),
        **_display_facts(dataset),
    )


def _display_facts(dataset: Dataset) -> dict[str, Any]:
    """Read what display, padding and the tasks need beyond identity and geometry."""
    tilt = number(dataset, "GantryDetectorTilt", low=-90, high=90)
    return {
        "tilt_deg": tilt or 0.0,
        "padding_value": _padding(dataset, "PixelPaddingValue"),
        "padding_limit": _padding(dataset, "PixelPaddingRangeLimit"),
        "window_center": numbers(dataset, "WindowCenter", limit=_MAX_RESCALE) or (),
        "window_width": numbers(dataset, "WindowWidth", limit=_MAX_RESCALE) or (),
        "voi_function": text(dataset, "VOILUTFunction"),
        "laterality": text(dataset, "ImageLaterality") or text(dataset, "Laterality"),
        "view": text(dataset, "ViewPosition"),
        "contrast": bool(text(dataset, "ContrastBolusAgent")),
        "num_in_acquisition": whole(dataset, "ImagesInAcquisition", low=0, high=10**6),
        "pet": pet_facts(dataset) if text(dataset, "Modality") == "PT" else None,
    }


def _padding(dataset: Dataset, keyword: str) -> int | None:
    """Read a padding value; one that is written as bytes of another VR is left alone."""
    try:
        return whole(dataset, keyword, low=-(2**31), high=2**32)
    except DataError:
        return None


def _instance_number(dataset: Dataset) -> int | None:
    """Read InstanceNumber; it only orders what has no position, so nonsense is absence."""
    try:
        return whole(dataset, "InstanceNumber", low=-(2**31), high=2**31)
    except DataError:
        return None


def _transfer_syntax(dataset: Dataset) -> str:
    meta = getattr(dataset, "file_meta", None)
    value = meta.get("TransferSyntaxUID") if meta is not None else None
    return str(UID(str(value))) if value else ""


def _planes(dataset: Dataset, num_frames: int) -> tuple[Plane, ...]:
    """Return one plane per frame where functional groups say so, else one for the instance."""
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence")
    shared_items = dataset.get("SharedFunctionalGroupsSequence")
    if not per_frame and not shared_items:
        return (_plane(dataset, dataset, dataset),)
    shared = shared_items[0] if shared_items else Dataset()
    if per_frame and len(per_frame) != num_frames:
        raise DataError("bad_tag_value", "the functional groups and NumberOfFrames disagree")
    groups: Sequence[Dataset] = per_frame or [Dataset()] * num_frames
    return tuple(_group_plane(group, shared, dataset) for group in groups)


def _group_plane(group: Dataset, shared: Dataset, root: Dataset) -> Plane:
    """Read the plane of one frame; the frame's own group wins over the shared one."""

    def first(keyword: str) -> Dataset:
        for holder in (group, shared):
            items = holder.get(keyword)
            if items:
                found: Dataset = items[0]
                return found
        return root

    place, measures = first("PlanePositionSequence"), first("PixelMeasuresSequence")
    turned, value = first("PlaneOrientationSequence"), first("PixelValueTransformationSequence")
    merged = Dataset()
    for holder, keyword in (
        (place, "ImagePositionPatient"),
        (turned, "ImageOrientationPatient"),
    ):
        if keyword in holder:
            merged[keyword] = holder[keyword]
    return _plane(merged, measures, value)


def _plane(place: Dataset, measures: Dataset, value: Dataset) -> Plane:
    position = numbers(place, "ImagePositionPatient", limit=_MAX_MM, count=3)
    orientation = numbers(place, "ImageOrientationPatient", limit=1.01, count=6)
    if orientation is not None:
        _check_cosines(orientation)
    spacing = numbers(measures, "PixelSpacing", limit=_MAX_SPACING_MM, count=2)
    if spacing is None:
        spacing = numbers(measures, "ImagerPixelSpacing", limit=_MAX_SPACING_MM, count=2)
    if spacing is not None and min(spacing) <= 0:
        raise DataError("bad_tag_value", "PixelSpacing is not positive")
    slope = number(value, "RescaleSlope", low=-_MAX_RESCALE, high=_MAX_RESCALE)
    if slope == 0:
        raise DataError("bad_tag_value", "RescaleSlope is zero")
    intercept = number(value, "RescaleIntercept", low=-_MAX_RESCALE, high=_MAX_RESCALE)
    return Plane(
        position_mm=None if position is None else (position[0], position[1], position[2]),
        orientation=orientation,
        spacing_yx_mm=None if spacing is None else (spacing[0], spacing[1]),
        slope=1.0 if slope is None else slope,
        intercept=0.0 if intercept is None else intercept,
    )


def _check_cosines(orientation: tuple[float, ...]) -> None:
    """Refuse direction cosines that are not unit and orthogonal (PS3.3 C.7.6.2.1.1)."""
    row, column = orientation[:3], orientation[3:]
    lengths = (math.hypot(*row), math.hypot(*column))
    dot = sum(a * b for a, b in zip(row, column, strict=True))
    if max(abs(lengths[0] - 1), abs(lengths[1] - 1), abs(dot)) > _COSINE_TOLERANCE:
        raise DataError("bad_tag_value", "ImageOrientationPatient is not orthonormal")


HEADER_FIELDS: tuple[str, ...] = tuple(field.name for field in fields(InstanceHeader))
_PLANE_FIELDS: tuple[str, ...] = tuple(field.name for field in fields(Plane))
