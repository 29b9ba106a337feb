"""The `medray` command: one verb a stage, the same on a laptop and as a Ray job.

Engines, Ray and torch are imported inside the verbs that need them: `medray --help` and
`medray info` answer at once.
"""

import json
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Annotated, Any

import typer
from typer.exceptions import TyperException

import medray
from medray.errors import ConfigError, DataError, GateError
from medray.report import print_summary

EXIT_DONE, EXIT_INTERNAL, EXIT_USAGE, EXIT_GATE, EXIT_REJECTS, EXIT_INTERRUPTED = 0, 1, 2, 3, 4, 130

app = typer.Typer(
    name="medray",
    help="Piles of DICOM to trained, tuned, evaluated and served models, on Ray.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Out = Annotated[str, typer.Option("--out", help="Output folder or URI (s3://...).")]
Address = Annotated[
    str | None,
    typer.Option("--address", help="Ray cluster; default: the job's own, else a local one."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Last line of stdout is the summary as JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress, no tables.")]
Debug = Annotated[bool, typer.Option("--debug", help="Tracebacks and Ray's own log.")]
Sources = Annotated[
    list[str], typer.Argument(metavar="SRC...", help="Folders, files, zips or URIs.")
]


def _with_ray(
    action: Callable[[], dict[str, Any]], *, address: str | None, debug: bool
) -> dict[str, Any]:
    from medray.engine.cluster import ray_session

    with ray_session(address, debug=debug):
        return action()


def _conclude(summary: dict[str, Any], out: str, *, as_json: bool, quiet: bool) -> None:
    """Show a finished run and leave with its exit code."""
    if not quiet:
        print_summary(summary, out)
    if as_json:
        typer.echo(json.dumps(summary, sort_keys=True))
    if summary.get("status") == "done_with_rejects":
        raise typer.Exit(EXIT_REJECTS)


@app.command()
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

    summary = _with_ray(lambda: run_index(sources, out, quiet=quiet), address=address, debug=debug)
    _conclude(summary, out, as_json=as_json, quiet=quiet)


@app.command()
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
    summary = _with_ray(
        lambda: run_convert(sources, out, options, quiet=quiet), address=address, debug=debug
    )
    _conclude(summary, out, as_json=as_json, quiet=quiet)


@app.command()
def prepare(
    task: Annotated[str, typer.Argument(help="A task of `medray info`.")],
    data: Annotated[
        str, typer.Option("--data", help="Folder with images and labels, or a datalist.json.")
    ],
    out: Out,
    layout: Annotated[str, typer.Option(help="Layout of the data; default: detected.")] = "",
    labels: Annotated[
        str, typer.Option(help="Where the labels lie; default: beside the images.")
    ] = "",
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="name=value of a hyperparameter.")
    ] = None,
    tiny: Annotated[bool, typer.Option("--tiny", help="The recipe's small preset.")] = False,
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
    from medray.tasks import get_recipe

    recipe = get_recipe(task)
    base = recipe.tiny_hparams if tiny else recipe.hparams
    gates, settings = _gates_setting(set_ or [])
    options = PrepareOptions(data=data, labels=labels, layout=layout, export=export, gates=gates)
    hparams, split = override_many((base, SplitOptions()), settings)
    summary = _with_ray(
        lambda: run_prepare(recipe, hparams, split, out, options, quiet=quiet),
        address=address,
        debug=debug,
    )
    _conclude(summary, out, as_json=as_json, quiet=quiet)


@app.command()
def phantom(
    task: Annotated[str, typer.Argument(help="A task of `medray info`.")],
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


@app.command()
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


@app.command()
def bench(
    stage: Annotated[str, typer.Argument(help="index, convert or prepare; default: all.")] = "",
    out: Annotated[str, typer.Option("--out", help="Folder for bench.json.")] = "bench-out",
    small: Annotated[bool, typer.Option("--small", help="Fewer files and repeats.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Measure stages on this machine beside peers in the same run.

    Example: medray bench convert --out /tmp/bench
    """
    from medray.engine.bench import STAGES
    from medray.engine.bench import bench as run_bench
    from medray.tasks import get_recipe

    if stage and stage not in STAGES:
        raise ConfigError(f"no benchmark named {stage!r}; choose one of {', '.join(STAGES)}")
    stages = (stage,) if stage else STAGES
    recipe = get_recipe(_first_task())
    summary = _with_ray(
        lambda: run_bench(stages, out, recipe=recipe, small=small), address=None, debug=debug
    )
    if not quiet:
        for row in summary["rows"]:
            typer.echo(_bench_line(row))
        typer.echo(f"{out}/bench.json")
    if as_json:
        typer.echo(json.dumps(summary, sort_keys=True))


def _bench_line(row: dict[str, Any]) -> str:
    peer = ""
    if row["peer"]:
        peer = f"  {row['peer']} {row['peer_median_s']:.4f} s  ratio {row['ratio']:.2f}"
    note = f"  ({row['note']})" if row["note"] else ""
    return f"{row['name']}: {row['median_s']:.4f} s{peer}  n={row['n']}{note}"


@app.command()
def chaos(
    stage: Annotated[str, typer.Argument(help="convert or prepare; default: both.")] = "",
    out: Annotated[str, typer.Option("--out", help="Folder for chaos.json.")] = "chaos-out",
    kills: Annotated[int, typer.Option(min=1, help="Kills of workers and of drivers, each.")] = 20,
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
    summary = run_chaos(stages, out, kills=kills, seed=seed, task=_first_task(), quiet=quiet)
    if as_json:
        typer.echo(json.dumps(summary, sort_keys=True))
    if not summary["passed"]:
        raise typer.Exit(EXIT_INTERNAL)


def _first_task() -> str:
    """Return the task whose phantom stands for all where one is enough."""
    from medray.tasks import TASKS

    return next(iter(TASKS))


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


def _gates_setting(items: Sequence[str]) -> tuple[str, list[str]]:
    """Take `gates=...` out of the settings; the rest are hyperparameters."""
    gates = [item.partition("=")[2] for item in items if item.startswith("gates=")]
    return (gates or ["on"])[-1], [item for item in items if not item.startswith("gates=")]


def main() -> None:
    """Run the console script."""
    sys.exit(run(sys.argv[1:]))


def job_main(verb: str) -> None:
    """Run one verb as a Ray job: rejected inputs end it with 0 unless --strict-exit."""
    arguments = [item for item in sys.argv[1:] if item != "--strict-exit"]
    code = run([verb, *arguments])
    strict = len(arguments) != len(sys.argv) - 1
    sys.exit(EXIT_DONE if code == EXIT_REJECTS and not strict else code)


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; errors are one line on stderr."""
    debug = "--debug" in arguments
    _keep_values_out_of_warnings(debug=debug)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)
    try:
        result = app(args=list(arguments) or ["--help"], prog_name="medray", standalone_mode=False)
    except TyperException as error:
        return _fail(EXIT_USAGE, f"{error.format_message()} (see medray --help)", debug=False)
    except (KeyboardInterrupt, typer.Abort, SystemExit):
        _say("interrupted; finished work is kept, run the same command to go on")
        return EXIT_INTERRUPTED
    except ConfigError as error:
        return _fail(EXIT_USAGE, str(error), debug=debug)
    except GateError as error:
        return _fail(EXIT_GATE, str(error), debug=debug)
    except DataError as error:
        return _fail(EXIT_INTERNAL, str(error), debug=debug)
    except Exception as error:  # noqa: BLE001 - the last line of defence
        text = f"internal error: {type(error).__name__}; run again with --debug for the traceback"
        return _fail(EXIT_INTERNAL, text, debug=debug)
    return result if isinstance(result, int) else EXIT_DONE


def _fail(code: int, message: str, *, debug: bool) -> int:
    if debug:
        logging.getLogger(__name__).exception("traceback")
    _say(message)
    return code


def _say(message: str) -> None:
    sys.stderr.write(f"medray: {' '.join(message.split())}\n")


def _interrupt(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signal API
    raise KeyboardInterrupt


def _keep_values_out_of_warnings(*, debug: bool) -> None:
    """Silence libraries whose warnings quote header values, names included."""
    warnings.filterwarnings("ignore", module="pydicom")
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    if not debug:
        warnings.filterwarnings("ignore")
        os.environ.setdefault("PYTHONWARNINGS", "ignore")


if __name__ == "__main__":
    main()
