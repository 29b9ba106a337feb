"""Object stores that speak S3: whole reads verified, writes by one PUT with a checksum."""

import hashlib
import secrets
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from medray.errors import DataError
from medray.storage import s3_client
from medray.storage.retry import TransientError, until_agreed, with_retries
from medray.storage.s3_client import (
    MissingError,
    OutOfRangeError,
    PreconditionError,
    RefusedError,
)
from medray.storage.sink import HashingSink, pour
from medray.storage.store import FileEntry, Payload, WriteReceipt
from medray.storage.uri import is_own_file

_PAGE_KEYS = 1000
# Above this a payload waits on disk, not in memory, for its size and hash before the PUT.
_SPOOL_BYTES = 64 << 20


def split_key(path: str) -> tuple[str, str]:
    """Split `bucket/key`."""
    bucket, _, key = path.partition("/")
    return bucket, key


@dataclass(frozen=True, slots=True)
class S3Store:
    """Buckets; the client is this process's own."""

    is_remote: bool = True

    @property
    def is_exact(self) -> bool:
        """Tell whether answers without a checksum can be trusted."""
        try:
            return s3_client.is_encrypted_line()
        except TransientError:
            return False
        except RefusedError as error:
            raise DataError("source_unavailable", str(error)) from error

    def stat(self, path: str) -> FileEntry | None:
        """Return the object; None if there is none."""
        bucket, key = split_key(path)
        if not key or key.endswith("/"):
            return None
        try:
            info = s3_client.head(bucket, key)
        except MissingError:
            return None
        except RefusedError as error:
            raise DataError("source_unavailable", str(error)) from error
        return FileEntry(f"s3://{path}", info.bytes, info.etag)

    def exists(self, path: str) -> bool:
        """Tell whether there is an object of this name or any below it."""
        if self.stat(path) is not None:
            return True
        bucket, key = split_key(path)
        try:
            return bool(s3_client.page(bucket, _prefix(key), "", 1)[0])
        except MissingError:
            return False
        except RefusedError as error:
            raise DataError("source_unavailable", str(error)) from error

    def read(self, path: str, *, expected_bytes: int | None, max_bytes: int | None) -> bytes:
        """Return a whole object, verified."""
        try:
            return s3_client.get(
                *split_key(path), expected_bytes=expected_bytes, max_bytes=max_bytes
            )
        except (MissingError, RefusedError) as error:
            raise DataError("source_unavailable", str(error)) from error

    def read_range(self, path: str, start: int, stop: int, *, stamp: str | None = None) -> bytes:
        """Return a part of the version that has this entity tag; S3 gives no checksum of it."""
        try:
            return s3_client.get_range(*split_key(path), start, stop, stamp)
        except OutOfRangeError:
            return b""
        except PreconditionError as error:
            raise DataError("source_unavailable", "the object changed meanwhile") from error
        except (MissingError, RefusedError) as error:
            raise DataError("source_unavailable", str(error)) from error

    def list_below(self, path: str) -> Iterator[FileEntry]:
        """Yield the object itself, or all below the prefix; one page is held at a time."""
        itself = with_retries(lambda: self.stat(path))
        if itself is not None:
            yield itself
            return
        bucket, key = split_key(path)
        agree = with_retries if self.is_exact else until_agreed
        token, num_keys = "", 0
        while True:
            rows, token = agree(partial(_page, bucket, _prefix(key), token))
            num_keys += len(rows)
            for name, size, etag in rows:
                if not name.endswith("/") and not is_own_file(name.rpartition("/")[2]):
                    yield FileEntry(f"s3://{bucket}/{name}", size, etag)
            if not token:
                break
        if key and not num_keys:
            raise DataError("source_unavailable", "there is no object of this name or below it")

    def write(self, path: str, payload: Payload) -> WriteReceipt:
        """Commit by one PUT: an object is there whole or not at all."""
        with tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES) as spool:
            sink = HashingSink(spool.write, with_md5=True)
            pour(payload, sink)
            receipt = sink.receipt()
            assert sink.md5 is not None
            md5 = sink.md5.hexdigest()
            in_memory = receipt.bytes <= _SPOOL_BYTES

            def attempt() -> None:
                spool.seek(0)
                body = spool.read() if in_memory else spool
                _put(path, body, receipt, md5)

            with_sink_retries(attempt)
        return receipt

    def create(self, path: str, payload: bytes) -> bool:
        """Commit by one PUT unless there is an object; True too if a lost answer was a yes."""
        bucket, key = split_key(path)
        token = secrets.token_hex(16)
        hashes = _hashes(payload)

        def attempt() -> bool:
            try:
                s3_client.put(bucket, key, payload, **hashes, if_none_match=True, token=token)
                return True
            except PreconditionError:
                return _is_ours_and_whole(path, payload, token)

        return bool(with_sink_retries(attempt))

    def remove(self, path: str) -> None:
        """Remove the object if there is one."""
        with_sink_retries(lambda: s3_client.delete(*split_key(path)))


def with_sink_retries(attempt: Any) -> Any:
    """Retry a write and turn its final failure into a refusal of the output."""
    try:
        return with_retries(attempt)
    except RefusedError as error:
        raise DataError("sink_full" if error.is_full else "sink_denied", str(error)) from error
    except MissingError as error:
        raise DataError("sink_denied", "the bucket of the output does not exist") from error
    except DataError as error:
        if isinstance(error.__cause__, TransientError) and error.reason == "source_unavailable":
            raise DataError("sink_denied", f"the output was not reached: {error.detail}") from error
        raise


def put_if(path: str, payload: bytes, *, etag: str | None, token: str) -> str:
    """Replace the version with this entity tag (None: create), one attempt; return the new tag."""
    return s3_client.put(
        *split_key(path), payload, **_hashes(payload),
        if_match=etag, if_none_match=etag is None, token=token,
    )  # fmt: skip


def _is_ours_and_whole(path: str, payload: bytes, token: str) -> bool:
    """Tell whether the object that is in the way is our own earlier try; mend it if damaged."""
    bucket, key = split_key(path)
    try:
        info = s3_client.head(bucket, key)
        if info.token != token:
            return False
        hashes = _hashes(payload)
        # A tag that is no MD5 (another length) was checked by the store, with our checksum.
        if info.etag != hashes["md5"] and len(info.etag) == len(hashes["md5"]):
            s3_client.put(bucket, key, payload, **hashes, if_match=info.etag, token=token)
    except (MissingError, PreconditionError) as error:
        raise TransientError("sink_denied", "the object changes while it is created") from error
    return True


def _hashes(payload: bytes) -> dict[str, Any]:
    return {
        "sha256": hashlib.sha256(payload).hexdigest(),
        "md5": hashlib.md5(payload, usedforsecurity=False).hexdigest(),
        "num_bytes": len(payload),
    }


def _put(path: str, body: Any, receipt: WriteReceipt, md5: str) -> None:
    bucket, key = split_key(path)
    s3_client.put(bucket, key, body, sha256=receipt.sha256, md5=md5, num_bytes=receipt.bytes)


def _prefix(key: str) -> str:
    return f"{key.rstrip('/')}/" if key.strip("/") else ""


def _page(bucket: str, prefix: str, token: str) -> tuple[tuple[Any, ...], str]:
    try:
        return s3_client.page(bucket, prefix, token, _PAGE_KEYS)
    except (MissingError, RefusedError) as error:
        raise DataError("source_unavailable", str(error)) from error
