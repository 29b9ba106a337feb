"""Reading the series table of an index, one part at a time."""

from collections.abc import Iterator
from typing import Any

from medray import storage
from medray.datasets.record import FileRef
from medray.dicom.header import InstanceHeader
from medray.dicom.series import Instance


def read_series(index_uri: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of the series table, sorted by part and key."""
    where = storage.join(index_uri, "series")
    for entry in storage.list_files(where):
        yield from storage.read_parquet(entry.uri).to_pylist()


def index_shards(index_uri: str) -> list[str]:
    """Return the names of the instances parts."""
    where = storage.join(index_uri, "instances")
    names = [entry.uri.rpartition("/")[2] for entry in storage.list_files(where)]
    return sorted(name.removesuffix(".parquet") for name in names)


def foreign_files(index_uri: str) -> Iterator[FileRef]:
    """Yield the files without DICOM content that an index met on its way."""
    columns = ["uri", "bytes", "mtime_or_etag", "status", "reason"]
    for shard in index_shards(index_uri):
        where = storage.join(index_uri, "instances", f"{shard}.parquet")
        for row in storage.read_parquet(where, columns=columns).to_pylist():
            if row["status"] == "skipped" and row["reason"] in {"not_dicom", "empty_file"}:
                yield FileRef(row["uri"], row["bytes"], row["mtime_or_etag"])


def is_index(uri: str) -> bool:
    """Tell whether a source is the output of `medray index`."""
    run = storage.join(uri, "run.json")
    if storage.is_local(uri) and uri.lower().endswith((".dcm", ".zip")):
        return False
    return storage.exists(run) and storage.read_json(run).get("verb") == "index"


def unpack_instances(rows: list[dict[str, Any]]) -> list[Instance]:
    """Return the instances of one series row."""
    return [
        Instance(
            uri=row["uri"],
            bytes=row["bytes"],
            stamp=row["stamp"],
            header=InstanceHeader.from_json(row["header"]),
        )
        for row in rows
    ]
