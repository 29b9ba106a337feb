"""Asynchronous jobs that survive their servers: a few files a job under a storage URI.

    jobs/<id>/job.json              the accepted request; names the current run
    open/<id>.<run>.json            the same, while the run has no end: what a restart goes through
    jobs/<id>/<run>/input.bin       the upload
    jobs/<id>/<run>/claim-<n>.json  who took it up, created once: of two servers one gets it
    jobs/<id>/<run>/beat-<n>.json   how long claim n holds, and its progress
    jobs/<id>/<run>/result-<n>/...  what claim n found
    jobs/<id>/<run>/end.json        created once: done with the files of one claim, or failed

Every file is written whole or not at all, and those that decide (`claim`, `end`) are created, never
replaced: the first one stands. Two servers that both work on a job write to folders of their own,
and the job has the result of the first. The order of writes is that of the list above, but that the
open marker comes before `job.json`: whatever is accepted is found again.
"""

import json
import logging
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from medray import storage
from medray.errors import DataError
from medray.service.job_records import (
    DONE,
    FAILED,
    PASSING_REASONS,
    RUNNING,
    Claim,
    Job,
    JobRequest,
    from_record,
    to_record,
)
from medray.service.job_sweep import sweep_jobs
from medray.service.problems import STATUS
from medray.storage.store import Payload

MAX_ATTEMPTS = 3
# Longer than any submission takes; clocks of servers may differ by less.
_SETTLED_S = 3600.0
_JOB_ID = re.compile(r"[0-9a-f]{32}")
_FILE_NAME = re.compile(r"[a-z0-9][a-z0-9._\-]{0,63}")
_CLAIM = re.compile(r"claim-([0-9]+)\.json")
_MAX_RECORD_BYTES = 1 << 20
_LOG = logging.getLogger(__name__)


class JobStore:
    """Jobs under a local path or an object store; any number of servers may share one.

    Args:
        uri: where the jobs lie.
        clock: seconds since 1970; leases of several servers are compared by it, so their clocks
            must agree much better than a lease lasts.
    """

    def __init__(self, uri: str, *, clock: Callable[[], float] = time.time) -> None:
        self.uri = uri
        self._clock = clock

    def submit(self, request: JobRequest, upload: Payload | None = None) -> Job:
        """Accept a request; the job is durable when this returns.

        The same request gives the same job, whatever its state, but one that failed by what may
        pass (`PASSING_REASONS`) is begun anew.

        Args:
            request: what is asked for.
            upload: the bytes of `content_sha256`; None for a URI.

        Raises:
            DataError: sink_full or sink_denied, then nothing is accepted; checksum_mismatch where
                the bytes are others than the request says.
        """
        found = self.get(request.job_id)
        if found is not None and not (found.state == FAILED and found.reason in PASSING_REASONS):
            return found
        # Begins with the time, for the sweep: an object store tells no age in a listing.
        run = f"{int(self._clock()):011d}-{secrets.token_hex(6)}"
        job = Job(id=request.job_id, run=run, request=request, submitted_s=self._clock())
        if upload is not None:
            receipt = storage.write_atomic(self.input_uri(job), upload)
            if receipt.sha256 != request.content_sha256:
                storage.remove(self.input_uri(job))
                raise DataError("checksum_mismatch", "the upload has another hash than announced")
        record = _bytes_of(to_record(job))
        storage.write_atomic(self._marker(job), record)
        if found is not None:
            storage.write_atomic(self._record(job.id), record)
        elif not storage.create_exclusive(self._record(job.id), record):
            # Another server was faster: with the same request, or in completing this one.
            found = self.get(job.id)
            if found is not None and found.run != run:
                storage.remove(self._marker(job))
        return self.get(job.id) or job

    def get(self, job_id: str) -> Job | None:
        """Return a job as it stands; None where there is none of this id.

        Raises:
            DataError: source_unavailable where that cannot be found out.
        """
        if _JOB_ID.fullmatch(job_id) is None:
            return None
        record = _read(self._record(job_id))
        return None if record is None else self._as_it_stands(from_record(record))

    def claim(self, job_id: str, owner: str, lease_s: float) -> Claim | None:
        """Take up a job that nobody works on; None where somebody does, or it is over.

        A claim whose lease ran out (its server was killed) is taken over. After `MAX_ATTEMPTS`
        claims that ended so the job fails with `job_attempts_exhausted`.

        Args:
            job_id: of the job.
            owner: a name that no other process has.
            lease_s: how long the claim holds without a `heartbeat`.
        """
        job = self.get(job_id)
        if job is None or job.is_over:
            return None
        number, lost = job.attempts, 0
        if number:
            last = _read(self._file(job, f"claim-{number}.json")) or {}
            beat = _read(self._file(job, f"beat-{number}.json")) or {}
            if self._clock() < float(beat.get("until_s", last.get("until_s", 0.0))):
                return None
            lost = int(last.get("lost", 0)) + (0 if beat.get("released") else 1)
        if lost >= MAX_ATTEMPTS:
            self._end(job, {"state": FAILED, "reason": "job_attempts_exhausted"})
            return None
        body = {"owner": owner, "until_s": self._clock() + lease_s, "lost": lost}
        uri = self._file(job, f"claim-{number + 1}.json")
        if not storage.create_exclusive(uri, _bytes_of(body)):
            return None
        return Claim(replace(job, state=RUNNING, attempts=number + 1), number + 1, owner)

    def heartbeat(self, claim: Claim, lease_s: float, progress: float = 0.0) -> bool:
        """Prolong a claim from now on; False where another has taken over or the job is over."""
        job = self.get(claim.job.id)
        if job is None or job.run != claim.job.run or job.is_over or job.attempts != claim.number:
            return False
        until_s = self._clock() + lease_s
        beat = {"until_s": until_s, "progress": min(1.0, max(0.0, progress))}
        storage.write_atomic(self._file(job, f"beat-{claim.number}.json"), _bytes_of(beat))
        return True

    def release(self, claim: Claim) -> None:
        """Give a claim back at once, as a server that drains does; it does not count as lost."""
        beat = {"until_s": 0.0, "progress": 0.0, "released": True}
        storage.write_atomic(self._file(claim.job, f"beat-{claim.number}.json"), _bytes_of(beat))

    def finish(self, claim: Claim, files: Mapping[str, Payload]) -> Job:
        """Keep a result and end the job; the files are whole before the state says so.

        Where the job has an end already (another server took over and was faster) that one stands.

        Raises:
            DataError: sink_full or sink_denied; the job is not over then.
            ValueError: a file name has other characters than a-z, 0-9, dot, hyphen, underscore.
        """
        if not files or not all(_FILE_NAME.fullmatch(name) for name in files):
            raise ValueError("a result has files with plain names")
        for name, payload in files.items():
            storage.write_atomic(self._result(claim.job, claim.number, name), payload)
        end = {"state": DONE, "attempt": claim.number, "files": sorted(files)}
        return self._end(claim.job, end)

    def fail(self, claim: Claim, reason: str) -> Job:
        """End a job by a reason of `problems.STATUS`."""
        if reason not in STATUS:
            raise ValueError(f"reason must be one of STATUS, got {reason!r}")
        return self._end(claim.job, {"state": FAILED, "reason": reason})

    def list_open(self) -> Iterator[Job]:
        """Yield the jobs that are not over, in no special order; for a restart.

        Only open markers are listed, never what is done. A submission that broke off between its
        marker and its record is completed: its input is whole.
        """
        folder = storage.join(self.uri, "open")
        if not storage.exists(folder):
            return
        for entry in storage.list_files(folder):
            try:
                job = self._opened(entry.uri)
            except DataError as error:
                if error.reason != "unreadable":
                    raise
                # One damaged record must not keep the others from being finished.
                _LOG.error("an open job cannot be read: %s", error)
                continue
            if job is not None:
                yield job

    def _opened(self, marker_uri: str) -> Job | None:
        """Return the job of a marker if it is open; a marker without a use is removed."""
        record = _read(marker_uri)
        if record is None:
            return None
        marked = from_record(record)
        job = self.get(marked.id)
        if job is None:
            storage.create_exclusive(self._record(marked.id), _bytes_of(record))
            job = self.get(marked.id)
        is_current = job is not None and job.run == marked.run
        if job is not None and is_current and not job.is_over:
            return job
        # Over, or a submission that another one of the same request has replaced.
        if is_current or self._clock() - marked.submitted_s > _SETTLED_S:
            storage.remove(marker_uri)
        return None

    def sweep(self, older_than_s: float) -> int:
        """Remove jobs that ended longer ago and what broken submissions left; return their number.

        Any server may call it at any time; a job that is not over stays, however old.
        """
        return sweep_jobs(self, self.uri, self._clock() - max(older_than_s, _SETTLED_S))

    def input_uri(self, job: Job) -> str:
        """Return where the upload of a job lies."""
        return self._file(job, "input.bin")

    def result_uri(self, job: Job, name: str) -> str:
        """Return where a file of a result lies.

        Raises:
            KeyError: the result has no such file.
        """
        if name not in job.files:
            raise KeyError(name)
        return self._result(job, job.result_attempt, name)

    def _end(self, job: Job, end: dict[str, Any]) -> Job:
        """Write the end unless there is one; its open marker goes last."""
        uri, body = self._file(job, "end.json"), _bytes_of({**end, "ended_s": self._clock()})
        if not storage.create_exclusive(uri, body) and not storage.stat(uri).bytes:
            # Without hard links a name is claimed empty first; its writer died in between.
            storage.write_atomic(uri, body)
        storage.remove(self._marker(job))
        return self._as_it_stands(replace(job, attempts=0))

    def _as_it_stands(self, job: Job) -> Job:
        """Return a job with the state that its run's files add up to."""
        folder = storage.join(self.uri, "jobs", job.id, job.run)
        names = _names_in(folder)
        numbers = [int(match[1]) for name in names if (match := _CLAIM.fullmatch(name))]
        job = replace(job, attempts=max(numbers, default=0))
        end = _read(storage.join(folder, "end.json")) if "end.json" in names else None
        if end is not None:
            return replace(
                job,
                state=str(end["state"]),
                reason=str(end.get("reason", "")),
                progress=1.0 if end["state"] == DONE else 0.0,
                files=tuple(end.get("files", ())),
                result_attempt=int(end.get("attempt", 0)),
                ended_s=float(end["ended_s"]),
            )
        if not job.attempts:
            return job
        name = f"beat-{job.attempts}.json"
        beat = (_read(storage.join(folder, name)) if name in names else None) or {}
        if beat.get("released"):
            return job
        return replace(job, state=RUNNING, progress=float(beat.get("progress", 0.0)))

    def _record(self, job_id: str) -> str:
        return storage.join(self.uri, "jobs", job_id, "job.json")

    def _marker(self, job: Job) -> str:
        return storage.join(self.uri, "open", f"{job.id}.{job.run}.json")

    def _file(self, job: Job, name: str) -> str:
        return storage.join(self.uri, "jobs", job.id, job.run, name)

    def _result(self, job: Job, number: int, name: str) -> str:
        return storage.join(self.uri, "jobs", job.id, job.run, f"result-{number}", name)


def _names_in(folder: str) -> set[str]:
    """Return the names of a run's own files; empty where it has none yet."""
    if not storage.exists(folder):
        return set()
    found = set()
    # Listings give local paths as absolute ones; files of results lie one folder below.
    start = len(storage.normalise(folder)) + 1
    for entry in storage.list_files(folder):
        name = entry.uri[start:]
        # An empty file is a name that is claimed, not a record; a claim counts even so.
        if entry.bytes or _CLAIM.fullmatch(name):
            found.add(name)
    return found


def _bytes_of(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, sort_keys=True, separators=(",", ":")).encode()


def _read(uri: str) -> dict[str, Any] | None:
    """Return a record; None where there is none (yet, or any more)."""
    if not storage.exists(uri):
        return None
    try:
        raw = storage.read_bytes(uri, max_bytes=_MAX_RECORD_BYTES)
        if not raw:
            return None
        found = json.loads(raw)
    except DataError:
        if not storage.exists(uri):
            return None
        raise
    except ValueError:
        raise DataError("unreadable", "a record of a job is no JSON") from None
    if not isinstance(found, dict):
        raise DataError("unreadable", "a record of a job is no JSON object")
    return found
