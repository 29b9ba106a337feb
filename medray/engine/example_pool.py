"""Prepared examples through a pool of actors, one row each: made once, then read from a ledger."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medray import storage
from medray.engine.actor_pool import Pool, map_with_actors
from medray.engine.data import Item
from medray.engine.ledger import Ledger, result_record
from medray.engine.progress import Progress
from medray.engine.run import Counts, Run
from medray.learning import Row

# A model, its activations and one case on its original grid.
_ACTOR_BYTES = 2 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class ExamplePlan:
    """What is made of the examples.

    Attributes:
        stage: its name in run.json, on the progress line and in rejected rows.
        uri: of the prepared data set.
        pool: of actors that commit a row to the ledger under the payload's `work_key`.
        ledger: where finished rows are.
        key_of: (row of examples.parquet) to that key.
        counts: where the examples are counted.
    """

    stage: str
    uri: str
    pool: Pool
    ledger: Ledger
    key_of: Callable[[Mapping[str, Any]], str]
    counts: Counts


def rows_of_examples(
    run: Run, plan: ExamplePlan, examples: Sequence[Mapping[str, Any]], *, quiet: bool
) -> tuple[list[Row], list[dict[str, Any]]]:
    """Make the rows that are not there yet; return all rows and rejects, both sorted by key."""
    known = plan.ledger.read()
    found: list[Row] = []
    items = []
    for example in examples:
        key = plan.key_of(example)
        if key in known:
            found.append(known[key])
            plan.counts.add("skipped", "already_done")
        else:
            items.append(_item(plan.uri, example, key))
    rejected = []
    with run.stage(plan.stage) as stage, Progress(plan.stage, len(items), quiet=quiet) as bar:
        for result in map_with_actors(items, plan.pool):
            stage.saw(peak_memory_bytes=result["cost"]["peak_memory_bytes"])
            plan.counts.add("rejected" if result["reason"] else "done", result["reason"])
            bar.advance(rejected=bool(result["reason"]))
            if result["reason"]:
                rejected.append({**result, "stage": plan.stage, "uri": "", "series_uid": ""})
            else:
                found.append(result_record(result))
    by_key = sorted(found, key=lambda row: str(row["key"]))
    return by_key, sorted(rejected, key=lambda row: str(row["key"]))


def _item(uri: str, example: Mapping[str, Any], work_key: str) -> Item:
    names = ("key", "sha256", "label", "patient_id", "split")
    return Item(
        key=example["key"],
        payload={
            **{name: example[name] for name in names},
            "work_key": work_key,
            "uri": storage.join(uri, example["uri"]),
        },
        work_bytes=1,
        peak_bytes=_ACTOR_BYTES,
    )
