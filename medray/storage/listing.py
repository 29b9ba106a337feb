"""Streaming listings; archives are listed as their members."""

from collections.abc import Iterator

from medray.errors import DataError
from medray.storage.archive import DEFAULT_LIMITS, ArchiveLimits
from medray.storage.members import member_exists, open_archive
from medray.storage.retry import with_retries
from medray.storage.store import FileEntry, store_of
from medray.storage.uri import (
    is_archive_name,
    member_uri,
    normalise,
    protocol_of,
    split_member,
)


def list_files(uri: str, *, limits: ArchiveLimits = DEFAULT_LIMITS) -> Iterator[FileEntry]:
    """Yield all files below a folder, a bucket's prefix or an archive, by name, as they are read.

    A zip file, named or met, is listed as its members. An archive that cannot be used and a
    folder that cannot be opened come as one entry with `error` set, and the listing goes on.
    Temporary names and locks of ours are left out.

    Raises:
        DataError: source_unavailable where `uri` itself is not there.
    """
    if protocol_of(uri) == "zip":
        prefix, outer = split_member(uri)
        yield from _list_members(normalise(outer), prefix, limits)
        return
    store, path = store_of(uri)
    for entry in store.list_below(path):
        if entry.error is None and is_archive_name(entry.uri):
            try:
                yield from _list_members(entry.uri, "", limits)
            except DataError as error:
                yield FileEntry(entry.uri, entry.bytes, entry.stamp, error)
        else:
            yield entry


def exists(uri: str) -> bool:
    """Tell whether there is a file or a folder (a prefix with objects, a member) at the URI.

    Raises:
        DataError: source_unavailable where that cannot be found out.
    """
    if protocol_of(uri) == "zip":
        _, outer = split_member(uri)
        return exists(outer) and with_retries(lambda: member_exists(uri))
    store, path = store_of(uri)
    return with_retries(lambda: store.exists(path))


def check_archive(uri: str, *, limits: ArchiveLimits = DEFAULT_LIMITS) -> int:
    """Judge an archive by its directory and return the number of its members.

    Raises:
        DataError: it is damaged, unsafe or a bomb.
    """
    return open_archive(uri, limits=limits).num_members


def _list_members(outer: str, prefix: str, limits: ArchiveLimits) -> Iterator[FileEntry]:
    members = open_archive(outer, limits=limits).members
    below = f"{prefix}/" if prefix else ""
    found = False
    for name, member in members.items():
        if name.startswith(below) or name == prefix:
            found = True
            yield FileEntry(member_uri(name, outer), member.bytes, member.stamp)
    if prefix and not found:
        raise DataError("source_unavailable", "the archive has no such member")
