"""Pancreas segmentation on abdominal CT.

Data      NIH Pancreas-CT (80 usable cases; portal-venous contrast), or folders of DICOM and mask
Input     volume (160, 160, 160) int16 HU, whole field of view; mask (160, 160, 160) uint8
Expected  Dice 0.72, recall 0.95 (author's report on another split and grid, not reproduced)
Command   medray prepare pancreas_segmentation --data DIR --out URI

`compat=original` prepares as the original's first generation did; what differs from the default:
- stored values before rescale, in place of HU;
- nearest neighbour to 176^3, from which training crops 160^3, in place of smoothed linear.
The original never transposed its labels; that fault is not offered, as it teaches nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from medray.datasets import datalist, dicom_mask_folders, pancreas_ct
from medray.datasets.layouts import read_layout
from medray.datasets.loading import plain_meta
from medray.datasets.mask_values import organ_mask
from medray.datasets.record import Record, Rejection, Sample, SourceTree
from medray.errors import DataError
from medray.preprocess.spatial import resample_spacing, resize_volume
from medray.recipe import Prepared, Recipe
from medray.tasks.pancreas_segmentation.phantom import baseline, write_phantom
from medray.volume import Volume

CLASS_NAMES = ("background", "pancreas")
_MIN_HU, _MAX_HU = -1024, 3071
_ORIGINAL_ENLARGED = 1.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Hparams:
    """Numbers that decide the grid and the mask.

    Attributes:
        grid: `whole` resizes the field of view to a cube of `size`; `isotropic` resamples to
            `spacing_mm` and keeps the proportions.
        size: side of the cube in voxels.
        spacing_mm: of the isotropic grid.
        mask_value: the pancreas' value in masks of several organs; 0 means the only value.
        compat: `original` for what the original did.
    """

    grid: Literal["whole", "isotropic"] = "whole"
    size: int = 160
    spacing_mm: float = 1.5
    mask_value: int = 0
    compat: Literal["none", "original"] = "none"

    def __post_init__(self) -> None:
        if self.size < 16 or self.size % 16:
            raise ValueError(f"size must be a positive multiple of 16, got {self.size}")
        if self.spacing_mm <= 0 or self.mask_value < 0:
            raise ValueError("spacing_mm must be > 0 and mask_value >= 0")


def recipe() -> Recipe[Hparams]:
    """Return the full-size recipe."""
    return Recipe(
        name="pancreas_segmentation",
        kind="mask3d",
        transform_version=1,
        hparams=Hparams(),
        tiny_hparams=Hparams(size=48, spacing_mm=5.0),
        prepare_fields=("grid", "size", "spacing_mm", "mask_value", "compat"),
        records=records,
        prepare=prepare,
        class_names=CLASS_NAMES,
        lesion_in_each=True,
        phantom=write_phantom,
        phantom_baseline=baseline,
    )


def records(tree: SourceTree, hp: Hparams) -> Iterator[Record | Rejection]:
    """Offer one record per CT volume with a mask."""
    del hp
    wanted = datalist.Wanted(image="volume", label="mask", modalities=("CT",))
    return read_layout(
        tree,
        {
            pancreas_ct.NAME: pancreas_ct.records,
            dicom_mask_folders.NAME: dicom_mask_folders.records,
            datalist.NAME: partial(datalist.records, wanted=wanted),
        },
    )


def prepare(sample: Sample, hp: Hparams) -> Prepared:
    """Turn one CT volume and its mask into one example."""
    volume = sample.image
    if not isinstance(volume, Volume):
        raise DataError("wrong_modality", "the task takes volumes")
    image = _regrid(_values(volume, sample, hp), hp, is_mask=False)
    arrays = {"image": np.rint(np.clip(image.array, -32768, 32767)).astype(np.int16)}
    if sample.mask is not None:
        organ = sample.mask.with_array(organ_mask(sample.mask.array, hp.mask_value))
        arrays["mask"] = _regrid(organ, hp, is_mask=True).array
    return Prepared(
        arrays=arrays,
        affine_lps=image.affine_lps,
        spacing_mm=image.spacing_zyx_mm,
        meta={
            **plain_meta(sample.meta),
            "original_shape": list(volume.array.shape),
            "original_affine_lps": volume.affine_lps.ravel().tolist(),
        },
    )


def _values(volume: Volume, sample: Sample, hp: Hparams) -> Volume:
    if hp.compat == "original":
        slope = float(str(sample.meta.get("rescale_slope", 1.0)))
        intercept = float(str(sample.meta.get("rescale_intercept", 0.0)))
        return volume.with_array((volume.array.astype(np.float32) - intercept) / slope)
    return volume.with_array(np.clip(volume.array, _MIN_HU, _MAX_HU))


def _regrid(volume: Volume, hp: Hparams, *, is_mask: bool) -> Volume:
    if hp.compat == "original":
        side = round(hp.size * _ORIGINAL_ENLARGED)
        return resize_volume(volume, (side, side, side), order="nearest")
    order: Literal["linear", "nearest"] = "nearest" if is_mask else "linear"
    if hp.grid == "isotropic":
        return resample_spacing(volume, hp.spacing_mm, order=order)
    return resize_volume(volume, (hp.size, hp.size, hp.size), order=order)
