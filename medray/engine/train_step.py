"""One optimiser step on one rank: exact over workers, in the wanted precision."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from medray.engine.train_options import TrainOptions
from medray.learning import Batch, Inputs, Learning, Outputs

if TYPE_CHECKING:
    from torch import Tensor, nn

MAX_BAD_STEPS = 3


def sum_over_workers(own: "Tensor") -> "Tensor":
    """Return sums over all workers; the gradient is that of the own part.

    With `loss = value(sums) * num_workers`, DDP's mean of the gradients is exactly the gradient of
    one worker that saw the whole batch. The value is the same on every rank to the last bit.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return own
    total = own.detach().clone()
    dist.all_reduce(total)
    return total + (own - own.detach())


def num_workers() -> int:
    """Return the number of ranks."""
    return dist.get_world_size() if dist.is_initialized() else 1


def autocast(device: torch.device, precision: str) -> Any:
    """Return the context in which a network runs."""
    if precision == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


def precision_of(options: TrainOptions, device: torch.device) -> str:
    """Return fp32, tf32 or bf16; in 3D, bf16 is the faster one only where it is compiled."""
    if options.precision != "auto":
        return options.precision
    if device.type != "cuda":
        return "fp32"
    return "bf16" if options.compile else "tf32"


def use_threads(
    device: torch.device, local_ranks: int, batch_bytes: int, share: float = 1.0
) -> None:
    """Share the node's cores among its ranks; Ray gives every worker one thread.

    Small batches get fewer: waking a thread for an operation of microseconds costs more than it
    saves. A YOLO of 160 pixels took 84 ms a step on one thread and 189 ms on two.

    Args:
        device: of the rank.
        local_ranks: on this node.
        batch_bytes: that a rank takes at one step.
        share: of the cores that this training counts on.
    """
    if device.type == "cpu":
        cores = max(1, round((os.cpu_count() or 1) * share) // local_ranks)
        torch.set_num_threads(max(1, min(cores, batch_bytes // _BYTES_A_THREAD)))


def use_precision(precision: str) -> None:
    """Allow TF32 where it was asked for; plain fp32 stays fp32."""
    tf32 = precision in {"tf32", "bf16"}
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32


_BYTES_A_THREAD = 1 << 20
_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def channels_last(inputs: Inputs) -> Inputs:
    """Return images (B, C, H, W) and volumes (B, C, D, H, W) with their channels innermost."""
    if isinstance(inputs, dict):
        return {name: _channels_last(value) for name, value in inputs.items()}
    return _channels_last(inputs)


def _channels_last(value: "Tensor") -> "Tensor":
    wanted = _FORMATS.get(value.ndim)
    return value if wanted is None else value.contiguous(memory_format=wanted)


def wants_channels_last(options: TrainOptions, device: torch.device) -> bool:
    """Tell whether channels are put innermost; on a GPU that alone costs time, compiled it pays."""
    if options.channels_last == "auto":
        return options.compile or device.type != "cuda"
    return options.channels_last == "on"


def weights_channels_last(module: "nn.Module") -> None:
    """Put the channels of all kernels innermost; `Module.to` knows one number of axes at a time."""
    for parameter in module.parameters():
        parameter.data = _channels_last(parameter.data)


@dataclass(slots=True, kw_only=True)
class Stepper:
    """Makes optimiser steps from batches.

    Attributes:
        learning, hparams, options: the task's and the engine's.
        network: as it is called: DDP and torch.compile included.
        module: the bare network.
        ema: the moving average of the network's state; empty if off.
        bad_steps: consecutive steps without a finite loss or gradient.
        trained: the state that is trained, while the average stands in the network.
    """

    learning: Learning[Any]
    hparams: Any
    options: TrainOptions
    network: "nn.Module"
    module: "nn.Module"
    optimizer: torch.optim.Optimizer
    device: torch.device
    precision: str
    channels_last: bool = False
    ema: "dict[str, Tensor]" = field(default_factory=dict)
    bad_steps: int = 0
    trained: "dict[str, Tensor]" = field(default_factory=dict)

    def forward(self, batch: Batch) -> Outputs:
        """Run the network on a batch, in training or evaluation as it is set."""
        inputs = self.learning.inputs(batch, self.hparams)
        if self.channels_last:
            inputs = channels_last(inputs)
        with autocast(self.device, self.precision):
            outputs: Outputs = self.network(inputs)
        return outputs

    def step(
        self, group: Sequence[tuple[Batch, list[int]]], rates: Sequence[float]
    ) -> tuple["Tensor", "Tensor"]:
        """Make one step from a group of batches.

        Returns:
            The mean loss and the norm of the gradient, both (), on the device.
        """
        for settings, rate in zip(self.optimizer.param_groups, rates, strict=True):
            settings["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        losses = []
        for number, (batch, seeds) in enumerate(group):
            with self._gathering(last=number == len(group) - 1):
                losses.append(self._backward(batch, seeds, share=1 / len(group)))
        norm = self._clip()
        loss = torch.stack(losses).sum()
        if self._is_good(loss, norm):
            self.optimizer.step()
            self._average()
        return loss, norm

    def _backward(self, batch: Batch, seeds: list[int], *, share: float) -> "Tensor":
        batch = self.learning.augment(batch, seeds, self.hparams)
        outputs = self.forward(batch)
        sums = sum_over_workers(self.learning.loss_sums(outputs, batch, self.hparams))
        loss = self.learning.loss_value(sums, self.hparams)
        objective = loss * num_workers()
        if self.learning.penalty is not None:
            # The same on every rank: DDP's mean leaves it as it is.
            penalty = self.learning.penalty(self.module, self.hparams)
            objective, loss = objective + penalty, loss + penalty.detach()
        (objective * share).backward()  # type: ignore[no-untyped-call]
        return loss.detach() * share

    @contextmanager
    def _gathering(self, *, last: bool) -> Iterator[None]:
        """Let DDP exchange gradients at the last batch of a group only."""
        wrapped: Any = getattr(self.network, "_orig_mod", self.network)
        if last or not hasattr(wrapped, "no_sync"):
            yield
        else:
            with wrapped.no_sync():
                yield

    def _clip(self) -> "Tensor":
        limit = self.options.clip_norm or float("inf")
        parameters = [p for p in self.module.parameters() if p.grad is not None]
        return torch.nn.utils.clip_grad_norm_(parameters, limit, error_if_nonfinite=False)

    def _is_good(self, loss: "Tensor", norm: "Tensor") -> bool:
        """Tell whether the step may be made; all ranks see the same loss and gradient."""
        good = bool(torch.isfinite(loss) & torch.isfinite(norm))
        self.bad_steps = 0 if good else self.bad_steps + 1
        return good

    def _average(self) -> None:
        if not self.ema:
            return
        for name, value in self.module.state_dict().items():
            kept = self.ema[name]
            if kept.is_floating_point():
                kept.lerp_(value.detach(), 1 - self.options.ema_decay)
            else:
                kept.copy_(value)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Put the moving average into the network while it is validated and saved."""
        if not self.ema:
            yield
            return
        self.trained = {name: value.clone() for name, value in self.module.state_dict().items()}
        self.module.load_state_dict(self.ema)
        try:
            yield
        finally:
            self.module.load_state_dict(self.trained)
