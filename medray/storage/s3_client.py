"""S3 calls, one attempt each: what comes back is verified, what goes wrong is sorted."""

import asyncio
import base64
import hashlib
import re
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from medray.errors import DataError
from medray.storage.filesystems import filesystem_of
from medray.storage.local import check_size
from medray.storage.retry import POLICY, TransientError

_MD5 = re.compile(r"[0-9a-f]{32}")
# Buckets of S3 Express give entity tags that are no hash.
_EXPRESS_SUFFIX = "--x-s3"
_MISSING = frozenset({"404", "NoSuchKey", "NotFound", "NoSuchBucket", "NoSuchVersion"})
_PRECONDITION = frozenset({"412", "PreconditionFailed"})
_FULL = frozenset({"XMinioStorageFull", "QuotaExceeded", "EntityTooLarge", "507"})
_PASSING = frozenset(
    {"SlowDown", "RequestTimeout", "BadDigest", "InvalidDigest", "IncompleteBody", "429",
     "XAmzContentSHA256Mismatch", "ConditionalRequestConflict", "OperationAborted",
     "InternalError", "ServiceUnavailable", "XMinioServerNotInitialized"}
)  # fmt: skip


class MissingError(Exception):
    """There is no such bucket or object."""


class PreconditionError(Exception):
    """If-Match or If-None-Match did not hold."""


class OutOfRangeError(Exception):
    """The range begins behind the end."""


class RefusedError(Exception):
    """The store will not do it, however often it is asked."""

    def __init__(self, detail: str, *, is_full: bool = False) -> None:
        super().__init__(detail)
        self.is_full = is_full


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a HEAD tells: size, entity tag, seconds since it was written, our writer's token."""

    bytes: int
    etag: str
    age_s: float
    token: str


def call(operation: Callable[[Any], Awaitable[Any]], *, num_bytes: int = 0) -> Any:
    """Run one operation with this process's client and sort its failure.

    Raises:
        TransientError: it may work the next time.
        MissingError, PreconditionError, OutOfRangeError, RefusedError: it will not.
    """
    from fsspec.asyn import sync

    filesystem = filesystem_of("s3")

    async def run() -> Any:
        await filesystem.set_session()
        return await operation(await filesystem.get_s3())

    limit_s = POLICY.answer_s + num_bytes / POLICY.min_bytes_per_s
    try:
        return sync(filesystem.loop, run, timeout=limit_s)
    except (DataError, TransientError):
        raise
    except Exception as error:
        raise _sorted_error(error) from error


def is_encrypted_line() -> bool:
    """Tell whether the endpoint is spoken to by TLS, which lets no flipped bit through."""

    async def endpoint(client: Any) -> str:
        return str(client.meta.endpoint_url)

    return str(call(endpoint)).startswith("https://")


def get(
    bucket: str, key: str, *, expected_bytes: int | None = None, max_bytes: int | None = None
) -> bytes:
    """Return a whole object whose bytes agree with every checksum that the store gives."""

    async def operation(client: Any) -> bytes:
        answer = await client.get_object(Bucket=bucket, Key=key)
        async with answer["Body"]:
            check_size(int(answer["ContentLength"]), max_bytes)
            body = bytes(await answer["Body"].read())
        proven = _verify(body, answer, bucket)
        _check_length(body, expected_bytes, proven=proven)
        return body

    return bytes(call(operation, num_bytes=expected_bytes or max_bytes or (1 << 30)))


def get_range(bucket: str, key: str, start: int, stop: int, etag: str | None = None) -> bytes:
    """Return bytes [start, stop) of one version of an object, fewer at its end."""
    condition = {"IfMatch": f'"{etag}"'} if etag else {}

    async def operation(client: Any) -> bytes:
        span = f"bytes={start}-{stop - 1}"
        answer = await client.get_object(Bucket=bucket, Key=key, Range=span, **condition)
        total = str(answer.get("ContentRange", "")).rpartition("/")[2]
        async with answer["Body"]:
            body = bytes(await answer["Body"].read())
        wanted = min(stop, int(total)) - start if total.isdigit() else int(answer["ContentLength"])
        if len(body) != wanted:
            raise TransientError("truncated", f"a range gave {len(body)} of {wanted} bytes")
        return body

    return bytes(call(operation, num_bytes=stop - start))


def head(bucket: str, key: str) -> ObjectInfo:
    """Return what is known of an object."""

    async def operation(client: Any) -> ObjectInfo:
        answer = await client.head_object(Bucket=bucket, Key=key)
        return ObjectInfo(
            int(answer["ContentLength"]),
            str(answer["ETag"]).strip('"'),
            _age_s(answer),
            str(answer.get("Metadata", {}).get("medray-writer", "")),
        )

    found: ObjectInfo = call(operation)
    return found


def page(bucket: str, prefix: str, token: str, limit: int) -> tuple[tuple[Any, ...], str]:
    """Return one page of a listing as (key, size, etag) rows, and the next page's token."""
    more = {"ContinuationToken": token} if token else {}

    async def operation(client: Any) -> tuple[tuple[Any, ...], str]:
        answer = await client.list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=limit, **more)
        rows = tuple(
            (str(row["Key"]), int(row["Size"]), str(row.get("ETag", "")).strip('"'))
            for row in answer.get("Contents", ())
        )
        if len(rows) != int(answer.get("KeyCount", len(rows))):
            raise TransientError("source_unavailable", "a page of the listing is incomplete")
        return rows, str(answer.get("NextContinuationToken", ""))

    found: tuple[tuple[Any, ...], str] = call(operation)
    return found


def put(  # noqa: PLR0913  the body, its hashes and the two conditions of one request
    bucket: str, key: str, body: Any, *, sha256: str, md5: str, num_bytes: int,
    if_none_match: bool = False, if_match: str | None = None, token: str = "",
) -> str:  # fmt: skip
    """Write an object by one PUT with a checksum and return its entity tag.

    Raises:
        TransientError: also where the stored bytes are not those that were sent.
    """
    arguments: dict[str, Any] = {"Bucket": bucket, "Key": key, "Body": body}
    arguments["ChecksumSHA256"] = base64.b64encode(bytes.fromhex(sha256)).decode()
    if if_none_match:
        arguments["IfNoneMatch"] = "*"
    if if_match:
        arguments["IfMatch"] = f'"{if_match}"'
    if token:
        arguments["Metadata"] = {"medray-writer": token}

    async def operation(client: Any) -> str:
        answer = await client.put_object(**arguments)
        etag = str(answer.get("ETag", "")).strip('"')
        if _is_md5(etag, answer, bucket) and etag != md5:
            raise TransientError("checksum_mismatch", "the store received other bytes than sent")
        return etag

    return str(call(operation, num_bytes=num_bytes))


def delete(bucket: str, key: str) -> None:
    """Remove an object; none is fine."""

    async def operation(client: Any) -> None:
        await client.delete_object(Bucket=bucket, Key=key)

    call(operation)


def _is_md5(etag: str, answer: Any, bucket: str) -> bool:
    """Tell whether an entity tag is the MD5 of the bytes: one part, no key of a customer."""
    encrypted = str(answer.get("ServerSideEncryption", "")).startswith("aws:kms")
    return (
        _MD5.fullmatch(etag) is not None
        and not encrypted
        and "SSECustomerAlgorithm" not in answer
        and not bucket.endswith(_EXPRESS_SUFFIX)
    )


def _verify(body: bytes, answer: Any, bucket: str) -> bool:
    """Compare a body with what its answer says; tell whether a checksum was there."""
    mismatch = TransientError("checksum_mismatch", "the bytes differ from the store's checksum")
    if len(body) != int(answer["ContentLength"]):
        raise TransientError("truncated", f"{len(body)} bytes came, the answer promised more")
    if answer.get("ChecksumType", "FULL_OBJECT") == "FULL_OBJECT":
        given = answer.get("ChecksumSHA256")
        if given and "-" not in given:
            if base64.b64encode(hashlib.sha256(body).digest()).decode() != given:
                raise mismatch
            return True
        given = answer.get("ChecksumCRC32")
        if given and "-" not in given:
            if base64.b64encode(zlib.crc32(body).to_bytes(4, "big")).decode() != given:
                raise mismatch
            return True
    etag = str(answer.get("ETag", "")).strip('"')
    if not _is_md5(etag, answer, bucket):
        return False
    if hashlib.md5(body, usedforsecurity=False).hexdigest() != etag:
        raise mismatch
    return True


def _check_length(body: bytes, expected: int | None, *, proven: bool) -> None:
    if expected is None or len(body) == expected:
        return
    detail = f"the object gave {len(body)} bytes, {expected} were listed"
    reason = "truncated" if len(body) < expected else "checksum_mismatch"
    if proven:
        raise DataError(reason, detail)
    raise TransientError(reason, detail)


def _age_s(answer: Any) -> float:
    """Return seconds since the object was written, by the server's clock alone."""
    date = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
    if not date:
        return 0.0
    return float((parsedate_to_datetime(date) - answer["LastModified"]).total_seconds())


def _sorted_error(error: Exception) -> Exception:
    from botocore import exceptions  # type: ignore[import-untyped]

    if isinstance(error, exceptions.ClientError):
        return _answered_error(error)
    if isinstance(
        error,
        exceptions.NoCredentialsError | exceptions.PartialCredentialsError
        | exceptions.ProfileNotFound | exceptions.TokenRetrievalError,
    ):  # fmt: skip
        return RefusedError("there are no credentials for the object store in the environment")
    if isinstance(error, exceptions.ParamValidationError):
        return RefusedError("the object store does not take this bucket or key name")
    if isinstance(error, exceptions.FlexibleChecksumError):
        return TransientError("checksum_mismatch", "the bytes differ from the store's checksum")
    if isinstance(error, ValueError | LookupError | ArithmeticError):
        # A flipped byte of an answer's XML may leave a date or number that is none.
        return TransientError("source_unavailable", "the store's answer cannot be parsed")
    transport = (exceptions.BotoCoreError, OSError, asyncio.TimeoutError, EOFError)
    if isinstance(error, transport) or type(error).__module__.startswith(("aiohttp", "fsspec")):
        return TransientError(
            "source_unavailable", f"the connection to the store broke ({type(error).__name__})"
        )
    return error


def _answered_error(error: Any) -> Exception:
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if status == 404 or code in _MISSING:
        return MissingError("there is no such object or bucket")
    if status == 412 or code in _PRECONDITION:
        return PreconditionError("the object is not the one that was expected")
    if status == 416:
        return OutOfRangeError("the range begins behind the object's end")
    if code in _FULL or status == 507:
        return RefusedError(f"the store takes no more bytes ({code})", is_full=True)
    if code in _PASSING or status >= 500 or status == 429:
        return TransientError("source_unavailable", f"the store answered {status} {code}")
    return RefusedError(f"the store answered {status} {code}")
