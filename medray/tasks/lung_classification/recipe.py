"""Histology of a lung tumour from one chest CT series.

Data      TCIA Lung-PET-CT-Dx, class from the letter of the patient id; also datalist
Input     volume (64, 64, 64) int16 HU: the whole field of view, or a cube round the tumour
Expected  none recorded by the author ("results were not satisfactory"); majority class 0.72
Command   medray prepare lung_classification --data DIR --out URI

`compat=original` prepares as the original did; what differs from the default:
- slope and intercept are applied a second time, then values are cut to -1000..400;
- 1 mm isotropic (linear here, B-spline there), then the middle 64 mm of the body, tumour or not;
- large cell patients are left out in both, here by option and counted.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, cast

import numpy as np

from medray.datasets import datalist, lung_pet_ct_dx
from medray.datasets.layouts import read_layout
from medray.datasets.loading import plain_meta
from medray.datasets.record import Record, Rejection, Sample, SourceTree
from medray.errors import DataError
from medray.preprocess.crop import crop_or_pad
from medray.preprocess.spatial import resample_spacing, resample_to_grid, resize_volume
from medray.recipe import Prepared, Recipe
from medray.tasks.lung_classification.phantom import baseline, write_phantom
from medray.volume import Volume

CLASS_NAMES = ("adenocarcinoma", "small_cell", "squamous_cell")
_AIR_HU, _MAX_HU = -1024, 3071
_ORIGINAL_RANGE_HU = (-1000.0, 400.0)
# 0.01 SUV a step reaches 655: far above any uptake, far below any noise.
_STEPS_PER_SUV = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Hparams:
    """Numbers that decide which series are taken and what part of them.

    Attributes:
        view: `thorax` is the whole field of view, `box` a cube round the marked tumour.
        size: side of the cube in voxels.
        box_mm: side of the cube round the tumour.
        large_cell: keep the few large cell patients as a fourth class.
        pet_channel: add the study's PET on the same grid as `pet`, uint16 of 0.01 SUVbw.
        compat: `original` for what the original did.
    """

    view: Literal["thorax", "box"] = "thorax"
    size: int = 64
    box_mm: float = 96.0
    large_cell: bool = False
    pet_channel: bool = False
    compat: Literal["none", "original"] = "none"

    def __post_init__(self) -> None:
        if self.size < 16 or self.size % 8:
            raise ValueError(f"size must be a multiple of 8 and at least 16, got {self.size}")
        if self.box_mm <= 0:
            raise ValueError(f"box_mm must be > 0, got {self.box_mm}")


def recipe() -> Recipe[Hparams]:
    """Return the full-size recipe."""
    return Recipe(
        name="lung_classification",
        kind="class3d",
        transform_version=1,
        hparams=Hparams(),
        tiny_hparams=Hparams(size=32),
        prepare_fields=("view", "size", "box_mm", "pet_channel", "compat"),
        records=records,
        prepare=prepare,
        class_names=CLASS_NAMES,
        phantom=write_phantom,
        phantom_baseline=baseline,
    )


def records(tree: SourceTree, hp: Hparams) -> Iterator[Record | Rejection]:
    """Offer one record per annotated CT series."""
    names = (*CLASS_NAMES, "large_cell") if hp.large_cell else CLASS_NAMES
    wanted = datalist.Wanted(image="volume", label="class", class_names=names)
    series = partial(
        lung_pet_ct_dx.series_records, large_cell=hp.large_cell, pet_channel=hp.pet_channel
    )
    return read_layout(
        tree,
        {
            lung_pet_ct_dx.NAME: series,
            datalist.NAME: partial(datalist.records, wanted=wanted),
        },
    )


def prepare(sample: Sample, hp: Hparams) -> Prepared:
    """Turn one CT series into one example."""
    volume = sample.image
    if not isinstance(volume, Volume):
        raise DataError("wrong_modality", "the task takes volumes")
    image = _image(volume, sample, hp)
    arrays = {"image": np.rint(image.array).astype(np.int16)}
    if hp.pet_channel:
        arrays["pet"] = _pet(sample, image)
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


def _image(volume: Volume, sample: Sample, hp: Hparams) -> Volume:
    if hp.compat == "original":
        return _original(volume, sample, hp)
    volume = volume.with_array(np.clip(volume.array, _AIR_HU, _MAX_HU))
    if hp.view == "thorax":
        return resize_volume(volume, (hp.size, hp.size, hp.size))
    return resample_to_grid(
        volume, _cube_affine(volume, sample, hp), (hp.size,) * 3, fill=float(_AIR_HU)
    )


def _cube_affine(volume: Volume, sample: Sample, hp: Hparams) -> np.ndarray:
    """Return the grid of a cube round the tumour, its axes along those of the volume."""
    center = sample.meta.get("tumour_centre_lps_mm")
    if center is None:
        raise DataError("no_label", "a cube round the tumour needs a marked tumour")
    step_mm = hp.box_mm / hp.size
    axes = volume.affine_lps[:3, :3] / np.linalg.norm(volume.affine_lps[:3, :3], axis=0)
    affine = np.eye(4)
    affine[:3, :3] = axes * step_mm
    middle = np.full(3, (hp.size - 1) / 2)
    affine[:3, 3] = np.asarray(cast("Sequence[float]", center)) - affine[:3, :3] @ middle
    return affine


def _original(volume: Volume, sample: Sample, hp: Hparams) -> Volume:
    slope = float(str(sample.meta.get("rescale_slope", 1.0)))
    intercept = float(str(sample.meta.get("rescale_intercept", 0.0)))
    low, high = _ORIGINAL_RANGE_HU
    twice = np.clip(volume.array.astype(np.float32) * slope + intercept, low, high)
    fine = resample_spacing(volume.with_array(twice), 1.0)
    return crop_or_pad(fine, (hp.size,) * 3, fill=low)


def _pet(sample: Sample, image: Volume) -> np.ndarray:
    """Return the PET on the example's grid."""
    pet = sample.extra_images.get("pet")
    if pet is None:
        raise DataError("suv_not_computable", "the sample has no PET")
    placed = resample_to_grid(pet, image.affine_lps, image.array.shape, fill=0.0)
    steps = np.clip(np.rint(placed.array * _STEPS_PER_SUV), 0, 65535)
    return np.asarray(steps, dtype=np.uint16)
