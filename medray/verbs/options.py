"""Options and endings that the verbs share."""

import json
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from medray.errors import ConfigError
from medray.report import print_summary

EXIT_DONE, EXIT_INTERNAL, EXIT_USAGE, EXIT_GATE, EXIT_REJECTS, EXIT_INTERRUPTED = 0, 1, 2, 3, 4, 130

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
ModelUri = Annotated[str, typer.Argument(metavar="MODEL", help="model/ or the --out above it.")]
Policy = Annotated[
    str, typer.Option("--policy", help="Images unlike the training's: flag or refuse.")
]
Task = Annotated[str, typer.Argument(help="A task of `medray info`.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="name=value of a hyperparameter.")
]
NumWorkers = Annotated[int, typer.Option("--num-workers", min=1, help="DDP workers.")]
Gpu = Annotated[bool, typer.Option("--gpu", help="One GPU a worker.")]
Epochs = Annotated[int, typer.Option("--epochs", help="0: the recipe's.")]
Tiny = Annotated[bool, typer.Option("--tiny", help="The recipe's small preset.")]


def with_ray(
    action: Callable[[], dict[str, Any]],
    *,
    address: str | None,
    debug: bool,
    trains: bool = False,
) -> dict[str, Any]:
    """Run an action with Ray; say where Ray Train will run."""
    from medray.engine.cluster import ray_session

    with ray_session(address, debug=debug, trains=trains):
        return action()


def conclude(
    summary: dict[str, Any],
    out: str,
    *,
    as_json: bool,
    quiet: bool,
    last_lines: Sequence[str] = (),
) -> None:
    """Show a finished run and leave with its exit code."""
    if not quiet:
        print_summary(summary, out)
    for line in last_lines:
        typer.echo(line)
    if as_json:
        typer.echo(json.dumps(summary, sort_keys=True))
    if summary.get("status") == "done_with_rejects":
        raise typer.Exit(EXIT_REJECTS)


def with_epochs(items: Sequence[str] | None, epochs: int) -> list[str]:
    """Return the settings, and among them what --epochs stands for."""
    return [*(items or ()), *([f"epochs={epochs}"] if epochs else [])]


def gates_setting(items: Sequence[str]) -> tuple[str, list[str]]:
    """Take `gates=...` out of the settings; the rest are hyperparameters."""
    gates = [item.partition("=")[2] for item in items if item.startswith("gates=")]
    chosen = (gates or ["on"])[-1]
    if chosen not in {"on", "off"}:
        raise ConfigError(f"gates must be on or off, got {chosen!r}")
    return chosen, [item for item in items if not item.startswith("gates=")]
