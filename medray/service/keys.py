"""API keys: made once, kept as hashes, several valid at a time, replaced without a restart.

A line of a key file is `id:sha256hex[:expiry]`. The file holds no secrets: a key has 256 random
bits, so that its plain SHA-256 gives nothing away.
"""

import base64
import hashlib
import hmac
import logging
import os
import re
import secrets
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from medray.errors import ConfigError

ENVIRONMENT = "MEDRAY_API_KEYS"
PREFIX = "medray"
_KEY_BYTES = 32
# Without an underscore, which divides the parts of a key.
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9.\-]{0,31}")
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_MAX_FILE_BYTES = 1 << 20
# A change is seen after this time at the latest; a stat for every request is too many on NFS.
_LOOK_S = 1.0
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key just made: `key` goes to the client and is kept nowhere, `line` to the key file."""

    id: str
    key: str = field(repr=False)
    line: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a key is worth: the id of its line, or a reason (`auth_missing`, ...) and no id."""

    key_id: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class KeyLine:
    """One line of a key file; `expires` is the moment from which the key is refused."""

    id: str
    digest: bytes = field(repr=False)
    expires: datetime | None = None


def make_key(now: datetime, *, key_id: str = "", days: int = 0) -> NewKey:
    """Make a key `medray_<id>_<43 characters>` of 32 random bytes.

    Args:
        now: the time, with its zone.
        key_id: letters, digits, dots and hyphens, at most 32; empty: 8 hex digits by chance.
        days: validity; 0: without an end.

    Raises:
        ConfigError: the id has other characters.
    """
    key_id = key_id or secrets.token_hex(4)
    if _ID.fullmatch(key_id) is None:
        raise ConfigError("--id takes up to 32 letters, digits, dots and hyphens")
    secret = base64.urlsafe_b64encode(secrets.token_bytes(_KEY_BYTES)).rstrip(b"=").decode()
    key = f"{PREFIX}_{key_id}_{secret}"
    line = f"{key_id}:{hashlib.sha256(key.encode()).hexdigest()}"
    if days:
        end = now.astimezone(UTC) + timedelta(days=days)
        line += f":{end.strftime('%Y-%m-%dT%H:%M:%SZ')}"
    return NewKey(key_id, key, line)


@dataclass(frozen=True, slots=True)
class KeyRing:
    """The keys that are valid together."""

    lines: tuple[KeyLine, ...]

    def check(self, value: bytes | None, now: datetime) -> Verdict:
        """Judge a header's value.

        The value is hashed and compared with every line, the matching one included, in constant
        time; its id is not looked at, so that an unknown id takes the same path.

        Returns:
            The id, or the reason `auth_missing`, `auth_wrong` or `auth_expired`.
        """
        if not value:
            return Verdict(reason="auth_missing")
        digest = hashlib.sha256(value).digest()
        valid, expired = "", False
        for line in self.lines:
            same = hmac.compare_digest(line.digest, digest)
            over = line.expires is not None and line.expires <= now
            valid = line.id if same and not over else valid
            expired = expired or (same and over)
        if valid:
            return Verdict(key_id=valid)
        return Verdict(reason="auth_expired" if expired else "auth_wrong")


def parse_keys(text: str, *, source: str = "the key file", commas: bool = False) -> KeyRing:
    """Read lines `id:sha256hex[:expiry]`; blank ones and those that begin with # are left out.

    An expiry is an ISO date (its first moment) or date-time, UTC where it names no zone; the key
    is refused from then on.

    Raises:
        ConfigError: names a malformed line by its number, never by its content.
    """
    found = []
    for number, raw in enumerate((text.replace(",", "\n") if commas else text).splitlines(), 1):
        line = raw.strip()
        if line and not line.startswith("#"):
            found.append(_parse_line(line, f"line {number} of {source}"))
    return KeyRing(tuple(found))


def _parse_line(line: str, where: str) -> KeyLine:
    key_id, _, rest = line.partition(":")
    digest, colon, expiry = rest.partition(":")
    if _ID.fullmatch(key_id) is None or _SHA256.fullmatch(digest) is None:
        raise ConfigError(f"{where} is not of the form id:sha256hex[:expiry]; see medray key")
    expires = None
    if colon:
        try:
            moment = datetime.fromisoformat(expiry)
        except ValueError:
            raise ConfigError(f"the expiry in {where} is no ISO date or date-time") from None
        expires = moment.replace(tzinfo=moment.tzinfo or UTC)
    return KeyLine(key_id, bytes.fromhex(digest), expires)


def file_warning(path: str) -> str:
    """Return a warning about who may read a key file; empty where only its owner may.

    It holds hashes only, and a mounted secret is often readable by all: that is worth a warning.
    A file that others may write would let them add a key of their own: refused, as sshd does.

    Raises:
        ConfigError: group or others may write, or the file cannot be looked at.
    """
    mode = _stat(path).st_mode
    if mode & 0o022:
        raise ConfigError("others may write to the key file; chmod 600 it")
    return "others may read the key file; chmod 600 it" if mode & 0o044 else ""


def _stat(path: str) -> os.stat_result:
    try:
        found = os.stat(path)  # noqa: PTH116 - one call for mode, size and times
    except (OSError, ValueError) as error:
        raise ConfigError(f"the key file cannot be read ({type(error).__name__})") from None
    if not stat.S_ISREG(found.st_mode):
        raise ConfigError("the key file is no regular file")
    if found.st_size > _MAX_FILE_BYTES:
        raise ConfigError("the key file is longer than 1 MiB; it holds one key a line")
    return found


class KeySource:
    """The keys of a file, read again when it changes, or of the environment.

    A new file that is broken, empty (being written) or gone keeps the keys that were valid; one
    that has lines but no key lets nobody in.

    Raises:
        ConfigError: on construction, where there is no valid key to begin with.
    """

    def __init__(
        self,
        path: str = "",
        *,
        environment: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = path
        self.warning = file_warning(path) if path else ""
        self._clock = clock
        self._looked_s = clock()
        if path:
            self._stamp, self._ring = _read(path)
        else:
            self._stamp = ()
            self._ring = parse_keys(environment, source=ENVIRONMENT, commas=True)
        if not self._ring.lines:
            where = "the key file" if path else ENVIRONMENT
            raise ConfigError(f"{where} names no key; make one with medray key")

    def __call__(self) -> KeyRing:
        """Return the keys that are valid now."""
        now_s = self._clock()
        # A clock that stands before the last look is another machine's: this one came by pickle.
        if self.path and not 0 <= now_s - self._looked_s < _LOOK_S:
            self._looked_s = now_s
            self._refresh()
        return self._ring

    def _refresh(self) -> None:
        try:
            stamp = _stamp_of(_stat(self.path))
            if stamp == self._stamp or not stamp[1]:
                return
            # Remembered before it is judged: a broken file is reported once.
            self._stamp = stamp
            file_warning(self.path)
            self._stamp, self._ring = _read(self.path)
        except ConfigError as error:
            _LOG.warning("the keys stay as they were: %s", error)
        else:
            _LOG.info("the key file was read again: %d keys", len(self._ring.lines))


def _stamp_of(found: os.stat_result) -> tuple[int, ...]:
    return found.st_mtime_ns, found.st_size, found.st_ino


def _read(path: str) -> tuple[tuple[int, ...], KeyRing]:
    try:
        with open(path, encoding="utf-8") as file:  # noqa: PTH123 - its own descriptor is looked at
            # Before the content: a change between the two is seen at the next look.
            stamp = _stamp_of(os.fstat(file.fileno()))
            return stamp, parse_keys(file.read(_MAX_FILE_BYTES))
    except OSError as error:
        raise ConfigError(f"the key file cannot be read ({type(error).__name__})") from None
    except UnicodeDecodeError:
        raise ConfigError("the key file is no text") from None


def load_keys(path: str = "") -> KeySource | None:
    """Return the keys of `--keys FILE`, else of MEDRAY_API_KEYS; None where neither is given.

    Raises:
        ConfigError: what `KeySource` raises.
    """
    environment = os.environ.get(ENVIRONMENT, "")
    if not path and not environment.strip(" \t\r\n,"):
        return None
    return KeySource(path, environment=environment)
