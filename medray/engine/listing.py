"""Streaming listings cut into shards that stay the same from run to run."""

import hashlib
import json
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from medray import storage

_SHARD_FILES = 512
MAX_SHARDS = 4096
_BUFFERED_FILES = 20_000
_MEMBERS_PER_SHARD = 512


class ShardedListing:
    """The files of all sources, by shard, on local disk rather than in memory.

    A file belongs to a shard by the hash of its URI, so a new file changes one shard and the rest
    of an earlier index stays valid. Members of one archive stay together in runs, because opening
    an archive costs more than a file.
    """

    def __init__(self, sources: Iterable[str], *, num_shards: int | None = None) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="medray-listing-")
        self.num_files = 0
        spool = Path(self._folder.name) / "all.jsonl"
        with spool.open("w") as out:
            for source in sources:
                for row in _rows(source):
                    out.write(json.dumps(row))
                    out.write("\n")
                    self.num_files += 1
        self.num_shards = num_shards or _fitting_shards(self.num_files)
        self._partition(spool)

    def _partition(self, spool: Path) -> None:
        waiting: dict[int, list[str]] = defaultdict(list)
        held = 0
        with spool.open() as lines:
            for line in lines:
                waiting[json.loads(line)["place"] % self.num_shards].append(line)
                held += 1
                if held >= _BUFFERED_FILES:
                    self._flush(waiting)
                    held = 0
        self._flush(waiting)
        spool.unlink()

    def _flush(self, waiting: dict[int, list[str]]) -> None:
        for shard, lines in waiting.items():
            with self._path(shard).open("a") as out:
                out.writelines(lines)
        waiting.clear()

    def _path(self, shard: int) -> Path:
        return Path(self._folder.name) / f"{shard:05d}.jsonl"

    def shards(self) -> Iterator[tuple[int, list[dict[str, object]]]]:
        """Yield every shard's number and its files, sorted by URI; empty shards too."""
        for shard in range(self.num_shards):
            path = self._path(shard)
            text = path.read_text() if path.exists() else ""
            rows = [json.loads(line) for line in text.splitlines()]
            unique = {row["uri"]: row for row in rows}
            yield shard, [unique[uri] for uri in sorted(unique)]

    def close(self) -> None:
        """Remove the temporary files."""
        self._folder.cleanup()


def _rows(source: str) -> Iterator[dict[str, object]]:
    for number, entry in enumerate(storage.list_files(source)):
        # Members of an archive share a shard in runs of neighbours.
        archive = entry.uri.startswith("zip://")
        home = f"{source}#{number // _MEMBERS_PER_SHARD}" if archive else entry.uri
        digest = hashlib.blake2b(home.encode("utf-8", "surrogateescape"), digest_size=4).digest()
        yield {
            "uri": entry.uri,
            "bytes": entry.bytes,
            "stamp": entry.stamp,
            "named": entry.uri == source or entry.uri == storage.normalise(source),
            "place": int.from_bytes(digest, "big"),
            "error": None if entry.error is None else [entry.error.reason, entry.error.detail],
        }


def _fitting_shards(num_files: int) -> int:
    shards = 1
    while shards * _SHARD_FILES < num_files and shards < MAX_SHARDS:
        shards *= 2
    return shards
