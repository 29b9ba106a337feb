"""Verbs of models: train, evaluate, info."""

import json
import sys
from typing import Annotated, Any

import typer

import medray
from medray.errors import ConfigError
from medray.verbs.options import (
    Address,
    AsJson,
    Debug,
    Out,
    Quiet,
    Settings,
    Task,
    Tiny,
    conclude,
    gates_setting,
    with_ray,
)

PreparedUri = Annotated[str, typer.Option("--data", help="An output of `medray prepare`.")]


def train(
    task: Task,
    data: PreparedUri,
    out: Out,
    num_workers: Annotated[int, typer.Option("--num-workers", min=1, help="DDP workers.")] = 1,
    gpu: Annotated[bool, typer.Option("--gpu", help="One GPU a worker.")] = False,
    epochs: Annotated[int, typer.Option("--epochs", help="0: the recipe's.")] = 0,
    weights: Annotated[str, typer.Option("--weights", help="Model or .safetensors.")] = "",
    keep: Annotated[
        str, typer.Option("--keep", help="Checkpoints: best (and last) or all.")
    ] = "best",
    set_: Settings = None,
    tiny: Tiny = False,
    address: Address = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train a task's model with Ray Train; a killed run goes on where it was.

    Example: medray train pancreas_segmentation --data /data/prepared --out /data/train --tiny
    """
    if keep not in {"best", "all"}:
        raise ConfigError(f"--keep must be best or all, got {keep!r}")
    settings = [*(set_ or []), *([f"epochs={epochs}"] if epochs else [])]
    training = _training(task, data, settings, tiny=tiny, num_workers=num_workers, gpu=gpu)

    def action() -> dict[str, Any]:
        from medray.engine.train import TrainRequest
        from medray.engine.train import train as run_train

        request = TrainRequest(training=training, weights=weights, keep=keep)
        return run_train(request, out, quiet=quiet)

    conclude(with_ray(action, address=address, debug=debug), out, as_json=as_json, quiet=quiet)


def _training(
    task: str, data: str, settings: list[str], *, tiny: bool, num_workers: int, gpu: bool
) -> Any:
    """Check everything that can be known before Ray and torch are there: the gates above all."""
    from medray.engine.package import Training
    from medray.engine.prepared import open_prepared, pass_gates, training_settings
    from medray.engine.train_options import TrainOptions, Workers
    from medray.tasks import get_recipe

    recipe = get_recipe(task)
    recipe.learns()
    prepared = open_prepared(data, recipe)
    gates, others = gates_setting(settings)
    base = recipe.tiny_hparams if tiny else recipe.hparams
    hparams, options = training_settings(recipe, base, prepared, (TrainOptions(),), others)
    return Training(
        recipe=recipe,
        hparams=hparams,
        options=options,
        workers=Workers(num_workers=num_workers, use_gpu=gpu),
        prepared=prepared,
        gates=gates,
        findings=pass_gates(prepared, recipe, hparams, gates=gates),
    )


def info(as_json: AsJson = False) -> None:
    """Show versions and tasks.

    Example: medray info --json
    """
    from medray.tasks import TASKS

    facts = {"version": medray.__version__, "python": sys.version.split()[0], "tasks": list(TASKS)}
    if as_json:
        typer.echo(json.dumps(facts, sort_keys=True))
        return
    typer.echo(f"medray {facts['version']}, Python {facts['python']}")
    for name in TASKS:
        typer.echo(f"  {name}")
