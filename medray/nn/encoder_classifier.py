"""Binary classifier on the attention U-Net's encoder, and one network for mask and class.

The encoder's weights have the same names (`encoder.*`) in `AttentionUNet` and `EncoderClassifier`:
either can start from the other's.
"""

from dataclasses import dataclass, field, replace
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from medray.nn import attention_unet
from medray.nn.attention_unet import AttentionUNet, AttentionUNetConfig, Encoder
from medray.nn.blocks import Triple
from medray.nn.heads import FlattenHead, PoolHead
from medray.nn.initial import he_uniform

_FILTERS = (16, 32, 64, 128, 256)


def _default_unet() -> AttentionUNetConfig:
    # Mean and maximum over a volume are most of what an instance norm fixes; a group norm keeps
    # the channels' relative strength, and does not depend on the batch either.
    return replace(attention_unet.preset(), norm="group")


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderClassifierConfig:
    """Shape of an encoder with a head of one logit.

    Attributes:
        unet: the network whose encoder is taken, or, for the joint network, the whole.
        head: `pool` takes mean and maximum of each channel, `flatten` every voxel of the features.
        size_zyx: of the images, voxels; the `flatten` head is bound to it, `pool` ignores it.
        dropout: share of pooled or flattened features set to zero.
        head_norm: batch norm of the pooled features, for findings that are small in the volume.
    """

    unet: AttentionUNetConfig = field(default_factory=_default_unet)
    head: Literal["pool", "flatten"] = "pool"
    size_zyx: Triple = (96, 96, 96)
    dropout: float = 0.2
    head_norm: bool = False

    def __post_init__(self) -> None:
        if self.head not in {"pool", "flatten"}:
            raise ValueError(f"head must be pool or flatten, got {self.head!r}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")
        stride = self.unet.total_stride
        if any(s < r or s % r for s, r in zip(self.size_zyx, stride, strict=True)):
            raise ValueError(f"size_zyx {self.size_zyx} does not divide by the stride {stride}")


def g2() -> EncoderClassifierConfig:
    """Return the original's: encoder of the second generation on 96^3, flattened."""
    return EncoderClassifierConfig(unet=attention_unet.g2(), head="flatten", dropout=0.0)


def preset(filters: tuple[int, ...] = _FILTERS) -> EncoderClassifierConfig:
    """Return medray's own: residual blocks with a group norm, pooled; any size of image."""
    return EncoderClassifierConfig(unet=replace(_default_unet(), filters=filters))


class EncoderClassifier(nn.Module):
    """Encoder and head; sigmoid of its one logit is the probability of class 1."""

    def __init__(self, config: EncoderClassifierConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config.unet)
        he_uniform(self.encoder)
        self.head = _head(config)

    def forward(self, image: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b 1"]:
        """Return the logit.

        Raises:
            ValueError: if the image does not fit the network.
        """
        logit: Tensor = self.head(self.encoder(image)[-1])
        return logit


class MaskAndClass(nn.Module):
    """One encoder for both outputs: the U-Net's voxel logits and one logit of the image."""

    def __init__(self, config: EncoderClassifierConfig) -> None:
        super().__init__()
        self.config = config
        self.unet = AttentionUNet(config.unet)
        self.head = _head(config)

    def forward(self, image: Float[Tensor, "b c d h w"]) -> dict[str, Tensor]:
        """Return `mask` (batch, classes, depth, height, width) and `class` (batch, 1), logits.

        Raises:
            ValueError: if the image does not fit the network.
        """
        features = self.unet.encode(image)
        return {"mask": self.unet.decode(features), "class": self.head(features[-1])}


def _head(config: EncoderClassifierConfig) -> nn.Module:
    channels = config.unet.filters[-1]
    if config.head == "pool":
        return PoolHead(channels, 1, dropout=config.dropout, norm=config.head_norm)
    depth, height, width = (
        side // ratio for side, ratio in zip(config.size_zyx, config.unet.total_stride, strict=True)
    )
    return FlattenHead(channels, 1, size_zyx=(depth, height, width), dropout=config.dropout)
