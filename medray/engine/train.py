"""`medray train`: every model of the project, always through Ray Train."""

import math
import secrets
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import ray
import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from medray import storage
from medray.engine.checkpoint import Checkpoint, name_of, read_checkpoint
from medray.engine.example_table import example_table
from medray.engine.feed import data_config, stream_factory, whole_split
from medray.engine.package import Training, write_package
from medray.engine.progress import EpochProgress
from medray.engine.run import Run
from medray.engine.train_job import TrainJob
from medray.engine.train_log import ProgressBoard
from medray.engine.train_options import Workers
from medray.engine.train_rank import train_rank
from medray.engine.weights import start_from
from medray.errors import ConfigError, DataError, MedrayError

_HOST_SHARE = 0.2
_COLLECTIVE_TIMEOUT_S = 1800
_LOOK_EVERY_S = 1.0
_LOST_RESOURCES_RETRIES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainRequest:
    """What the user asked for, checked already.

    Attributes:
        training: recipe, hyperparameters, options, workers and data.
        weights: URI to start from, or empty.
        keep: `best` (and last) or `all` checkpoints.
        share: of the cluster's CPUs and GPUs that this training counts on, where several run.
        callbacks: of Ray Train, which hear of every report.
    """

    training: Training
    weights: str = ""
    keep: str = "best"
    share: float = 1.0
    callbacks: tuple[Any, ...] = ()

    @property
    def parameters(self) -> dict[str, Any]:
        """Return what must be the same when a run is taken up again."""
        training = self.training
        return {
            **asdict(training.hparams),
            **asdict(training.options),
            **asdict(training.workers),
            "weights": self.weights,
            "gates": training.gates,
            "keep": self.keep,
            "data_sha256": training.prepared.sha256,
        }


def train(request: TrainRequest, out: str, *, quiet: bool = False) -> dict[str, Any]:
    """Train a model into `out`; needs a running `ray_session`.

    Returns:
        The content of run.json.

    Raises:
        ConfigError: weights of another network, an output of another run, too few resources.
        DataError: train_non_finite, sink_full, ...; the last good checkpoint is kept.
    """
    # Train workers have a working directory of their own: nothing relative may reach them.
    out = storage.normalise(out)
    if request.weights:
        request = replace(request, weights=storage.normalise(request.weights))
    training = request.training
    recipe, prepared = training.recipe, training.prepared
    left_out = _require_weights(request)
    if left_out and not quiet:
        sys.stderr.write(f"weights: {left_out}\n")
    _require_resources(training.workers, request.share)
    with Run(
        verb="train",
        task=recipe.name,
        out=out,
        parameters=request.parameters,
        inputs=(prepared.uri,),
    ) as run:
        with run.stage("train") as stage:
            ended = _fit(request, out, quiet=quiet)
            if training.workers.use_gpu:
                stage.gpu_seconds = ended["seconds"] * training.workers.num_workers
        if ended.get("reason"):
            run.extra["train"] = ended
            run.finish("failed")
            raise DataError(ended["reason"], ended["detail"])
        model = write_package(out, training, _best_checkpoint(out, ended))
        run.counts.add("done", "", len(prepared.split("train")) + len(prepared.split("val")))
        if left_out:
            run.extra["weights"] = left_out
        run.extra.update(train=ended, metrics=model["metrics"], inference=model["inference"])
        if training.gates != "on":
            run.extra["gates_found"] = [list(item) for item in training.findings]
        return run.finish()


def _best_checkpoint(out: str, ended: dict[str, Any]) -> Checkpoint:
    best = read_checkpoint(out, name_of(ended["best"]["epoch"]))
    if best is None:
        raise MedrayError("the best checkpoint is not complete any more; train again")
    return best


def _require_weights(request: TrainRequest) -> str:
    """Find out on the driver, before anything starts, whether given weights fit.

    Returns:
        What is left out of another library's file.
    """
    if not request.weights:
        return ""
    training = request.training
    return start_from(training.recipe, training.recipe.model(training.hparams), request.weights)


def _require_resources(workers: Workers, share: float) -> None:
    gpus = int(_cluster("GPU"))
    # One worker may have a part of a GPU; two on one GPU cannot speak with one another.
    needed = workers.num_workers if workers.num_workers > 1 or share >= 1 else min(1, gpus) or 1
    if workers.use_gpu and gpus < needed:
        raise ConfigError(
            f"--gpu with {workers.num_workers} workers needs as many GPUs, the cluster has {gpus}"
        )


def _cluster(resource: str) -> float:
    total: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return total.get(resource, 0.0)


def _fit(request: TrainRequest, out: str, *, quiet: bool) -> dict[str, Any]:
    """Run Ray Train to its end; return what rank 0 says of it."""
    training = request.training
    prepared, options, workers = training.prepared, training.options, training.workers
    shuffle_seed = training.hparams.seed if options.shuffle_labels else -1
    tables = {
        "train": example_table(prepared.uri, prepared.split("train"), shuffle_seed=shuffle_seed),
        "val": example_table(prepared.uri, prepared.split("val")),
    }
    example_bytes = prepared.example_bytes
    board = None if quiet else ProgressBoard.remote()  # type: ignore[attr-defined]
    job = TrainJob(
        out=out,
        recipe=training.recipe,
        hparams=training.hparams,
        options=options,
        workers=workers,
        tables=tables,
        cache=_cache(options.cache, example_bytes * len(tables["train"]), workers),
        weights=request.weights,
        keep_all=request.keep == "all",
        batch_bytes=example_bytes * training.hparams.batch_size,
        share=request.share,
        token=secrets.token_hex(8),
        board=board,
    )
    job.own()
    with _progress(board, job.hparams.epochs, quiet=quiet), state_folder(out) as state:
        return _fitted(_trainer(job, request, example_bytes, state))


def _fitted(trainer: TorchTrainer) -> dict[str, Any]:
    """Return rank 0's summary.

    Raises:
        DataError, ConfigError: what a worker raised, without Ray's wrapping.
    """
    try:
        result: Any = trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise _cause(error) from error
    ended: dict[str, Any] = result.return_value
    return ended


def _trainer(job: TrainJob, request: TrainRequest, example_bytes: int, state: str) -> TorchTrainer:
    workers = job.workers
    streamed = job.cache == "none"
    train = (
        stream_factory(
            job.tables["train"],
            job.order,
            num_epochs=job.hparams.epochs,
            example_bytes=example_bytes,
            out=job.out,
        )
        if streamed
        else whole_split(job.tables["train"], example_bytes=example_bytes)
    )
    val = whole_split(
        job.tables["val"], example_bytes=example_bytes, num_workers=job.order.num_workers
    )
    failures: Any = FailureConfig  # typed as its first generation, which lacks the limit
    return TorchTrainer(
        cast("Any", train_rank),
        train_loop_config={"job": job},
        datasets={"train": train, "val": val},
        dataset_config=data_config(["train", "val"] if streamed else ["val"]),
        torch_config=TorchConfig(timeout_s=_COLLECTIVE_TIMEOUT_S),
        scaling_config=ScalingConfig(
            num_workers=workers.num_workers,
            use_gpu=workers.use_gpu,
            resources_per_worker=_resources(workers, request.share),
        ),
        run_config=RunConfig(
            name="train",
            storage_path=state,
            callbacks=list(request.callbacks),
            failure_config=failures(
                max_failures=job.options.max_failures,
                controller_failure_limit=_LOST_RESOURCES_RETRIES,
            ),
        ),
    )


def _resources(workers: Workers, share: float) -> dict[str, float]:
    """Leave half of the CPUs to Ray Data: workers that hold all of them would wait for ever."""
    cpus = (_cluster("CPU") or 1.0) * share
    number = max(1, workers.num_workers)
    wanted = {"CPU": max(0.01, min(1.0, math.floor(100 * cpus / 2 / number) / 100))}
    if workers.use_gpu:
        gpus = _cluster("GPU") * share / number
        wanted["GPU"] = 1 if number > 1 or gpus >= 1 else math.floor(100 * gpus) / 100
    return wanted


@contextmanager
def state_folder(out: str) -> Iterator[str]:
    """Give Ray Train a folder for its own notes; checkpoints and results never pass it.

    Workers on other nodes must see it, so it lies in the output; of a remote output it is local,
    which Ray accepts where all workers share this node.
    """
    if storage.is_local(out):
        place = storage.join(storage.normalise(out), ".medray", f"ray-{secrets.token_hex(4)}")
        try:
            yield place
        finally:
            shutil.rmtree(place, ignore_errors=True)
        return
    yield storage.join(out, ".medray", f"ray-{secrets.token_hex(4)}")


def _cache(wanted: str, num_bytes: int, workers: Workers) -> str:
    """Decide where the training split is kept."""
    if wanted != "auto":
        return wanted
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    memory = min((n["Resources"].get("memory", 0) for n in nodes if n["Alive"]), default=0)
    per_node = max(1, -(-workers.num_workers // max(1, len(nodes))))
    return "host" if num_bytes * per_node <= _HOST_SHARE * memory else "none"


def _cause(error: BaseException) -> BaseException:
    """Return the error of ours inside Ray's, else a sentence about the first one."""
    seen: list[BaseException] = [error]
    for item in seen:
        if isinstance(item, MedrayError):
            return item
        failures = getattr(item, "worker_failures", None) or {}
        inner = [*failures.values(), getattr(item, "controller_failure", None)]
        inner += [getattr(item, "cause", None), item.__cause__]
        seen += [one for one in inner if isinstance(one, BaseException) and one not in seen]
    last = seen[-1]
    text = str(last).strip().splitlines()
    return MedrayError(f"training failed: {type(last).__name__}: {text[-1] if text else ''}")


@contextmanager
def _progress(board: Any, epochs: int, *, quiet: bool) -> Iterator[None]:
    """Draw what rank 0 reports until the training is over."""
    if board is None:
        yield
        return
    over = threading.Event()
    line = EpochProgress(epochs, quiet=quiet)

    def watch() -> None:
        while not over.wait(_LOOK_EVERY_S):
            try:
                line.show(ray.get(board.read.remote(), timeout=_LOOK_EVERY_S))
            except (ray.exceptions.RayError, TimeoutError):
                time.sleep(_LOOK_EVERY_S)

    thread = threading.Thread(target=watch, name="medray-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=2 * _LOOK_EVERY_S)
        line.close()
