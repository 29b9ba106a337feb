"""The verb predict."""

from typing import Annotated, Any

import typer

from medray.config import unknown_name
from medray.errors import REASONS, ConfigError
from medray.verbs.options import (
    Address,
    AsJson,
    Debug,
    Gpu,
    ModelUri,
    Out,
    Policy,
    Quiet,
    Sources,
    conclude,
    with_ray,
)

Formats = Annotated[
    str, typer.Option("--format", help="Of nifti, seg, json, png, submission; with commas.")
]
Only = Annotated[
    str, typer.Option("--only", help="failed, or failed:REASON: try these again, no others.")
]
Compat = Annotated[
    bool, typer.Option("--compat", help="Also prediction.nii; the probability as last line.")
]


def predict(
    model: ModelUri,
    sources: Sources,
    out: Out,
    format: Formats = "nifti,seg,json,png",
    policy: Policy = "flag",
    only: Only = "",
    compat: Compat = False,
    gpu: Gpu = False,
    address: Address = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Run a model over DICOM series and volume files; masks lie on the original grid.

    Example: medray predict /data/train study.zip s3://bucket/ct --out /data/predicted
    """
    if compat and as_json:
        raise ConfigError("--compat and --json both want the last line; choose one")
    formats = [name.strip() for name in format.split(",")] + (["compat"] if compat else [])
    request = _request(model, sources, formats, use_gpu=gpu, policy=policy, only=only)
    from medray.engine.predict import predict as run_predict

    summary = with_ray(lambda: run_predict(request, out, quiet=quiet), address=address, debug=debug)
    lines = _probabilities(out) if compat else ()
    conclude(summary, out, as_json=as_json, quiet=quiet, last_lines=lines)


def _request(
    model: str, sources: list[str], formats: list[str], *, use_gpu: bool, policy: str, only: str
) -> Any:
    """Check everything that can be known before Ray is there."""
    from medray.engine.upstream import packed_upstream
    from medray.engine.weights import read_model_json
    from medray.tasks import get_recipe

    facts = read_model_json(model)
    recipe = get_recipe(str(facts.get("task")))
    upstream = packed_upstream(model, facts, get_recipe)
    # Before Ray starts: what it imports turns Ray's narration on again.
    from medray.engine.predict import Failed, PredictRequest

    return PredictRequest(
        recipe=recipe,
        model=model,
        sources=tuple(sources),
        upstream=upstream,
        formats=tuple(formats),
        use_gpu=use_gpu,
        policy=policy,  # type: ignore[arg-type]  # checked there
        only=Failed(failed_reason(only)) if only else None,
    )


def _probabilities(out: str) -> list[str]:
    """Return each case's probability as the original printed it: one case, one bare number."""
    from medray import storage

    table = storage.read_parquet(storage.join(out, "results.parquet"), columns=["key", "score"])
    found = [(row["key"], row["score"]) for row in table.to_pylist() if row["score"] is not None]
    return [f"{score:.4f}" if len(found) == 1 else f"{key} {score:.4f}" for key, score in found]


def failed_reason(only: str) -> str:
    """Return the reason that `--only failed[:REASON]` names, empty for all.

    Raises:
        ConfigError: anything else.
    """
    what, _, reason = only.partition(":")
    if what != "failed":
        raise ConfigError(f"--only takes failed or failed:REASON, got {only!r}")
    if reason and reason not in REASONS:
        raise ConfigError(unknown_name("reason", reason, sorted(REASONS)))
    return reason
