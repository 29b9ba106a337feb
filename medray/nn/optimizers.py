"""The optimisers that tasks name; fused on a GPU, where one launch updates all weights."""

from torch import nn
from torch.optim import Adam, AdamW, Optimizer


def adam(network: nn.Module, *, lr: float) -> Optimizer:
    """Return Adam over all weights."""
    return Adam(network.parameters(), lr=lr, fused=_on_gpu(network))


def adamw(network: nn.Module, *, lr: float, weight_decay: float) -> Optimizer:
    """Return Adam with decoupled weight decay over all weights."""
    return AdamW(network.parameters(), lr=lr, weight_decay=weight_decay, fused=_on_gpu(network))


def _on_gpu(network: nn.Module) -> bool:
    return next(network.parameters()).is_cuda
