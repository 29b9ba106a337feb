"""SE-ResNeXt for images: published as 50 layers, 32 groups of 4 channels.

Xie et al. 2016 (arXiv:1611.05431) with squeeze-and-excitation, Hu et al. 2017 (arXiv:1709.01507).
The structure and the names of the weights are those of MONAI's `SEResNext50`, whose import would
cost every process 6 s; a test compares the two. The pool after the stem pads by 1, as timm's
`seresnext50_32x4d` does; MONAI's does not, and differs by 6e-3 with the same weights.
"""

import math
from collections import OrderedDict
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

_EXPANSION = 4
# Widths of groups are counted at so many planes.
_WIDTH_PLANES = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class SeResNextConfig:
    """Shape of the network; the defaults are SE-ResNeXt-50 32x4d on grey images.

    Attributes:
        blocks: bottlenecks of each stage; each stage but the first halves the size.
        planes: channels of the stem; stage s ends with 4 x planes x 2^s.
        groups: of the 3x3 convolutions.
        group_width: channels of a group in the first stage, per 64 planes.
        reduction: of the squeeze-and-excitation.
        dropout: share of pooled features set to zero.
        in_channels: of the image.
        num_outputs: number of logits.
    """

    blocks: tuple[int, ...] = (3, 4, 6, 3)
    planes: int = 64
    groups: int = 32
    group_width: int = 4
    reduction: int = 16
    dropout: float = 0.0
    in_channels: int = 1
    num_outputs: int = 1

    def __post_init__(self) -> None:
        if not self.blocks or min(self.blocks) < 1:
            raise ValueError(f"blocks must be counts of bottlenecks, got {self.blocks}")
        if min(self.groups, self.in_channels, self.num_outputs) < 1:
            raise ValueError("groups, in_channels and num_outputs must be at least 1")
        if self.planes * self.group_width < _WIDTH_PLANES:
            raise ValueError(
                f"planes x group_width must be at least 64, got {self.planes} x {self.group_width}"
            )
        if not 1 <= self.reduction <= self.planes * _EXPANSION:
            raise ValueError(f"reduction must lie in 1..4 x planes, got {self.reduction}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")


class SeResNext(nn.Module):
    """Stem, stages of bottlenecks, mean over the image, logits."""

    def __init__(self, config: SeResNextConfig) -> None:
        super().__init__()
        self.config = config
        self.layer0 = _stem(config)
        self.stages = len(config.blocks)
        channels = config.planes
        for number in range(self.stages):
            stage, channels = _stage(channels, number, config)
            self.add_module(f"layer{number + 1}", stage)
        self.dropout = nn.Dropout(config.dropout)
        self.last_linear = nn.Linear(channels, config.num_outputs)
        _draw_weights(self)

    def features(self, image: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k i x"]:
        """Return the last stage's features, a 32nd of the image's size."""
        x: Tensor = self.layer0(image)
        for number in range(self.stages):
            x = self.get_submodule(f"layer{number + 1}")(x)
        return x

    def forward(self, image: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """Return the logits.

        Raises:
            ValueError: if the image does not fit the network.
        """
        if image.ndim != 4 or image.shape[1] != self.config.in_channels:
            raise ValueError(
                f"an image must be (batch, {self.config.in_channels}, height, width), got shape "
                f"{tuple(image.shape)}"
            )
        logits: Tensor = self.last_linear(self.dropout(self.features(image).mean(dim=(2, 3))))
        return logits


class Bottleneck(nn.Module):
    """1x1, grouped 3x3 (with the stride), 1x1; gate of each channel; plus shortcut; ReLU."""

    def __init__(
        self, in_channels: int, planes: int, config: SeResNextConfig, *, stride: int
    ) -> None:
        super().__init__()
        out, groups = planes * _EXPANSION, config.groups
        width = math.floor(planes * config.group_width / _WIDTH_PLANES) * groups
        self.conv1 = _conv_norm(in_channels, width, kernel=1)
        self.conv2 = _conv_norm(width, width, kernel=3, stride=stride, groups=groups)
        self.conv3 = _conv_norm(width, out, kernel=1, activation=False)
        self.se_layer = ChannelGate(out, out // config.reduction)
        self.project: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out:
            self.project = _conv_norm(in_channels, out, kernel=1, stride=stride, activation=False)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k i x"]:
        """Return the block's features, of the input's size over the stride."""
        inner = self.se_layer(self.conv3(self.conv2(self.conv1(x))))
        out: Tensor = self.activation(inner + self.project(x))
        return out


class ChannelGate(nn.Module):
    """Squeeze-and-excitation: each channel times a share told from the means of all channels."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels), nn.Sigmoid()
        )

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return the gated features."""
        gate: Tensor = self.fc(x.mean(dim=(2, 3)))
        return x * gate[:, :, None, None]


def _conv_norm(
    in_channels: int,
    out_channels: int,
    *,
    kernel: int,
    stride: int = 1,
    groups: int = 1,
    activation: bool = True,
) -> nn.Sequential:
    """Return convolution and norm under MONAI's names, `conv` and `adn.N`."""
    conv = nn.Conv2d(
        in_channels,
        out_channels,
        kernel,
        stride=stride,
        padding=kernel // 2,
        groups=groups,
        bias=False,
    )
    norm = nn.Sequential(OrderedDict(N=nn.BatchNorm2d(out_channels)))
    if activation:
        norm.add_module("A", nn.ReLU(inplace=True))
    return nn.Sequential(OrderedDict(conv=conv, adn=norm))


def _stem(config: SeResNextConfig) -> nn.Sequential:
    conv = nn.Conv2d(config.in_channels, config.planes, 7, stride=2, padding=3, bias=False)
    return nn.Sequential(
        OrderedDict(
            conv1=conv,
            bn1=nn.BatchNorm2d(config.planes),
            relu1=nn.ReLU(inplace=True),
            pool=nn.MaxPool2d(3, stride=2, padding=1),
        )
    )


def _stage(in_channels: int, number: int, config: SeResNextConfig) -> tuple[nn.Sequential, int]:
    """Return a stage and its channels."""
    planes = config.planes << number
    first = Bottleneck(in_channels, planes, config, stride=2 if number else 1)
    channels = planes * _EXPANSION
    more = (Bottleneck(channels, planes, config, stride=1) for _ in range(1, config.blocks[number]))
    return nn.Sequential(first, *more), channels


def _draw_weights(network: nn.Module) -> None:
    """Draw kernels from He's normal distribution (arXiv:1502.01852), and set biases to zero."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
        elif isinstance(layer, nn.Linear):
            nn.init.zeros_(layer.bias)
