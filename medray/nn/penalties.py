"""L2 terms that some originals add to their loss: sums of squares, as Keras counts them."""

import torch
from jaxtyping import Float32
from torch import Tensor, nn

from medray.nn.blocks import ResidualBlock


def block_kernels_l2(network: nn.Module) -> Float32[Tensor, ""]:
    """Return the sum of squares of the convolution kernels within residual blocks."""
    kernels = [
        layer.weight
        for block in network.modules()
        if isinstance(block, ResidualBlock)
        for layer in block.modules()
        if isinstance(layer, nn.Conv3d)
    ]
    return _sum_of_squares(kernels)


def dense_l2(network: nn.Module, name: str) -> Float32[Tensor, ""]:
    """Return the sum of squares of the kernel of the dense layer of this name."""
    found = [
        layer.weight
        for path, layer in network.named_modules()
        if isinstance(layer, nn.Linear) and path.rpartition(".")[2] == name
    ]
    return _sum_of_squares(found)


def _sum_of_squares(weights: list[Tensor]) -> Tensor:
    if not weights:
        raise ValueError("the network has no such layer")
    return torch.stack([weight.float().square().sum() for weight in weights]).sum()
