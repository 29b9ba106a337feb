"""Cancer or not, from the pancreas on abdominal CT.

Data      folders of DICOM, organ mask and a file `label`; also datalist with class and `mask`
Input     volume (96, 96, 96) int16 HU round the organ
Expected  none published (the model card could not be had)
Command   medray prepare pancreas_classification --data DIR --out URI

`compat=original` prepares as the original's second generation did; what differs from the default:
- voxels outside the organ become 0 HU (also by `outside_zero=true`);
- the crop lies 90 % of the way from the volume's border to the organ, in place of a margin;
- 115^3, from which training crops 96^3 (at inference the original forgot to crop at all).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from medray.datasets import datalist, dicom_mask_folders
from medray.datasets.layouts import read_layout
from medray.datasets.loading import plain_meta
from medray.datasets.mask_values import organ_mask
from medray.datasets.record import Record, Rejection, Sample, SourceTree
from medray.errors import DataError
from medray.preprocess.crop import crop_box, mask_box
from medray.preprocess.spatial import resize_volume
from medray.recipe import Prepared, Recipe
from medray.tasks.pancreas_classification.phantom import baseline, write_phantom
from medray.volume import Volume

CLASS_NAMES = ("no_cancer", "cancer")
_MIN_HU, _MAX_HU = -1024, 3071
_ORIGINAL_NEARNESS = 0.9
_ORIGINAL_ENLARGED = 1.2


@dataclass(frozen=True, kw_only=True, slots=True)
class Hparams:
    """Numbers that decide the crop and the grid.

    Attributes:
        size: side of the cube in voxels.
        margin: what is added on each side of the organ's box, as a share of its length.
        outside_zero: voxels outside the organ become 0 HU.
        mask_value: the pancreas' value in masks of several organs; 0 means the only value.
        compat: `original` for what the original did.
    """

    size: int = 96
    margin: float = 0.1
    outside_zero: bool = False
    mask_value: int = 0
    compat: Literal["none", "original"] = "none"

    def __post_init__(self) -> None:
        if self.size < 16 or self.size % 8:
            raise ValueError(f"size must be a multiple of 8 and at least 16, got {self.size}")
        if self.margin < 0 or self.mask_value < 0:
            raise ValueError("margin and mask_value must be >= 0")


def recipe() -> Recipe[Hparams]:
    """Return the full-size recipe."""
    return Recipe(
        name="pancreas_classification",
        kind="score3d",
        transform_version=1,
        hparams=Hparams(),
        tiny_hparams=Hparams(size=32),
        prepare_fields=("size", "margin", "outside_zero", "mask_value", "compat"),
        records=records,
        prepare=prepare,
        class_names=CLASS_NAMES,
        phantom=write_phantom,
        phantom_baseline=baseline,
    )


def records(tree: SourceTree, hp: Hparams) -> Iterator[Record | Rejection]:
    """Offer one record per CT volume with a mask and a class."""
    del hp
    wanted = datalist.Wanted(image="volume", label="class", class_names=CLASS_NAMES)
    return read_layout(
        tree,
        {
            dicom_mask_folders.NAME: partial(dicom_mask_folders.records, with_label=True),
            datalist.NAME: partial(datalist.records, wanted=wanted),
        },
    )


def prepare(sample: Sample, hp: Hparams) -> Prepared:
    """Turn one CT volume and its organ mask into one example; without mask all of it is taken."""
    volume = sample.image
    if not isinstance(volume, Volume):
        raise DataError("wrong_modality", "the task takes volumes")
    values = volume.with_array(np.clip(volume.array, _MIN_HU, _MAX_HU))
    side = round(hp.size * _ORIGINAL_ENLARGED) if hp.compat == "original" else hp.size
    arrays = {}
    if sample.mask is not None:
        organ = sample.mask.with_array(organ_mask(sample.mask.array, hp.mask_value))
        if hp.outside_zero or hp.compat == "original":
            values = values.with_array(np.where(organ.array != 0, values.array, 0))
        box = _crop(organ.array, hp)
        values, organ = crop_box(values, box), crop_box(organ, box)
        arrays["mask"] = resize_volume(organ, (side,) * 3, order="nearest").array
    image = resize_volume(values, (side,) * 3)
    arrays["image"] = np.rint(image.array).astype(np.int16)
    return Prepared(
        arrays=arrays,
        affine_lps=image.affine_lps,
        spacing_mm=image.spacing_zyx_mm,
        label=sample.label,
        meta={
            **plain_meta(sample.meta),
            "original_shape": list(volume.array.shape),
            "original_affine_lps": volume.affine_lps.ravel().tolist(),
        },
    )


def _crop(organ: np.ndarray, hp: Hparams) -> list[tuple[int, int]]:
    """Return the box of the organ with its margin, inside the volume."""
    tight = mask_box(organ)
    if tight is None:
        raise DataError("mask_empty", "the organ mask is empty, so nothing can be cropped")
    if hp.compat == "original":
        share = _ORIGINAL_NEARNESS
        return [
            (int(low * share), int(np.ceil(size - (size - high) * share)))
            for (low, high), size in zip(tight, organ.shape, strict=True)
        ]
    box = []
    for (low, high), size in zip(tight, organ.shape, strict=True):
        extra = int(np.ceil((high - low) * hp.margin))
        box.append((max(0, low - extra), min(size, high + extra)))
    return box
