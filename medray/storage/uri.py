"""Names of things: plain local paths, `s3://...`, other fsspec URIs, `zip://member::outer`."""

import os
import re

from medray.errors import ConfigError

TEMP_SUFFIX = ".medray-tmp"
LOCK_NAME = ".medray-lock"

_SCHEME = re.compile(r"([a-z][a-z0-9+.\-]*)://", re.IGNORECASE)
_LOCAL_SCHEMES = ("file://", "local://", "file:")
_S3_SCHEMES = frozenset({"s3", "s3a", "s3n"})


def protocol_of(uri: str) -> str:
    """Return the outermost protocol: `file`, `s3`, `zip` or the name that fsspec knows."""
    if uri.startswith(_LOCAL_SCHEMES):
        return "file"
    match = _SCHEME.match(uri)
    if match is None:
        return "file"
    scheme = match.group(1).lower()
    return "s3" if scheme in _S3_SCHEMES else scheme


def is_local(uri: str) -> bool:
    """Tell whether the URI names a path of this machine (a member of an archive is none)."""
    return protocol_of(uri) == "file"


def is_archive_name(uri: str) -> bool:
    """Tell by its suffix whether the URI names a zip archive (and not a member of one)."""
    return uri.lower().endswith(".zip") and protocol_of(uri) != "zip"


def local_path(uri: str) -> str:
    """Return the plain path of a local URI."""
    for scheme in _LOCAL_SCHEMES:
        if uri.startswith(scheme):
            return uri[len(scheme) :]
    return uri


def path_of(uri: str) -> str:
    """Return the part after the protocol; the whole path where the URI is local."""
    return local_path(uri) if is_local(uri) else uri.partition("://")[2]


def split_member(uri: str) -> tuple[str, str]:
    """Split `zip://member::outer` into the member's name and the archive's URI.

    A member's name may hold `::` itself, therefore the last one divides.

    Raises:
        ConfigError: there is no outer URI, or it is an archive's member again.
    """
    member, divider, outer = uri.partition("://")[2].rpartition("::")
    if not divider or not outer or protocol_of(outer) == "zip" or "::zip://" in uri:
        raise ConfigError(
            "a zip URI is zip://member::archive.zip with one archive; "
            "unpack the inner archive first if one lies in another"
        )
    return member.strip("/"), outer


def member_uri(member: str, outer: str) -> str:
    """Return the URI of a member of an archive."""
    return f"zip://{member}::{outer}"


def normalise(uri: str) -> str:
    """Return the one spelling that listings use: absolute local paths, no slash at the end."""
    protocol = protocol_of(uri)
    if protocol == "file":
        return os.path.abspath(local_path(uri))
    if protocol == "zip":
        member, outer = split_member(uri)
        return member_uri(member, normalise(outer)) if member else normalise(outer)
    return f"{protocol}://{path_of(uri).rstrip('/')}"


def join(uri: str, *names: str) -> str:
    """Append names below a URI; below an archive this names a member.

    A name cannot replace the URI (a leading slash has no meaning); names from foreign data
    must not come here.
    """
    tail = "/".join(name.strip("/") for name in names if name.strip("/"))
    if not tail:
        return uri
    if protocol_of(uri) == "zip":
        member, outer = split_member(uri)
        return member_uri(f"{member}/{tail}" if member else tail, outer)
    if is_archive_name(uri) and not (is_local(uri) and os.path.isdir(local_path(uri))):
        return member_uri(tail, uri)
    base = local_path(uri)
    return f"{base}{tail}" if base.endswith("/") else f"{base}/{tail}"


def is_own_file(name: str) -> bool:
    """Tell whether a file name is a temporary name or a lock of ours, which listings leave out."""
    return name == LOCK_NAME or (name.startswith(".") and name.endswith(TEMP_SUFFIX))
