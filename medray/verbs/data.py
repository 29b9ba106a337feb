"""Verbs from DICOM to examples: index, convert, prepare, phantom."""

import json
from typing import Annotated

import typer

from medray.errors import ConfigError
from medray.verbs.options import (
    Address,
    AsJson,
    Debug,
    Out,
    Quiet,
    Settings,
    Sources,
    Task,
    Tiny,
    conclude,
    gates_setting,
    with_ray,
)


def index(
    sources: Sources,
    out: Out,
    address: Address = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Crawl DICOM headers in parallel, group them into series, judge each.

    Example: medray index /data/dicom s3://bucket/more --out /data/index
    """
    from medray.engine.index import index as run_index

    summary = with_ray(lambda: run_index(sources, out, quiet=quiet), address=address, debug=debug)
    conclude(summary, out, as_json=as_json, quiet=quiet)


def convert(
    sources: Sources,
    out: Out,
    spacing: Annotated[str, typer.Option(help="native, MM, or Z,Y,X in mm.")] = "native",
    size: Annotated[str, typer.Option(help="Z,Y,X in voxels.")] = "",
    format: Annotated[str, typer.Option(help="nifti.gz or nifti.")] = "nifti.gz",
    proof: Annotated[bool, typer.Option(help="Read every volume back with another reader.")] = True,
    address: Address = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Convert DICOM series to NIfTI volumes with proven geometry.

    Example: medray convert study.zip --out /data/nifti --spacing 1.5
    """
    from medray.engine.convert import ConvertOptions
    from medray.engine.convert import convert as run_convert

    options = ConvertOptions(
        spacing_zyx_mm=_spacing(spacing), size_zyx=_size(size), format=format, proof=proof
    )
    summary = with_ray(
        lambda: run_convert(sources, out, options, quiet=quiet), address=address, debug=debug
    )
    conclude(summary, out, as_json=as_json, quiet=quiet)


def prepare(
    task: Task,
    data: Annotated[
        str, typer.Option("--data", help="Folder with images and labels, or a datalist.json.")
    ],
    out: Out,
    layout: Annotated[str, typer.Option(help="Layout of the data; default: detected.")] = "",
    labels: Annotated[
        str, typer.Option(help="Where the labels lie; default: beside the images.")
    ] = "",
    set_: Settings = None,
    tiny: Tiny = False,
    export: Annotated[str, typer.Option(help="Also write boxes as yolo or coco.")] = "",
    address: Address = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Decode, resample, normalise, label and split the data of a task.

    Example: medray prepare pancreas_segmentation --data /data/pancreas --out /data/prepared --tiny
    """
    from medray.config import override_many
    from medray.datasets.split import SplitOptions
    from medray.engine.prepare import PrepareOptions
    from medray.engine.prepare import prepare as run_prepare
    from medray.engine.upstream import chosen_upstream
    from medray.tasks import get_recipe

    recipe = get_recipe(task)
    base = recipe.tiny_hparams if tiny else recipe.hparams
    gates, settings = gates_setting(set_ or [])
    options = PrepareOptions(data=data, labels=labels, layout=layout, export=export, gates=gates)
    hparams, split = override_many((base, SplitOptions()), settings)
    upstream = chosen_upstream(recipe, hparams, get_recipe)
    summary = with_ray(
        lambda: run_prepare(recipe, hparams, split, out, options, upstream=upstream, quiet=quiet),
        address=address,
        debug=debug,
    )
    conclude(summary, out, as_json=as_json, quiet=quiet)


def phantom(
    task: Task,
    out: Annotated[str, typer.Option("--out", help="Folder to write; local.")],
    patients: Annotated[int, typer.Option(min=1, help="Number of patients.")] = 16,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
    defects: Annotated[bool, typer.Option("--defects", help="Add the dirty zoo.")] = False,
    size: Annotated[str, typer.Option(help="tiny, small or full matrices.")] = "small",
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write a synthetic data set in the task's true public layout.

    Example: medray phantom lung_detection --out /tmp/lung --patients 8 --seed 1
    """
    del debug
    from pathlib import Path

    from medray.tasks import get_recipe

    recipe = get_recipe(task)
    if size not in {"tiny", "small", "full"}:
        raise ConfigError(f"--size must be tiny, small or full, got {size!r}")
    root = Path(out)
    if root.exists() and any(root.iterdir()) and not (root / "truth.json").exists():
        raise ConfigError(f"{out} holds other files; choose an empty --out")
    truth = recipe.phantom(root, num_patients=patients, seed=seed, defects=defects, size=size)
    baseline = recipe.phantom_baseline(root)
    summary = {
        "verb": "phantom",
        "task": task,
        "num_cases": len(truth["cases"]),
        "num_defects": len(truth["defects"]),
        "baseline": dict(baseline),
        "out": str(root),
    }
    if not quiet:
        typer.echo(f"{len(truth['cases'])} cases, {len(truth['defects'])} defects: {root}")
        for name, value in baseline.items():
            typer.echo(f"threshold-and-blob baseline {name}: {value:.3f}")
    if as_json:
        typer.echo(json.dumps(summary, sort_keys=True))


def _spacing(value: str) -> tuple[float, ...]:
    """Parse --spacing."""
    if value == "native":
        return ()
    try:
        parts = tuple(float(part) for part in value.split(","))
    except ValueError:
        parts = ()
    parts = parts * 3 if len(parts) == 1 else parts
    if len(parts) != 3 or not all(0.05 <= part <= 100 for part in parts):
        raise ConfigError(
            f"--spacing must be native, MM or Z,Y,X in mm (0.05 to 100), got {value!r}"
        )
    return parts


def _size(value: str) -> tuple[int, ...]:
    """Parse --size."""
    if not value:
        return ()
    try:
        parts = tuple(int(part) for part in value.split(","))
    except ValueError:
        parts = ()
    if len(parts) != 3 or not all(1 <= part <= 4096 for part in parts):
        raise ConfigError(f"--size must be Z,Y,X in voxels (1 to 4096), got {value!r}")
    return parts
