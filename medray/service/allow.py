"""Which URIs a request may name: those below the operator's prefixes, and no way around them."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from medray.errors import ConfigError
from medray.service.problems import ProblemError
from medray.storage.uri import is_local, local_path, member_uri, normalise, protocol_of

_MAX_CHARACTERS = 2048
_SCHEME = re.compile(r"[a-z][a-z0-9+.\-]*://")
_S3_ALIASES = ("s3a://", "s3n://")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._\-]{1,254}")
_HOST = re.compile(r"[A-Za-z0-9._\-]+(?::[0-9]{1,5})?|\[[0-9A-Fa-f:.]+\](?::[0-9]{1,5})?")
# Servers undo these once more, and then they divide, climb or hide.
_ENCODED = re.compile(r"%(?:2e|2f|5c|25|00)", re.IGNORECASE)
_ZIP = "zip://"


@dataclass(frozen=True, slots=True)
class UriPolicy:
    """The prefixes of `--allow-uri`; none of them: every URI is refused.

    A prefix covers itself and what lies below it, by whole segments: `s3://b/ct` covers
    `s3://b/ct/1.dcm`, not `s3://b/ct2`. A web address is allowed only where a prefix names its
    scheme, host and port; link-local ones are no exception.
    """

    prefixes: tuple[str, ...] = ()

    def check(self, uri: str) -> str:
        """Return the one spelling of an allowed URI; links of a local path are resolved.

        What a folder holds may link out of it: give each listed file to this function, too.

        Raises:
            ProblemError: uri_not_allowed, without the URI.
        """
        if uri.startswith(_ZIP):
            member, divider, outer = uri[len(_ZIP) :].rpartition("::")
            if not divider or "::" in member or "://" in member:
                raise ProblemError("uri_not_allowed", "archives within archives are not taken")
            _refuse_odd(member)
            segments = member.strip("/").split("/") if member.strip("/") else []
            _refuse_climbing(segments)
            return member_uri("/".join(segments), self.check(outer))
        if "::" in uri:
            raise ProblemError("uri_not_allowed", "chained URIs are not taken")
        spelled = _spelled(uri)
        if not any(_is_below(spelled, prefix) for prefix in self.prefixes):
            raise ProblemError("uri_not_allowed")
        return spelled


def parse_allowed(prefixes: Sequence[str]) -> UriPolicy:
    """Return the policy of `--allow-uri` options.

    Raises:
        ConfigError: a prefix is no folder, bucket or host, or covers a whole machine.
    """
    found = []
    for prefix in prefixes:
        try:
            if "::" in prefix:
                raise ProblemError("uri_not_allowed")
            local = is_local(prefix) and _SCHEME.match(prefix) is None
            spelled = _spelled(normalise(prefix) if local else prefix)
        except ProblemError:
            raise ConfigError(
                "--allow-uri takes a folder, s3://bucket/prefix or https://host/prefix"
            ) from None
        if spelled == "/":
            raise ConfigError("--allow-uri / would allow the whole disk; name a folder")
        found.append(spelled)
    return UriPolicy(tuple(found))


def _is_below(spelled: str, prefix: str) -> bool:
    return spelled == prefix or spelled.startswith(prefix + "/")


def _spelled(uri: str) -> str:
    """Return the one spelling of a URI.

    Raises:
        ProblemError: uri_not_allowed where it has more than one reading.
    """
    _refuse_odd(uri)
    scheme = _SCHEME.match(uri)
    if protocol_of(uri) == "file":
        return _local(local_path(uri))
    if scheme is None:  # an upper case scheme, which other layers read in their own way
        raise ProblemError("uri_not_allowed")
    rest = uri[scheme.end() :]
    authority, _, path = rest.partition("/")
    if scheme.group() == "s3://" or scheme.group() in _S3_ALIASES:
        name, pattern = "s3://", _BUCKET
    else:
        name, pattern = scheme.group(), _HOST
        authority = authority.lower()
        if _ENCODED.search(path) or "?" in path or "#" in path:
            raise ProblemError("uri_not_allowed")
    # Neither pattern has an @: no user and no password.
    if pattern.fullmatch(authority) is None:
        raise ProblemError("uri_not_allowed")
    path = path.removesuffix("/")
    if path:
        _refuse_climbing(path.split("/"))
    return f"{name}{authority}/{path}" if path else f"{name}{authority}"


def _local(path: str) -> str:
    """Return the real path; a relative one would depend on where the server was started."""
    if not path.startswith("/") or path.startswith("//"):
        raise ProblemError("uri_not_allowed")
    _refuse_climbing((path.removesuffix("/") or "/")[1:].split("/") if path != "/" else [])
    return os.path.realpath(path)


def _refuse_odd(text: str) -> None:
    if len(text) > _MAX_CHARACTERS or "\\" in text or text != text.strip():
        raise ProblemError("uri_not_allowed")
    if not text.isprintable():
        raise ProblemError("uri_not_allowed")


def _refuse_climbing(segments: Sequence[str]) -> None:
    if any(segment in {"", ".", ".."} for segment in segments):
        raise ProblemError("uri_not_allowed")
