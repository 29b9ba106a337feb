"""Atomic commits: what has its name is whole, and on disk."""

from medray.storage.local import sweep
from medray.storage.retry import with_retries
from medray.storage.store import Payload, WriteReceipt, store_of
from medray.storage.uri import is_local, local_path


def write_atomic(uri: str, data: Payload) -> WriteReceipt:
    """Write bytes, pieces, or what a function writes into the file it is given; replace at once.

    Folders are made as needed. Locally: a temporary name in the same folder, fsync, rename,
    fsync of the folder; on an object store: one PUT with a checksum.

    Raises:
        DataError: sink_full or sink_denied; nothing of the new content is visible then.
    """
    store, path = store_of(uri)
    return store.write(path, data)


def create_exclusive(uri: str, data: bytes) -> bool:
    """Write atomically unless there is a file already; tell whether this call wrote it.

    Raises:
        DataError: sink_full or sink_denied.
    """
    store, path = store_of(uri)
    return store.create(path, data)


def remove(uri: str) -> None:
    """Remove a file; none is fine.

    Raises:
        DataError: sink_denied.
    """
    store, path = store_of(uri)
    with_retries(lambda: store.remove(path))


def sweep_temps(uri: str) -> int:
    """Remove temporary files that a killed run left below a folder and return their number.

    The caller holds the folder's lock: a temporary file of a run at work would go too.
    Object stores have none, a PUT that broke off leaves nothing.

    Raises:
        DataError: sink_denied.
    """
    return sweep(local_path(uri)) if is_local(uri) else 0
