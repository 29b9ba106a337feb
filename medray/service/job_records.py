"""What a job is: its request, its identity, and the state that its files add up to."""

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from medray.errors import DataError

QUEUED, RUNNING, DONE, FAILED = "queued", "running", "done", "failed"
# Failures of the surroundings, not of the request: the same request may be tried anew.
PASSING_REASONS = frozenset({
    "job_attempts_exhausted", "source_unavailable", "sink_full", "sink_denied", "model_missing",
    "model_hash_mismatch", "internal_error", "unavailable",
})  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class JobRequest:
    """What is asked for; the same request is the same job.

    Attributes:
        model: its served name.
        weights_sha256: of its weights, so that a new version is a new job.
        content_sha256: of an upload; empty for a URI.
        uri: of an input that is not uploaded; may name a patient, so it is never logged or sent.
        stamp: what changes when the URI's content does (size and mtime or ETag).
        suffix: of the uploaded file's name.
        kind: of the uploaded file, see `uploads.sniff`.
    """

    model: str
    weights_sha256: str
    content_sha256: str = ""
    uri: str = field(default="", repr=False)
    stamp: str = ""
    suffix: str = ""
    kind: str = ""

    def __post_init__(self) -> None:
        if bool(self.content_sha256) == bool(self.uri):
            raise ValueError("a job's input is either an upload or a URI")

    @property
    def job_id(self) -> str:
        """32 hex digits, the same for the same model, weights and content."""
        content = [self.content_sha256] if self.content_sha256 else [self.uri, self.stamp]
        plain = json.dumps(
            [self.model, self.weights_sha256, *content], separators=(",", ":"), ensure_ascii=True
        )
        return hashlib.sha256(plain.encode()).hexdigest()[:32]


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One job as it stands.

    Attributes:
        id: of the request.
        run: names this submission's files; a job that is submitted anew gets another one.
        submitted_s: seconds since 1970.
        state: queued, running, done or failed.
        progress: 0 to 1.
        reason: why it failed, a reason of `problems.STATUS`; else empty.
        attempts: how often it was taken up.
        files: names of the result's files.
    """

    id: str
    run: str
    request: JobRequest
    submitted_s: float
    state: str = QUEUED
    progress: float = 0.0
    reason: str = ""
    attempts: int = 0
    files: tuple[str, ...] = ()
    result_attempt: int = 0
    ended_s: float = 0.0

    @property
    def is_over(self) -> bool:
        """Tell whether the state will not change any more."""
        return self.state in {DONE, FAILED}

    def public(self) -> dict[str, Any]:
        """Return what HTTP tells of it; neither URI nor file names of the request."""
        result_url = f"/v1/jobs/{self.id}/result" if self.state == DONE else None
        return {
            "id": self.id,
            "state": self.state,
            "progress": self.progress,
            "reason": self.reason or None,
            "result_url": result_url,
            "model": self.request.model,
            "attempts": self.attempts,
        }


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to work on a job until its lease runs out; `number` counts from 1."""

    job: Job
    number: int
    owner: str


def to_record(job: Job) -> dict[str, Any]:
    """Return what `job.json` holds."""
    return {
        "id": job.id,
        "run": job.run,
        "submitted_s": job.submitted_s,
        "request": asdict(job.request),
    }


def from_record(record: dict[str, Any]) -> Job:
    """Return the queued job of a record.

    Raises:
        DataError: unreadable.
    """
    names = {item.name for item in fields(JobRequest)}
    try:
        request = {name: str(value) for name, value in record["request"].items() if name in names}
        return Job(
            id=str(record["id"]),
            run=str(record["run"]),
            request=JobRequest(**request),
            submitted_s=float(record["submitted_s"]),
        )
    except (LookupError, AttributeError, TypeError, ValueError):
        raise DataError("unreadable", "a record of a job lacks a field") from None
