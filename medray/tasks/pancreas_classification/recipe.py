"""Cancer or not, from the pancreas on abdominal CT.

Data      folders of DICOM, organ mask and a file `label`; also datalist with class and `mask`;
          with `mask_model=URI` our own pancreas_segmentation draws the mask
Input     volume (96, 96, 96) int16 HU round the organ, mask (96, 96, 96) uint8; the network sees
          HU -40..240 as -1..1 and the mask as second channel (`mask_channel`)
Model     encoder of the segmenter's attention U-Net with a pooled head; with `joint=true` the whole
          U-Net, which answers with the mask and the class at once
Loss      binary cross-entropy, cancer weighted by `positive_weight`; joint: plus
          `mask_loss_weight` times the soft Dice loss of the mask
Expected  none published (the model card could not be had);
          340 small phantoms, --tiny, seed 0: AUROC 0.986 of 51 unseen patients (docs/results.md)
Command   medray prepare pancreas_classification --data DIR --out URI
          medray train pancreas_classification --data URI --out URI

`compat=original` prepares and learns as the original's second generation did; what differs:
- voxels outside the organ become 0 HU (also by `outside_zero=true`);
- the crop lies 90 % of the way from the volume's border to the organ, in place of a margin;
- 115^3, from which training crops 96^3 at random and everything else the middle (at inference the
  original forgot to crop at all);
- HU -1024..1024 as -1..1, the image alone, batch norm, a head of one dense layer on all features,
  AdamW 1e-4 with an L2 penalty of 0.01.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np

from medray.datasets import datalist, dicom_mask_folders
from medray.datasets.layouts import read_layout
from medray.datasets.loading import plain_meta
from medray.datasets.mask_values import organ_mask
from medray.datasets.record import Record, Rejection, Sample, SourceTree
from medray.errors import ConfigError, DataError
from medray.learning import Batch, Learning, LogUniform, Objective, Outputs, Schedule
from medray.preprocess.crop import crop_box, mask_box
from medray.preprocess.spatial import resize_volume
from medray.recipe import Prepared, Recipe, UpstreamPart
from medray.tasks.pancreas_classification import measures
from medray.tasks.pancreas_classification.phantom import baseline, write_phantom
from medray.volume import Volume

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

CLASS_NAMES = ("no_cancer", "cancer")
_MIN_HU, _MAX_HU = -1024, 3071
_ORIGINAL_NEARNESS = 0.9
_ORIGINAL_ENLARGED = 1.2
_ORIGINAL_WINDOW_HU = 1024.0
_ORIGINAL_L2 = 0.01
_ORIGINAL_WEIGHT_DECAY = 0.004  # Keras' default


@dataclass(frozen=True, kw_only=True, slots=True)
class Hparams:
    """Numbers that decide the crop, the grid, the network and how it learns.

    Attributes:
        size: side of the cube in voxels.
        margin: what is added on each side of the organ's box, as a share of its length.
        outside_zero: voxels outside the organ become 0 HU.
        mask_value: the pancreas' value in masks of several organs; 0 means the only value.
        mask_model: URI of a pancreas_segmentation model that draws the mask; empty takes the
            data's own.
        compat: `original` for what the original did.
        filters: channels of the encoder's levels, fine to coarse.
        joint: one network with a mask output beside the class.
        mask_channel: the organ mask as second input; `auto` is on unless `joint`.
        organ_only: where the mask is an input, voxels outside it are shown as the window's middle
            (the original did so: 0 HU in a window of +-1024).
        mask_loss_weight: of the mask's loss under `joint`.
        positive_weight: of a cancer in the loss; no cancer is 1.
        dropout: before the head's last layer.
        window_low_hu: becomes -1 for the network.
        window_high_hu: becomes 1.
        flip: chance of a flip, for each axis.
        scale: sizes vary by up to this share, each axis by itself.
        rotate_deg: volumes are turned by up to this about one random axis.
        lr: learning rate; the original's was 1e-4.
        schedule: of the learning rate: `one_cycle` up and down over all steps, or `plateau`, the
            original's: halved after `patience` epochs without a better objective.
        patience: of the plateau, in epochs.
        epochs: passes over the training split.
        batch_size: volumes a worker takes at one step.
        seed: initial weights, order and augmentation.
    """

    size: int = 96
    margin: float = 0.1
    outside_zero: bool = False
    mask_value: int = 0
    mask_model: str = ""
    compat: Literal["none", "original"] = "none"
    filters: tuple[int, ...] = (16, 32, 64, 128, 256)
    joint: bool = False
    mask_channel: Literal["auto", "on", "off"] = "auto"
    organ_only: bool = True
    mask_loss_weight: float = 1.0
    positive_weight: float = 1.0
    dropout: float = 0.0
    window_low_hu: float = -40.0
    window_high_hu: float = 240.0
    flip: float = 0.5
    scale: float = 0.05
    rotate_deg: float = 10.0
    lr: float = 1e-3
    schedule: Literal["one_cycle", "plateau"] = "one_cycle"
    patience: int = 30
    epochs: int = 200
    batch_size: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if self.size < 16 or self.size % 8:
            raise ValueError(f"size must be a multiple of 8 and at least 16, got {self.size}")
        if self.margin < 0 or self.mask_value < 0:
            raise ValueError("margin and mask_value must be >= 0")
        if len(self.filters) < 2 or min(self.filters) < 1:
            raise ValueError(f"filters must be at least two numbers > 0, got {self.filters}")
        if self.joint and (self.mask_channel == "on" or self.compat == "original"):
            raise ValueError("joint=true predicts the mask: no mask_channel=on, no compat=original")
        if self.window_high_hu <= self.window_low_hu:
            raise ValueError("window_high_hu must be above window_low_hu")
        if not (0 <= self.flip <= 1 and 0 <= self.scale < 1 and 0 <= self.rotate_deg <= 180):
            raise ValueError("flip must lie in 0..1, scale in 0..1 (below 1), rotate_deg in 0..180")
        if not 0 <= self.dropout < 1 or self.mask_loss_weight < 0:
            raise ValueError("dropout must lie in 0..1 (below 1), mask_loss_weight be >= 0")
        if self.lr <= 0 or self.positive_weight <= 0:
            raise ValueError("lr and positive_weight must be > 0")
        if min(self.epochs, self.batch_size, self.patience) < 1:
            raise ValueError("epochs, batch_size and patience must be at least 1")

    @property
    def takes_mask(self) -> bool:
        """Whether the organ mask is an input of the network."""
        if self.compat == "original" or self.joint:
            return False
        return self.mask_channel != "off"


# Not turned or scaled: at 32^3 a mask resampled beside its image lets fat into the organ.
_TINY = Hparams(
    size=32, filters=(8, 16), lr=5e-3, epochs=12, batch_size=8, scale=0.0, rotate_deg=0.0
)


def recipe() -> Recipe[Hparams]:
    """Return the full-size recipe."""
    return Recipe(
        name="pancreas_classification",
        kind="score3d",
        transform_version=1,
        hparams=Hparams(),
        tiny_hparams=_TINY,
        prepare_fields=("size", "margin", "outside_zero", "mask_value", "compat"),
        records=records,
        prepare=prepare,
        class_names=CLASS_NAMES,
        segment="pancreas",
        phantom=write_phantom,
        phantom_baseline=baseline,
        upstream={"mask": UpstreamPart(setting="mask_model", kind="mask3d")},
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
            search_space={
                "lr": LogUniform(1e-5, 1e-2),
                "mask_loss_weight": LogUniform(0.1, 10.0),
            },
            sweep=measures.SWEEP,
        ),
    )


def records(tree: SourceTree, hp: Hparams) -> Iterator[Record | Rejection]:
    """Offer one record per CT volume with a class, and with a mask unless a model draws it."""
    wanted = datalist.Wanted(
        image="volume", label="class", class_names=CLASS_NAMES, modalities=("CT",)
    )
    return read_layout(
        tree,
        {
            dicom_mask_folders.NAME: partial(
                dicom_mask_folders.records, with_label=True, with_mask=not hp.mask_model
            ),
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
        value = 0 if hp.mask_model else hp.mask_value  # our own model knows one organ
        organ = sample.mask.with_array(organ_mask(sample.mask.array, value))
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


def augment(batch: Batch, seeds: Sequence[int], hp: Hparams) -> Batch:
    """Flip, scale and turn image and mask together; `compat=original` also crops."""
    from medray.nn.augment3d import Augmentation, augment_volumes

    how = Augmentation(
        flip=hp.flip,
        scale=hp.scale,
        rotate_deg=hp.rotate_deg,
        crop=hp.size if hp.compat == "original" else 0,
    )
    volumes: Batch = {name: batch[name] for name in ("image", "mask") if name in batch}
    return {**batch, **augment_volumes(volumes, seeds, how)}


def inputs(batch: Batch, hp: Hparams) -> "Tensor":
    """Return (B, 1 or 2, D, H, W): HU in [-1, 1], and the organ mask if the network takes it.

    Raises:
        ConfigError: the network takes the mask and the examples have none.
    """
    import torch

    from medray.nn.augment3d import center_crop
    from medray.nn.window import window

    low, high = hp.window_low_hu, hp.window_high_hu
    if hp.compat == "original":
        low, high = -_ORIGINAL_WINDOW_HU, _ORIGINAL_WINDOW_HU
    image = window(batch["image"], low=low, high=high, out_low=-1.0, out_high=1.0)
    image = center_crop(image, hp.size)
    if not hp.takes_mask:
        return image.unsqueeze(1)
    if "mask" not in batch:
        raise ConfigError(
            "the network takes the organ mask and these examples have none; prepare them with "
            "masks or --set mask_model=URI, or train with --set mask_channel=off"
        )
    mask = center_crop(batch["mask"], hp.size).float()
    return torch.stack([image * mask if hp.organ_only else image, mask], dim=1)


def model(hp: Hparams) -> "nn.Module":
    """Return a fresh encoder with its head, or the joint network."""
    from medray.nn import encoder_classifier
    from medray.nn.encoder_classifier import EncoderClassifier, MaskAndClass

    if hp.compat == "original":
        original = encoder_classifier.g2()
        return EncoderClassifier(replace(original, size_zyx=(hp.size,) * 3))
    config = encoder_classifier.preset(hp.filters)
    groups = max(1, min(config.unet.groups, hp.filters[0] // 2))
    unet = replace(config.unet, in_channels=2 if hp.takes_mask else 1, groups=groups)
    config = replace(config, unet=unet, size_zyx=(hp.size,) * 3, dropout=hp.dropout, head_norm=True)
    return MaskAndClass(config) if hp.joint else EncoderClassifier(config)


def loss_sums(outputs: Outputs, batch: Batch, hp: Hparams) -> "Tensor":
    """Return the sums of the class loss (2), under `joint` followed by those of the mask (3)."""
    import torch

    from medray.losses.classification import binary_sums
    from medray.losses.segmentation import segmentation_sums

    logits = outputs["class"] if isinstance(outputs, dict) else outputs
    sums = binary_sums(logits, batch["label"], positive_weight=hp.positive_weight)
    if not isinstance(outputs, dict):
        return sums
    return torch.cat([sums, segmentation_sums("dice", outputs["mask"], batch["mask"])])


def loss_value(sums: "Tensor", hp: Hparams) -> "Tensor":
    """Return the class loss, under `joint` plus the weighted mask loss."""
    from medray.losses.classification import mean_value
    from medray.losses.segmentation import segmentation_value

    value = mean_value(sums[:2])
    return value + hp.mask_loss_weight * segmentation_value("dice", sums[2:]) if hp.joint else value


def penalty(network: "nn.Module", hp: Hparams) -> "Tensor":
    """Return the original's L2 term, 0.01 times the squares of its blocks' kernels."""
    import torch

    from medray.nn.penalties import block_kernels_l2

    return _ORIGINAL_L2 * block_kernels_l2(network) if hp.compat == "original" else torch.zeros(())


def optimizer(network: "nn.Module", hp: Hparams) -> "Optimizer":
    """Return Adam, for the original AdamW."""
    from medray.nn.optimizers import adam, adamw

    if hp.compat == "original":
        return adamw(network, lr=hp.lr, weight_decay=_ORIGINAL_WEIGHT_DECAY)
    return adam(network, lr=hp.lr)


def schedule(hp: Hparams) -> Schedule:
    """Return the chosen schedule; the original's is the plateau."""
    if hp.schedule == "one_cycle" and hp.compat != "original":
        return Schedule(kind="one_cycle")
    return Schedule(kind="plateau", factor=0.5, patience=hp.patience, cooldown=10, floor=1e-6)
