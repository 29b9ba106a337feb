"""Verbs that try medray itself: bench, chaos."""

import json
from typing import Annotated, Any

import typer

from medray.errors import ConfigError
from medray.verbs.options import EXIT_INTERNAL, AsJson, Debug, Gpu, Quiet, with_ray

# The task whose epochs are shortest.
_CHAOS_TASK = "lung_classification"
_CHAOS_SETTINGS = ("view=box", "size=16", "batch_size=2", "filters=16,64")

# Of bench serve and predict: boxes in a picture of 8 bit, masks in a CT, by whom and how large.
_DETECTOR, _DETECTOR_SETTINGS = "lung_detection", ("stream=fused",)
_VOLUMES = "pancreas_segmentation"
_NETWORKS = {"the original's first network": ("network=g1",), "our preset": ()}


def bench(
    stage: Annotated[
        str,
        typer.Argument(
            help="index, convert, prepare, train; default: these four; or predict, serve."
        ),
    ] = "",
    out: Annotated[str, typer.Option("--out", help="Folder for bench.json.")] = "bench-out",
    task: Annotated[str, typer.Option("--task", help="Of prepare, train and predict.")] = "",
    gpu: Gpu = False,
    small: Annotated[bool, typer.Option("--small", help="Fewer files and repeats.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Measure stages on this machine beside peers in the same run.

    `augment` measures nothing: it draws augmented examples of a task's phantom to look at.

    Example: medray bench convert --out /tmp/bench
    """
    from medray.engine.bench import PREDICT, SERVE, STAGES
    from medray.engine.bench import bench as run_bench
    from medray.tasks import get_recipe

    if stage == "augment":
        _augment_sheet(task or _first_task(), out, debug=debug)
        return
    known = (*STAGES, PREDICT, SERVE)
    if stage and stage not in known:
        raise ConfigError(f"no benchmark named {stage!r}; choose one of {', '.join(known)}")
    if stage == SERVE:
        summary = _bench_serve(out, small=small, debug=debug)
    else:
        recipe = get_recipe(task or (_VOLUMES if stage == PREDICT else _first_task()))
        stages = (stage,) if stage else STAGES
        summary = with_ray(
            lambda: run_bench(stages, out, recipe=recipe, small=small, use_gpu=gpu),
            address=None,
            debug=debug,
        )
    _show_bench(summary, out, as_json=as_json, quiet=quiet)


def _show_bench(summary: dict[str, Any], out: str, *, as_json: bool, quiet: bool) -> None:
    if not quiet:
        for row in summary["rows"]:
            typer.echo(_bench_line(row))
        typer.echo(f"{out}/bench.json")
    if as_json:
        typer.echo(json.dumps(summary, sort_keys=True))


def _bench_serve(out: str, *, small: bool, debug: bool) -> dict[str, Any]:
    """Measure the service; it starts a Ray of its own."""
    from medray.config import override
    from medray.engine.bench import work_folder, write_bench
    from medray.engine.bench_serve import rows
    from medray.engine.bench_service import ServeBench
    from medray.tasks import get_recipe

    detector, volumes = get_recipe(_DETECTOR), get_recipe(_VOLUMES)
    boxes, masks = (
        recipe.tiny_hparams if small else recipe.hparams for recipe in (detector, volumes)
    )
    bench = ServeBench(
        work=work_folder(out),
        recipe_of=get_recipe,
        detector=detector,
        detector_hparams=override(boxes, _DETECTOR_SETTINGS),
        volumes=volumes,
        volume_hparams={
            title: override(masks, settings)
            for title, settings in _NETWORKS.items()
            if settings or not small
        },
        small=small,
    )
    return write_bench(out, rows(bench, debug=debug))


def _augment_sheet(task: str, out: str, *, debug: bool) -> None:
    from pathlib import Path

    from medray.engine.bench_augment import augmented_sheet
    from medray.tasks import get_recipe

    recipe = get_recipe(task)
    work = Path(out) / "data"
    work.mkdir(parents=True, exist_ok=True)
    with_ray(lambda: {"sheet": augmented_sheet(work, out, recipe)}, address=None, debug=debug)
    typer.echo(f"{out}/augment.png")


def _bench_line(row: dict[str, Any]) -> str:
    peer = ""
    if row["peer"]:
        peer = f"  {row['peer']} {row['peer_median_s']:.4f} s  ratio {row['ratio']:.2f}"
    note = f"  ({row['note']})" if row["note"] else ""
    return f"{row['name']}: {row['median_s']:.4f} s{peer}  n={row['n']}{note}"


def chaos(
    stage: Annotated[str, typer.Argument(help="convert, prepare or train; default: all.")] = "",
    out: Annotated[str, typer.Option("--out", help="Folder for chaos.json.")] = "chaos-out",
    kills: Annotated[int, typer.Option(min=1, help="Kills of each kind.")] = 20,
    seed: Annotated[int, typer.Option(help="Seed of the moments.")] = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Kill own workers and drivers at random moments and compare the results.

    Example: medray chaos convert --kills 20 --out /tmp/chaos
    """
    del debug
    from medray.engine.chaos import STAGES
    from medray.engine.chaos import chaos as run_chaos

    if stage and stage not in STAGES:
        raise ConfigError(f"no chaos run named {stage!r}; choose one of {', '.join(STAGES)}")
    stages = (stage,) if stage else STAGES
    summary = run_chaos(
        stages,
        out,
        kills=kills,
        seed=seed,
        task=_CHAOS_TASK,
        settings=_CHAOS_SETTINGS,
        quiet=quiet,
    )
    if as_json:
        typer.echo(json.dumps(summary, sort_keys=True))
    if not summary["passed"]:
        raise typer.Exit(EXIT_INTERNAL)


def _first_task() -> str:
    """Return the task whose phantom stands for all where one is enough."""
    from medray.tasks import TASKS

    return next(iter(TASKS))
