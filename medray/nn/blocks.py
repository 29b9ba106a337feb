"""Convolution blocks of the 3D networks: plain, residual, and the norms between them."""

import math
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

Norm = Literal["none", "batch", "instance", "group"]
Triple = tuple[int, int, int]

NORMS = ("none", "batch", "instance", "group")
# Keras' BatchNormalization; torch's own is 1e-5.
KERAS_EPS = 1e-3


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockStyle:
    """What all blocks of one network share.

    Attributes:
        kernel: odd kernel sides, zyx.
        norm: between convolution and activation.
        momentum: weight of the newest batch in the running statistics (torch's convention:
            1 - Keras' momentum); used by `batch` alone.
        groups: of the `group` norm; the greatest common divisor with the channels is taken.
        slope: of the activation below zero; 0 is ReLU.
        dropout: share of values set to zero after an activation.
    """

    kernel: Triple = (3, 3, 3)
    norm: Norm = "instance"
    momentum: float = 0.1
    groups: int = 8
    slope: float = 0.0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise ValueError(f"norm must be one of {', '.join(NORMS)}, got {self.norm!r}")
        if any(side < 1 or side % 2 == 0 for side in self.kernel):
            raise ValueError(f"kernel must have odd sides, got {self.kernel}")
        if not 0 < self.momentum <= 1:
            raise ValueError(f"momentum must lie in (0, 1], got {self.momentum}")
        if self.groups < 1:
            raise ValueError(f"groups must be at least 1, got {self.groups}")
        if not 0 <= self.slope < 1:
            raise ValueError(f"slope must lie in [0, 1), got {self.slope}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")

    @property
    def bias(self) -> bool:
        """Whether a convolution before the norm has a bias: an instance norm subtracts it again."""
        return self.norm != "instance"

    def make_norm(self, channels: int) -> nn.Module:
        """Return the norm for this many channels; it has no entries where there is none."""
        if self.norm == "none":
            return nn.Identity()
        if self.norm == "batch":
            return nn.BatchNorm3d(channels, eps=KERAS_EPS, momentum=self.momentum)
        # An instance norm is a group norm of one channel a group. torch's InstanceNorm3d leaves
        # the channels-last layout and takes 4 times as long on a CPU (5.0 for 1.1 ms, 16 x 48^3).
        groups = channels if self.norm == "instance" else math.gcd(self.groups, channels)
        return nn.GroupNorm(groups, channels)

    def make_activation(self) -> nn.Module:
        """Return a fresh activation layer."""
        return nn.LeakyReLU(self.slope) if self.slope else nn.ReLU()

    def make_conv(self, in_channels: int, out_channels: int, *, stride: int = 1) -> nn.Conv3d:
        """Return a convolution that keeps the size, or divides it by the stride."""
        depth, height, width = self.kernel
        padding = (depth // 2, height // 2, width // 2)
        return nn.Conv3d(
            in_channels, out_channels, self.kernel, stride=stride, padding=padding, bias=self.bias
        )


class DoubleConv(nn.Module):
    """Twice convolution, norm, activation, dropout."""

    def __init__(self, in_channels: int, out_channels: int, style: BlockStyle) -> None:
        super().__init__()
        self.conv1 = style.make_conv(in_channels, out_channels)
        self.norm1 = style.make_norm(out_channels)
        self.conv2 = style.make_conv(out_channels, out_channels)
        self.norm2 = style.make_norm(out_channels)
        self.activation = style.make_activation()
        self.dropout = nn.Dropout(style.dropout)

    def forward(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b k d h w"]:
        """Return the block's features, of the input's size."""
        x = self.dropout(self.activation(self.norm1(self.conv1(x))))
        out: Tensor = self.dropout(self.activation(self.norm2(self.conv2(x))))
        return out


class ResidualBlock(nn.Module):
    """Convolution, norm, activation, dropout, convolution, norm; plus shortcut; activation.

    The shortcut is the input itself, or a 1x1x1 convolution with norm where the number of channels
    or the size changes.
    """

    def __init__(
        self, in_channels: int, out_channels: int, style: BlockStyle, *, stride: int = 1
    ) -> None:
        super().__init__()
        self.conv1 = style.make_conv(in_channels, out_channels, stride=stride)
        self.norm1 = style.make_norm(out_channels)
        self.conv2 = style.make_conv(out_channels, out_channels)
        self.norm2 = style.make_norm(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels or stride != 1:
            self.shortcut = nn.Sequential(
                nn.Conv3d(in_channels, out_channels, 1, stride=stride, bias=style.bias),
                style.make_norm(out_channels),
            )
        self.activation = style.make_activation()
        self.dropout = nn.Dropout(style.dropout)

    def forward(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b k e i x"]:
        """Return the block's features, of the input's size over the stride."""
        inner = self.dropout(self.activation(self.norm1(self.conv1(x))))
        out: Tensor = self.activation(self.norm2(self.conv2(inner)) + self.shortcut(x))
        return out


def upsample_nearest(x: Float[Tensor, "b c d h w"], size_zyx: Triple) -> Float[Tensor, "b c e i x"]:
    """Repeat voxels to this size; the tensor itself where it has the size already."""
    if tuple(x.shape[2:]) == tuple(size_zyx):
        return x
    return functional.interpolate(x, size=size_zyx, mode="nearest")
