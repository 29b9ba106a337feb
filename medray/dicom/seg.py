"""A mask as a DICOM Segmentation (PS3.3 A.51) of its source series, written by highdicom.

One frame a slice that holds a voxel, each on the plane of its source slice and referring to it.
A mask without a voxel gives every slice an empty frame: the answer is that nothing was found on
any of them, and an object without frames would not be legal.

Gantry tilt: the volume was straightened, the slices were not. The mask is brought back to the
slices as they were acquired, by the nearest voxel, so that here too each frame is a source slice
pixel by pixel and lies on it in every viewer; frames on the straight grid would lie between the
source's pixels, on matrices of another size, which viewers refuse to draw. Straightening moves
each slice by one constant in its plane, so nearest means cutting out a window: no voxel is
changed, each moves by half a pixel at most. What the straight grid has beyond the acquired slices
holds no image, and a voxel there has no slice to lie on.
"""

import hashlib
import io
import json
import re
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset

from medray.dicom.dataset import number, text, whole
from medray.dicom.seg_frames import decimal, encode_frames, pack_frames, references
from medray.dicom.seg_source import SegSource, derived_uid
from medray.dicom.seg_study import clean_date, clean_text, clean_time, content_moment, study_of
from medray.dicom.seg_terms import SCHEME, SegmentTerm
from medray.errors import DataError

MANUFACTURER = "medray"
_CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
_LO_CHARS, _CS_CHARS, _ST_CHARS = 64, 16, 1024
# Of a series' description, so that the notice's first sentence has room beside it.
_LABEL_CHARS = 38
# A series number that no scanner gives, so that the result sorts behind its source.
_SERIES_NUMBER_STEP = 1000
_MAX_SERIES_NUMBER = 10**6
# Any colour is better than none: some viewers draw a segment without one in black.
_RED_LAB = (53.2, 80.1, 67.2)


@dataclass(frozen=True, slots=True, kw_only=True)
class SegFacts:
    """What a segmentation says of how it came about.

    Attributes:
        term: what the segment is.
        algorithm: name of the model or task.
        algorithm_version: of the model.
        software_version: of medray.
        weights_sha256: of the model's weights.
        notice: that this is no medical device; shown in the series' description as far as its 64
            characters go, whole in the comments and with the segment.
        run_id: names the run that made it.
        source_sha256: over the hashes of the source's files.
    """

    term: SegmentTerm
    algorithm: str
    algorithm_version: str
    software_version: str
    weights_sha256: str
    notice: str
    run_id: str = ""
    source_sha256: str = ""


def write_seg(mask: np.ndarray, source: SegSource, facts: SegFacts) -> bytes:
    """Return a binary segmentation as the bytes of a DICOM file; equal input gives equal bytes.

    Args:
        mask: (depth, height, width) bool or uint8 of 0 and 1 on the grid of the volume, which is
            the straight one where the gantry was tilted.
        source: the slices of that volume.
        facts: what the object says of itself.

    Raises:
        DataError: `model_output_invalid` for a mask of another shape or with other values, and
            `too_large`.
    """
    on_slices = mask_on_slices(mask, source)
    kept = np.flatnonzero(on_slices.any(axis=(1, 2)))
    if not len(kept):
        kept = np.arange(len(on_slices))
    shell = _shell(source, facts)
    _set_identity(shell, source, _digest(on_slices, source, facts, kept))
    _set_study(shell, source)
    _set_series(shell, source, facts)
    _set_frames(shell, source, kept)
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, shell, enforce_file_format=True)
    buffer.write(encode_frames(on_slices, source, kept))
    return buffer.getvalue()


def mask_on_slices(mask: np.ndarray, source: SegSource) -> np.ndarray:
    """Return a (n, rows, columns) mask on the slices as they were acquired.

    Raises:
        DataError: `model_output_invalid`.
    """
    if mask.shape != source.mask_shape_zyx:
        raise DataError("model_output_invalid", "the mask has not the shape of its volume")
    if mask.dtype not in (np.bool_, np.uint8) or mask.max() > 1:
        raise DataError("model_output_invalid", "the mask has values other than 0 and 1")
    if not source.geometry.is_tilted:
        return mask
    out = np.empty((len(mask), source.rows, source.columns), dtype=mask.dtype)
    for k, (y, x) in enumerate(source.mask_offset_yx_px):
        out[k] = mask[k, y : y + source.rows, x : x + source.columns]
    return out


def _digest(mask: np.ndarray, source: SegSource, facts: SegFacts, kept: np.ndarray) -> str:
    """Return one hash of all that the object is made from."""
    import highdicom

    about = {
        "facts": asdict(facts),
        "source": [source.study_uid, source.series_uid, source.frame_of_reference_uid],
        "slices": [[item.sop_uid, item.frame_number] for item in source.slices],
        "kept": kept.tolist(),
        "written_by": [highdicom.__version__, pydicom.__version__],
    }
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    digest.update(pack_frames(mask, kept))
    return digest.hexdigest()


def _shell(source: SegSource, facts: SegFacts) -> Dataset:
    """Let highdicom make the object from one blank slice; patient, references and frames follow.

    It never sees the source's own header: it refuses what the wild holds, and logs names.
    """
    from highdicom.seg import Segmentation

    date, time = content_moment(source.header)
    return Segmentation(
        source_images=[_blank_slice(source)],
        pixel_array=np.zeros((1, source.rows, source.columns), dtype=np.uint8),
        segmentation_type="BINARY",
        segment_descriptions=[_segment(facts)],
        series_instance_uid="2.25.1",
        series_number=_series_number(source),
        sop_instance_uid="2.25.1",
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=clean_text(facts.algorithm, _LO_CHARS),
        software_versions=clean_text(facts.software_version, _LO_CHARS),
        device_serial_number=facts.weights_sha256[:16],
        content_label=_label(facts.term),
        content_description=_first_sentences(facts.notice, _LO_CHARS),
        content_date=date,
        content_time=time,
        specific_character_set="ISO_IR 192",
        omit_empty_frames=False,
        contributing_equipment=[_equipment(facts)],
    )


def _segment(facts: SegFacts) -> Any:
    """Return the description of the one segment, with the algorithm that found it."""
    import highdicom
    from highdicom.color import CIELabColor
    from highdicom.seg import SegmentDescription
    from pydicom.sr.codedict import codes

    term = facts.term
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=clean_text(facts.algorithm, _LO_CHARS),
        family=codes.DCM.ArtificialIntelligence,
        version=clean_text(facts.algorithm_version, _LO_CHARS),
        source=MANUFACTURER,
        parameters=_parameters(facts),
    )
    segment = SegmentDescription(
        segment_number=1,
        segment_label=clean_text(term.label, _LO_CHARS),
        segmented_property_category=_code(term.category),
        segmented_property_type=_code(term.kind),
        algorithm_type="AUTOMATIC",
        algorithm_identification=algorithm,
        anatomic_regions=None if term.region is None else [_code(term.region)],
        display_color=CIELabColor(*_RED_LAB),
    )
    segment.SegmentDescription = clean_text(facts.notice, _ST_CHARS)
    return segment


def _parameters(facts: SegFacts) -> dict[str, str]:
    """Return what identifies the run; highdicom joins them by commas and equals signs."""
    named = {
        "weights_sha256": facts.weights_sha256,
        "run_id": facts.run_id,
        "source_sha256": facts.source_sha256,
    }
    return {
        name: value.replace(",", ";").replace("=", ":") for name, value in named.items() if value
    }


def _code(pair: tuple[str, str]) -> Any:
    from pydicom.sr.coding import Code

    return Code(pair[0], SCHEME, pair[1])


def _label(term: SegmentTerm) -> str:
    """Return a content label: upper case letters, digits and underscores."""
    upper = "".join(c if c.isascii() and c.isalnum() else "_" for c in term.label.upper())
    return upper[:_CS_CHARS].strip("_") or "SEGMENTATION"


def _first_sentences(notice: str, max_chars: int) -> str:
    """Return as many whole sentences as fit; half a warning reads as another one."""
    kept = ""
    for sentence in re.split(r"(?<=[.!?]) ", clean_text(notice, _ST_CHARS)):
        if len(kept) + 1 + len(sentence) > max_chars:
            break
        kept = f"{kept} {sentence}".strip()
    return kept


def _equipment(facts: SegFacts) -> Any:
    import highdicom
    from pydicom.sr.codedict import codes

    return highdicom.ContributingEquipment(
        manufacturer=MANUFACTURER,
        purpose_of_reference=codes.DCM.ProcessingEquipment,
        manufacturer_model_name=clean_text(facts.algorithm, _LO_CHARS),
        software_versions=clean_text(facts.software_version, _LO_CHARS),
        device_serial_number=facts.weights_sha256[:16],
        contribution_description=clean_text(facts.notice, _ST_CHARS),
    )


def _blank_slice(source: SegSource) -> Dataset:
    """Return a CT slice that has the source's geometry and equipment and nothing else."""
    blank = Dataset()
    blank.SOPClassUID = _CT_IMAGE
    blank.SOPInstanceUID, blank.SeriesInstanceUID = "2.25.2", source.series_uid
    blank.StudyInstanceUID = source.study_uid
    blank.FrameOfReferenceUID = source.frame_of_reference_uid
    blank.PositionReferenceIndicator = clean_text(
        text(source.header, "PositionReferenceIndicator"), _LO_CHARS
    )
    blank.PatientName, blank.AccessionNumber, blank.StudyID = None, "", ""
    blank.PatientID, blank.PatientBirthDate, blank.PatientSex = "", "", ""
    blank.StudyDate, blank.StudyTime = None, None
    blank.Rows, blank.Columns = source.rows, source.columns
    depth_mm, row_mm, column_mm = source.geometry.spacing_zyx_mm
    blank.PixelSpacing = [decimal(row_mm), decimal(column_mm)]
    blank.SliceThickness = decimal(_thickness_mm(source.header) or depth_mm)
    blank.SpacingBetweenSlices = decimal(depth_mm)
    blank.ImageOrientationPatient = [decimal(value) for value in source.orientation]
    blank.ImagePositionPatient = [decimal(value) for value in source.positions_mm[0]]
    for keyword in ("Manufacturer", "ManufacturerModelName", "DeviceSerialNumber",
                    "SoftwareVersions", "InstitutionName"):  # fmt: skip
        value = clean_text(text(source.header, keyword), _LO_CHARS)
        if value:
            setattr(blank, keyword, value)
    return blank


def _thickness_mm(header: Dataset) -> float | None:
    try:
        return number(header, "SliceThickness", low=1e-3, high=1e3)
    except DataError:
        return None


def _series_number(source: SegSource) -> int:
    try:
        own = whole(source.header, "SeriesNumber", low=0, high=_MAX_SERIES_NUMBER, default=0)
    except DataError:
        own = 0
    return _SERIES_NUMBER_STEP + (own or 0)


def _set_identity(shell: Dataset, source: SegSource, digest: str) -> None:
    """Replace what is random or of the clock; name all source instances."""
    shell.preamble = bytes(128)
    shell.SOPInstanceUID = derived_uid("instance", digest)
    shell.file_meta.MediaStorageSOPInstanceUID = shell.SOPInstanceUID
    shell.SeriesInstanceUID = derived_uid("series", digest)
    dimensions = derived_uid("dimensions", digest)
    for item in (*shell.DimensionOrganizationSequence, *shell.DimensionIndexSequence):
        item.DimensionOrganizationUID = dimensions
    # When it was made is not known to an object that is the same whenever it is made.
    del shell.InstanceCreationDate, shell.InstanceCreationTime
    for item in shell.ContributingEquipmentSequence:
        item.pop("ContributionDateTime", None)
    instances = []
    for class_uid, uid in references(source):
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = class_uid, uid
        instances.append(item)
    del shell.SourceImageSequence  # the same list again
    shell.ReferencedSeriesSequence[0].ReferencedInstanceSequence = instances


def _set_study(shell: Dataset, source: SegSource) -> None:
    """File the object where its source is filed."""
    shell.update(study_of(source.header))
    shell.StudyInstanceUID = source.study_uid
    for name in ("Date", "Time"):
        clean = clean_date if name == "Date" else clean_time
        value = clean(text(source.header, f"Series{name}"))
        if value:
            setattr(shell, f"Series{name}", value)


def _set_series(shell: Dataset, source: SegSource, facts: SegFacts) -> None:
    label = clean_text(facts.term.label, _LABEL_CHARS)
    notice = _first_sentences(facts.notice, _LO_CHARS - len(label) - 2)
    shell.SeriesDescription = f"{label}: {notice}" if notice else label
    shell.ImageComments = clean_text(facts.notice, _ST_CHARS)
    if text(source.header, "LossyImageCompression") == "01":
        shell.LossyImageCompression = "01"


def _set_frames(shell: Dataset, source: SegSource, kept: np.ndarray) -> None:
    """Declare the frames that are appended; `3D` only where they are a regular grid themselves."""
    from highdicom.spatial import get_volume_positions

    del shell.PerFrameFunctionalGroupsSequence, shell.PixelData
    shell.NumberOfFrames = len(kept)
    if len(kept) > 1 and np.diff(kept).max() == 1:
        spacing_mm, _ = get_volume_positions(
            source.positions_mm[kept], source.orientation, sort=False
        )
        if spacing_mm is not None and spacing_mm > 0:
            shell.DimensionOrganizationType = "3D"
