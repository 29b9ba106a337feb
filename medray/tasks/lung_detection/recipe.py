"""Tumour boxes on single slices of chest CT or fused PET/CT.

Data      TCIA Lung-PET-CT-Dx, VOC boxes matched by SOP Instance UID; also YOLO folders, datalist
Input     one slice, 512 x 512: HU int16 (1, H, W), or uint8 (3, H, W) for colour and `windows`
Expected  P 0.826, R 0.800, mAP50 0.824, mAP50-95 0.356 (author's validation set, also used for
          selection; not reproduced)
Command   medray prepare lung_detection --data DIR --out URI

`compat=original` prepares as the original did; what differs from the default:
- values are stretched between the smallest and largest of each slice, in place of HU;
- no background slices, three slices a patient at most (drawn by hash; the original drew unseeded,
  with replacement), grey and colour slices together where `stream=both` is set.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from medray.boxes import place_boxes
from medray.datasets import datalist, lung_pet_ct_dx, yolo_folder
from medray.datasets.layouts import read_layout
from medray.datasets.loading import plain_meta
from medray.datasets.record import Record, Rejection, Sample, SourceTree
from medray.errors import DataError
from medray.preprocess.display import quantise, stretch
from medray.preprocess.intensity import minmax
from medray.preprocess.planar import Placement, letterbox
from medray.recipe import Prepared, Recipe
from medray.tasks.lung_detection.phantom import baseline, write_phantom
from medray.volume import Image2D

CLASS_NAMES = ("tumour",)
_AIR_HU, _MAX_HU = -1024, 3071
# Lung and mediastinum as radiologists set them, and the collection's own (HU + 1024) / 8.
_WINDOWS_HU = ((-1400.0, 0.0), (-135.0, 215.0), (-1024.0, 1016.0))
_GREY_OF_FRAMES = 114  # what detectors are padded with; black would be an edge in a colour slice
_ORIGINAL_SLICES = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Hparams:
    """Numbers that decide which slices are taken and how they are prepared.

    Attributes:
        stream: grey CT, colour fused slices, or both.
        pixels: CT as `hu` (int16), or as three `windows` (uint8); `stream=both` takes windows.
        size: side of the frame in pixels.
        background_per_series: most slices without a box from each safely annotated series.
        background_margin_mm: their distance from every annotated slice.
        compat: `original` for what the original did.
    """

    stream: Literal["ct", "fused", "both"] = "ct"
    pixels: Literal["hu", "windows"] = "hu"
    size: int = 512
    background_per_series: int = 3
    background_margin_mm: float = 10.0
    compat: Literal["none", "original"] = "none"

    def __post_init__(self) -> None:
        if self.size < 32 or self.size % 32:
            raise ValueError(f"size must be a positive multiple of 32, got {self.size}")
        if self.background_per_series < 0 or self.background_margin_mm < 0:
            raise ValueError("background_per_series and background_margin_mm must be >= 0")


def recipe() -> Recipe[Hparams]:
    """Return the full-size recipe."""
    return Recipe(
        name="lung_detection",
        kind="box2d",
        transform_version=1,
        hparams=Hparams(),
        tiny_hparams=Hparams(size=128),
        prepare_fields=("stream", "pixels", "size", "compat"),
        records=records,
        prepare=prepare,
        class_names=CLASS_NAMES,
        lesion_boxes=True,
        phantom=write_phantom,
        phantom_baseline=baseline,
        prepare_peak_factor=16.0,
    )


def records(tree: SourceTree, hp: Hparams) -> Iterator[Record | Rejection]:
    """Offer one record per annotated slice, and background slices."""
    original = hp.compat == "original"
    slices = partial(
        lung_pet_ct_dx.slice_records,
        stream=hp.stream,
        background_per_series=0 if original else hp.background_per_series,
        margin_mm=hp.background_margin_mm,
    )
    wanted = datalist.Wanted(image="image", label="boxes", class_names=CLASS_NAMES)
    found = read_layout(
        tree,
        {
            lung_pet_ct_dx.NAME: slices,
            yolo_folder.NAME: partial(yolo_folder.records, class_names=CLASS_NAMES),
            datalist.NAME: partial(datalist.records, wanted=wanted),
        },
    )
    return _few_slices(found) if original else found


def _few_slices(found: Iterator[Record | Rejection]) -> Iterator[Record | Rejection]:
    """Keep three slices a patient, those whose names hash lowest."""
    by_patient: dict[str, list[Record]] = defaultdict(list)
    for item in found:
        if isinstance(item, Rejection):
            yield item
        else:
            by_patient[item.patient_id].append(item)
    for _, items in sorted(by_patient.items()):
        items.sort(key=lambda item: hashlib.sha256(item.name.encode()).hexdigest())
        yield from items[:_ORIGINAL_SLICES]


def prepare(sample: Sample, hp: Hparams) -> Prepared:
    """Turn one slice and its boxes into one example."""
    image = sample.image
    if not isinstance(image, Image2D):
        raise DataError("wrong_modality", "the task takes single slices")
    pixels, placement = _pixels(image, hp)
    arrays = {"image": pixels}
    if sample.boxes_xyxy_px is not None:
        boxes = place_boxes(
            sample.boxes_xyxy_px, scale_yx=placement.scale_yx, offset_yx_px=placement.offset_yx_px
        )
        arrays["boxes"] = boxes.astype(np.float32)
        labels = (
            sample.box_labels if sample.box_labels is not None else np.zeros(len(arrays["boxes"]))
        )
        arrays["box_labels"] = labels.astype(np.int64)
    spacing = image.spacing_yx_mm or ()
    return Prepared(
        arrays=arrays,
        spacing_mm=tuple(
            mm / scale for mm, scale in zip(spacing, placement.scale_yx, strict=False)
        ),
        meta={
            **plain_meta(sample.meta),
            "scale_yx": list(placement.scale_yx),
            "offset_yx_px": list(placement.offset_yx_px),
            "original_shape": list(image.array.shape[:2]),
        },
    )


def _is_ct(image: Image2D) -> bool:
    return image.array.ndim == 2 and image.meta.get("modality") == "CT"


def _pixels(image: Image2D, hp: Hparams) -> tuple[np.ndarray, Placement]:
    """Return (channel, height, width) in the frame, and where the image went."""
    frame = (hp.size, hp.size)
    if _is_ct(image) and hp.compat == "none":
        drawn, placement = letterbox(np.clip(image.array, _AIR_HU, _MAX_HU), frame, fill=_AIR_HU)
        if hp.stream == "ct" and hp.pixels == "hu":
            return np.rint(drawn).astype(np.int16)[None], placement
        shown = [stretch(drawn, low=low, high=high) for low, high in _WINDOWS_HU]
        return quantise(np.stack(shown), np.uint8), placement
    if hp.compat == "original":
        array = quantise(minmax(image.array), np.uint8)
    elif image.array.dtype == np.uint8:
        array = image.array
    else:
        raise DataError("unsupported_pixels", "an image that is no CT must have 8 bit")
    drawn, placement = letterbox(_three(array), frame, fill=_GREY_OF_FRAMES)
    return np.ascontiguousarray(np.rint(drawn).astype(np.uint8).transpose(2, 0, 1)), placement


def _three(array: np.ndarray) -> np.ndarray:
    return array[..., :3] if array.ndim == 3 else np.repeat(array[..., None], 3, axis=-1)
