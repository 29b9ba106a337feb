"""`medray prepare`: decode, transform, label, split and check the data of one task."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from medray import storage
from medray.config import unknown_name
from medray.datasets.fingerprint import merge_fingerprints
from medray.datasets.gates import find_failures
from medray.datasets.record import Record, Rejection
from medray.datasets.record_json import record_to_json
from medray.datasets.split import SplitOptions, make_split, split_rows
from medray.engine.cluster import max_node_memory_bytes
from medray.engine.data import Item, map_items
from medray.engine.examples import EXAMPLES
from medray.engine.exports import EXPORTS, write_export, write_sheet
from medray.engine.index import index_rows_of_rejected, require_sources
from medray.engine.ledger import Ledger, content_key, result_record
from medray.engine.prepare_task import Transform, prepare_example
from medray.engine.prepared import gate_rules
from medray.engine.progress import Progress
from medray.engine.run import Run
from medray.engine.schemas import REJECTED, SPLIT
from medray.engine.source_tree import TreeOptions, read_tree
from medray.engine.upstream import Upstream
from medray.errors import ConfigError, GateError
from medray.recipe import Recipe

_BASE_PEAK_BYTES = 512 << 20
# torch, weights and activations of one model on a CPU
_UPSTREAM_PEAK_BYTES = 2 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareOptions:
    """What the user may choose beside hyperparameters.

    Attributes:
        data, labels: URIs of images and labels; `labels` empty where both lie together.
        layout: name of the layout, empty to detect it.
        export: also write boxes as `yolo` or `coco`.
        gates: `on` or `off`.
    """

    data: str
    labels: str = ""
    layout: str = ""
    export: str = ""
    gates: str = "on"

    def __post_init__(self) -> None:
        if self.export and self.export not in EXPORTS:
            raise ConfigError(unknown_name("export", self.export, EXPORTS))


def prepare(  # noqa: PLR0913 - three say what, two how
    recipe: Recipe[Any],
    hparams: Any,
    split: SplitOptions,
    out: str,
    options: PrepareOptions,
    *,
    upstream: Sequence[Upstream] = (),
    quiet: bool = False,
) -> dict[str, Any]:
    """Prepare the examples of a task into `out`; needs a running `ray_session`.

    Returns:
        The content of run.json.

    Raises:
        ConfigError: wrong options, an unknown layout, or an output of another run.
        GateError: the examples must not be trained on; all tables are written all the same.
    """
    # Hyperparameters of training alone may change without a new prepare.
    chosen = {name: getattr(hparams, name) for name in recipe.data_fields}
    parameters = {**chosen, **asdict(split), **asdict(options)}
    inputs = tuple(uri for uri in (options.data, options.labels) if uri)
    require_sources(inputs)
    with Run(
        verb="prepare", task=recipe.name, out=out, parameters=parameters, inputs=inputs
    ) as run:
        run.extra["transform_version"] = recipe.transform_version
        run.extra["upstream"] = [model.facts() for model in upstream]
        run.extra["class_names"] = list(recipe.class_names_of(hparams))
        records, rejected = _read_layout(run, recipe, hparams, options, quiet=quiet)
        transform = Transform(recipe, hparams, tuple(upstream))
        done, refused = _map_records(run, transform, records, quiet=quiet)
        with run.stage("tables"):
            rows = _write_tables(run, split, records, done, [*rejected, *refused])
            write_sheet(out, rows)
            if options.export:
                write_export(out, rows, recipe.class_names_of(hparams), options.export)
        _pass_gates(run, recipe, hparams, rows, options)
        return run.finish()


def _read_layout(
    run: Run, recipe: Recipe[Any], hparams: Any, options: PrepareOptions, *, quiet: bool
) -> tuple[list[Record], list[dict[str, Any]]]:
    """Index the data and let the layout's reader lay it out as examples."""
    where = TreeOptions(data=options.data, labels=options.labels, layout=options.layout)
    with run.stage("layout"):
        tree = read_tree(run, where, quiet=quiet)
        records: list[Record] = []
        rejected: list[dict[str, Any]] = list(index_rows_of_rejected(run))
        for item in recipe.records(tree, hparams):
            if isinstance(item, Record):
                records.append(item)
                continue
            run.counts.add("skipped" if item.skip else "rejected", item.reason)
            if not item.skip:
                rejected.append(_rejected_row(item))
    if not records:
        raise _nothing(run, rejected)
    return records, rejected


def _nothing(run: Run, rejected: list[dict[str, Any]]) -> ConfigError:
    """Say that no example was found, with the reasons counted."""
    run.write_table("rejected.parquet", rejected, REJECTED)
    run.finish("failed")
    reasons = ", ".join(f"{n} {reason}" for reason, n in sorted(run.counts.rejected.items()))
    return ConfigError(
        f"the data offer no example ({reasons or 'nothing found'}); check --data and --layout"
    )


def _rejected_row(item: Rejection) -> dict[str, Any]:
    return {
        "key": content_key(item.uri, item.reason, item.detail),
        "uri": item.uri,
        "series_uid": item.series_uid,
        "stage": item.stage,
        "reason": item.reason,
        "detail": item.detail,
    }


def _map_records(
    run: Run, transform: Transform, records: Sequence[Record], *, quiet: bool
) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
    """Prepare what is not finished yet; return finished and refused records by work key."""
    ledger = Ledger(run.state("ledger"))
    known = ledger.read()
    keys = {work_key(transform, record): record for record in records}
    settled = {key: known[key] for key in keys if key in known}
    for found in settled.values():
        reason = found["reason"]
        run.counts.add("rejected" if reason else "skipped", reason or "already_done")
    duplicates = len(records) - len(keys)
    if duplicates:
        run.counts.add("skipped", "already_done", duplicates)
    limit = max_node_memory_bytes()
    items = []
    for key, record in keys.items():
        if key in settled:
            continue
        item = _item(key, record, transform)
        if limit and item.peak_bytes > limit:
            settled[key] = _too_large(record, key)
            run.counts.add("rejected", "too_large")
        else:
            items.append(item)
    settings = {**_settings(transform), "out": run.out, "ledger": ledger.uri}
    with run.stage("prepare") as stage, Progress("prepare", len(items), quiet=quiet) as bar:
        for result in map_items(items, prepare_example, name="prepare_example", settings=settings):
            found, cost = result_record(result), result["cost"]
            stage.saw(bytes_read=cost.get("bytes", 0), peak_memory_bytes=cost["peak_memory_bytes"])
            run.counts.add("rejected" if found["reason"] else "done", found["reason"])
            settled[found["key"]] = found
            bar.advance(rejected=bool(found["reason"]))
    done = {key: found for key, found in settled.items() if not found["reason"]}
    return done, [found for found in settled.values() if found["reason"]]


def _settings(transform: Transform) -> dict[str, Any]:
    return {
        "recipe": transform.recipe,
        "hparams": transform.hparams,
        "upstream": transform.upstream,
    }


def work_key(transform: Transform, record: Record) -> str:
    """Return what decides about an example before any byte is read."""
    return content_key(*transform.identity(), record_to_json(record))


def payload_of(transform: Transform, record: Record) -> dict[str, Any]:
    """Return what a task needs to know of one record."""
    return {
        "work_key": work_key(transform, record),
        "uri": record.image.files[0].uri,
        "series_uid": record.image.series_uid,
        "record": record_to_json(record),
    }


def _item(key: str, record: Record, transform: Transform) -> Item:
    sources = [record.image, *record.extra_images.values()]
    size = sum(file.bytes for source in sources for file in source.files)
    decoded = transform.recipe.prepare_peak_factor * 2 * size
    models = _UPSTREAM_PEAK_BYTES * len(transform.upstream)
    return Item(
        key=key,
        payload=payload_of(transform, record),
        work_bytes=size,
        peak_bytes=int(_BASE_PEAK_BYTES + decoded + models),
    )


def _too_large(record: Record, key: str) -> dict[str, Any]:
    return {
        "key": key,
        "uri": record.image.files[0].uri,
        "series_uid": record.image.series_uid,
        "stage": "prepare",
        "reason": "too_large",
        "detail": "the example needs more memory than any node has",
    }


def _write_tables(
    run: Run,
    split: SplitOptions,
    records: Sequence[Record],
    done: dict[str, dict[str, Any]],
    rejected: list[dict[str, Any]],
) -> list[dict[str, Any]]:
    """Write the four tables and the fingerprint; return the rows of examples.parquet."""
    kept = {found["row"]["patient_id"] for found in done.values()}
    division = make_split((r for r in records if r.patient_id in kept), split)
    chosen = {row.patient_id: row.split for row in division}
    rows = [{**found["row"], "split": _split_of(found["row"], chosen)} for found in done.values()]
    rows.sort(key=lambda row: (row["key"], row["patient_id"]))
    rejected.sort(key=lambda row: (row["key"], row["uri"], row["reason"]))
    run.write_table("examples.parquet", rows, EXAMPLES)
    run.write_table("split.parquet", split_rows(division), SPLIT)
    run.write_table("rejected.parquet", rejected, REJECTED)
    keys = sorted(done)
    fingerprint = merge_fingerprints(
        [done[key]["facts"] for key in keys],
        groups=[done[key]["row"]["patient_id"] for key in keys],
    )
    storage.write_json(storage.join(run.out, "fingerprint.json"), fingerprint)
    return rows


def _split_of(row: dict[str, Any], chosen: dict[str, str]) -> str:
    """Return the split of a patient's example; of a patient in two, the one that was given."""
    split = chosen[row["patient_id"]]
    return str(row["split"]) if "+" in split else split


def _pass_gates(
    run: Run,
    recipe: Recipe[Any],
    hparams: Any,
    rows: Sequence[dict[str, Any]],
    options: PrepareOptions,
) -> None:
    """Stop the run where the examples must not be trained on."""
    findings = find_failures(rows, gate_rules(recipe, hparams))
    run.extra["gates"] = [list(finding) for finding in findings]
    run.extra["gates_mode"] = options.gates
    if findings and options.gates == "on":
        run.finish("stopped")
        raise GateError(findings)
