"""Series of slices with known voxels and a known place: CT, PET and enhanced multi-frame CT.

Unit tests build on this: `known_volume` gives an asymmetric HU volume, `reorient` any of its 48
axis orders, `write_ct_series` its DICOM files. Arrays are (depth, height, width) = (k, j, i).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import ExplicitVRLittleEndian
from pydicom.valuerep import format_number_as_ds

from medray.phantoms.instance import SOP_CLASSES, new_dataset, set_pixels, write_instance
from medray.phantoms.naming import patient_name, stream, uid
from medray.volume import Volume

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
AIR_HU = -1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Vendor:
    """How one maker's scanner writes its slices.

    Attributes:
        manufacturer: header text.
        signed: whether stored values are int16, else uint16.
        intercept: rescale intercept in HU.
        bits_stored: number of bits that carry values.
        padding: PixelPaddingValue in stored values, None where the maker writes none.
        descending: whether InstanceNumber 1 is the last slice along the stack's axis.
    """

    manufacturer: str = "PHANTOM"
    signed: bool = False
    intercept: float = -1024.0
    bits_stored: int = 12
    padding: int | None = None
    descending: bool = False


SIEMENS = Vendor(manufacturer="SIEMENS", descending=True)
PHILIPS = Vendor(manufacturer="Philips", bits_stored=12)
GE = Vendor(
    manufacturer="GE MEDICAL SYSTEMS",
    signed=True,
    intercept=0.0,
    bits_stored=16,
    padding=-2000,
    descending=True,
)
TOSHIBA = Vendor(manufacturer="TOSHIBA", signed=True, intercept=0.0, bits_stored=16, padding=-2048)
VENDORS = (PHILIPS, SIEMENS, GE, TOSHIBA)


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesSpec:
    """What a series says of itself beside its voxels and its place.

    Attributes:
        seed: UIDs and file order depend on it.
        name: distinguishes series of one study.
        vendor: the maker's habits.
        syntax: transfer syntax UID; encapsulated ones need unsigned stored values.
        slopes: rescale slopes, repeated along the slices.
        intercepts: rescale intercepts, repeated along the slices; empty: the vendor's.
        tags: further keywords for every slice; they win over the defaults.
        study_uid, series_uid: empty: made from seed and name.
        file_pattern: name of a file; `{number}` is a shuffled 1-based number.
        shuffle: whether file names follow an order of their own.
        edit: changes the data set of slice k last, before it is written.
        leave_out: slices that are not written.
    """

    seed: int = 0
    name: str = "series"
    vendor: Vendor = PHILIPS
    syntax: str = ExplicitVRLittleEndian
    slopes: tuple[float, ...] = (1.0,)
    intercepts: tuple[float, ...] = ()
    tags: Mapping[str, object] = field(default_factory=dict)
    study_uid: str = ""
    series_uid: str = ""
    file_pattern: str = "1-{number:03d}.dcm"
    shuffle: bool = True
    edit: Callable[[Dataset, int], None] | None = None
    leave_out: tuple[int, ...] = ()


def affine_from_dicom(
    *,
    orientation: Sequence[float] = AXIAL,
    origin_mm: Sequence[float] = (-30.0, -45.0, -120.0),
    spacing_zyx_mm: Sequence[float] = (3.0, 1.5, 1.25),
    tilt_deg: float = 0.0,
) -> np.ndarray:
    """Return the (4, 4) LPS affine of a stack along the normal of its orientation.

    Args:
        orientation: direction cosines of a row, then of a column.
        origin_mm: centre of voxel (0, 0, 0).
        spacing_zyx_mm: distance of slices *along the table*, rows, columns.
        tilt_deg: gantry tilt: slices step along a line turned from the normal about the row axis.
    """
    row, column = np.asarray(orientation[:3], float), np.asarray(orientation[3:], float)
    angle = np.deg2rad(tilt_deg)
    step = np.cos(angle) * np.cross(row, column) + np.sin(angle) * column
    affine = np.eye(4)
    affine[:3, 0] = step * spacing_zyx_mm[0]
    affine[:3, 1] = column * spacing_zyx_mm[1]
    affine[:3, 2] = row * spacing_zyx_mm[2]
    affine[:3, 3] = origin_mm
    return affine


def known_volume(
    shape: tuple[int, int, int] = (12, 40, 32), affine_lps: np.ndarray | None = None
) -> Volume:
    """Return an asymmetric body in whole HU: no flip or transposition maps it onto itself.

    An ellipsoid off the centre holds a different ramp along each axis, with a bone-like block near
    the end of k, a fat block at the start of j and a metal-like block at the end of i.
    """
    k, j, i = np.meshgrid(*[np.linspace(0, 1, n) for n in shape], indexing="ij")
    body = ((k - 0.5) / 0.6) ** 2 + ((j - 0.46) / 0.42) ** 2 + ((i - 0.53) / 0.40) ** 2 < 1
    values = np.where(body, np.round(20 + 40 * k + 90 * j + 150 * i), AIR_HU)
    values[(k > 0.75) & (abs(j - 0.6) < 0.15) & (abs(i - 0.4) < 0.12)] = 700
    values[(k < 0.6) & (abs(j - 0.2) < 0.08) & (abs(i - 0.5) < 0.2)] = -90
    values[(abs(k - 0.3) < 0.15) & (abs(j - 0.5) < 0.1) & (abs(i - 0.8) < 0.08)] = 1500
    affine = affine_from_dicom() if affine_lps is None else affine_lps
    return Volume(array=values.astype(np.int16), affine_lps=affine)


def reorient(
    volume: Volume, *, axes: tuple[int, int, int], flips: tuple[bool, bool, bool]
) -> Volume:
    """Return the same body with its array axes permuted, then reversed; the place is kept.

    All 48 combinations occur in the wild: any scan plane, either direction of each axis.
    """
    array = np.transpose(volume.array, axes)
    affine = volume.affine_lps[:, [*axes, 3]].copy()
    for axis, flip in enumerate(flips):
        if flip:
            affine[:3, 3] += affine[:3, axis] * (array.shape[axis] - 1)
            affine[:3, axis] *= -1
            array = np.flip(array, axis)
    return Volume(array=np.ascontiguousarray(array), affine_lps=affine)


def write_ct_series(folder: Path, volume: Volume, spec: SeriesSpec | None = None) -> list[Path]:
    """Write a volume as one DICOM file per slice.

    Returns:
        The files in the order of k; left-out slices are absent.
    """
    spec = spec or SeriesSpec()
    depth = volume.array.shape[0]
    numbers = np.arange(depth)
    if spec.shuffle:
        numbers = stream(spec.seed, spec.name, "files").permutation(depth)
    written = []
    for k in range(depth):
        if k in spec.leave_out:
            continue
        dataset = slice_dataset(volume, k, spec)
        if spec.edit is not None:
            spec.edit(dataset, k)
        path = folder / spec.file_pattern.format(number=int(numbers[k]) + 1)
        written.append(write_instance(path, dataset))
    return written


def sop_uid(spec: SeriesSpec, k: int) -> str:
    """Return the SOP Instance UID of slice k of a series."""
    return uid("sop", spec.seed, spec.name, k)


def slice_dataset(volume: Volume, k: int, spec: SeriesSpec) -> Dataset:
    """Return slice k as a CT image with its pixels."""
    depth = volume.array.shape[0]
    vendor = spec.vendor
    number = depth - k if vendor.descending else k + 1
    slope = spec.slopes[k % len(spec.slopes)]
    intercepts = spec.intercepts or (vendor.intercept,)
    intercept = intercepts[k % len(intercepts)]
    tags = common_tags(spec) | {
        "SOPInstanceUID": sop_uid(spec, k),
        "InstanceNumber": number,
        "RescaleSlope": ds_text([slope])[0],
        "RescaleIntercept": ds_text([intercept])[0],
        "RescaleType": "HU",
        **plane_tags(volume.affine_lps, k),
    }
    if vendor.padding is not None:
        tags["PixelPaddingValue"] = vendor.padding
    dataset = new_dataset(tags | dict(spec.tags))
    stored = to_stored(volume.array[k], slope=slope, intercept=intercept, vendor=vendor)
    set_pixels(dataset, stored[None], syntax=spec.syntax, bits_stored=vendor.bits_stored)
    return dataset


def common_tags(spec: SeriesSpec) -> dict[str, object]:
    """Return what every instance of a CT series repeats."""
    return {
        "SpecificCharacterSet": "ISO_IR 100",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "SOPClassUID": SOP_CLASSES["CT"],
        "StudyDate": "20050312",
        "SeriesDate": "20050312",
        "AcquisitionDate": "20050312",
        "StudyTime": "101500",
        "SeriesTime": "101700",
        "AcquisitionTime": "101730",
        "Modality": "CT",
        "Manufacturer": spec.vendor.manufacturer,
        "SeriesDescription": spec.name,
        "PatientName": patient_name(spec.seed % 10_000),
        "PatientID": f"PHANTOM-{spec.seed:04d}",
        "PatientBirthDate": "19400101",
        "PatientSex": "O",
        "StudyInstanceUID": spec.study_uid or uid("study", spec.seed),
        "SeriesInstanceUID": spec.series_uid or uid("series", spec.seed, spec.name),
        "FrameOfReferenceUID": uid("frame", spec.seed),
        "SeriesNumber": 2,
        "AcquisitionNumber": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "KVP": 120,
        "WindowCenter": 40,
        "WindowWidth": 400,
    }


def plane_tags(affine_lps: np.ndarray, k: int) -> dict[str, object]:
    """Return position, orientation and spacing of slice k; values are exact to 1e-9 mm."""
    column, row = affine_lps[:3, 1], affine_lps[:3, 2]
    spacing = float(np.linalg.norm(column)), float(np.linalg.norm(row))
    normal = np.cross(row, column) / (spacing[0] * spacing[1])
    step = affine_lps[:3, 0]
    cosines = [*(row / spacing[1]), *(column / spacing[0])]
    tilt = np.rad2deg(np.arccos(np.clip(abs(step @ normal) / np.linalg.norm(step), 0, 1)))
    tags: dict[str, object] = {
        "ImagePositionPatient": ds_text(affine_lps[:3, 3] + k * step),
        "ImageOrientationPatient": ds_text(cosines),
        "PixelSpacing": ds_text(spacing),
        "SliceThickness": ds_text([float(abs(step @ normal))])[0],
    }
    if tilt > 1e-3:
        tags["GantryDetectorTilt"] = ds_text([float(tilt)])[0]
    return tags


def ds_text(values: Iterable[float] | np.ndarray) -> list[str]:
    """Return decimal strings of at most 16 characters (PS3.5 6.2)."""
    texts = []
    for value in values:
        short = f"{float(value):.10g}"
        exact = float(short) == float(value) and len(short) <= 16
        texts.append(short if exact else format_number_as_ds(float(np.round(value, 12)) + 0.0))
    return texts


def to_stored(values: np.ndarray, *, slope: float, intercept: float, vendor: Vendor) -> np.ndarray:
    """Return stored values of modality values, clipped to the bits that the vendor stores."""
    low = -(1 << (vendor.bits_stored - 1)) if vendor.signed else 0
    high = low + (1 << vendor.bits_stored) - 1
    stored = np.clip(np.round((values.astype(np.float64) - intercept) / slope), low, high)
    return stored.astype(np.int16 if vendor.signed else np.uint16)


def write_enhanced_ct(path: Path, volume: Volume, spec: SeriesSpec | None = None) -> Path:
    """Write a volume as one Enhanced CT instance; geometry and rescale lie in functional groups.

    Orientation and pixel spacing are shared, position and rescale are per frame. Frames follow a
    shuffled order when the spec says so, as stacks of real scanners may.
    """
    spec = spec or SeriesSpec()
    depth = volume.array.shape[0]
    order = stream(spec.seed, spec.name, "frames").permutation(depth)
    order = order if spec.shuffle else np.arange(depth)
    intercepts = spec.intercepts or (spec.vendor.intercept,)
    stored, groups = [], []
    for k in order:
        slope, intercept = spec.slopes[k % len(spec.slopes)], intercepts[k % len(intercepts)]
        stored.append(
            to_stored(volume.array[k], slope=slope, intercept=intercept, vendor=spec.vendor)
        )
        groups.append(_frame_group(volume, int(k), slope, intercept))
    tags = common_tags(spec) | {
        "SOPClassUID": SOP_CLASSES["ECT"],
        "SOPInstanceUID": uid("enhanced", spec.seed, spec.name),
        "ImageType": ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"],
        "InstanceNumber": 1,
        "NumberOfFrames": depth,
        "SharedFunctionalGroupsSequence": [_shared_group(volume)],
        "PerFrameFunctionalGroupsSequence": groups,
    }
    dataset = new_dataset(tags | dict(spec.tags))
    set_pixels(dataset, np.stack(stored), syntax=spec.syntax, bits_stored=spec.vendor.bits_stored)
    return write_instance(path, dataset)


def _items(tags: Mapping[str, object]) -> DicomSequence:
    return DicomSequence([new_dataset(tags)])


def _shared_group(volume: Volume) -> Dataset:
    plane = plane_tags(volume.affine_lps, 0)
    measures = {key: plane[key] for key in ("PixelSpacing", "SliceThickness")}
    turned = {"ImageOrientationPatient": plane["ImageOrientationPatient"]}
    return new_dataset(
        {"PixelMeasuresSequence": _items(measures), "PlaneOrientationSequence": _items(turned)}
    )


def _frame_group(volume: Volume, k: int, slope: float, intercept: float) -> Dataset:
    position = plane_tags(volume.affine_lps, k)["ImagePositionPatient"]
    content = {
        "StackID": "1",
        "InStackPositionNumber": k + 1,
        "DimensionIndexValues": [1, k + 1],
    }
    value = {
        "RescaleSlope": ds_text([slope])[0],
        "RescaleIntercept": ds_text([intercept])[0],
        "RescaleType": "HU",
    }
    return new_dataset(
        {
            "PlanePositionSequence": _items({"ImagePositionPatient": position}),
            "FrameContentSequence": _items(content),
            "PixelValueTransformationSequence": _items(value),
        }
    )
