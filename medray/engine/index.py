"""`medray index`: crawl headers in parallel, group them into series, judge each."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import pyarrow as pa

from medray import storage
from medray.engine.crawl import NUM_BUCKETS, crawl_shard, group_bucket
from medray.engine.data import Item, map_items, stream_items
from medray.engine.listing import ShardedListing
from medray.engine.progress import Progress
from medray.engine.run import Run, Stage
from medray.engine.schemas import REJECTED
from medray.engine.series_table import index_shards, is_index
from medray.errors import ConfigError

_FILES_PER_GROUP = 20_000
_HEADER_WORK_BYTES = 32 << 10
_TASK_PEAK_BYTES = 256 << 20


def index(sources: Sequence[str], out: str, *, quiet: bool = False) -> dict[str, Any]:
    """Index DICOM sources into `out`; needs a running `ray_session`.

    Returns:
        The content of run.json.

    Raises:
        ConfigError: a source does not exist, or `out` belongs to another run.
    """
    require_sources(sources)
    with Run(verb="index", out=out, parameters={}, inputs=tuple(sources)) as run:
        crawl(run, sources, out, quiet=quiet, counted=True)
        return run.finish()


def require_sources(sources: Sequence[str]) -> None:
    """Check that every source is there, before anything is written.

    Raises:
        ConfigError: one is missing.
    """
    for source in sources:
        if not storage.exists(source):
            raise ConfigError(f"{source} does not exist; check the path or address")


def crawl(
    run: Run, sources: Sequence[str], out: str, *, quiet: bool, counted: bool
) -> dict[str, int]:
    """Index `sources` below `out` inside a run of any verb; return the series verdicts.

    Args:
        counted: whether every file is an input of the run, or only the unreadable ones.
    """
    state = storage.join(out, ".medray", "index.json")
    known = storage.read_json(state) if storage.exists(state) else {}
    with run.stage("list") as stage:
        listing = ShardedListing(sources, num_shards=known.get("num_shards"))
        stage.saw()
    try:
        with run.stage("headers") as stage, Progress("headers", None, quiet=quiet) as bar:
            digests = _read_headers(run, listing, out, stage, bar, counted=counted)
    finally:
        listing.close()
    digest = hashlib.sha256("".join(digests[n] for n in sorted(digests)).encode()).hexdigest()
    with run.stage("series"):
        if known.get("digest") != digest:
            _drop_stale(out, set(digests))
            verdicts = _group(sorted(digests), listing.num_files, out)
            known = {"num_shards": listing.num_shards, "digest": digest, "verdicts": verdicts}
            storage.write_json(state, known)
    run.extra["series"] = known["verdicts"]
    _write_rejected(run, out, sorted(digests))
    return dict(known["verdicts"])


def index_of(run: Run, sources: Sequence[str], *, quiet: bool) -> str:
    """Return the index that a run works on: the given one, or one made of its sources."""
    if len(sources) == 1 and is_index(sources[0]):
        for shard in index_shards(sources[0]):
            for row in unreadable_files(sources[0], shard):
                run.counts.add("rejected", row["reason"])
        return sources[0]
    index_uri = run.state("index")
    crawl(run, sources, index_uri, quiet=quiet, counted=False)
    return index_uri


def _shard_name(shard: int, num_shards: int) -> str:
    return f"part-{shard:05d}-of-{num_shards:05d}"


def _read_headers(
    run: Run, listing: ShardedListing, out: str, stage: Stage, bar: Progress, *, counted: bool
) -> dict[str, str]:
    digests: dict[str, str] = {}
    results = stream_items(
        _shard_items(listing),
        crawl_shard,
        name="read_headers",
        settings={"out": out},
        memory=_TASK_PEAK_BYTES,
    )
    for result in results:
        if result["reason"]:
            raise ConfigError(f"cannot index: {result['detail']}")
        stage.saw(**_cost(result))
        digests[result["key"]] = result["digest"]
        for outcome, number in result["outcomes"].items():
            status, _, reason = outcome.partition(":")
            bar.advance(rejected=status == "rejected", number=number)
            if counted or status == "rejected":
                run.counts.add(status, reason, number)
    return digests


def _shard_items(listing: ShardedListing) -> Iterator[Item]:
    for shard, files in listing.shards():
        name = _shard_name(shard, listing.num_shards)
        yield Item(
            key=name,
            payload={"name": name, "files": files},
            work_bytes=len(files) * _HEADER_WORK_BYTES,
            peak_bytes=_TASK_PEAK_BYTES,
        )


def _cost(result: dict[str, Any]) -> dict[str, int]:
    cost = result["cost"]
    return {"bytes_read": cost.get("bytes", 0), "peak_memory_bytes": cost["peak_memory_bytes"]}


def _drop_stale(out: str, names: set[str]) -> None:
    """Remove parts of an earlier index that was cut into other shards."""
    for folder, keep in (("instances", names), ("series", set())):
        where = storage.join(out, folder)
        if storage.exists(where):
            for entry in list(storage.list_files(where)):
                if entry.uri.rpartition("/")[2].removesuffix(".parquet") not in keep:
                    storage.remove(entry.uri)


def _group(shards: list[str], num_files: int, out: str) -> dict[str, int]:
    parts = max(1, -(-num_files // _FILES_PER_GROUP))
    edges = [NUM_BUCKETS * part // parts for part in range(parts + 1)]
    items = []
    for part, (low, high) in enumerate(pairwise(edges)):
        name = _shard_name(part, parts)
        payload = {"name": name, "low": low, "high": high, "shards": shards}
        items.append(
            Item(key=name, payload=payload, work_bytes=1 << 30, peak_bytes=_TASK_PEAK_BYTES)
        )
    verdicts: Counter[str] = Counter()
    for result in map_items(items, group_bucket, name="judge_series", settings={"out": out}):
        if result["reason"]:
            raise ConfigError(f"cannot group series: {result['detail']}")
        verdicts.update(result["verdicts"])
    return dict(sorted(verdicts.items()))


def _write_rejected(run: Run, out: str, shards: Sequence[str]) -> None:
    """Write rejected.parquet of the unreadable files."""
    rows = [row for name in shards for row in unreadable_files(out, name)]
    rows.sort(key=lambda row: (row["key"], row["uri"]))
    table = pa.Table.from_pylist(rows, schema=REJECTED)
    storage.write_parquet(storage.join(out, "rejected.parquet"), table)
    run.extra["rejected_files"] = len(rows)


def unreadable_files(out: str, shard: str) -> Iterator[dict[str, Any]]:
    """Yield the rejected rows of one shard of an index."""
    where = storage.join(out, "instances", f"{shard}.parquet")
    columns = ["uri", "series_uid", "status", "reason", "detail"]
    for row in storage.read_parquet(where, columns=columns).to_pylist():
        if row["status"] == "rejected":
            yield {
                "key": hashlib.sha256(row["uri"].encode()).hexdigest()[:16],
                "uri": row["uri"],
                "series_uid": row["series_uid"] or "",
                "stage": "read",
                "reason": row["reason"],
                "detail": row["detail"],
            }


def index_rows_of_rejected(run: Run) -> Iterator[dict[str, Any]]:
    """Yield the rejected rows of the index that a run made of its own sources."""
    index_uri = run.extra.get("index_uri") or run.state("index")
    for shard in index_shards(index_uri):
        yield from unreadable_files(index_uri, shard)
