"""Pancreas segmentation on abdominal CT.

Data      NIH Pancreas-CT (80 usable cases; portal-venous contrast), or folders of DICOM and mask
Input     volume (160, 160, 160) int16 HU, whole field of view; mask (160, 160, 160) uint8;
          the network sees HU -512..1024 as -1..1
Model     attention U-Net with fused deep supervision: residual 3D blocks with an instance norm, or
          the original's first (`network=g1`) and second generation (`network=g2`)
Loss      soft Dice (`dice`), or `weighted_dice`, `weighted_ce` (the original's), `balanced_ce`;
          `dice_weight` 7 is the weight of a pancreas voxel in the weighted ones
Expected  Dice 0.72, recall 0.95 (author's report on another split and grid, not reproduced);
          40 phantoms, --tiny, seed 0: Dice 0.872 of 6 unseen patients, as on the original grid
          (docs/results.md)
Command   medray prepare pancreas_segmentation --data DIR --out URI
          medray train pancreas_segmentation --data URI --out URI

The original's first generation is `--set network=g1 --set loss=weighted_ce --set compat=original`.
`compat=original` prepares and augments as it did; what differs from the default:
- stored values before rescale, in place of HU, each volume's own range to -1..1;
- nearest neighbour to 176^3, from which training crops 160^3, in place of smoothed linear;
- flips alone, no scaling or turning. Validation takes all of 176^3 (the original cropped and
  flipped there too); no crop is needed, as the network is convolutional.
The original never transposed its labels; that fault is not offered, as it teaches nothing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np

from medray.datasets import datalist, dicom_mask_folders, pancreas_ct
from medray.datasets.layouts import read_layout
from medray.datasets.loading import plain_meta
from medray.datasets.mask_values import organ_mask
from medray.datasets.record import Record, Rejection, Sample, SourceTree
from medray.errors import DataError
from medray.learning import (
    Batch,
    Choice,
    Domain,
    Learning,
    LogUniform,
    Objective,
    Outputs,
    Schedule,
)
from medray.preprocess.native_mask import pack_mask
from medray.preprocess.spatial import resample_spacing, resize_volume
from medray.recipe import Prepared, Recipe
from medray.tasks.pancreas_segmentation import measures
from medray.tasks.pancreas_segmentation.phantom import baseline, write_phantom
from medray.volume import Volume

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from medray.nn.attention_unet import AttentionUNetConfig

CLASS_NAMES = ("background", "pancreas")
_MIN_HU, _MAX_HU = -1024, 3071
_ORIGINAL_ENLARGED = 1.1
_ORIGINAL_FLIP = 0.5
_OWN_LR = {"preset": 1e-3, "g1": 2e-3, "g2": 1e-4}
_G2_L2 = 0.01
SEARCH_SPACE: dict[str, Domain] = {
    "lr": LogUniform(1e-4, 1e-2),
    "loss": Choice(("dice", "weighted_dice", "weighted_ce", "balanced_ce")),
    "dice_weight": LogUniform(1.0, 15.0),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Hparams:
    """Numbers that decide the grid, the network and how it learns.

    Attributes:
        grid: `whole` resizes the field of view to a cube of `size`; `isotropic` resamples to
            `spacing_mm` and keeps the proportions.
        size: side of the cube in voxels.
        spacing_mm: of the isotropic grid.
        mask_value: the pancreas' value in masks of several organs; 0 means the only value.
        compat: `original` for what the original did.
        network: `preset`, or the original's generations `g1` and `g2`.
        filters: channels of the preset's levels, fine to coarse.
        loss: `dice`, `weighted_dice`, `weighted_ce` or `balanced_ce` (medray.losses.segmentation).
        dice_weight: of a pancreas voxel in `weighted_dice` and `weighted_ce`; background is 1.
        window_low_hu: becomes -1 for the network; `compat=original` takes the volume's own range.
        window_high_hu: becomes 1.
        flip: chance of a flip, for each axis; the original's was 0.5. A belly has a left and a
            right, by which the pancreas is found.
        scale: sizes vary by up to this share, each axis by itself.
        rotate_deg: volumes are turned by up to this about one random axis.
        crop: side of a random cube that training takes of each volume; 0 takes all.
        lr: 0 means the network's own: 1e-3, g1 0.002 (the original's README), g2 1e-4.
        patience: epochs without a better objective before the learning rate falls.
        weight_decay: of AdamW, `g2` alone (Keras' default).
        epochs: passes over the training split.
        batch_size: volumes a worker takes at one step.
        seed: initial weights, order and augmentation.
    """

    grid: Literal["whole", "isotropic"] = "whole"
    size: int = 160
    spacing_mm: float = 1.5
    mask_value: int = 0
    compat: Literal["none", "original"] = "none"
    network: Literal["g1", "g2", "preset"] = "preset"
    filters: tuple[int, ...] = (16, 32, 64, 128, 256)
    loss: Literal["dice", "weighted_dice", "weighted_ce", "balanced_ce"] = "dice"
    dice_weight: float = 7.0
    window_low_hu: float = -512.0
    window_high_hu: float = 1024.0
    flip: float = 0.0
    scale: float = 0.1
    rotate_deg: float = 10.0
    crop: int = 0
    lr: float = 0.0
    patience: int = 30
    weight_decay: float = 0.004
    epochs: int = 1000
    batch_size: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.size < 16 or self.size % 16:
            raise ValueError(f"size must be a positive multiple of 16, got {self.size}")
        if self.spacing_mm <= 0 or self.mask_value < 0:
            raise ValueError("spacing_mm must be > 0 and mask_value >= 0")
        if len(self.filters) < 2 or min(self.filters) < 1:
            raise ValueError(f"filters must be at least two numbers > 0, got {self.filters}")
        if self.window_high_hu <= self.window_low_hu:
            raise ValueError("window_high_hu must be above window_low_hu")
        if self.dice_weight <= 0 or self.lr < 0 or self.weight_decay < 0:
            raise ValueError("dice_weight must be > 0, lr and weight_decay >= 0")
        if min(self.epochs, self.batch_size, self.patience) < 1:
            raise ValueError("epochs, batch_size and patience must be at least 1")
        _check_augmentation(self)


def _check_augmentation(hp: Hparams) -> None:
    if not (0 <= hp.flip <= 1 and 0 <= hp.scale < 1 and 0 <= hp.rotate_deg <= 180):
        raise ValueError("flip must lie in 0..1, scale in 0..1 (below 1), rotate_deg in 0..180")
    if hp.crop % 16 or not 0 <= hp.crop <= hp.size:
        raise ValueError(f"crop must be 0 or a multiple of 16 up to size, got {hp.crop}")


def recipe() -> Recipe[Hparams]:
    """Return the full-size recipe."""
    return Recipe(
        name="pancreas_segmentation",
        kind="mask3d",
        transform_version=2,
        hparams=Hparams(),
        tiny_hparams=Hparams(
            size=48, spacing_mm=5.0, filters=(4, 8, 16, 32), lr=5e-3, epochs=12, batch_size=2
        ),
        prepare_fields=("grid", "size", "spacing_mm", "mask_value", "compat"),
        records=records,
        prepare=prepare,
        class_names=CLASS_NAMES,
        lesion_in_each=True,
        segment="pancreas",
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
            objective=Objective("dice", "max"),
            decode=measures.decode,
            compare=measures.compare,
            search_space=SEARCH_SPACE,
            sweep=measures.SWEEP,
        ),
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
    meta = plain_meta(sample.meta)
    if sample.mask is not None:
        organ = sample.mask.with_array(organ_mask(sample.mask.array, hp.mask_value))
        arrays["mask"] = _regrid(organ, hp, is_mask=True).array
        arrays["native_mask_bits"], box = pack_mask(organ.array)
        meta["native_mask_box_kji"] = [list(ends) for ends in box]
    return Prepared(
        arrays=arrays,
        affine_lps=image.affine_lps,
        spacing_mm=image.spacing_zyx_mm,
        meta={
            **meta,
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


def model(hp: Hparams) -> "nn.Module":
    """Return a fresh attention U-Net."""
    from medray.nn.attention_unet import AttentionUNet

    return AttentionUNet(_config(hp))


def augment(batch: Batch, seeds: Sequence[int], hp: Hparams) -> Batch:
    """Flip, scale, turn and crop image and mask together."""
    from medray.nn.augment3d import Augmentation, augment_volumes

    how = Augmentation(flip=hp.flip, scale=hp.scale, rotate_deg=hp.rotate_deg, crop=hp.crop)
    if hp.compat == "original":
        how = Augmentation(flip=_ORIGINAL_FLIP, crop=hp.crop or hp.size)
    volumes = {name: batch[name] for name in ("image", "mask")}
    return {**batch, **augment_volumes(volumes, seeds, how)}


def inputs(batch: Batch, hp: Hparams) -> "Tensor":
    """Return (B, 1, D, H, W) in [-1, 1]; sizes that do not divide by the stride are padded."""
    from medray.nn.window import min_max, pad_to_multiple, window

    low, high = hp.window_low_hu, hp.window_high_hu
    if hp.compat == "original":
        image = min_max(batch["image"], out_low=-1.0, out_high=1.0)
    else:
        image = window(batch["image"], low=low, high=high, out_low=-1.0, out_high=1.0)
    return pad_to_multiple(image, _config(hp).total_stride, value=-1.0).unsqueeze(1)


def _config(hp: Hparams) -> "AttentionUNetConfig":
    from medray.nn import attention_unet

    if hp.network == "g1":
        return attention_unet.g1()
    return attention_unet.g2() if hp.network == "g2" else attention_unet.preset(hp.filters)


def loss_sums(outputs: Outputs, batch: Batch, hp: Hparams) -> "Tensor":
    """Return the sums of the chosen loss."""
    from medray.losses.segmentation import segmentation_sums

    assert not isinstance(outputs, dict)
    mask = batch["mask"]
    depth, height, width = mask.shape[-3:]
    logits = outputs[..., :depth, :height, :width]
    return segmentation_sums(hp.loss, logits, mask, weight=hp.dice_weight)


def loss_value(sums: "Tensor", hp: Hparams) -> "Tensor":
    """Return the chosen loss of the added sums."""
    from medray.losses.segmentation import segmentation_value

    return segmentation_value(hp.loss, sums, weight=hp.dice_weight)


def penalty(network: "nn.Module", hp: Hparams) -> "Tensor":
    """Return the second generation's L2 term, 0.01 times the squares of its blocks' kernels."""
    import torch

    from medray.nn.penalties import block_kernels_l2

    return _G2_L2 * block_kernels_l2(network) if hp.network == "g2" else torch.zeros(())


def optimizer(network: "nn.Module", hp: Hparams) -> "Optimizer":
    """Return Adam, for the second generation AdamW."""
    from medray.nn.optimizers import adam, adamw

    lr = hp.lr or _OWN_LR[hp.network]
    if hp.network == "g2":
        return adamw(network, lr=lr, weight_decay=hp.weight_decay)
    return adam(network, lr=lr)


def schedule(hp: Hparams) -> Schedule:
    """Return the original's plateau: a tenth (second generation: half) after no better Dice."""
    factor = 0.5 if hp.network == "g2" else 0.1
    return Schedule(kind="plateau", factor=factor, patience=hp.patience, cooldown=10, floor=1e-6)
