"""Removal of jobs that are over and of what broken submissions left."""

import contextlib
import os
from collections.abc import Iterator
from itertools import groupby
from typing import Protocol

from medray import storage
from medray.service.job_records import Job
from medray.storage.uri import is_local, local_path


class _Jobs(Protocol):
    def get(self, job_id: str) -> Job | None:
        """Return a job as it stands."""


def sweep_jobs(jobs: _Jobs, uri: str, before_s: float) -> int:
    """Remove jobs that ended before a time, and older runs that no job names.

    A job's record goes first: from then on the job is unknown, and what is left of it belongs to
    a run that nobody names, which the next sweep removes if this one is cut.

    Args:
        jobs: says how a job stands.
        uri: of the jobs.
        before_s: seconds since 1970.

    Returns:
        The number of jobs removed.
    """
    root = storage.join(uri, "jobs")
    if not storage.exists(root):
        return 0
    marked = _marked_runs(storage.join(uri, "open"))
    num_removed = 0
    for job_id, files in groupby(_files(root), key=lambda item: item[0]):
        found = [(run, where) for _, run, where in files]
        job = jobs.get(job_id)
        if job is not None and job.is_over and job.ended_s < before_s:
            storage.remove(storage.join(root, job_id, "job.json"))
            num_removed += 1
            job = None
        for run, where in found:
            current = job is not None and run == job.run
            if run and not current and run not in marked and _began_s(run) < before_s:
                storage.remove(where)
        _remove_empty_folders(root, job_id, {run for run, _ in found})
    return num_removed


def _files(root: str) -> Iterator[tuple[str, str, str]]:
    """Yield job id, run (empty for the record) and URI of every file, by job."""
    # Listings give local paths as absolute ones.
    start = len(storage.normalise(root)) + 1
    for entry in storage.list_files(root):
        job_id, _, rest = entry.uri[start:].partition("/")
        yield job_id, rest.partition("/")[0] if "/" in rest else "", entry.uri


def _marked_runs(folder: str) -> set[str]:
    if not storage.exists(folder):
        return set()
    names = (entry.uri.rpartition("/")[2] for entry in storage.list_files(folder))
    return {name.split(".")[1] for name in names if name.count(".") == 2}


def _began_s(run: str) -> float:
    """Return when a run was submitted; a name that is none of ours is never old."""
    seconds = run.partition("-")[0]
    return float(seconds) if seconds.isdigit() else float("inf")


def _remove_empty_folders(root: str, job_id: str, runs: set[str]) -> None:
    """Remove what removed files leave on a local disk; an object store has no folders."""
    if not is_local(root):
        return
    top = os.path.join(local_path(root), job_id)  # noqa: PTH118
    for folder in [*(os.path.join(top, run) for run in runs if run), top]:  # noqa: PTH118
        for path, _, _ in os.walk(folder, topdown=False):
            with contextlib.suppress(OSError):  # not empty
                os.rmdir(path)  # noqa: PTH106
