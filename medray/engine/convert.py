"""`medray convert`: DICOM to NIfTI volumes, geometry proven, read back before they count."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from medray.engine.cluster import max_node_memory_bytes
from medray.engine.convert_task import convert_series
from medray.engine.data import Item, map_items
from medray.engine.index import index_of, require_sources, unreadable_files
from medray.engine.ledger import Ledger, content_key, result_record
from medray.engine.progress import Progress
from medray.engine.run import Run
from medray.engine.schemas import REJECTED, RESULTS
from medray.engine.series_table import index_shards, read_series
from medray.engine.series_verdict import refused_series, series_refusal
from medray.errors import ConfigError

_FORMATS = {"nifti.gz": ".nii.gz", "nifti": ".nii"}
# Raised whenever the same input would give other bytes: finished work is then done again.
_TRANSFORM_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertOptions:
    """What the user may choose.

    Attributes:
        spacing_zyx_mm: grid spacing in mm, () for the native one.
        size_zyx: grid size in voxels, () for the native one.
        format: `nifti.gz` or `nifti`.
        proof: read every volume back with another reader before it counts.
    """

    spacing_zyx_mm: tuple[float, ...] = ()
    size_zyx: tuple[int, ...] = ()
    format: str = "nifti.gz"
    proof: bool = True

    def __post_init__(self) -> None:
        if self.format not in _FORMATS:
            raise ConfigError(f"--format must be one of {', '.join(_FORMATS)}, got {self.format!r}")
        if self.spacing_zyx_mm and self.size_zyx:
            raise ConfigError("--spacing and --size exclude each other; give one of them")

    @property
    def suffix(self) -> str:
        """File suffix of a volume."""
        return _FORMATS[self.format]


def convert(
    sources: Sequence[str], out: str, options: ConvertOptions, *, quiet: bool = False
) -> dict[str, Any]:
    """Convert DICOM sources into `out`; needs a running `ray_session`.

    Returns:
        The content of run.json.

    Raises:
        ConfigError: wrong options, a missing source, or an output of another run.
    """
    require_sources(sources)
    with Run(verb="convert", out=out, parameters=asdict(options), inputs=tuple(sources)) as run:
        index_uri = index_of(run, sources, quiet=quiet)
        ledger = Ledger(run.state("ledger"))
        with run.stage("plan"):
            known = ledger.read()
            items, settled = _plan(run, index_uri, options, known)
        with run.stage("convert") as stage, Progress("convert", len(items), quiet=quiet) as bar:
            settings = {
                "out": out,
                "ledger": ledger.uri,
                **asdict(options),
                "suffix": options.suffix,
            }
            for result in map_items(
                items, convert_series, name="convert_series", settings=settings
            ):
                record, cost = result_record(result), result["cost"]
                stage.saw(
                    bytes_read=cost.get("bytes", 0), peak_memory_bytes=cost["peak_memory_bytes"]
                )
                run.counts.add("rejected" if record["reason"] else "done", record["reason"])
                settled.append(record)
                bar.advance(rejected=bool(record["reason"]))
        _write_tables(run, index_uri, settled)
        return run.finish()


def _plan(
    run: Run, index_uri: str, options: ConvertOptions, known: dict[str, dict[str, Any]]
) -> tuple[list[Item], list[dict[str, Any]]]:
    """Sort every series into finished, refused and to be done."""
    items: list[Item] = []
    settled: list[dict[str, Any]] = []
    limit = max_node_memory_bytes()
    for row in read_series(index_uri):
        refusal = _refusal(row, limit)
        if refusal is not None:
            if refusal[0] == "skipped":
                run.counts.add(*refusal[:2])
                continue
            run.counts.add("rejected", refusal[1])
            settled.append(refused_series(row, refusal[1], refusal[2]))
            continue
        key = _work_key(row, options)
        if key in known:
            reason = known[key]["reason"]
            run.counts.add("rejected" if reason else "skipped", reason or "already_done")
            settled.append(known[key])
            continue
        items.append(_item(row, key))
    return items, settled


def _refusal(row: dict[str, Any], memory_limit: int) -> tuple[str, str, str] | None:
    """Return why a series is not converted: skipped or rejected, reason, sentence."""
    refusal = series_refusal(row)
    if refusal is None and memory_limit and row["predicted_peak_bytes"] > memory_limit:
        return "rejected", "too_large", "the series needs more memory than any node has"
    return refusal


def _work_key(row: dict[str, Any], options: ConvertOptions) -> str:
    """Return what decides about the output: the files as listed, the options, our version."""
    files = [(item["uri"], item["bytes"], item["stamp"]) for item in row["instances"]]
    return content_key(_TRANSFORM_VERSION, row["series_key"], sorted(files), asdict(options))


def _item(row: dict[str, Any], key: str) -> Item:
    return Item(
        key=row["series_key"],
        payload={
            "work_key": key,
            "series_key": row["series_key"],
            "series_uid": row["series_uid"],
            "flags": row["flags"],
            "instances": row["instances"],
        },
        work_bytes=_predicted_work(row),
        peak_bytes=row["predicted_peak_bytes"],
    )


# Rough seconds a byte against uncompressed; they only order the work and cut it into tasks.
_SYNTAX_COST = {
    "1.2.840.10008.1.2.4.90": 20,
    "1.2.840.10008.1.2.4.91": 20,
    "1.2.840.10008.1.2.4.70": 6,
    "1.2.840.10008.1.2.5": 5,
}


def _predicted_work(row: dict[str, Any]) -> int:
    native = max(row["predicted_peak_bytes"] - (256 << 20), row["bytes"])
    return int(native) * _SYNTAX_COST.get(row["transfer_syntax_uid"], 1)


def _write_tables(run: Run, index_uri: str, settled: list[dict[str, Any]]) -> None:
    """Write results.parquet and rejected.parquet, sorted, without seconds or paths of this run."""
    rejected = [record for record in settled if record["reason"]]
    for shard in index_shards(index_uri):
        rejected.extend(unreadable_files(index_uri, shard))
    rejected.sort(key=lambda row: (row["key"], row["uri"], row["reason"]))
    done = sorted((r for r in settled if not r["reason"]), key=lambda row: row["key"])
    run.write_table("rejected.parquet", rejected, REJECTED)
    run.write_table("results.parquet", list(_result_rows(done)), RESULTS)


def _result_rows(done: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for record in done:
        yield {
            "key": record["key"],
            "series_uid": record["series_uid"],
            "status": "complete",
            "outputs": record["outputs"],
            "flags": record["flags"],
            "weights_sha256": "",
        }
