"""3D networks that classify a volume: a published plain one, and medray's residual one."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from medray.nn.blocks import BlockStyle, Norm, ResidualBlock
from medray.nn.heads import PoolHead
from medray.nn.initial import glorot_uniform, he_uniform


@dataclass(frozen=True, kw_only=True, slots=True)
class PlainCnn3dConfig:
    """Shape of the plain network; the defaults are the original's (294,915 parameters).

    Attributes:
        widths: channels of the stages; each halves the size.
        hidden: width of the layer before the logits.
        norm: `batch` stands after the activation, as in the original. `instance` and `group` stand
            before it: after it, an instance norm would leave the mean over the volume constant.
        dropouts: share of values set to zero after each stage.
        hidden_dropout: the same before the logits.
        in_channels: of the image.
        num_classes: number of logits.
    """

    widths: tuple[int, ...] = (32, 64, 128)
    hidden: int = 128
    norm: Norm = "batch"
    dropouts: tuple[float, ...] = (0.2, 0.2, 0.3)
    hidden_dropout: float = 0.5
    in_channels: int = 1
    num_classes: int = 3

    def __post_init__(self) -> None:
        _check_counts(self.widths, self.in_channels, self.num_classes)
        if self.hidden < 1:
            raise ValueError(f"hidden must be at least 1, got {self.hidden}")
        if len(self.dropouts) != len(self.widths):
            raise ValueError(
                f"dropouts must be one a stage: {len(self.widths)} widths, {self.dropouts}"
            )
        if any(not 0 <= share < 1 for share in (*self.dropouts, self.hidden_dropout)):
            raise ValueError(
                f"dropouts must lie in [0, 1), got {self.dropouts}, {self.hidden_dropout}"
            )
        _ = BlockStyle(norm=self.norm)


class PlainCnn3d(nn.Module):
    """Stages of convolution, ReLU, norm, max-pooling, dropout; global mean; two dense layers."""

    def __init__(self, config: PlainCnn3dConfig) -> None:
        super().__init__()
        self.config = config
        before = (config.in_channels, *config.widths)
        stages = zip(before, config.widths, config.dropouts, strict=False)
        self.stages = nn.ModuleList(_PlainStage(*stage, config.norm) for stage in stages)
        self.hidden = nn.Linear(config.widths[-1], config.hidden)
        self.activation = nn.ReLU()
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.logits = nn.Linear(config.hidden, config.num_classes)
        glorot_uniform(self)

    def forward(self, image: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b k"]:
        """Return the logits.

        Raises:
            ValueError: if the image does not fit the network.
        """
        _check_image(image, self.config.in_channels, 2 ** len(self.config.widths))
        x = image
        for stage in self.stages:
            x = stage(x)
        x = self.activation(self.hidden(x.mean(dim=(2, 3, 4))))
        out: Tensor = self.logits(self.dropout(x))
        return out


class _PlainStage(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, dropout: float, norm: Norm) -> None:
        super().__init__()
        # Keras' momentum 0.99
        style = BlockStyle(norm=norm, momentum=0.01)
        self.norm_last = norm == "batch"
        self.conv = style.make_conv(in_channels, out_channels)
        self.norm = style.make_norm(out_channels)
        self.activation = nn.ReLU()
        self.pool = nn.MaxPool3d(2)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = self.norm(self.activation(x)) if self.norm_last else self.activation(self.norm(x))
        out: Tensor = self.dropout(self.pool(x))
        return out


@dataclass(frozen=True, kw_only=True, slots=True)
class ResidualCnn3dConfig:
    """Shape of the residual network.

    Attributes:
        widths: channels of the stages. The stem halves the size, and so does each later stage.
        blocks: residual blocks a stage.
        norm: a group norm by default: nothing depends on the batch or the number of workers.
        groups: of the group norm.
        dropout: share of pooled features set to zero.
        in_channels: of the image.
        num_classes: number of logits.
    """

    widths: tuple[int, ...] = (16, 32, 64, 128)
    blocks: int = 1
    norm: Norm = "group"
    groups: int = 8
    dropout: float = 0.2
    in_channels: int = 1
    num_classes: int = 3

    def __post_init__(self) -> None:
        _check_counts(self.widths, self.in_channels, self.num_classes)
        if self.blocks < 1:
            raise ValueError(f"blocks must be at least 1, got {self.blocks}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")
        _ = self.style

    @property
    def style(self) -> BlockStyle:
        """What the blocks share."""
        return BlockStyle(norm=self.norm, groups=self.groups)


class ResidualCnn3d(nn.Module):
    """Stem of stride 2, stages of residual blocks, mean and maximum over the volume, logits.

    After He et al. 2015 (arXiv:1512.03385). Each block starts as its shortcut: the scale of its
    last norm is zero (Goyal et al. 2017, arXiv:1706.02677, 5.1).
    """

    def __init__(self, config: ResidualCnn3dConfig) -> None:
        super().__init__()
        self.config = config
        style, widths = config.style, config.widths
        self.stem = style.make_conv(config.in_channels, widths[0], stride=2)
        self.stem_norm = style.make_norm(widths[0])
        self.activation = style.make_activation()
        pairs = list(zip((widths[0], *widths), widths, strict=False))
        self.stages = nn.ModuleList(
            _residual_stage(*pair, config, stride=2 if index else 1)
            for index, pair in enumerate(pairs)
        )
        he_uniform(self)
        self.head = PoolHead(widths[-1], config.num_classes, dropout=config.dropout)
        for module in self.modules():
            if isinstance(module, ResidualBlock) and config.norm != "none":
                scale = module.norm2.weight
                assert isinstance(scale, Tensor)
                nn.init.zeros_(scale)

    def forward(self, image: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b k"]:
        """Return the logits.

        Raises:
            ValueError: if the image does not fit the network.
        """
        _check_image(image, self.config.in_channels, 2 ** len(self.config.widths))
        x = self.activation(self.stem_norm(self.stem(image)))
        for stage in self.stages:
            x = stage(x)
        logits: Tensor = self.head(x)
        return logits


def _residual_stage(
    in_channels: int, out_channels: int, config: ResidualCnn3dConfig, *, stride: int
) -> nn.Sequential:
    first = ResidualBlock(in_channels, out_channels, config.style, stride=stride)
    more = (
        ResidualBlock(out_channels, out_channels, config.style) for _ in range(1, config.blocks)
    )
    return nn.Sequential(first, *more)


def _check_counts(widths: tuple[int, ...], in_channels: int, num_classes: int) -> None:
    if not widths or min(widths) < 1:
        raise ValueError(f"widths must be counts of channels, got {widths}")
    if in_channels < 1 or num_classes < 1:
        raise ValueError(
            f"in_channels and num_classes must be at least 1, got {in_channels} and {num_classes}"
        )


def _check_image(image: Tensor, in_channels: int, least: int) -> None:
    if image.ndim != 5 or image.shape[1] != in_channels or min(image.shape[2:]) < least:
        raise ValueError(
            f"an image must be (batch, {in_channels}, depth, height, width) with sides of at least "
            f"{least} voxels, got shape {tuple(image.shape)}"
        )
