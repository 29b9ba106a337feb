"""Histology of a lung tumour from one chest CT series.

Data      TCIA Lung-PET-CT-Dx, class from the letter of the patient id; also datalist, with classes
          of its own by `class_names=a,b,c`
Input     volume (64, 64, 64) int16 HU: the whole field of view, or a cube round the tumour; the
          network sees HU -1000..400 as 0..1, and with `pet_channel` SUV 0..20 as 0..1
Model     residual 3D CNN, or the original's three convolutions (`network=original`)
Loss      cross-entropy weighted by `class_weights`; the original's has an L2 penalty of 1e-4
Expected  none recorded by the author ("results were not satisfactory"); majority class 0.72;
          120 phantoms, --tiny --set view=box, seed 0: AUROC 0.989 of 16 unseen
          patients (docs/results.md)
Command   medray prepare lung_classification --data DIR --out URI
          medray train lung_classification --data URI --out URI

`compat=original` prepares and learns as the original did; what differs from the default:
- slope and intercept are applied a second time, then values are cut to -1000..400;
- 1 mm isotropic (linear here, B-spline there), then the middle 64 mm of the body, tumour or not;
- large cell patients are left out in both, here by option and counted;
- class weights 0.466, 2.818 and 2.000 where none are set, and no augmentation. Its network,
  rate and epochs: `--set network=original --set lr=1e-4 --set epochs=15`.
Its plateau watched the validation loss; here every plateau watches the objective.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal, cast

import numpy as np

from medray.datasets import datalist, lung_pet_ct_dx
from medray.datasets.layouts import read_layout
from medray.datasets.loading import plain_meta
from medray.datasets.record import Record, Rejection, Sample, SourceTree
from medray.errors import ConfigError, DataError
from medray.learning import (
    Batch,
    Learning,
    LogUniform,
    Objective,
    Outputs,
    Schedule,
    Uniform,
)
from medray.preprocess.crop import crop_or_pad
from medray.preprocess.spatial import resample_spacing, resample_to_grid, resize_volume
from medray.recipe import Prepared, Recipe
from medray.tasks.lung_classification import measures
from medray.tasks.lung_classification.phantom import baseline, write_phantom
from medray.volume import Volume

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

CLASS_NAMES = ("adenocarcinoma", "small_cell", "squamous_cell")
_AIR_HU, _MAX_HU = -1024, 3071
_ORIGINAL_RANGE_HU = (-1000.0, 400.0)
# 0.01 SUV a step reaches 655: far above any uptake, far below any noise.
_STEPS_PER_SUV = 100
# Counts of series by letter A, B, G were 266, 44, 62: N / (3 N_c).
_ORIGINAL_CLASS_WEIGHTS = (0.466, 2.818, 2.0)
_ORIGINAL_L2 = 1e-4
_HIGH_SUV = 20.0  # tumours reach 5 to 20; the bladder and the brain may saturate


@dataclass(frozen=True, kw_only=True, slots=True)
class Hparams:
    """Numbers that decide which series are taken, what part of them, and how it is learnt.

    Attributes:
        view: `thorax` is the whole field of view, `box` a cube round the marked tumour.
        size: side of the cube in voxels.
        box_mm: side of the cube round the tumour.
        large_cell: keep the few large cell patients as a fourth class.
        pet_channel: add the study's PET on the same grid as `pet`, uint16 of 0.01 SUVbw, and as
            the network's second input.
        class_names: of a datalist with classes of its own; empty means the histologies.
        compat: `original` for what the original did.
        network: `residual`, or the `original`'s convolutions.
        filters: channels of the network's stages; empty means 16, 32, 64, 128 for `residual` and
            32, 64, 128 for `original`.
        norm: `auto` is batch for the `original`, group (which no batch decides) for `residual`.
        dropout: share of the head's inputs set to zero; the `original` has its own.
        class_weights: one per class in the loss; empty means equal.
        window_low_hu: becomes 0 for the network.
        window_high_hu: becomes 1.
        flip: chance of a flip, for each axis.
        scale: sizes vary by up to this share, each axis by itself.
        rotate_deg: volumes are turned by up to this about one random axis.
        jitter: a tumour's cube is moved by up to this share of its side (`view=box`).
        lr: learning rate; the original's was 1e-4.
        schedule: of the learning rate: `one_cycle` up and down over all steps, or `plateau`, the
            original's: halved after `patience` epochs without a better objective.
        patience: of the plateau, in epochs.
        epochs: passes over the training split.
        batch_size: volumes a worker takes at one step.
        seed: initial weights, order and augmentation.
    """

    view: Literal["thorax", "box"] = "thorax"
    size: int = 64
    box_mm: float = 96.0
    large_cell: bool = False
    pet_channel: bool = False
    class_names: tuple[str, ...] = ()
    compat: Literal["none", "original"] = "none"
    network: Literal["original", "residual"] = "residual"
    filters: tuple[int, ...] = ()
    norm: Literal["auto", "batch", "instance", "group"] = "auto"
    dropout: float = 0.2
    class_weights: tuple[float, ...] = ()
    window_low_hu: float = -1000.0
    window_high_hu: float = 400.0
    flip: float = 0.5
    scale: float = 0.05
    rotate_deg: float = 10.0
    jitter: float = 0.05
    lr: float = 1e-3
    schedule: Literal["one_cycle", "plateau"] = "one_cycle"
    patience: int = 4
    epochs: int = 40
    batch_size: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        if self.size < 16 or self.size % 8:
            raise ValueError(f"size must be a multiple of 8 and at least 16, got {self.size}")
        if self.box_mm <= 0:
            raise ValueError(f"box_mm must be > 0, got {self.box_mm}")
        _check_classes(self)
        if self.filters and min(self.filters) < 1:
            raise ValueError(f"filters must be numbers > 0, got {self.filters}")
        if self.window_high_hu <= self.window_low_hu:
            raise ValueError("window_high_hu must be above window_low_hu")
        if not (0 <= self.flip <= 1 and 0 <= self.scale < 1 and 0 <= self.rotate_deg <= 180):
            raise ValueError("flip must lie in 0..1, scale in 0..1 (below 1), rotate_deg in 0..180")
        if not (0 <= self.dropout < 1 and 0 <= self.jitter < 1) or self.lr <= 0:
            raise ValueError("dropout and jitter must lie in 0..1 (below 1), lr > 0")
        if min(self.epochs, self.batch_size, self.patience) < 1:
            raise ValueError("epochs, batch_size and patience must be at least 1")


def _check_classes(hp: Hparams) -> None:
    if len(set(hp.class_names)) != len(hp.class_names) or len(hp.class_names) == 1:
        raise ValueError(f"class_names must be at least two different ones, got {hp.class_names}")
    if hp.class_names and hp.large_cell:
        raise ValueError("large_cell is one of the histologies: not together with class_names")
    weights, number = hp.class_weights, len(classes(hp))
    if weights and (len(weights) != number or min(weights) <= 0):
        raise ValueError(f"class_weights must be {number} numbers > 0, got {weights}")


def classes(hp: Hparams) -> tuple[str, ...]:
    """Return the names of the classes."""
    if hp.class_names:
        return hp.class_names
    return (*CLASS_NAMES, "large_cell") if hp.large_cell else CLASS_NAMES


def recipe() -> Recipe[Hparams]:
    """Return the full-size recipe."""
    return Recipe(
        name="lung_classification",
        kind="class3d",
        transform_version=1,
        hparams=Hparams(),
        tiny_hparams=Hparams(size=32, lr=3e-3, epochs=24),
        prepare_fields=("view", "size", "box_mm", "pet_channel", "compat"),
        records_fields=("large_cell", "class_names"),
        records=records,
        prepare=prepare,
        class_names=CLASS_NAMES,
        classes=classes,
        phantom=write_phantom,
        phantom_baseline=baseline,
        learning=Learning(
            model=model,
            augment=augment,
            inputs=inputs,
            loss_sums=loss_sums,
            loss_value=loss_value,
            penalty=penalty,
            optimizer=optimizer,
            schedule=schedule,
            probabilities=measures.probabilities,
            measure=measures.measure,
            metrics=measures.metrics,
            choose=measures.choose,
            baseline=measures.baseline,
            objective=Objective("auroc", "max"),
            decode=measures.decode,
            search_space={"lr": LogUniform(1e-5, 1e-2), "dropout": Uniform(0.0, 0.5)},
            sweep=measures.SWEEP,
        ),
    )


def records(tree: SourceTree, hp: Hparams) -> Iterator[Record | Rejection]:
    """Offer one record per annotated CT series.

    Raises:
        ConfigError: if names of classes are given where the patient's letter decides.
    """
    if hp.class_names and tree.layout == lung_pet_ct_dx.NAME:
        raise ConfigError("class_names is for a datalist; in Lung-PET-CT-Dx the letter decides")
    wanted = datalist.Wanted(
        image="volume", label="class", class_names=classes(hp), modalities=("CT",)
    )
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


def augment(batch: Batch, seeds: Sequence[int], hp: Hparams) -> Batch:
    """Flip, scale, turn and shift CT and PET together; `compat=original` changes nothing."""
    from medray.nn.augment3d import Augmentation, augment_volumes

    if hp.compat == "original":
        return batch
    how = Augmentation(
        flip=hp.flip,
        scale=hp.scale,
        rotate_deg=hp.rotate_deg,
        shift=hp.jitter if hp.view == "box" else 0.0,
    )
    volumes: Batch = {name: batch[name] for name in ("image", "pet") if name in batch}
    return {**batch, **augment_volumes(volumes, seeds, how)}


def inputs(batch: Batch, hp: Hparams) -> "Tensor":
    """Return (B, 1 or 2, D, H, W) in [0, 1]: CT, and PET with `pet_channel`."""
    import torch

    from medray.nn.window import window

    low, high = hp.window_low_hu, hp.window_high_hu
    image = window(batch["image"], low=low, high=high, out_low=0.0, out_high=1.0)
    if not hp.pet_channel:
        return image.unsqueeze(1)
    steps = _HIGH_SUV * _STEPS_PER_SUV
    pet = window(batch["pet"], low=0.0, high=steps, out_low=0.0, out_high=1.0)
    return torch.stack([image, pet], dim=1)


def model(hp: Hparams) -> "nn.Module":
    """Return a fresh network."""
    from medray.nn.cnn3d import PlainCnn3d, PlainCnn3dConfig, ResidualCnn3d, ResidualCnn3dConfig

    channels, outputs = (2 if hp.pet_channel else 1), len(classes(hp))
    if hp.network == "original":
        plain = PlainCnn3dConfig(in_channels=channels, num_classes=outputs)
        if hp.filters:
            dropouts = (*plain.dropouts, *[plain.dropouts[-1]] * len(hp.filters))
            plain = replace(plain, widths=hp.filters, dropouts=dropouts[: len(hp.filters)])
        return PlainCnn3d(plain if hp.norm == "auto" else replace(plain, norm=hp.norm))
    residual = ResidualCnn3dConfig(in_channels=channels, num_classes=outputs, dropout=hp.dropout)
    if hp.filters:
        residual = replace(residual, widths=hp.filters)
    return ResidualCnn3d(residual if hp.norm == "auto" else replace(residual, norm=hp.norm))


def loss_sums(outputs: Outputs, batch: Batch, hp: Hparams) -> "Tensor":
    """Return the sums of the weighted cross-entropy."""
    from medray.losses.classification import cross_entropy_sums

    assert not isinstance(outputs, dict)
    weights = hp.class_weights
    if not weights and hp.compat == "original" and len(classes(hp)) == len(_ORIGINAL_CLASS_WEIGHTS):
        weights = _ORIGINAL_CLASS_WEIGHTS
    return cross_entropy_sums(outputs, batch["label"], class_weights=weights)


def loss_value(sums: "Tensor", hp: Hparams) -> "Tensor":
    """Return the weighted cross-entropy per example."""
    from medray.losses.classification import mean_value

    del hp
    return mean_value(sums)


def penalty(network: "nn.Module", hp: Hparams) -> "Tensor":
    """Return the original network's L2 term, 1e-4 times the squares of its first dense layer."""
    import torch

    from medray.nn.penalties import dense_l2

    return (
        _ORIGINAL_L2 * dense_l2(network, "hidden") if hp.network == "original" else torch.zeros(())
    )


def optimizer(network: "nn.Module", hp: Hparams) -> "Optimizer":
    """Return Adam."""
    from medray.nn.optimizers import adam

    return adam(network, lr=hp.lr)


def schedule(hp: Hparams) -> Schedule:
    """Return the chosen schedule."""
    if hp.schedule == "plateau":
        return Schedule(kind="plateau", factor=0.5, patience=hp.patience, floor=1e-6)
    return Schedule(kind="one_cycle")
