"""`medray predict`: a model over series and volumes, each result proven before it counts."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from medray import storage
from medray.config import unknown_name
from medray.engine.actor_pool import Pool, map_with_actors
from medray.engine.case_answer import POLICIES, Policy
from medray.engine.case_listing import case_refusal
from medray.engine.cluster import max_node_memory_bytes
from medray.engine.data import Item
from medray.engine.index import require_sources, unreadable_files
from medray.engine.interpreter import model_hparams
from medray.engine.ledger import Ledger, content_key, result_record
from medray.engine.predict_output import COMPAT, SUBMISSION
from medray.engine.predict_sources import Case, Found, find_cases
from medray.engine.predict_task import PredictActor
from medray.engine.progress import Progress
from medray.engine.run import Run
from medray.engine.schemas import REJECTED, RESULTS
from medray.engine.series_table import index_shards
from medray.engine.upstream import Upstream
from medray.engine.weights import read_checked_weights, read_model_json
from medray.errors import ConfigError
from medray.recipe import Recipe

FORMATS = ("nifti", "seg", "json", "png")
_ALL_FORMATS = (*FORMATS, SUBMISSION, COMPAT)
# Raised whenever the same input would give other bytes: finished work is then done again.
_TRANSFORM_VERSION = 2
# A worker with torch, a model and its activations.
_MODEL_BYTES = 1536 << 20


@dataclass(frozen=True, slots=True)
class Failed:
    """Cases that an earlier run refused: all, or those of one reason."""

    reason: str = ""

    def takes(self, reason: str) -> bool:
        """Tell whether a case with this end is one of them; an empty reason is no refusal."""
        return bool(reason) and self.reason in {"", reason}


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictRequest:
    """What the user asked for.

    Attributes:
        recipe: of the model's task.
        model: URI of the package.
        sources: folders, files, zips, URIs, or one index.
        upstream: models of the package that run first.
        formats: what is written of each case.
        use_gpu: one GPU an actor.
        series_keys: only these series of the sources, if any are named.
        policy: what becomes of cases that are unlike the training images.
        only: what an earlier run into the same output refused is tried again, and nothing else.
    """

    recipe: Recipe[Any]
    model: str
    sources: tuple[str, ...]
    upstream: tuple[Upstream, ...] = ()
    formats: tuple[str, ...] = FORMATS
    use_gpu: bool = False
    series_keys: tuple[str, ...] = ()
    policy: Policy = "flag"
    only: "Failed | None" = None

    def __post_init__(self) -> None:
        for name in self.formats:
            if name not in _ALL_FORMATS:
                raise ConfigError(unknown_name("format", name, _ALL_FORMATS))
        if self.policy not in POLICIES:
            raise ConfigError(unknown_name("policy", self.policy, POLICIES))
        if SUBMISSION in self.formats and self.recipe.submission is None:
            raise ConfigError(f"{self.recipe.name} belongs to no challenge: no format submission")


def predict(request: PredictRequest, out: str, *, quiet: bool = False) -> dict[str, Any]:
    """Predict into `out`; needs a running `ray_session`.

    Returns:
        The content of run.json.

    Raises:
        ConfigError: a model of another version, a part of the samples that nothing makes, a
            missing source, or an output of another run.
        DataError: model_missing or model_hash_mismatch.
    """
    facts = read_model_json(request.model)
    read_checked_weights(request.model)
    model_hparams(request.recipe, facts)
    require_sources(request.sources)
    parameters = {
        "weights_sha256": facts["weights_sha256"],
        "inference": facts["inference"],
        "upstream": [model.weights_sha256 for model in request.upstream],
        "formats": sorted(request.formats),
        "series_keys": sorted(request.series_keys),
        "policy": request.policy,
    }
    inputs = (request.model, *request.sources)
    with Run(
        verb="predict", task=request.recipe.name, out=out, parameters=parameters, inputs=inputs
    ) as run:
        found = find_cases(
            run,
            request.sources,
            planar=request.recipe.is_planar,
            only=request.series_keys,
            quiet=quiet,
        )
        with run.stage("plan"):
            items, settled = _plan(run, request, facts, found)
        settled += _predict(run, request, items, quiet=quiet)
        settled = _unique(run, settled)
        _write_tables(run, found, settled)
        if SUBMISSION in request.formats:
            _write_submission(run, request, facts, settled)
        return run.finish()


def _plan(
    run: Run, request: PredictRequest, facts: Mapping[str, Any], found: Found
) -> tuple[list[Item], list[dict[str, Any]]]:
    """Sort every case into finished, refused and to be done."""
    known = Ledger(run.state("ledger")).read()
    refused = _refused_before(run) if request.only else {}
    limit = max_node_memory_bytes()
    items: list[Item] = []
    settled: list[dict[str, Any]] = []
    for case in found.cases:
        work_key = _work_key(case, run.parameters)
        item = _item(case, work_key, request.recipe)
        refusal = case_refusal(case, facts)
        if refusal is None and limit and item.peak_bytes > limit:
            refusal = "too_large", "the case needs more memory than any node has"
        record = known.get(work_key)
        ended = record["reason"] if record else refused.get(case.source.files[0].uri, "")
        if refusal is not None:
            run.counts.add("rejected", refusal[0])
            settled.append(case.refused(*refusal))
        elif request.only and request.only.takes(ended):
            items.append(replace(item, payload={**item.payload, "again": True}))
        elif record is not None:
            run.counts.add("rejected" if ended else "skipped", ended or "already_done")
            settled.append(record)
        elif request.only:
            run.counts.add("skipped", "not_selected")
        else:
            items.append(item)
    return items, settled


def _refused_before(run: Run) -> dict[str, str]:
    """Return what the last run into this output refused, first file to reason.

    Raises:
        ConfigError: there was none.
    """
    where = storage.join(run.out, "rejected.parquet")
    if not storage.exists(where):
        raise ConfigError(f"--only failed needs the output of an earlier run; {run.out} has none")
    rows = storage.read_parquet(where, columns=["uri", "reason"]).to_pylist()
    return {row["uri"]: row["reason"] for row in rows}


def _work_key(case: Case, parameters: Mapping[str, Any]) -> str:
    """Return what decides about the output: the files as listed, the model, our version."""
    files = sorted((file.uri, file.bytes, file.stamp) for file in case.source.files)
    chosen = {name: value for name, value in parameters.items() if name != "series_keys"}
    return content_key(_TRANSFORM_VERSION, case.key, files, chosen)


def _item(case: Case, work_key: str, recipe: Recipe[Any]) -> Item:
    return Item(
        key=case.name,
        payload={**case.payload(), "work_key": work_key},
        work_bytes=case.native_bytes,
        peak_bytes=int(_MODEL_BYTES + recipe.prepare_peak_factor * case.native_bytes),
    )


def _predict(
    run: Run, request: PredictRequest, items: Sequence[Item], *, quiet: bool
) -> list[dict[str, Any]]:
    """Predict what is not predicted yet; return what became of each case."""
    settings = {
        "request": request,
        "out": run.out,
        "ledger": run.state("ledger"),
        "device": "cuda" if request.use_gpu else "cpu",
    }
    pool = Pool(actor=PredictActor, settings=settings, use_gpu=request.use_gpu)
    settled = []
    with run.stage("predict") as stage, Progress("predict", len(items), quiet=quiet) as bar:
        for result in map_with_actors(items, pool):
            if result.get("stop"):  # the same for every case: nothing to count
                raise ConfigError(result["stop"])
            record, cost = result_record(result), result["cost"]
            stage.saw(bytes_read=cost.get("bytes", 0), peak_memory_bytes=cost["peak_memory_bytes"])
            stage.gpu_seconds += cost["seconds"] if request.use_gpu else 0.0
            if record["reason"]:
                run.counts.add("rejected", record["reason"])
            settled.append({**record, "is_new": not record["reason"]})
            bar.advance(rejected=bool(record["reason"]))
    return settled


def _unique(run: Run, settled: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Count what is new; files of equal bytes are one case, done once."""
    kept: dict[str, dict[str, Any]] = {}
    rejected = []
    for record in sorted(settled, key=lambda r: (r["key"], r["uri"])):
        if record["reason"]:
            rejected.append(record)
            continue
        is_first = kept.setdefault(record["key"], record) is record
        if record.get("is_new"):
            run.counts.add("done" if is_first else "skipped", "" if is_first else "already_done")
    return [*rejected, *kept.values()]


def _write_tables(run: Run, found: Found, settled: Sequence[dict[str, Any]]) -> None:
    """Write results.parquet and rejected.parquet, sorted, without seconds."""
    rejected = [*found.rejected, *(record for record in settled if record["reason"])]
    if found.index_uri:
        for shard in index_shards(found.index_uri):
            rejected.extend(unreadable_files(found.index_uri, shard))
    rejected.sort(key=lambda row: (row["key"], row["uri"], row["reason"]))
    done = sorted((r["row"] for r in settled if not r["reason"]), key=lambda row: row["key"])
    run.write_table("rejected.parquet", rejected, REJECTED)
    run.write_table("results.parquet", done, RESULTS)


def _write_submission(
    run: Run,
    request: PredictRequest,
    facts: Mapping[str, Any],
    settled: Sequence[Mapping[str, Any]],
) -> None:
    """Write submission.csv as the task's challenge wants it; it names patients.

    Images that no row can be named by are left out, counted in run.json by what they lack.
    """
    recipe = request.recipe
    assert recipe.submission is not None
    images, left_out = [], Counter[str]()
    for image in (one for record in settled for one in record.get("images", ())):
        lacks = [name for name in recipe.submission_needs if not image[name]]
        left_out.update(lacks[:1])
        images += [] if lacks else [image]
    run.extra["submission_left_out"] = dict(left_out)
    text = recipe.submission(images, facts["inference"])
    storage.write_atomic(storage.join(run.out, "submission.csv"), text.encode())
