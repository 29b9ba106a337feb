"""Blocks of YOLOv5 v6/v7, with the names that the published weights have."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

_NORM_EPS, _NORM_MOMENTUM = 1e-3, 0.03


class ConvNormAct(nn.Module):
    """Convolution without a bias, batch norm, SiLU."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int = 1, *, stride: int = 1,
        padding: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        beside = kernel // 2 if padding is None else padding
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, beside, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=_NORM_EPS, momentum=_NORM_MOMENTUM)
        self.act = nn.SiLU()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        """Return the features."""
        out: Tensor = self.act(self.bn(self.conv(x)))
        return out


class Bottleneck(nn.Module):
    """1x1 and 3x3 convolution of one width, with or without the shortcut."""

    def __init__(self, channels: int, *, shortcut: bool) -> None:
        super().__init__()
        self.cv1 = ConvNormAct(channels, channels)
        self.cv2 = ConvNormAct(channels, channels, 3)
        self.shortcut = shortcut

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return features of the input's shape."""
        out: Tensor = self.cv2(self.cv1(x))
        return x + out if self.shortcut else out


class CspBlock(nn.Module):
    """C3: half of the channels pass through bottlenecks, half go round them."""

    def __init__(
        self, in_channels: int, out_channels: int, *, repeats: int, shortcut: bool = True
    ) -> None:
        super().__init__()
        half = out_channels // 2
        self.cv1 = ConvNormAct(in_channels, half)
        self.cv2 = ConvNormAct(in_channels, half)
        self.cv3 = ConvNormAct(2 * half, out_channels)
        self.m = nn.Sequential(*(Bottleneck(half, shortcut=shortcut) for _ in range(repeats)))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        """Return the features."""
        out: Tensor = self.cv3(torch.cat([self.m(self.cv1(x)), self.cv2(x)], dim=1))
        return out


class PyramidPool(nn.Module):
    """SPPF: maxima over 5, 9 and 13 pixels beside the features themselves."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.cv1 = ConvNormAct(channels, channels // 2)
        self.cv2 = ConvNormAct(channels // 2 * 4, channels)
        self.m = nn.MaxPool2d(5, stride=1, padding=2)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return features of the input's shape."""
        maps = [self.cv1(x)]
        for _ in range(3):
            maps.append(self.m(maps[-1]))
        out: Tensor = self.cv2(torch.cat(maps, dim=1))
        return out
