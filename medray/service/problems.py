"""What the service answers when it cannot: RFC 9457 problems, one table from reason to status."""

import json
import math
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from medray.errors import REASONS, DataError, MedrayError

MEDIA_TYPE = "application/problem+json"
Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class HttpReason:
    """A reason that only HTTP knows: its status, what it means and how a client mends it."""

    status: int
    meaning: str
    mend: str


HTTP_REASONS: MappingProxyType[str, HttpReason] = MappingProxyType({
    "request_malformed": HttpReason(
        400, "The request breaks the rules of HTTP or is no JSON object.",
        "Send one valid Content-Length and a body of the type that the header names."),
    "body_malformed": HttpReason(
        400, "The multipart body is damaged or ends too early.",
        "Let an HTTP library build the form, and send all of it."),
    "boundary_wrong": HttpReason(
        400, "The multipart body does not begin with the boundary that the header names.",
        "Do not set Content-Type by hand; the library that builds the form does."),
    "client_gone": HttpReason(
        400, "The client went away before its body was complete.", "Send the request again."),
    "auth_missing": HttpReason(
        401, "There is no API key.", "Send it in the header X-API-Key."),
    "auth_wrong": HttpReason(
        403, "The API key is not known here.", "Check the key, or ask for a new one."),
    "auth_expired": HttpReason(403, "The API key has expired.", "Ask for a new one."),
    "uri_not_allowed": HttpReason(
        403, "The URI is not below an allowed prefix.",
        "Upload the file, or let the operator allow the prefix by --allow-uri."),
    "route_unknown": HttpReason(404, "There is no such route.", "See /docs for all routes."),
    "model_unknown": HttpReason(
        404, "No model of this name is served.", "GET /v1/models names those that are."),
    "job_unknown": HttpReason(
        404, "There is no job of this id; results are kept for a limited time.",
        "Submit the request again."),
    "method_not_allowed": HttpReason(
        405, "The route does not take this method.", "See the Allow header, or /docs."),
    "not_acceptable": HttpReason(
        406, "The result cannot be given in the type that Accept asks for.",
        "Ask for application/json, which every model gives."),
    "request_timeout": HttpReason(
        408, "The body came too slowly.", "Send it again over a faster line, or as a zip file."),
    "several_series": HttpReason(
        409, "The upload holds several series; a binary answer has room for one.",
        "Ask for application/json, or send one series."),
    "job_unfinished": HttpReason(
        409, "The job has no result yet.", "Ask for its state until it is done."),
    "unsupported_type": HttpReason(
        415, "The bytes are none of the types that are taken.",
        "Send DICOM, a zip of DICOM, PNG, JPEG, NIfTI, NRRD or MHA as multipart form data."),
    "request_invalid": HttpReason(
        422, "A field of the request is missing, unknown or has a value that is not taken.",
        "See /docs for the fields of this route."),
    "file_missing": HttpReason(
        422, "The form has no part named file.", "Send the image as the part named file."),
    "file_repeated": HttpReason(
        422, "The form has more than one part named file.", "Send several files as one zip."),
    "job_attempts_exhausted": HttpReason(
        422, "The server's processes died at this job as often as it may be tried.",
        "Check the input with medray index; then submit it again."),
    "queue_full": HttpReason(
        429, "All workers are busy and the queue is full.", "Try again after Retry-After seconds."),
    "auth_throttled": HttpReason(
        429, "Too many wrong keys came from this address.",
        "Wait for Retry-After seconds; a valid key passes at once."),
    "internal_error": HttpReason(
        500, "The service failed; this is no fault of the request.",
        "Tell the operator the request id."),
    "unavailable": HttpReason(
        503, "The service is starting, draining or short of workers.",
        "Try again after Retry-After seconds."),
})  # fmt: skip

# A reason of the closed list is a fault of the input (422) but for these.
_STATUS_OF_DATA = {
    "too_large": 413,
    # The request is right; the operator's model or disk is not. 503 tells a client to come again.
    "model_missing": 503,
    "model_hash_mismatch": 503,
    "weights_refused": 503,
    "sink_full": 503,
    "sink_denied": 503,
}
STATUS: MappingProxyType[str, int] = MappingProxyType(
    {reason: _STATUS_OF_DATA.get(reason, 422) for reason in REASONS}
    | {reason: entry.status for reason, entry in HTTP_REASONS.items()}
)
# What an answer of a framework, which knows no reasons, means.
_REASON_OF_STATUS = {
    401: "auth_missing", 403: "auth_wrong", 404: "route_unknown", 405: "method_not_allowed",
    406: "not_acceptable", 408: "request_timeout", 413: "too_large", 415: "unsupported_type",
    422: "request_invalid", 429: "queue_full", 503: "unavailable",
}  # fmt: skip
_RETRY_AFTER_S = 1.0


class ProblemError(MedrayError):
    """A request is refused with a reason of `STATUS`.

    Attributes:
        reason: one of `STATUS`.
        detail: one sentence without values of the request; empty: what the reason means.
        retry_after_s: when to come again, in seconds; 0: by the reason's status.
        headers: further response headers, such as `Allow`.
    """

    def __init__(
        self,
        reason: str,
        detail: str = "",
        *,
        retry_after_s: float = 0.0,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        if reason not in STATUS:
            raise ValueError(f"reason must be one of STATUS, got {reason!r}")
        super().__init__(f"{reason}: {detail or meaning_of(reason)}")
        self.reason = reason
        self.detail = detail or meaning_of(reason)
        self.retry_after_s = retry_after_s
        self.headers = headers

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuilt, (self.reason, self.detail, self.retry_after_s, self.headers))

    @property
    def status(self) -> int:
        """HTTP status of the reason."""
        return STATUS[self.reason]


def _rebuilt(reason: str, detail: str, retry_after_s: float, headers: Any) -> ProblemError:
    return ProblemError(reason, detail, retry_after_s=retry_after_s, headers=headers)


def meaning_of(reason: str) -> str:
    """Return the sentence that says what a reason means."""
    return HTTP_REASONS[reason].meaning if reason in HTTP_REASONS else REASONS[reason].meaning


def mend_of(reason: str) -> str:
    """Return the sentence that says how to mend it."""
    return HTTP_REASONS[reason].mend if reason in HTTP_REASONS else REASONS[reason].mend


def reason_of_status(status: int) -> str:
    """Return the reason that an error status without one stands for."""
    if status in _REASON_OF_STATUS:
        return _REASON_OF_STATUS[status]
    return "internal_error" if status >= 500 else "request_malformed"


def problem_of(error: BaseException) -> ProblemError | None:
    """Return the problem that an error with a meaning to the client is; None for an internal one.

    Errors that crossed a process boundary come wrapped; the chain of causes is searched.
    """
    seen: BaseException | None = error
    for _ in range(8):
        if isinstance(seen, ProblemError):
            return seen
        if isinstance(seen, DataError):
            return ProblemError(seen.reason, seen.detail)
        if seen is None:
            return None
        cause = getattr(seen, "cause", None)  # Ray wraps a task's error so
        seen = cause if isinstance(cause, BaseException) else seen.__cause__
    return None


def render(problem: ProblemError, request_id: str) -> tuple[int, Headers, bytes]:
    """Return status, headers and body of a problem's answer."""
    status = problem.status
    body = json.dumps(
        {
            "type": f"/docs#{problem.reason}",
            "title": meaning_of(problem.reason),
            "status": status,
            "detail": f"{problem.detail.rstrip('.')}. {mend_of(problem.reason)}",
            "reason": problem.reason,
            "request_id": request_id,
        }
    ).encode()
    headers: Headers = [
        (b"content-type", MEDIA_TYPE.encode()),
        (b"content-length", b"%d" % len(body)),
        *problem.headers,
    ]
    if status in {429, 503} and b"retry-after" not in {name for name, _ in problem.headers}:
        wait_s = max(1, math.ceil(problem.retry_after_s or _RETRY_AFTER_S))
        headers.append((b"retry-after", b"%d" % wait_s))
    if status == 401:
        headers.append((b"www-authenticate", b'ApiKey realm="medray"'))  # RFC 9110 11.6.1
    return status, headers, body
