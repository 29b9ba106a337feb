"""The optimisers that tasks name; fused on a GPU, where one launch updates all weights."""

from typing import Any

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer


def adam(network: nn.Module, *, lr: float) -> Optimizer:
    """Return Adam over all weights."""
    return Adam(network.parameters(), lr=lr, fused=_on_gpu(network))


def adamw(network: nn.Module, *, lr: float, weight_decay: float) -> Optimizer:
    """Return Adam with decoupled weight decay over all weights."""
    return AdamW(network.parameters(), lr=lr, weight_decay=weight_decay, fused=_on_gpu(network))


def adamw_decayed(network: nn.Module, *, lr: float, weight_decay: float) -> Optimizer:
    """Return Adam with decoupled weight decay of kernels alone: no bias, no norm's scale."""
    return AdamW(_by_decay(network, weight_decay), lr=lr, fused=_on_gpu(network))


def sgd_decayed(
    network: nn.Module, *, lr: float, weight_decay: float, momentum: float = 0.937
) -> Optimizer:
    """Return SGD with Nesterov's momentum, weight decay of kernels alone."""
    groups = _by_decay(network, weight_decay)
    return SGD(groups, lr=lr, momentum=momentum, nesterov=True, fused=_on_gpu(network))


def sgd(network: nn.Module, *, lr: float, momentum: float, weight_decay: float) -> Optimizer:
    """Return SGD over all weights that are trained."""
    trained = [one for one in network.parameters() if one.requires_grad]
    return SGD(trained, lr=lr, momentum=momentum, weight_decay=weight_decay, fused=_on_gpu(network))


def _by_decay(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return two groups of parameters: those of one axis do not decay."""
    kernels = [one for one in network.parameters() if one.ndim > 1]
    rest = [one for one in network.parameters() if one.ndim <= 1]
    return [
        {"params": kernels, "weight_decay": weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]


def _on_gpu(network: nn.Module) -> bool:
    return next(network.parameters()).is_cuda
