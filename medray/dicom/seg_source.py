"""The source of a segmentation: which instances lie where, read from their headers alone."""

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset

from medray.dicom.dataset import MAX_INFLATED_HEADER_BYTES, open_dataset, text
from medray.dicom.geometry import StackGeometry, direction_cosines, stack_geometry
from medray.dicom.header import HEADER_TAGS, InstanceHeader, parse_header
from medray.dicom.seg_study import MOMENT_KEYWORDS, STUDY_KEYWORDS, clean_uid
from medray.errors import DataError

_EQUIPMENT_KEYWORDS = (
    "Manufacturer", "ManufacturerModelName", "DeviceSerialNumber", "SoftwareVersions",
    "InstitutionName", "StationName",
)  # fmt: skip
SOURCE_TAGS: tuple[str | int, ...] = tuple(
    dict.fromkeys(
        (*HEADER_TAGS, *STUDY_KEYWORDS, *MOMENT_KEYWORDS, *_EQUIPMENT_KEYWORDS,
         "SpecificCharacterSet", "SeriesNumber", "SliceThickness", "PositionReferenceIndicator",
         "LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")
    )
)  # fmt: skip
_COSINE_TOLERANCE = 1e-3
_SPACING_TOLERANCE = 1e-4
# Rounding of decimal text; beyond it the source's cosines are no right angle (0.004 mm at the edge
# of a large field) and the exact ones, which the volume's affine has, are written instead.
_ROUNDED_COSINE = 1e-5
_CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSlice:
    """One source slice: which instance it is, or which frame of it.

    Attributes:
        sop_class_uid, sop_uid: of the instance.
        frame_number: of a multi-frame instance, from 1; None where it has one frame only.
    """

    sop_class_uid: str
    sop_uid: str
    frame_number: int | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SegSource:
    """The slices that a mask belongs to, in the order of the volume.

    Attributes:
        header: of the first slice, where patient, study and equipment are taken from.
        slices: ascending along the normal.
        positions_mm: (n, 3) centre of each slice's first pixel, LPS.
        orientation: direction cosines of a row, then of a column.
        geometry: of the stack; its affine is that of the volume before it is straightened (see
            `mask_affine_lps`).
        rows, columns: of a source slice.
        study_uid, series_uid, frame_of_reference_uid: of the source.
        is_identified: False where the source names itself not at all or in part only, so that
            some of the UIDs are derived from its content and lead a viewer nowhere.
    """

    header: Dataset
    slices: tuple[SourceSlice, ...]
    positions_mm: np.ndarray
    orientation: tuple[float, ...]
    geometry: StackGeometry
    rows: int
    columns: int
    study_uid: str
    series_uid: str
    frame_of_reference_uid: str
    is_identified: bool

    @property
    def mask_offset_yx_px(self) -> np.ndarray:
        """(n, 2) int: where each source slice's first pixel lies on the grid of the mask.

        Zeros but for a tilted gantry: there the volume was straightened, which moved each slice
        in its plane, and this is the nearest voxel to its first pixel.
        """
        shift = self.geometry.shift_yx_px
        if not self.geometry.is_tilted:
            return np.zeros((len(self.slices), 2), dtype=np.int64)
        return np.asarray(np.floor(shift - _low_corner(shift) + 0.5), dtype=np.int64)

    @property
    def mask_affine_lps(self) -> np.ndarray:
        """(4, 4) of the volume's grid, the straight one where the gantry was tilted."""
        affine = self.geometry.affine_lps.copy()
        if self.geometry.is_tilted:
            affine[:3, 3] += affine[:3, 1:3] @ _low_corner(self.geometry.shift_yx_px)
        return affine

    @property
    def mask_shape_zyx(self) -> tuple[int, int, int]:
        """Shape of the volume, which is wider than the slices where the gantry was tilted."""
        if not self.geometry.is_tilted:
            return len(self.slices), self.rows, self.columns
        shift = self.geometry.shift_yx_px
        more = np.ceil(np.maximum(shift.max(axis=0), 0)) - _low_corner(shift)
        return len(self.slices), self.rows + int(more[0]), self.columns + int(more[1])


def _low_corner(shift: np.ndarray) -> np.ndarray:
    """Return how far the straight grid reaches below the first slice's corner, in pixels."""
    return np.asarray(np.floor(np.minimum(shift.min(axis=0), 0)))


def source_header(data: bytes) -> Dataset:
    """Return what a segmentation needs of a source instance's header, without its pixels.

    Args:
        data: bytes of the file, at least up to its pixel element.

    Raises:
        DataError: `empty_file`, `not_dicom`, `truncated`, `bomb_suspected`, `nesting_too_deep`,
            `too_large` or `unreadable`.
    """
    header, _ = open_dataset(
        io.BytesIO(data),
        stop_before_pixels=True,
        tags=SOURCE_TAGS,
        max_inflated_bytes=MAX_INFLATED_HEADER_BYTES,
    )
    return header


def seg_source(headers: Sequence[Dataset]) -> SegSource:
    """Return the slices of one stack, ordered as its volume is.

    Args:
        headers: of all instances of the stack (see `source_header`), in the order in which the
            volume's loader got them; one multi-frame instance, or single-frame ones. Copies of
            one instance are fine.

    Raises:
        DataError: `no_geometry` where no segmentation can be placed, and what is wrong with a
            stack that is no volume (see `stack_geometry`).
    """
    try:
        return _source(headers)
    except DataError:
        raise
    except Exception as error:  # noqa: BLE001 - hostile headers raise anything when converted
        raise DataError("unreadable", f"a header fails with {type(error).__name__}") from None


def _source(headers: Sequence[Dataset]) -> SegSource:
    found = _unique(headers)
    if not found:
        raise DataError("no_geometry", "there is no source slice")
    facts = [parsed for _, parsed in found]
    if len(found) > 1 and any(parsed.num_frames > 1 for parsed in facts):
        raise DataError("no_geometry", "the source is more than one multi-frame object")
    if any(len(parsed.planes) != parsed.num_frames for parsed in facts):
        raise DataError("no_geometry", "a multi-frame object gives its frames no positions")
    planes = [plane for parsed in facts for plane in parsed.planes]
    geometry = stack_geometry(planes)
    _check_alike(facts)
    order, frame_of_reference_uid = geometry.order, _frame_of_reference([item for item, _ in found])
    unordered = [item for header, parsed in found for item in _slices_of(header, parsed)]
    slices = [unordered[index] for index in order]
    positions = [planes[index].position_mm for index in order]
    known = json.dumps([frame_of_reference_uid, positions, [item.sop_uid for item in slices]])
    first = found[order[0] if len(found) > 1 else 0][0]
    study_uid, series_uid = (
        clean_uid(text(first, name)) for name in ("StudyInstanceUID", "SeriesInstanceUID")
    )
    is_named = all(item.sop_uid and item.sop_class_uid for item in slices)
    return SegSource(
        header=first,
        slices=tuple(_named(item, known, place) for place, item in enumerate(slices)),
        positions_mm=np.array(positions, dtype=np.float64),
        orientation=_orientation(planes[0].orientation or ()),
        geometry=geometry,
        rows=facts[0].rows,
        columns=facts[0].columns,
        study_uid=study_uid or derived_uid("study", known),
        series_uid=series_uid or derived_uid("series", known),
        frame_of_reference_uid=frame_of_reference_uid,
        is_identified=bool(study_uid and series_uid and is_named),
    )


def derived_uid(*parts: str) -> str:
    """Return a UID made from texts: `2.25.` and 128 bits of their hash (PS3.5 B.2)."""
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    return f"2.25.{int.from_bytes(digest[:16], 'big')}"


def _unique(headers: Sequence[Dataset]) -> list[tuple[Dataset, InstanceHeader]]:
    """Parse headers; of copies of one instance keep one, told apart as `StackReader` does it."""
    found: dict[str, tuple[Dataset, InstanceHeader]] = {}
    for header in headers:
        parsed = parse_header(header, has_pixels=True)
        name = parsed.sop_uid or repr(parsed.planes[0].position_mm)
        found.setdefault(name, (header, parsed))
    return list(found.values())


def _check_alike(facts: Sequence[InstanceHeader]) -> None:
    """Refuse slices that cannot be frames of one object.

    Raises:
        DataError: `mixed_size`, `mixed_orientation` or `no_geometry`.
    """
    first, head = facts[0], facts[0].planes[0]
    if any((item.rows, item.columns) != (first.rows, first.columns) for item in facts):
        raise DataError("mixed_size", "slices of the source have different matrices")
    for plane in (plane for item in facts for plane in item.planes):
        if not _close(plane.orientation, head.orientation, _COSINE_TOLERANCE):
            raise DataError("mixed_orientation", "slices of the source are turned to one another")
        if not _close(plane.spacing_yx_mm, head.spacing_yx_mm, _SPACING_TOLERANCE):
            raise DataError("mixed_size", "slices of the source have different pixels")


def _close(a: Sequence[float] | None, b: Sequence[float] | None, tolerance: float) -> bool:
    if a is None or b is None:
        return a is b
    return all(abs(x - y) <= tolerance for x, y in zip(a, b, strict=True))


def _frame_of_reference(headers: Sequence[Dataset]) -> str:
    found = {clean_uid(text(header, "FrameOfReferenceUID")) for header in headers}
    if "" in found:
        raise DataError("no_geometry", "the source has no frame of reference")
    if len(found) > 1:
        raise DataError("no_geometry", "slices of the source have different frames of reference")
    return found.pop()


def _slices_of(header: Dataset, parsed: InstanceHeader) -> list[SourceSlice]:
    """Return the slices of one instance; a UID that the data set lacks may be in group 0002."""
    meta = getattr(header, "file_meta", None) or Dataset()
    sop_class = clean_uid(parsed.sop_class_uid) or clean_uid(text(meta, "MediaStorageSOPClassUID"))
    sop_uid = clean_uid(parsed.sop_uid) or clean_uid(text(meta, "MediaStorageSOPInstanceUID"))
    numbers: list[int | None] = [None]
    if parsed.num_frames > 1:
        numbers = [*range(1, parsed.num_frames + 1)]
    return [
        SourceSlice(sop_class_uid=sop_class, sop_uid=sop_uid, frame_number=number)
        for number in numbers
    ]


def _named(item: SourceSlice, known: str, place: int) -> SourceSlice:
    """Give a slice without a UID one that is derived from the source and its place in it."""
    number = str(0 if item.frame_number is not None else place)
    return SourceSlice(
        sop_class_uid=item.sop_class_uid or _CT_IMAGE,
        sop_uid=item.sop_uid or derived_uid("instance", known, number),
        frame_number=item.frame_number,
    )


def _orientation(stored: Sequence[float]) -> tuple[float, ...]:
    exact = np.concatenate(direction_cosines(stored))
    if np.abs(exact - stored).max() <= _ROUNDED_COSINE:
        return tuple(stored)
    return tuple(float(value) for value in exact)
