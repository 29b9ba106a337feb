"""What is finished: one small file per item, so that a killed run goes on where it was."""

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from medray import storage
from medray.errors import DataError

_READERS = 8


def content_key(*parts: Any) -> str:
    """Return 16 hex digits of sha256 of the canonical JSON of what an item depends on."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def result_record(result: dict[str, Any]) -> dict[str, Any]:
    """Return what a task recorded.

    Raises:
        DataError: the task could not write: the run stops, finished work is kept.
    """
    if result["reason"]:
        raise DataError(result["reason"], result["detail"])
    record: dict[str, Any] = result["record"]
    return record


class Ledger:
    """Records by content key below one URI; a record that exists is final."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def commit(self, key: str, record: dict[str, Any]) -> None:
        """Write one record atomically, after everything that it speaks of is written."""
        text = json.dumps(record, sort_keys=True, separators=(",", ":"))
        storage.write_atomic(self._place(key), text.encode())

    def find(self, key: str) -> dict[str, Any] | None:
        """Return one record, None where there is none yet."""
        place = self._place(key)
        if not storage.exists(place):
            return None
        record: dict[str, Any] = json.loads(storage.read_bytes(place))
        return record

    def read(self) -> dict[str, dict[str, Any]]:
        """Return every record; small rows, never pixels."""
        return dict(self._records())

    def _place(self, key: str) -> str:
        return storage.join(self.uri, key[:2], f"{key}.json")

    def _records(self) -> Iterator[tuple[str, dict[str, Any]]]:
        if not storage.exists(self.uri):
            return
        uris = [entry.uri for entry in storage.list_files(self.uri)]
        with ThreadPoolExecutor(_READERS) as pool:
            for uri, raw in zip(uris, pool.map(storage.read_bytes, uris), strict=True):
                yield uri.rpartition("/")[2].removesuffix(".json"), json.loads(raw)
