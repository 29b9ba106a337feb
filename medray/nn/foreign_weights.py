"""Weights of other libraries by path: names translated, everything left out said."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from medray.errors import DataError

Renames = Sequence[tuple[re.Pattern[str], str]]

_TORCH_SUFFIXES = frozenset({".pt", ".pth", ".bin"})
# timm's names, also of its older file (`se_module`), and torchvision's of a ResNeXt without SE.
TIMM_TO_MONAI: Renames = (
    (re.compile(r"^(conv1|bn1)\."), r"layer0.\1."),
    (re.compile(r"^(layer\d+\.\d+)\.(conv\d)\.(?=weight|bias)"), r"\1.\2.conv."),
    (re.compile(r"^(layer\d+\.\d+)\.bn(\d)\."), r"\1.conv\2.adn.N."),
    (re.compile(r"^(layer\d+\.\d+)\.(?:se|se_module)\.fc1\."), r"\1.se_layer.fc.0."),
    (re.compile(r"^(layer\d+\.\d+)\.(?:se|se_module)\.fc2\."), r"\1.se_layer.fc.2."),
    (re.compile(r"^(layer\d+\.\d+)\.downsample\.0\."), r"\1.project.conv."),
    (re.compile(r"^(layer\d+\.\d+)\.downsample\.1\."), r"\1.project.adn.N."),
    (re.compile(r"^fc\."), "last_linear."),
)
# Old detection files name the RPN's convolution and the pyramid's blocks without a further level.
OLD_TO_TORCHVISION: Renames = (
    (re.compile(r"^rpn\.head\.conv\.(?=weight|bias)"), "rpn.head.conv.0.0."),
    (
        re.compile(r"^backbone\.fpn\.(inner|layer)_blocks\.(\d)\.(?=weight|bias)"),
        r"backbone.fpn.\1_blocks.\2.0.",
    ),
    (re.compile(r"^(conv1|bn1|layer\d\.\d+)\."), r"backbone.body.\1."),
)
_PREDICTOR = "roi_heads.box_predictor."
_BODY = "backbone.body."


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """What became of the weights of a file.

    Attributes:
        loaded: names in the network that were set.
        missing: names in the network that the file does not have, left as drawn.
        left_out: names in the file that the network does not take: absent there or of another
            shape.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    left_out: tuple[str, ...]

    def __str__(self) -> str:
        """Return one line that names what was not loaded."""
        parts = [f"{len(self.loaded)} entries loaded"]
        for what, names in (("not in the file", self.missing), ("left out", self.left_out)):
            parts += [f"{len(names)} {what}: {', '.join(names)}"] if names else []
        return "; ".join(parts)


def read_foreign_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors file, or of a torch file of tensors alone.

    A torch file is read by torch's restricted reader, which makes no other objects.

    Raises:
        DataError: weights_refused.
    """
    from safetensors.torch import load

    try:
        if path.suffix == ".safetensors":
            found: object = load(path.read_bytes())
        elif path.suffix in _TORCH_SUFFIXES:
            found = torch.load(path, map_location="cpu", weights_only=True)
        else:
            raise DataError("weights_refused", f"weights are .safetensors or .pth, not {path.name}")
    except (OSError, DataError):
        raise
    except Exception as error:
        raise DataError("weights_refused", f"{path.name} holds no weights") from error
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]
    if not isinstance(found, Mapping) or not all(isinstance(v, Tensor) for v in found.values()):
        raise DataError("weights_refused", f"{path.name} is no table of tensors")
    return {str(name): value for name, value in found.items()}


def load_foreign_weights(
    network: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    renames: Renames,
    stem: str = "",
) -> LoadReport:
    """Set all weights that fit by name and shape, and say which did not.

    Args:
        network: changed in place.
        tensors: by the names of the other library.
        renames: patterns of those names and what stands in the network's.
        stem: name of the first kernel; where the network has one input channel its kernel becomes
            the sum over the file's, which answers to a grey image as it would to grey in RGB.

    Raises:
        DataError: weights_refused, if nothing at all fits: another network's file.
    """
    own, fitting, left_out = network.state_dict(), {}, []
    for foreign, tensor in tensors.items():
        name = _renamed(foreign, renames)
        value = _shaped(tensor, own[name], is_stem=name == stem) if name in own else None
        if value is None:
            left_out.append(foreign)
        else:
            fitting[name] = value
    if not fitting:
        raise DataError("weights_refused", "none of the file's entries fits the network")
    network.load_state_dict(fitting, strict=False)
    missing = [name for name in own if name not in fitting]
    return LoadReport(loaded=tuple(fitting), missing=tuple(missing), left_out=tuple(left_out))


def load_detector_weights(network: nn.Module, tensors: Mapping[str, Tensor]) -> LoadReport:
    """Set a Faster R-CNN's weights from a file of torchvision's: of a detector or of its ResNet.

    All that the file should have must fit: of a detector everything but the last layer, whose
    classes may be others, of a ResNet the whole body.

    Raises:
        DataError: weights_refused, with the names that do not fit; the network is as it was.
    """
    renamed = {_renamed(name, OLD_TO_TORCHVISION) for name in tensors}
    whole = any(not name.startswith((_BODY, "fc.")) for name in renamed)
    own = network.state_dict()
    due = [
        name
        for name in own
        if (whole or name.startswith(_BODY))
        and not name.startswith((_PREDICTOR, "gate."))
        and not name.endswith(".num_batches_tracked")
    ]
    shapes = {_renamed(name, OLD_TO_TORCHVISION): tensor.shape for name, tensor in tensors.items()}
    wrong = [name for name in due if shapes.get(name) != own[name].shape]
    if wrong:
        raise DataError(
            "weights_refused", f"{len(wrong)} entries do not fit, such as {', '.join(wrong[:3])}"
        )
    return load_foreign_weights(network, tensors, renames=OLD_TO_TORCHVISION)


def _renamed(name: str, renames: Renames) -> str:
    for pattern, wanted in renames:
        name = pattern.sub(wanted, name)
    return name


def _shaped(tensor: Tensor, own: Tensor, *, is_stem: bool) -> Tensor | None:
    """Return the tensor in the network's shape; None where it is of another."""
    if is_stem and tensor.ndim == own.ndim == 4 and own.shape[1] == 1:
        tensor = tensor.sum(dim=1, keepdim=True)
    if tensor.ndim == 4 and own.ndim == 2 and tensor.shape[2:] == (1, 1):
        tensor = tensor.flatten(1)  # a 1x1 convolution of pooled values is a linear layer
    return tensor if tensor.shape == own.shape else None
