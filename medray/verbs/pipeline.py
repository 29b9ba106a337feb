"""The verb that does everything: run."""

from dataclasses import replace
from typing import Annotated, Any

import typer

from medray.verbs.options import (
    Address,
    AsJson,
    Debug,
    Epochs,
    Gpu,
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


def run(
    task: Task,
    data: Annotated[
        str, typer.Option("--data", help="Folder with images and labels, or a datalist.json.")
    ],
    out: Out,
    layout: Annotated[str, typer.Option(help="Layout of the data; default: detected.")] = "",
    labels: Annotated[
        str, typer.Option(help="Where the labels lie; default: beside the images.")
    ] = "",
    num_workers: NumWorkers = 1,
    gpu: Gpu = False,
    epochs: Epochs = 0,
    set_: Settings = None,
    tiny: Tiny = False,
    address: Address = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Index, prepare, train, evaluate and predict; each stage resumes by itself.

    Example: medray run pancreas_segmentation --data /data/pancreas --out /data/run --tiny
    """
    settings = with_epochs(set_, epochs)
    plan = _plan(task, settings, tiny=tiny, num_workers=num_workers, gpu=gpu)
    plan = replace(plan, data=data, labels=labels, layout=layout)
    # Before Ray starts: importing Ray Train turns Ray's narration on again.
    from medray.engine.pipeline import run_pipeline

    say = _silent if quiet else typer.echo
    summary = with_ray(
        lambda: run_pipeline(plan, out, say, quiet=quiet),
        address=address,
        debug=debug,
        trains=True,
    )
    conclude(summary, out, as_json=as_json, quiet=quiet)


def _plan(task: str, settings: list[str], *, tiny: bool, num_workers: int, gpu: bool) -> Any:
    """Return the plan without its data."""
    from medray.config import override_many
    from medray.datasets.split import SplitOptions
    from medray.engine.pipeline import Pipeline
    from medray.engine.train_options import TrainOptions, Workers
    from medray.engine.upstream import chosen_upstream
    from medray.tasks import get_recipe

    recipe = get_recipe(task)
    gates, others = gates_setting(settings)
    base = recipe.tiny_hparams if tiny else recipe.hparams
    hparams, split, options = override_many((base, SplitOptions(), TrainOptions()), others)
    return Pipeline(
        recipe=recipe,
        hparams=hparams,
        split=split,
        options=options,
        workers=Workers(num_workers=num_workers, use_gpu=gpu),
        data="",
        gates=gates,
        upstream=chosen_upstream(recipe, hparams, get_recipe),
    )


def _silent(line: str) -> None:
    del line
