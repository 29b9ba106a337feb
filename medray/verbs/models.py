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
    Epochs,
    Gpu,
    ModelUri,
    NumWorkers,
    Out,
    Quiet,
    Settings,
    Task,
    Tiny,
    conclude,
    gates_setting,
    with_epochs,
    with_ray,
)

PreparedUri = Annotated[str, typer.Option("--data", help="An output of `medray prepare`.")]


def train(
    task: Task,
    data: PreparedUri,
    out: Out,
    num_workers: NumWorkers = 1,
    gpu: Gpu = False,
    epochs: Epochs = 0,
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
    settings = with_epochs(set_, epochs)
    training = checked_training(task, data, settings, tiny=tiny, num_workers=num_workers, gpu=gpu)
    # Before Ray starts: importing Ray Train turns Ray's narration on again.
    from medray.engine.train import TrainRequest
    from medray.engine.train import train as run_train

    request = TrainRequest(training=training, weights=weights, keep=keep)
    summary = with_ray(
        lambda: run_train(request, out, quiet=quiet), address=address, debug=debug, trains=True
    )
    conclude(summary, out, as_json=as_json, quiet=quiet)


def checked_training(
    task: str, data: str, settings: list[str], *, tiny: bool, num_workers: int, gpu: bool
) -> Any:
    """Check everything that can be known before Ray and torch are there: the gates above all."""
    from medray.engine.package import Training
    from medray.engine.prepared import open_prepared, pass_gates, training_settings
    from medray.engine.train_options import TrainOptions, Workers
    from medray.tasks import get_recipe

    recipe = get_recipe(task)
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


def evaluate(
    model: ModelUri,
    data: PreparedUri,
    out: Out,
    split: Annotated[str, typer.Option("--split", help="val or test.")] = "test",
    gpu: Gpu = False,
    address: Address = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Measure a model on a split, with intervals over patients, and write report.html.

    Example: medray evaluate /data/train --data /data/prepared --split test --out /data/report
    """
    from medray.engine.prepared import open_prepared
    from medray.engine.weights import read_model_json
    from medray.tasks import get_recipe

    if split not in {"val", "test"}:
        raise ConfigError(f"--split must be val or test, got {split!r}")
    recipe = get_recipe(str(read_model_json(model).get("task")))
    prepared = open_prepared(data, recipe)

    from medray.engine.evaluate import EvaluateRequest
    from medray.engine.evaluate import evaluate as run_evaluate

    request = EvaluateRequest(
        recipe=recipe, model=model, prepared=prepared, split=split, use_gpu=gpu
    )
    summary = with_ray(
        lambda: run_evaluate(request, out, quiet=quiet), address=address, debug=debug
    )
    if not quiet:
        _print_metrics(out)
    conclude(summary, out, as_json=as_json, quiet=quiet)


def _print_metrics(out: str) -> None:
    """Show each metric with its interval, the baseline beside."""
    from medray import storage

    report = storage.read_json(storage.join(out, "report.json"))
    typer.echo(f"{report['split']}: {report['num_cases']} cases, {report['num_patients']} patients")
    width = 2 + max(map(len, report["metrics"]), default=0)
    for name, found in report["metrics"].items():
        low, high = found["ci95"]
        beside = report["baseline"].get(name)
        typer.echo(
            f"  {name.ljust(width)}{_shown(found['value'])}  ({_shown(low)} to {_shown(high)})"
            + (f"  baseline {_shown(beside)}" if beside is not None else "")
        )


def _shown(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


def info(
    model: Annotated[str, typer.Argument(metavar="[MODEL]", help="Show a model's card.")] = "",
    as_json: AsJson = False,
) -> None:
    """Show versions and tasks, or a model.

    Example: medray info --json
    """
    from medray.tasks import TASKS

    if model:
        _show_model(model, as_json=as_json)
        return
    facts = {"version": medray.__version__, "python": sys.version.split()[0], "tasks": list(TASKS)}
    if as_json:
        typer.echo(json.dumps(facts, sort_keys=True))
        return
    typer.echo(f"medray {facts['version']}, Python {facts['python']}")
    for name in TASKS:
        typer.echo(f"  {name}")


def _show_model(uri: str, *, as_json: bool) -> None:
    """Show a model's card, or model.json; its weights are checked by hash."""
    from medray import storage
    from medray.engine.weights import package_uri, read_checked_weights

    where = package_uri(uri)
    read_checked_weights(uri)
    if as_json:
        typer.echo(json.dumps(storage.read_json(storage.join(where, "model.json")), sort_keys=True))
        return
    typer.echo(storage.read_bytes(storage.join(where, "README.md")).decode())
