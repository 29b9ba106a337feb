"""Attention U-Net with fused deep supervision, and its three named configurations.

`g1` and `g2` are the two generations of a published pancreas segmentation network, to the parameter
(2,575,741 and 8,218,637); `preset` is medray's own. Tensors are (batch, channel, depth, height,
width); what the original writes 3x3x1 with depth last is (1, 3, 3) here.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from medray.nn.attention_gate import AttentionGate
from medray.nn.blocks import (
    BlockStyle,
    DoubleConv,
    Norm,
    ResidualBlock,
    Triple,
    upsample_nearest,
)
from medray.nn.initial import he_uniform

_FILTERS = (16, 32, 64, 128, 256)


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionUNetConfig:
    """Shape of an attention U-Net.

    Attributes:
        filters: channels of the levels, fine to coarse; a small network has few and small ones.
        kernel: of the blocks' convolutions, zyx.
        pool: ratio of the sizes of two levels, zyx, 1 or 2 each.
        norm: after each convolution of a block and each gate.
        momentum: of the batch norm, torch's convention.
        groups: of the group norm.
        residual: blocks with a shortcut.
        gate: `bottleneck` gates each skip with one signal of the coarsest level, on a map coarser
            than the skip; `decoder` with the upsampled features of the level below.
        dsv_softmax: softmax over the classes of each level's prediction before the fusion.
        slope: of the activations below zero.
        in_channels: of the image.
        num_classes: channels of the logits.
        dropout: share of values set to zero in the blocks.
    """

    filters: tuple[int, ...] = _FILTERS
    kernel: Triple = (3, 3, 3)
    pool: Triple = (2, 2, 2)
    norm: Norm = "instance"
    momentum: float = 0.1
    groups: int = 8
    residual: bool = True
    gate: Literal["bottleneck", "decoder"] = "bottleneck"
    dsv_softmax: bool = False
    slope: float = 0.01
    in_channels: int = 1
    num_classes: int = 2
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if len(self.filters) < 2 or min(self.filters) < 1:
            raise ValueError(f"filters must be at least two counts of channels, got {self.filters}")
        if any(ratio not in {1, 2} for ratio in self.pool):
            raise ValueError(f"pool must be 1 or 2 along each axis, got {self.pool}")
        if self.gate not in {"bottleneck", "decoder"}:
            raise ValueError(f"gate must be bottleneck or decoder, got {self.gate!r}")
        if self.in_channels < 1 or self.num_classes < 2:
            raise ValueError(
                "in_channels must be at least 1 and num_classes at least 2, "
                f"got {self.in_channels} and {self.num_classes}"
            )
        _ = self.style

    @property
    def style(self) -> BlockStyle:
        """What the blocks share."""
        return BlockStyle(
            kernel=self.kernel,
            norm=self.norm,
            momentum=self.momentum,
            groups=self.groups,
            slope=self.slope,
            dropout=self.dropout,
        )

    @property
    def total_stride(self) -> Triple:
        """Ratio of the image's size to the coarsest level's, zyx."""
        depth, height, width = (ratio ** (len(self.filters) - 1) for ratio in self.pool)
        return depth, height, width


def g1() -> AttentionUNetConfig:
    """Return the original's first generation (2021): slices never meet, no norm."""
    return AttentionUNetConfig(
        kernel=(1, 3, 3), pool=(1, 2, 2), norm="none", residual=False, slope=0.0
    )


def g2() -> AttentionUNetConfig:
    """Return the original's second generation (2024): residual 3D blocks with batch norm.

    Convolutions keep their biases before the norm, and of a gate's layers the last alone has a
    norm: the reading that has the original's number of parameters.
    """
    return AttentionUNetConfig(
        norm="batch", momentum=0.2, gate="decoder", dsv_softmax=True, slope=0.3
    )


def preset(filters: tuple[int, ...] = _FILTERS) -> AttentionUNetConfig:
    """Return medray's own: residual 3D blocks with an instance norm, gated from the bottleneck."""
    return AttentionUNetConfig(filters=filters)


class Encoder(nn.Module):
    """The contracting half: one block a level, max-pooling between."""

    def __init__(self, config: AttentionUNetConfig) -> None:
        super().__init__()
        self.config = config
        pairs = zip((config.in_channels, *config.filters), config.filters, strict=False)
        self.blocks = nn.ModuleList(_block(before, after, config) for before, after in pairs)
        self.pool = nn.MaxPool3d(config.pool)

    def forward(self, image: Float[Tensor, "b c d h w"]) -> list[Tensor]:
        """Return the features of each level, fine to coarse.

        Raises:
            ValueError: if the image does not fit the network.
        """
        _check_image(image, self.config)
        features = [self.blocks[0](image)]
        for block in self.blocks[1:]:
            features.append(block(self.pool(features[-1])))
        return features


class AttentionUNet(nn.Module):
    """Encoder, gated decoder, and one prediction a decoder level, fused into the logits.

    The finest skip is not gated: it has no features worth it yet. Predictions of all levels are
    repeated to the image's size and fused by one 1x1x1 convolution.
    """

    def __init__(self, config: AttentionUNetConfig) -> None:
        super().__init__()
        self.config = config
        style, filters = config.style, config.filters
        below = filters[:0:-1]
        levels = filters[-2::-1]
        bottleneck = config.gate == "bottleneck"
        self.encoder = Encoder(config)
        self.gate_signal: nn.Module = nn.Identity()
        if bottleneck and len(filters) > 2:
            self.gate_signal = nn.Sequential(
                nn.Conv3d(filters[-1], filters[-2], 1, bias=style.bias),
                style.make_norm(filters[-2]),
            )
        self.up = nn.ModuleList(
            _up(coarse, fine, config.pool) for coarse, fine in zip(below, levels, strict=True)
        )
        self.gates = nn.ModuleList(
            AttentionGate(
                channels,
                filters[-2] if bottleneck else channels,
                style,
                reduction=config.pool if bottleneck else (1, 1, 1),
            )
            for channels in levels[:-1]
        )
        self.decoder = nn.ModuleList(_block(2 * c, c, config) for c in levels)
        self.heads = nn.ModuleList(nn.Conv3d(c, config.num_classes, 1) for c in levels)
        self.fuse = nn.Conv3d(len(levels) * config.num_classes, config.num_classes, 1)
        he_uniform(self)

    def forward(self, image: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b k d h w"]:
        """Return the logits of each voxel's classes, before any softmax.

        Raises:
            ValueError: if the image does not fit the network.
        """
        return self.decode(self.encode(image))

    def encode(self, image: Float[Tensor, "b c d h w"]) -> list[Tensor]:
        """Return the encoder's features, fine to coarse.

        Raises:
            ValueError: if the image does not fit the network.
        """
        features: list[Tensor] = self.encoder(image)
        return features

    def decode(self, features: list[Tensor]) -> Float[Tensor, "b k d h w"]:
        """Return the logits that the encoder's features lead to."""
        x = features[-1]
        signal = self.gate_signal(x)
        logits = None
        for index, skip in enumerate(reversed(features[:-1])):
            up = self.up[index](x)
            if index < len(self.gates):
                gate = signal if self.config.gate == "bottleneck" else up
                skip = self.gates[index](skip, gate)  # noqa: PLW2901
            x = self.decoder[index](torch.cat([up, skip], dim=1))
            logits = self._fused(logits, x, index)
        assert logits is not None
        return logits

    def _fused(self, coarser: Tensor | None, decoded: Tensor, index: int) -> Tensor:
        """Add a level's share of the fusion to that of the coarser ones.

        A 1x1x1 convolution of stacked maps is the sum of those of its parts, and the repetition
        of voxels commutes with it: no map but the last is ever stored at the image's size.
        """
        classes = self.config.num_classes
        predicted = self.heads[index](decoded)
        if self.config.dsv_softmax:
            predicted = predicted.softmax(dim=1)
        weight = self.fuse.weight[:, index * classes : (index + 1) * classes]
        bias = self.fuse.bias if index == len(self.heads) - 1 else None
        share = functional.conv3d(predicted, weight, bias)
        if coarser is None:
            return share
        size = (share.shape[2], share.shape[3], share.shape[4])
        return share + upsample_nearest(coarser, size)


def _block(in_channels: int, out_channels: int, config: AttentionUNetConfig) -> nn.Module:
    if config.residual:
        return ResidualBlock(in_channels, out_channels, config.style)
    return DoubleConv(in_channels, out_channels, config.style)


def _up(in_channels: int, out_channels: int, ratio: Triple) -> nn.Module:
    """Return the transposed convolution that doubles a size along the axes of ratio 2."""
    depth, height, width = (r == 2 for r in ratio)
    return nn.ConvTranspose3d(
        in_channels,
        out_channels,
        (4 if depth else 1, 4 if height else 1, 4 if width else 1),
        stride=ratio,
        padding=(int(depth), int(height), int(width)),
    )


def _check_image(image: Tensor, config: AttentionUNetConfig) -> None:
    if image.ndim != 5 or image.shape[1] != config.in_channels:
        raise ValueError(
            f"an image must be (batch, {config.in_channels}, depth, height, width), "
            f"got shape {tuple(image.shape)}"
        )
    size, stride = tuple(image.shape[2:]), config.total_stride
    if any(side < ratio or side % ratio for side, ratio in zip(size, stride, strict=True)):
        raise ValueError(
            f"an image of size {size} does not divide by the network's stride {stride}; "
            "pad or crop it, or take fewer filters"
        )
    if config.norm == "instance" and math.prod(size) == math.prod(stride):
        raise ValueError(
            f"an image of size {size} leaves one voxel at stride {stride}, whose instance norm "
            "is zero; take a larger image or fewer filters"
        )
