"""What layout readers exchange with the engine: files, series, records, samples."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from medray.volume import Image2D, Volume


@dataclass(frozen=True, slots=True)
class FileRef:
    """One file as the listing saw it.

    Attributes:
        uri: any fsspec URI; may carry a patient's id in its path, so it is never logged.
        bytes: its size.
        stamp: modification time or ETag, as text.
    """

    uri: str
    bytes: int
    stamp: str


@dataclass(frozen=True, slots=True)
class InstanceRef:
    """One DICOM instance of a series."""

    file: FileRef
    sop_uid: str
    instance_number: int | None
    position_mm: tuple[float, float, float] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesRef:
    """One stack of the series table (docs/DESIGN section 5) with its instances."""

    series_key: str
    kind: str
    patient_id: str
    study_uid: str
    series_uid: str
    modality: str
    rows: int
    columns: int
    num_slices: int
    spacing_zyx_mm: tuple[float, ...]
    affine_lps: tuple[float, ...]
    transfer_syntax_uid: str
    pixel_layout: str
    bytes: int
    predicted_peak_bytes: int
    verdict: str
    detail: str
    instances: tuple[InstanceRef, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceTree:
    """What a layout reader may look at.

    Attributes:
        root: the data URI.
        labels_root: the URI of the labels; equal to `root` where both lie together.
        layout: the layout's name, chosen by the user or detected.
        series: every stack found under `root`, good or bad.
        files: every file without DICOM content under both roots.
        read_bytes: reads a small file whole (labels, tables).
    """

    root: str
    labels_root: str
    layout: str
    series: Sequence[SeriesRef]
    files: Sequence[FileRef]
    read_bytes: Callable[[str], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSource:
    """Where the pixels of an image or mask lie.

    Attributes:
        form: `series` (volume of DICOM slices), `instance` (one DICOM image), `volume_file`
            (NIfTI, NRRD, MHA) or `image_file` (PNG, JPEG).
        files: its files; the slices of a series in any order.
        align: how a mask finds its image: `physical`, or `pancreas_ct` (by index, with the
            check of SEEDS_SPEC 4.1).
    """

    form: str
    files: tuple[FileRef, ...]
    series_key: str = ""
    series_uid: str = ""
    align: str = "physical"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One example that a layout offers, before anything is decoded.

    Attributes:
        name: stable name inside the layout; may carry a patient's id, so it is never logged.
        patient_id: splits are made by it.
        split: `train`, `val` or `test` where the layout fixes it, else empty.
        strata: text by which the split is balanced (class, site, ...).
        label: class index, or -1.
        boxes_xyxy_px: (n, 4) as nested tuples in pixels of the original image; None = unlabelled.
        box_labels: class index per box.
        mask: where the mask lies.
        extra_images: further channels by name, e.g. `pet`.
        meta: plain facts for `prepare` (laterality, view, site, slice's z, ...).
    """

    name: str
    patient_id: str
    image: ImageSource
    split: str = ""
    strata: str = ""
    label: int = -1
    boxes_xyxy_px: tuple[tuple[float, float, float, float], ...] | None = None
    box_labels: tuple[int, ...] = ()
    mask: ImageSource | None = None
    extra_images: Mapping[str, ImageSource] = field(default_factory=dict)
    meta: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """One thing a layout reader had to leave out; `skip=True` where no data is lost by it."""

    uri: str
    reason: str
    detail: str
    stage: str = "label"
    series_uid: str = ""
    skip: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One decoded example: what a task's `prepare` gets. Labels are absent when predicting."""

    image: Volume | Image2D
    extra_images: Mapping[str, Volume] = field(default_factory=dict)
    label: int = -1
    boxes_xyxy_px: np.ndarray | None = None
    box_labels: np.ndarray | None = None
    mask: Volume | None = None
    meta: Mapping[str, object] = field(default_factory=dict)
