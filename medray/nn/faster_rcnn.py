"""Faster R-CNN on a ResNet with a feature pyramid, of torchvision's parts; losses as sums.

Ren et al. 2015 (arXiv:1506.01497), Lin et al. 2017 (arXiv:1612.03144). Names of the weights are
those of torchvision's `fasterrcnn_resnet50_fpn`; nothing is ever downloaded. Its own forward gives
losses as means over a batch; here each image gives its sums, so that images add over workers. Which
anchors and regions are judged is drawn from each image's own seed, so a run repeats.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import resnet
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision.ops import FrozenBatchNorm2d

from medray.nn.region_losses import NUM_SUMS, SeededSampler, region_sums, rpn_sums

RcnnNorm = Literal["frozen_batch", "batch", "group"]
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_NUM_LEVELS = 4
_POOLED = 7
_GROUPS = 32
# Body layers in the order in which they are set free, as torchvision counts them.
_BODY = ("layer4", "layer3", "layer2", "layer1", "conv1", "bn1")


@dataclass(frozen=True, kw_only=True, slots=True)
class FasterRcnnConfig:
    """Shape of the detector; the defaults are torchvision's but for norm and score floor.

    Attributes:
        backbone: `resnet50`, or `resnet18` for small images.
        width: channels of the first stage of a `resnet18`; 64 is the published one.
        norm: `frozen_batch` holds the statistics of trained weights and is useless without them;
            `group` (which no batch decides) or `batch` learn from the start.
        num_classes: foreground classes.
        shown_px: longer side of the images within the network; 0 leaves them.
        anchor_px: side of the anchors at the finest level; each further one doubles it.
        channels: of the pyramid.
        hidden: width of the box head.
        proposals: regions kept for training; half of them in evaluation.
        anchors_per_image, rois_per_image: how many are judged by the losses.
        trainable_layers: of the body, from the last: 5 trains all, 0 none.
        predictor_only: nothing but the last layer of the box head is trained.
        detections: boxes an image gets at most.
        score_floor: boxes below are left out; the operating point is chosen later.
        nms_iou: of two boxes of a class that overlap by more the better one is kept.
        gate: a head that tells from the whole image whether there is anything at all.
    """

    backbone: Literal["resnet50", "resnet18"] = "resnet50"
    width: int = 64
    norm: RcnnNorm = "group"
    num_classes: int = 1
    shown_px: int = 0
    anchor_px: int = 32
    channels: int = 256
    hidden: int = 1024
    proposals: int = 2000
    anchors_per_image: int = 256
    rois_per_image: int = 512
    trainable_layers: int = 5
    predictor_only: bool = False
    detections: int = 100
    score_floor: float = 0.001
    nms_iou: float = 0.5
    gate: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.trainable_layers <= 5:
            raise ValueError(f"trainable_layers must lie in 0..5, got {self.trainable_layers}")
        if self.width < 8 or (self.width != 64 and self.backbone != "resnet18"):
            raise ValueError(f"width is a resnet18's, 8 at least, got {self.width}")
        counts = (self.num_classes, self.anchor_px, self.channels, self.hidden, self.detections)
        if min(counts) < 1 or min(self.anchors_per_image, self.rois_per_image) < 1:
            raise ValueError("sizes and counts of the detector must be at least 1")
        if self.proposals < 2 or self.shown_px < 0 or self.shown_px % 32:
            raise ValueError("proposals must be >= 2, shown_px a multiple of 32 (or 0)")
        if not (0 <= self.score_floor < 1 and 0 < self.nms_iou <= 1):
            raise ValueError("score_floor must lie in 0..1 (below 1), nms_iou in 0..1 (above 0)")


class FasterRcnn(nn.Module):
    """Called with named tensors; answers with loss sums where boxes are given, and detections.

    Input: `image` (B, 1 or 3, H, W) in [0, 1]; optional `boxes` (B, M, 4) in its pixels, padded,
    `num_boxes` (B,), `labels` (B, M) from 0, and `seed` (B,). Output: `sums` (B, 8) where boxes
    were given (`region_losses`); in evaluation `boxes` (B, K, 4), `scores` and `classes` (B, K),
    score 0 where there is none; `gate` (B,) logits with that head.
    """

    def __init__(self, config: FasterRcnnConfig) -> None:
        super().__init__()
        self.config = config
        parts = _assembled(config)
        self.backbone, self.rpn, self.roi_heads = parts.backbone, parts.rpn, parts.roi_heads
        self.rpn.fg_bg_sampler = SeededSampler(config.anchors_per_image, 0.5, stream=0)
        self.roi_heads.fg_bg_sampler = SeededSampler(config.rois_per_image, 0.25, stream=1)
        self.gate = nn.Linear(2 * config.channels, 1) if config.gate else None
        _freeze(self, config)

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return named tensors of fixed sizes; see the class.

        Raises:
            ValueError: training without boxes.
        """
        if self.training and "boxes" not in inputs:
            raise ValueError("training needs boxes and num_boxes beside the images")
        image, scale = self._shown(inputs["image"])
        features = self.backbone(image)
        sizes = [(image.shape[2], image.shape[3])] * len(image)
        anchors, objectness, deltas, per_level = self._propose(image, features, sizes)
        decoded = self.rpn.box_coder.decode(deltas.detach(), anchors).view(len(image), -1, 4)
        proposals, _ = self.rpn.filter_proposals(decoded, objectness, sizes, per_level)
        found = self._gate(features)
        if "boxes" in inputs:
            targets = _targets(inputs, scale)
            self._seed(inputs)
            first = rpn_sums(self.rpn, objectness, deltas, anchors, targets)
            second = self._judged(features, proposals, targets, sizes)
            found["sums"] = torch.cat([first, second, _gate_sums(found, targets)], dim=1)
        if not self.training:
            found.update(self._detect(features, proposals, sizes, scale))
        return found

    def _shown(self, image: Tensor) -> tuple[Tensor, float]:
        """Return normalised images of the network's size, and that size over the given one."""
        mean, deviation = (image.new_tensor(one)[:, None, None] for one in (_MEAN, _DEVIATION))
        shown = (image - mean) / deviation
        longest = max(image.shape[2:])
        side = self.config.shown_px or longest
        if side == longest:
            return shown, 1.0
        scale = side / longest
        size = [int(one * scale) for one in image.shape[2:]]
        resized = functional.interpolate(shown, size=size, mode="bilinear", align_corners=False)
        return resized, scale

    def _propose(
        self, image: Tensor, features: dict[str, Tensor], sizes: list[tuple[int, int]]
    ) -> tuple[list[Tensor], Tensor, Tensor, list[int]]:
        """Return anchors, objectness, deltas of all levels, and how many anchors each has."""
        levels = list(features.values())
        objectness, deltas = self.rpn.head(levels)
        anchors = self.rpn.anchor_generator(ImageList(image, sizes), levels)
        per_level = [math.prod(one.shape[1:]) for one in objectness]
        flat_objectness, flat_deltas = concat_box_prediction_layers(objectness, deltas)
        return anchors, flat_objectness.float(), flat_deltas.float(), per_level

    def _heads(
        self, features: dict[str, Tensor], regions: list[Tensor], sizes: list[tuple[int, int]]
    ) -> tuple[Tensor, Tensor]:
        pooled = self.roi_heads.box_roi_pool(features, regions, sizes)
        logits, deltas = self.roi_heads.box_predictor(self.roi_heads.box_head(pooled))
        return logits.float(), deltas.float()

    def _judged(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        targets: list[dict[str, Tensor]],
        sizes: list[tuple[int, int]],
    ) -> Tensor:
        regions, _, labels, wanted = self.roi_heads.select_training_samples(proposals, targets)
        logits, deltas = self._heads(features, regions, sizes)
        return region_sums(logits, deltas, labels, wanted)

    def _detect(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        sizes: list[tuple[int, int]],
        scale: float,
    ) -> dict[str, Tensor]:
        """Return detections in pixels of the given images, padded to one number."""
        logits, deltas = self._heads(features, proposals, sizes)
        found = self.roi_heads.postprocess_detections(logits, deltas, proposals, sizes)
        most = self.config.detections
        boxes, scores, labels = (
            torch.stack([_padded(one, most) for one in some]) for some in found
        )
        return {"boxes": boxes / scale, "scores": scores, "classes": (labels - 1).clamp(min=0)}

    def _gate(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.gate is None:
            return {}
        last = features[str(_NUM_LEVELS - 1)]
        pooled = torch.cat([last.mean(dim=(2, 3)), last.amax(dim=(2, 3))], dim=1)
        return {"gate": self.gate(pooled)[:, 0].float()}

    def _seed(self, inputs: dict[str, Tensor]) -> None:
        """Give both samplers the images' seeds; without, as in evaluation, always the same ones."""
        given = inputs.get("seed")
        seeds = [0] * len(inputs["image"]) if given is None else given.tolist()
        for sampler in (self.rpn.fg_bg_sampler, self.roi_heads.fg_bg_sampler):
            sampler.seeds = seeds


def _assembled(config: FasterRcnnConfig) -> Any:
    """Return torchvision's detector with random weights."""
    body, channels = _body(config)
    pyramid = BackboneWithFPN(
        body,
        {f"layer{number + 1}": str(number) for number in range(_NUM_LEVELS)},
        [channels << number for number in range(_NUM_LEVELS)],
        config.channels,
    )
    sides = tuple((config.anchor_px << level,) for level in range(_NUM_LEVELS + 1))
    return FasterRCNN(
        pyramid,
        rpn_anchor_generator=AnchorGenerator(sides, ((0.5, 1.0, 2.0),) * len(sides)),
        rpn_pre_nms_top_n_train=config.proposals,
        rpn_post_nms_top_n_train=config.proposals,
        rpn_pre_nms_top_n_test=config.proposals // 2,
        rpn_post_nms_top_n_test=config.proposals // 2,
        box_head=TwoMLPHead(config.channels * _POOLED**2, config.hidden),
        box_predictor=FastRCNNPredictor(config.hidden, config.num_classes + 1),
        box_score_thresh=config.score_floor,
        box_nms_thresh=config.nms_iou,
        box_detections_per_img=config.detections,
    )


def _body(config: FasterRcnnConfig) -> tuple[nn.Module, int]:
    """Return the ResNet and the channels that leave its first stage."""
    norm: Any = partial(FrozenBatchNorm2d, eps=0.0)  # as torchvision for its COCO weights
    if config.norm == "batch":
        norm = nn.BatchNorm2d
    elif config.norm == "group":
        norm = _group_norm
    if config.backbone == "resnet50":
        scratch = config.norm != "frozen_batch"
        whole = resnet.resnet50(weights=None, norm_layer=norm, zero_init_residual=scratch)
        return whole, whole.inplanes // 8
    return Resnet18(config.width, norm), config.width


class Resnet18(nn.Module):
    """The stages of a ResNet-18, of any width, under torchvision's names."""

    def __init__(self, width: int, norm: Any) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = norm(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        channels = width
        for number in range(_NUM_LEVELS):
            out, stride = width << number, 2 if number else 1
            shortcut = None
            if number:
                shortcut = nn.Sequential(
                    nn.Conv2d(channels, out, 1, stride=stride, bias=False), norm(out)
                )
            first = resnet.BasicBlock(channels, out, stride, shortcut, norm_layer=norm)
            second = resnet.BasicBlock(out, out, norm_layer=norm)
            self.add_module(f"layer{number + 1}", nn.Sequential(first, second))
            channels = out
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c i x"]:
        """Return the last stage's features; the pyramid takes those of each stage."""
        x = image
        for part in self.children():
            x = part(x)
        return x


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(_GROUPS, channels), channels)


def _freeze(network: FasterRcnn, config: FasterRcnnConfig) -> None:
    """Take the gradients of what is not trained."""
    free = _BODY[: config.trainable_layers + (config.trainable_layers == len(_BODY) - 1)]
    for name, parameter in network.backbone.body.named_parameters():
        if name.split(".")[0] not in free:
            parameter.requires_grad_(False)
    if config.predictor_only:
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name.startswith(("roi_heads.box_predictor.", "gate.")))


def _targets(inputs: dict[str, Tensor], scale: float) -> list[dict[str, Tensor]]:
    """Return each image's boxes in the network's pixels and its labels from 1."""
    labels = inputs.get("labels", torch.zeros_like(inputs["boxes"][..., 0], dtype=torch.int64))
    return [
        {"boxes": boxes[:number].float() * scale, "labels": own[:number].long() + 1}
        for boxes, own, number in zip(
            inputs["boxes"], labels, inputs["num_boxes"].tolist(), strict=True
        )
    ]


def _gate_sums(found: dict[str, Tensor], targets: list[dict[str, Tensor]]) -> Tensor:
    """Return (B, 2): cross-entropy of the gate, and 1; 0 and 0 without that head.

    An image counts as ill where it has a box of the first class.
    """
    if "gate" not in found:
        return torch.zeros(len(targets), 2, device=targets[0]["boxes"].device)
    logits = found["gate"]
    ill = torch.stack([(one["labels"] == 1).any() for one in targets]).float()
    loss = functional.binary_cross_entropy_with_logits(logits, ill, reduction="none")
    return torch.stack([loss, torch.ones_like(loss)], dim=1)


def _padded(values: Float[Tensor, "n *k"], length: int) -> Float[Tensor, "length *k"]:
    out = values.new_zeros((length, *values.shape[1:]))
    out[: len(values)] = values[:length]
    return out


__all__ = ["NUM_SUMS", "FasterRcnn", "FasterRcnnConfig", "RcnnNorm"]
