"""What the user may choose about training beside a task's hyperparameters. No Ray, no torch."""

from dataclasses import dataclass
from typing import Literal

Cache = Literal["auto", "host", "device", "none"]
Precision = Literal["auto", "fp32", "tf32", "bf16"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainOptions:
    """How the engine trains; set by `--set` like hyperparameters and stored with the model.

    Attributes:
        cache: where the training split is kept: `host` memory of every worker, `device` memory,
            `none` (streamed from storage at every epoch); `auto` takes `host` where it fits.
        precision: `fp32`, `tf32` or `bf16` (autocast); `auto` is fp32 on a CPU; on a GPU
            bf16 where compiled, else tf32, which is the faster one then.
        channels_last: memory layout of volumes and kernels; `auto` is on for a CPU, and for a GPU
            together with compile, where alone it costs time.
        compile: whether torch.compile is used.
        accumulate: batches whose gradients are added before one optimiser step.
        ema_decay: of an exponential moving average of the weights, which is then what is
            validated and kept; 0 is off.
        clip_norm: largest norm of the gradient; 0 is off.
        early_stop: epochs without a better objective after which training stops; 0 is off.
        sync_norm: batch norms take their statistics over all GPU workers.
        shuffle_labels: canary: the labels are dealt out anew, so nothing should be learned.
        max_failures: lost workers that are survived, from the last checkpoint on.
    """

    cache: Cache = "auto"
    precision: Precision = "auto"
    channels_last: Literal["auto", "on", "off"] = "auto"
    compile: bool = False
    accumulate: int = 1
    ema_decay: float = 0.0
    clip_norm: float = 0.0
    early_stop: int = 0
    sync_norm: bool = True
    shuffle_labels: bool = False
    max_failures: int = 3

    def __post_init__(self) -> None:
        if self.accumulate < 1:
            raise ValueError(f"accumulate must be >= 1, got {self.accumulate}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must lie in [0, 1), got {self.ema_decay}")
        if self.clip_norm < 0 or self.early_stop < 0 or self.max_failures < 0:
            raise ValueError("clip_norm, early_stop and max_failures must be >= 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class Workers:
    """Who trains.

    Attributes:
        num_workers: processes, on any number of nodes; 0 is Ray Train's local mode, in this
            process, for tests of the loop.
        use_gpu: one GPU each (nccl), else CPUs (gloo).
    """

    num_workers: int = 1
    use_gpu: bool = False
