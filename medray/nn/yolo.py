"""YOLOv5 n, s and m, versions 6 and 7: an independent implementation of the published network.

The names of the state dict are those of the published weights, so that these load strictly
(`medray.nn.yolo_weights`). Sizes scale the numbers of repeats [3, 6, 9, 3 | 3, 3, 3, 3] by `depth`
and the channels [64, 128, 256, 512, 1024] by `width`.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from medray.nn.yolo_blocks import ConvNormAct, CspBlock, PyramidPool

STRIDES = (8, 16, 32)
LEVELS = ("p3", "p4", "p5")
# Width and height in pixels, three a level, fine to coarse.
ANCHORS_PX = (
    ((10.0, 13.0), (16.0, 30.0), (33.0, 23.0)),
    ((30.0, 61.0), (62.0, 45.0), (59.0, 119.0)),
    ((116.0, 90.0), (156.0, 198.0), (373.0, 326.0)),
)
# Depth and width by the published letters.
SIZES: dict[str, tuple[float, float]] = {"n": (0.33, 0.25), "s": (0.33, 0.5), "m": (0.67, 0.75)}
YoloSize = Literal["n", "s", "m"]

_STEM, _STRIDE_MOST = 64, 32
_OBJECTS, _OBJECTS_SIDE_PX = 8, 640  # the bias expects so many objects in an image of that side
_CLASS_PRIOR = 0.6


@dataclass(frozen=True, kw_only=True, slots=True)
class YoloConfig:
    """Shape of the network.

    Attributes:
        num_classes: of the objects.
        in_channels: of the image; the published weights have 3.
        depth: multiplies the numbers of repeats.
        width: multiplies the channels.
        anchors_px: three widths and heights for each of the three levels.
    """

    num_classes: int = 1
    in_channels: int = 3
    depth: float = 0.33
    width: float = 0.5
    anchors_px: tuple[tuple[tuple[float, float], ...], ...] = ANCHORS_PX

    def __post_init__(self) -> None:
        if self.num_classes < 1 or self.in_channels < 1:
            raise ValueError(
                "num_classes and in_channels must be at least 1, "
                f"got {self.num_classes} and {self.in_channels}"
            )
        if not (self.depth > 0 and self.width > 0):
            raise ValueError(f"depth and width must be > 0, got {self.depth} and {self.width}")
        if torch.tensor(self.anchors_px).shape != (3, 3, 2) or min(_flat(self.anchors_px)) <= 0:
            raise ValueError("anchors_px must be 3 levels of 3 widths and heights > 0")

    def repeats(self, published: int) -> int:
        """Return how often a block repeats that repeats so often at depth 1."""
        return max(round(published * self.depth), 1)

    def channels(self, published: int) -> int:
        """Return the channels of a layer that has so many at width 1, a multiple of 8."""
        return math.ceil(published * self.width / 8) * 8


def named_config(size: YoloSize, *, num_classes: int, in_channels: int = 3) -> YoloConfig:
    """Return one of the published sizes."""
    depth, width = SIZES[size]
    return YoloConfig(num_classes=num_classes, in_channels=in_channels, depth=depth, width=width)


class Detect(nn.Module):
    """One 1x1 convolution a level, to 3 anchors x (4 of the box, objectness, classes)."""

    anchors: Tensor
    strides: Tensor

    def __init__(self, channels: tuple[int, ...], config: YoloConfig) -> None:
        super().__init__()
        self.num_outputs = 5 + config.num_classes
        self.m = nn.ModuleList(nn.Conv2d(c, 3 * self.num_outputs, 1) for c in channels)
        self.register_buffer(
            "anchors", torch.tensor(config.anchors_px) / torch.tensor(STRIDES).view(3, 1, 1)
        )
        self.register_buffer(
            "strides", torch.tensor(STRIDES, dtype=torch.float32).view(3, 1, 1), persistent=False
        )
        for layer, stride in zip(self.m, STRIDES, strict=True):
            assert isinstance(layer, nn.Conv2d)
            _set_bias(layer, stride, config.num_classes)

    def forward(self, features: list[Tensor]) -> dict[str, Tensor]:
        """Return the raw output of each level, and `anchors_px`."""
        out = {}
        for name, layer, x in zip(LEVELS, self.m, features, strict=True):
            raw = layer(x)
            batch, _, height, width = raw.shape
            grid = raw.view(batch, 3, self.num_outputs, height, width)
            out[name] = grid.permute(0, 1, 3, 4, 2)
        out["anchors_px"] = self.anchors * self.strides
        return out


class Yolo(nn.Module):
    """The network: backbone (layers 0 to 9), two ways through the pyramid, three outputs."""

    def __init__(self, config: YoloConfig) -> None:
        super().__init__()
        self.config = config
        c1, c2, c3, c4, c5 = (config.channels(_STEM << n) for n in range(5))
        few, more, most = (config.repeats(n) for n in (3, 6, 9))
        joint = [nn.Identity() for _ in range(4)]  # keep the published numbers; concatenations
        layers: list[nn.Module] = [
            ConvNormAct(config.in_channels, c1, 6, stride=2, padding=2),
            ConvNormAct(c1, c2, 3, stride=2),
            CspBlock(c2, c2, repeats=few),
            ConvNormAct(c2, c3, 3, stride=2),
            CspBlock(c3, c3, repeats=more),
            ConvNormAct(c3, c4, 3, stride=2),
            CspBlock(c4, c4, repeats=most),
            ConvNormAct(c4, c5, 3, stride=2),
            CspBlock(c5, c5, repeats=few),
            PyramidPool(c5),
            ConvNormAct(c5, c4),
            nn.Upsample(scale_factor=2, mode="nearest"),
            joint[0],
            CspBlock(2 * c4, c4, repeats=few, shortcut=False),
            ConvNormAct(c4, c3),
            nn.Upsample(scale_factor=2, mode="nearest"),
            joint[1],
            CspBlock(2 * c3, c3, repeats=few, shortcut=False),
            ConvNormAct(c3, c3, 3, stride=2),
            joint[2],
            CspBlock(2 * c3, c4, repeats=few, shortcut=False),
            ConvNormAct(c4, c4, 3, stride=2),
            joint[3],
            CspBlock(2 * c4, c5, repeats=few, shortcut=False),
            Detect((c3, c4, c5), config),
        ]
        self.model = nn.ModuleList(layers)

    def forward(self, image: Float[Tensor, "b c h w"]) -> dict[str, Tensor]:
        """Return raw outputs, the same in training and evaluation.

        Returns:
            `p3`, `p4`, `p5` (batch, 3 anchors, height / stride, width / stride, 5 + classes) at
            strides 8, 16, 32, before any sigmoid, and `anchors_px` (3, 3, 2).

        Raises:
            ValueError: if the image does not fit the network.
        """
        _check_image(image, self.config.in_channels)
        layer = self.model
        fine = self._through(image, 0, 4)
        middle = self._through(fine, 5, 6)
        top = layer[10](self._through(middle, 7, 9))
        mixed = layer[14](layer[13](torch.cat([layer[11](top), middle], dim=1)))
        small = layer[17](torch.cat([layer[15](mixed), fine], dim=1))
        medium = layer[20](torch.cat([layer[18](small), mixed], dim=1))
        large = layer[23](torch.cat([layer[21](medium), top], dim=1))
        out: dict[str, Tensor] = layer[24]([small, medium, large])
        return out

    def _through(self, x: Tensor, first: int, last: int) -> Tensor:
        for layer in self.model[first : last + 1]:
            x = layer(x)
        return x


def _set_bias(layer: nn.Conv2d, stride: int, num_classes: int) -> None:
    """Let a fresh head expect eight objects in 640 x 640, and each class with its share of 0.6."""
    assert layer.bias is not None
    with torch.no_grad():
        bias = layer.bias.view(3, -1)
        bias[:, 4] += math.log(_OBJECTS / (_OBJECTS_SIDE_PX / stride) ** 2)
        bias[:, 5:] += math.log(_CLASS_PRIOR / (num_classes - 0.99999))


def _flat(anchors: tuple[tuple[tuple[float, float], ...], ...]) -> list[float]:
    return [side for level in anchors for anchor in level for side in anchor]


def _check_image(image: Tensor, in_channels: int) -> None:
    if image.ndim != 4 or image.shape[1] != in_channels:
        raise ValueError(
            f"an image must be (batch, {in_channels}, height, width), got {tuple(image.shape)}"
        )
    if any(side < _STRIDE_MOST or side % _STRIDE_MOST for side in image.shape[2:]):
        raise ValueError(
            f"height and width must be multiples of {_STRIDE_MOST}, got {tuple(image.shape[2:])}"
        )
