"""What one rank does from its start to the end of the training."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from ray.train.collective import broadcast_from_rank_zero

from medray.engine.checkpoint import (
    WEIGHTS,
    Checkpoint,
    drop_checkpoints,
    name_of,
    newest_checkpoint,
    pack_optimizer,
    read_checkpoint,
    save_checkpoint,
    unpack_optimizer,
)
from medray.engine.feed import RankFeed
from medray.engine.learning_rate import LearningRate
from medray.engine.train_job import TrainJob
from medray.engine.train_log import TrainLog
from medray.engine.train_step import (
    MAX_BAD_STEPS,
    Stepper,
    precision_of,
    use_precision,
    use_threads,
    wants_channels_last,
    weights_channels_last,
)
from medray.engine.weights import start_from
from medray.errors import DataError, MedrayError
from medray.learning import Row

if TYPE_CHECKING:
    from torch import nn

_RAW = "raw.safetensors"
_OPTIMIZER = "optimizer.safetensors"
# Ray's controller takes one report at a time and looks every two seconds.
_REPORT_EVERY_S = 5.0
# Ends that every rank comes to at once, and that another attempt would come to again.
_SAME_ON_ALL_RANKS = frozenset({"train_non_finite", "sink_full", "sink_denied"})


def train_rank(config: dict[str, Any]) -> dict[str, Any]:
    """Train on one rank; the loop function of Ray Train.

    Returns:
        What the driver needs to know: the last and the best epoch, seconds, peak memory; or
        `{"reason", "detail"}` of an end that another attempt would not change.
    """
    job: TrainJob = config["job"]
    with TrainLog(job, is_writer=ray.train.get_context().get_world_rank() == 0) as log:
        rank = _start(job, log)
        try:
            while not rank.is_over():
                rank.run_epoch()
        except DataError as error:
            if error.reason not in _SAME_ON_ALL_RANKS:
                raise
            return {"reason": error.reason, "detail": error.detail, **rank.summary()}
        return rank.summary()


@dataclass(slots=True, kw_only=True)
class Rank:
    """State of one rank.

    Attributes:
        epoch: number of finished epochs.
        step: number of optimiser steps made.
        best: epoch, value, metrics and inference of the best epoch so far.
        stale: epochs since the best one.
    """

    job: TrainJob
    log: TrainLog
    stepper: Stepper
    feed: RankFeed
    rate: LearningRate
    epoch: int = 0
    step: int = 0
    best: dict[str, Any] = field(default_factory=dict)
    stale: int = 0
    began: float = field(default_factory=time.monotonic)
    _reported: float = 0.0

    def is_over(self) -> bool:
        """Tell whether all epochs are done or nothing has become better for too long."""
        patience = self.job.options.early_stop
        return bool(self.epoch >= self.job.hparams.epochs or (patience and self.stale >= patience))

    def run_epoch(self) -> None:
        """Train, validate, write a checkpoint, and say so."""
        train = self._train_epoch()
        with self.stepper.averaged():
            rows, val_loss = self._validate()
            metrics = self.job.recipe.learning.metrics(rows, {})
            self.epoch += 1
            self._judge(rows, metrics)
            self.log.add(self.step, self.epoch, "train", train)
            self.log.add(self.step, self.epoch, "val", {"loss": val_loss, **metrics})
            self._keep()
        self._report({**metrics, "val_loss": val_loss, "epoch": self.epoch, **train})

    def _train_epoch(self) -> dict[str, float]:
        """Make the steps of an epoch; return its mean loss and speed."""
        stepper, options = self.stepper, self.job.options
        stepper.network.train()
        began, losses, norms = time.perf_counter(), [], []
        steps = self.feed.order.steps_per_epoch
        group: list[Any] = []
        for number, item in enumerate(self.feed.train_batches(self.epoch), start=1):
            group.append(item)
            if len(group) < options.accumulate and number < steps:
                continue
            # Dropout must not depend on where a run was interrupted.
            torch.manual_seed(self._seed())
            rates = self.rate.rates(self.step, self.epoch)
            loss, norm = stepper.step(group, rates)
            losses.append(loss)
            norms.append(norm)
            self.step += 1
            group = []
            if stepper.bad_steps >= MAX_BAD_STEPS:
                raise self._not_finite()
            speed = number * self.feed.order.global_batch / (time.perf_counter() - began)
            self.log.progress(self.epoch + number / steps, loss, examples_per_s=speed)
        seconds = time.perf_counter() - began
        return {
            "loss": float(torch.stack(losses).mean()),
            "grad_norm": float(torch.stack(norms).mean()),
            "lr": self.rate.rates(self.step - 1, self.epoch)[0],
            "examples_per_s": steps * self.feed.order.global_batch / seconds,
        }

    def _seed(self) -> int:
        rank = dist.get_rank() if dist.is_initialized() else 0
        return int(self.job.hparams.seed * 1_000_003 + self.step * 1_009 + rank) % (1 << 63)

    def _not_finite(self) -> DataError:
        last = name_of(self.epoch) if self.epoch else "none yet"
        return DataError(
            "train_non_finite",
            f"{MAX_BAD_STEPS} steps in a row had no finite loss or gradient (step {self.step}); "
            f"the last good checkpoint is {last}; lower lr, or set clip_norm",
        )

    def _validate(self) -> tuple[list[Row], float]:
        """Measure the whole validation split; every rank gets every row."""
        learning, hparams = self.job.recipe.learning, self.job.hparams
        module, stepper = self.stepper.module, self.stepper
        table = self.job.tables["val"]
        module.eval()
        rows: list[Row] = []
        sums: torch.Tensor | None = None
        trained, stepper.network = stepper.network, module
        with torch.no_grad():
            for batch, indices in self.feed.val_batches():
                outputs = stepper.forward(batch)
                part = learning.loss_sums(outputs, batch, hparams)
                sums = part if sums is None else sums + part
                measured = learning.measure(
                    learning.probabilities(outputs, hparams), batch, hparams
                )
                rows += [_named(row, table, i) for row, i in zip(measured, indices, strict=True)]
        stepper.network = trained
        rows, sums = _gathered(rows, sums, stepper.device)
        loss = float(learning.loss_value(sums, hparams)) if sums is not None else math.nan
        return sorted(rows, key=lambda row: str(row["key"])), loss

    def _judge(self, rows: list[Row], metrics: Mapping[str, float]) -> None:
        """Remember the best epoch; its rows choose the inference parameters."""
        learning = self.job.recipe.learning
        value = float(metrics[learning.objective.metric])
        self.rate.saw(value)
        better = learning.objective.is_better(value, self.best.get("value"))
        if better or not self.best:
            self.best = {
                "epoch": self.epoch,
                # undefined where the split has one class only
                "value": value if math.isfinite(value) else None,
                "metrics": {n: v if math.isfinite(v) else None for n, v in metrics.items()},
                "inference": learning.choose(rows),
            }
            self.stale = 0
        else:
            self.stale += 1

    def _keep(self) -> None:
        """Write the checkpoint on rank 0 and let all ranks know how that went."""
        failed: dict[str, str] | None = None
        if self.log.is_writer:
            try:
                self._write()
            except DataError as error:
                failed = {"reason": error.reason, "detail": error.detail}
        failed = broadcast_from_rank_zero(failed)
        if failed:
            raise DataError(**failed)

    def _write(self) -> None:
        job = self.job
        job.require_owner()
        module = self.stepper.module
        tensors, optimizer = pack_optimizer(self.stepper.optimizer)
        groups = {WEIGHTS: module.state_dict(), _OPTIMIZER: tensors}
        if self.stepper.ema:
            groups[_RAW] = self.stepper.trained
        state = {
            "epoch": self.epoch,
            "step": self.step,
            "best": self.best,
            "stale": self.stale,
            "plateau": self.rate.state(),
            "optimizer": optimizer,
        }
        self.log.write()
        save_checkpoint(job.out, name_of(self.epoch), groups, state)
        if not job.keep_all:
            best = self.best.get("epoch", self.epoch)
            drop_checkpoints(job.out, keep={name_of(self.epoch), name_of(best)})

    def _report(self, metrics: Mapping[str, float]) -> None:
        """Tell Ray Train, at times that all ranks agree on."""
        now = time.monotonic()
        due = self.is_over() or now - self._reported > _REPORT_EVERY_S
        if broadcast_from_rank_zero(due):
            self._reported = now
            ray.train.report(dict(metrics))

    def resume(self, last: Checkpoint) -> None:
        """Go on after a checkpoint."""
        raw = _RAW if _RAW in last.blobs else WEIGHTS
        self.stepper.module.load_state_dict(last.tensors(raw))
        if self.stepper.ema:
            evaluated = last.tensors(WEIGHTS)
            for name, value in self.stepper.ema.items():
                value.copy_(evaluated[name])
        state = last.state
        unpack_optimizer(self.stepper.optimizer, last.tensors(_OPTIMIZER), state["optimizer"])
        self.epoch, self.step = state["epoch"], state["step"]
        self.best, self.stale = dict(state["best"]), state["stale"]
        self.rate.restore(state["plateau"])
        self.log.keep_until(self.epoch)

    def summary(self) -> dict[str, Any]:
        """Return what the driver wants to know."""
        device = self.stepper.device
        cuda = device.type == "cuda"
        return {
            "epoch": self.epoch,
            "step": self.step,
            "best": self.best,
            "seconds": time.monotonic() - self.began,
            "device": torch.cuda.get_device_name(device) if cuda else "cpu",
            "peak_device_bytes": torch.cuda.max_memory_allocated(device) if cuda else 0,
            "stopped_early": self.epoch < self.job.hparams.epochs,
        }


def _named(row: Row, table: Any, index: int) -> Row:
    return {
        "key": table.keys[index],
        "patient_id": table.patient_ids[index],
        "label": table.labels[index],
        **row,
    }


def _gathered(
    rows: list[Row], sums: torch.Tensor | None, device: torch.device
) -> tuple[list[Row], torch.Tensor | None]:
    """Return all ranks' rows and the sum of their sums; a rank may have had nothing."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return rows, sums
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, (rows, None if sums is None else sums.cpu()))
    found = [part for _, part in parts if part is not None]
    total = torch.stack(found).sum(dim=0).to(device) if found else None
    return [row for some, _ in parts for row in some], total


def _start(job: TrainJob, log: TrainLog) -> Rank:
    """Build the network, its optimiser and its data on this rank; resume where there is more."""
    context = ray.train.get_context()
    device = ray.train.torch.get_device()
    use_threads(device, context.get_local_world_size(), job.batch_bytes, job.share)
    precision = precision_of(job.options, device)
    use_precision(precision)
    stepper = _stepper(job, device, precision)
    order = job.order
    per_epoch = -(-order.steps_per_epoch // job.options.accumulate)
    learning = job.recipe.learning
    rank = Rank(
        job=job,
        log=log,
        stepper=stepper,
        feed=RankFeed(
            order=order,
            tables=job.tables,
            rank=context.get_world_rank(),
            cache=job.cache,
            device=device,
            collate=learning.collate,
        ),
        rate=LearningRate(
            schedule=learning.schedule(job.hparams),
            objective=learning.objective,
            num_steps=per_epoch * job.hparams.epochs,
            base_lrs=tuple(float(g["lr"]) for g in stepper.optimizer.param_groups),
        ),
    )
    last = _last_checkpoint(job)
    if last is not None:
        rank.resume(last)
    return rank


def _last_checkpoint(job: TrainJob) -> Checkpoint | None:
    """Return the checkpoint that rank 0 found newest; every rank reads the same one."""
    found = newest_checkpoint(job.out) if ray.train.get_context().get_world_rank() == 0 else None
    name = broadcast_from_rank_zero(found.name if found else "")
    if not name or found is not None:
        return found
    last = read_checkpoint(job.out, name)
    if last is None:
        raise MedrayError(f"checkpoint {name} is complete on rank 0, but not on this one")
    return last


def _stepper(job: TrainJob, device: torch.device, precision: str) -> Stepper:
    learning, options = job.recipe.learning, job.options
    torch.manual_seed(job.hparams.seed)
    module = learning.model(job.hparams)
    if job.weights:
        start_from(job.recipe, module, job.weights)
    cuda = device.type == "cuda"
    if cuda and options.sync_norm and job.workers.num_workers > 1:
        module = torch.nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
    channels_last = wants_channels_last(options, device)
    if channels_last:
        weights_channels_last(module)
    network: nn.Module = ray.train.torch.prepare_model(module)
    module = getattr(network, "module", network) if network is not module else module
    if options.compile:
        network = cast("nn.Module", torch.compile(network))
    ema = {}
    if options.ema_decay:
        ema = {name: value.detach().clone() for name, value in module.state_dict().items()}
    return Stepper(
        learning=learning,
        hparams=job.hparams,
        options=options,
        network=network,
        module=module,
        optimizer=learning.optimizer(module, job.hparams),
        device=device,
        precision=precision,
        channels_last=channels_last,
        ema=ema,
    )
