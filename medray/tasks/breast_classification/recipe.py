"""Breast cancer on screening mammograms, one score a image, aggregated to the breast.

Data      RSNA Screening Mammography, label per breast; also datalist
Input     image (1, 1024, 512) uint16: the breast alone, chest wall left, background black
Model     SE-ResNeXt-50 32x4d, grey stem; ImageNet weights by path
Loss      focal, alpha 0.25 and gamma 2, per image; positives drawn up to 11 times an epoch
Expected  pF1 0.35 on the public leaderboard (author's report, not reproduced);
          120 tiny phantoms, --tiny: pF1 of 18 unseen patients 1.00, 0.93 of the raw probabilities;
          NIH radiographs of 64 pixels, `foreground=whole`: AUROC 0.642 (0.504 to 0.777) of 31
          unseen patients, with the breast's outline 0.558: the network can be reused, its first
          stage cannot (docs/results.md)
Command   medray prepare breast_classification --data DIR --out URI
          medray train breast_classification --data URI --out URI

Aggregation over a breast's images (mean, max, mean of the two greatest) and the threshold are
chosen together on the validation split.

`compat=original` prepares as the original did without its unpublished detector; what differs:
- values are stretched between smallest and largest to 8 bit, in place of a percentile window of the
  breast in 16 bit; a SIGMOID function of the file is ignored;
- no crop to the breast and no canonical side; padding goes to the side away from the breast;
- values go into the network as 0..1, without the mean and deviation of ImageNet's grey;
- every positive is drawn 11 times, also where that makes them more than half of an epoch.
Its loss: `--set loss=focal_batch`. Its one-cycle also moved Adam's momentum, and it added noise to
some images; neither is done here.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np

from medray.datasets import datalist, rsna_breast
from medray.datasets.layouts import read_layout
from medray.datasets.loading import plain_meta
from medray.datasets.record import Record, Rejection, Sample, SourceTree
from medray.errors import DataError
from medray.learning import (
    Batch,
    Domain,
    Learning,
    LogUniform,
    Objective,
    Outputs,
    Schedule,
    Uniform,
)
from medray.recipe import Prepared, Recipe, UpstreamPart
from medray.tasks.breast_classification import measures
from medray.tasks.breast_classification.framing import as_original, breast_alone, roi_of
from medray.tasks.breast_classification.phantom import baseline, write_phantom
from medray.volume import Image2D

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from medray.nn.augment2d import Augmentation2d
    from medray.nn.foreign_weights import LoadReport

CLASS_NAMES = ("no_cancer", "cancer")
# ImageNet's mean and deviation, of the three colours together.
_GREY_MEAN, _GREY_DEVIATION = 0.449, 0.226
SEARCH_SPACE: dict[str, Domain] = {
    "lr": LogUniform(1e-5, 1e-2),
    "focal_alpha": Uniform(0.0, 0.75),
    "focal_gamma": Uniform(0.0, 3.0),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Hparams:
    """Numbers that decide the frame, and how it is learnt.

    Attributes:
        height, width: of the frame in pixels.
        roi_model: URI of a breast_roi model whose best box is taken before the breast is outlined.
        foreground: `breast` alone, all else black, chest wall left; `whole` for images of other
            body parts.
        compat: `original` for what the original did.
        blocks: bottlenecks of the network's stages.
        planes: channels of its stem.
        groups: of its 3x3 convolutions.
        group_width: channels of a group in the first stage, per 64 planes.
        dropout: share of pooled features set to zero.
        loss: `focal` per image, or the original's `focal_batch` of the batch's mean.
        focal_alpha: weight of cancer, 0 for none (`focal`).
        focal_gamma: how far easy images are discounted (`focal`; the original has 1).
        positive_copies: how often an epoch visits an image with cancer, at most until they are
            half of all visits.
        augment: strength: `none`, `light` (the original's level 1) or `full` (its level 2).
        flip: chance of a flip left to right; the canonical side makes it unneeded.
        lr: greatest learning rate.
        epochs: passes over the drawn images.
        batch_size: images a worker takes at one step.
        seed: initial weights, order and augmentation.
    """

    height: int = 1024
    width: int = 512
    roi_model: str = ""
    foreground: Literal["breast", "whole"] = "breast"
    compat: Literal["none", "original"] = "none"
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    planes: int = 64
    groups: int = 32
    group_width: int = 4
    dropout: float = 0.0
    loss: Literal["focal", "focal_batch"] = "focal"
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    positive_copies: int = 11
    augment: Literal["none", "light", "full"] = "full"
    flip: float = 0.0
    lr: float = 3e-4
    epochs: int = 5
    batch_size: int = 24
    seed: int = 13

    def __post_init__(self) -> None:
        if min(self.height, self.width) < 32 or self.height % 32 or self.width % 32:
            raise ValueError(
                f"height and width must be multiples of 32, got {self.height} and {self.width}"
            )
        if not self.blocks or min(self.blocks) < 1:
            raise ValueError(f"blocks must be counts of bottlenecks, got {self.blocks}")
        if min(self.groups, self.group_width) < 1 or self.planes * self.group_width < 64:
            raise ValueError("groups must be >= 1 and planes x group_width >= 64")
        if not (0 <= self.focal_alpha < 1 and self.focal_gamma >= 0):
            raise ValueError("focal_alpha must lie in 0..1 (below 1), focal_gamma be >= 0")
        if not (0 <= self.flip <= 1 and 0 <= self.dropout < 1) or self.lr <= 0:
            raise ValueError("flip must lie in 0..1, dropout in 0..1 (below 1), lr be > 0")
        if min(self.epochs, self.batch_size, self.positive_copies) < 1:
            raise ValueError("epochs, batch_size and positive_copies must be at least 1")


def recipe() -> Recipe[Hparams]:
    """Return the full-size recipe."""
    return Recipe(
        name="breast_classification",
        kind="score2d",
        transform_version=2,
        hparams=Hparams(),
        tiny_hparams=_tiny(),
        prepare_fields=("height", "width", "foreground", "compat"),
        records=records,
        prepare=prepare,
        class_names=CLASS_NAMES,
        phantom=write_phantom,
        phantom_baseline=baseline,
        submission=measures.submission,
        submission_needs=("patient_id", "laterality"),
        prepare_peak_factor=32.0,
        upstream={"boxes": UpstreamPart(setting="roi_model", kind="box2d", is_needed=False)},
        learning=Learning(
            model=model,
            augment=augment,
            sampler=sampler,
            inputs=inputs,
            loss_sums=loss_sums,
            loss_value=loss_value,
            optimizer=optimizer,
            adopt=adopt,
            schedule=schedule,
            probabilities=measures.probabilities,
            measure=measures.measure,
            metrics=measures.metrics,
            choose=measures.choose,
            baseline=measures.baseline,
            objective=Objective("pf1_raw", "max"),
            decode=measures.decode,
            search_space=SEARCH_SPACE,
            sweep=measures.SWEEP,
        ),
    )


def _tiny() -> Hparams:
    return Hparams(
        height=128,
        width=64,
        blocks=(1, 1, 1, 1),
        planes=16,
        groups=4,
        group_width=16,
        lr=3e-3,
        epochs=20,
    )


def records(tree: SourceTree, hp: Hparams) -> Iterator[Record | Rejection]:
    """Offer one record per labelled mammogram."""
    del hp
    wanted = datalist.Wanted(image="image", label="class", class_names=CLASS_NAMES)
    return read_layout(
        tree,
        {
            rsna_breast.NAME: rsna_breast.records,
            datalist.NAME: partial(datalist.records, wanted=wanted),
        },
    )


def prepare(sample: Sample, hp: Hparams) -> Prepared:
    """Turn one mammogram into one example."""
    image = sample.image
    if not isinstance(image, Image2D):
        raise DataError("wrong_modality", "the task takes mammograms")
    pixels, facts = (
        as_original(image, hp)
        if hp.compat == "original"
        else breast_alone(image, hp, roi_of(sample, image.array.shape))
    )
    return Prepared(
        arrays={"image": pixels[None], **_belongs_to(sample.meta)},
        label=sample.label,
        meta={
            **plain_meta(sample.meta),
            **facts,
            "original_shape": list(image.array.shape[:2]),
        },
    )


def _belongs_to(meta: Mapping[str, object]) -> dict[str, np.ndarray]:
    """Return the numbers of side, site and machine, by which scores are gathered and compared."""
    side = str(meta.get("laterality", ""))
    number = measures.SIDES.index(side) if side in measures.SIDES else measures.UNKNOWN_SIDE
    found = {"side": np.array([number], dtype=np.uint8)}
    for name in ("site", "machine"):
        text = str(meta.get(f"{name}_id", ""))
        value = int(text) if text.isdigit() and len(text) < 9 else -1
        found[name] = np.array([value], dtype=np.int32)
    return found


def sampler(cases: Sequence[Mapping[str, object]], epoch: int, hp: Hparams) -> list[int]:
    """Return every image once, and those with cancer so often that they are half of the visits.

    No more than `positive_copies` times each; `compat=original` always so often. What does not
    divide is drawn anew for each epoch.
    """
    positive = [number for number, case in enumerate(cases) if case["label"] == 1]
    others = len(cases) - len(positive)
    visits = hp.positive_copies * len(positive)
    if hp.compat != "original":
        visits = min(visits, max(others, len(positive)))
    rng = np.random.default_rng([hp.seed, epoch, 2])
    whole, rest = divmod(visits, max(1, len(positive)))
    more = positive * max(0, whole - 1)
    more += rng.permutation(np.array(positive, dtype=np.int64))[:rest].tolist()
    return [*range(len(cases)), *more]


def augment(batch: Batch, seeds: Sequence[int], hp: Hparams) -> Batch:
    """Flip, scale, turn, shift, cover, blur and tone the images."""
    from medray.nn.augment2d import augment_images

    return {**batch, "image": augment_images(batch["image"], seeds, _strengths(hp))}


def _strengths(hp: Hparams) -> "Augmentation2d":
    from medray.nn.augment2d import Augmentation2d

    if hp.augment == "none":
        return Augmentation2d(flip=hp.flip)
    if hp.augment == "light":
        return Augmentation2d(
            flip=hp.flip, affine=0.65, rotate_deg=3.0, scale=0.05, shift_y=0.03, shift_x=0.03
        )
    return Augmentation2d(
        flip=hp.flip,
        affine=0.65,
        rotate_deg=6.0,
        scale=0.1,
        shift_y=0.1,
        holes=0.6,
        hole_px=max(1, hp.height // 128),
        blur=0.25,
        gamma=0.3,
        tone=0.5,
    )


def inputs(batch: Batch, hp: Hparams) -> "Tensor":
    """Return (B, 1, H, W): 0..1 less ImageNet's mean grey, over its deviation."""
    import torch

    image = batch["image"]
    shown = image.float() / float(torch.iinfo(image.dtype).max)
    return shown if hp.compat == "original" else (shown - _GREY_MEAN) / _GREY_DEVIATION


def model(hp: Hparams) -> "nn.Module":
    """Return a fresh network."""
    from medray.nn.se_resnext import SeResNext, SeResNextConfig

    return SeResNext(
        SeResNextConfig(
            blocks=hp.blocks,
            planes=hp.planes,
            groups=hp.groups,
            group_width=hp.group_width,
            dropout=hp.dropout,
        )
    )


def adopt(network: "nn.Module", content: bytes) -> str:
    """Take over the weights of another library's file; return what was left out."""
    from medray.nn.foreign_weights import read_foreign_weights

    return str(adopt_weights(network, read_foreign_weights(content)))


def adopt_weights(network: "nn.Module", tensors: "Mapping[str, Tensor]") -> "LoadReport":
    """Take over ImageNet weights under timm's or torchvision's names, and say what was left out."""
    from medray.nn.foreign_weights import TIMM_TO_MONAI, load_foreign_weights

    stem = "layer0.conv1.weight"
    return load_foreign_weights(network, tensors, renames=TIMM_TO_MONAI, stem=stem)


def loss_sums(outputs: Outputs, batch: Batch, hp: Hparams) -> "Tensor":
    """Return the sums of the focal loss, or of the cross-entropy that `focal_batch` weighs."""
    from medray.losses.classification import binary_sums
    from medray.losses.focal import focal_sums

    assert not isinstance(outputs, dict)
    if hp.loss == "focal_batch":
        return binary_sums(outputs, batch["label"])
    return focal_sums(outputs, batch["label"], alpha=hp.focal_alpha, gamma=hp.focal_gamma)


def loss_value(sums: "Tensor", hp: Hparams) -> "Tensor":
    """Return the focal loss per image, or that of the whole step."""
    from medray.losses.classification import mean_value
    from medray.losses.focal import focal_batch_value

    return focal_batch_value(sums) if hp.loss == "focal_batch" else mean_value(sums)


def optimizer(network: "nn.Module", hp: Hparams) -> "Optimizer":
    """Return Adam."""
    from medray.nn.optimizers import adam

    return adam(network, lr=hp.lr)


def schedule(hp: Hparams) -> Schedule:
    """Return one cycle over all steps."""
    del hp
    return Schedule(kind="one_cycle")
