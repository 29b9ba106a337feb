"""Where bytes live: any fsspec URI, whole reads with checksum, atomic commits."""

from medray.storage.archive import ArchiveLimits
from medray.storage.commit import create_exclusive, remove, sweep_temps, write_atomic
from medray.storage.filesystems import open_filesystem
from medray.storage.listing import check_archive, exists, list_files
from medray.storage.lock import OutputLock
from medray.storage.reading import open_local, read_bytes, read_range, sha256_of, stat
from medray.storage.retry import RetryPolicy
from medray.storage.store import FileEntry, WriteReceipt
from medray.storage.tables import read_json, read_parquet, write_json, write_parquet
from medray.storage.uri import is_local, join, normalise

__all__ = [
    "ArchiveLimits", "FileEntry", "OutputLock", "RetryPolicy", "WriteReceipt", "check_archive",
    "create_exclusive", "exists", "is_local", "join", "list_files", "normalise",
    "open_filesystem", "open_local", "read_bytes", "read_json", "read_parquet", "read_range",
    "remove", "sha256_of", "stat", "sweep_temps", "write_atomic", "write_json", "write_parquet",
]  # fmt: skip
