"""The replica that works off accepted jobs; whatever dies, they are taken up again."""

import asyncio
import contextlib
import json
import logging
import os
import secrets
from typing import Any

import numpy as np
import ray

from medray import storage
from medray.engine.serve_cases import CaseReply, CaseRequest
from medray.engine.serve_ingress import RESULT_FILE, IngressSettings
from medray.engine.serve_retry import repeated
from medray.errors import DataError
from medray.service.job_records import Claim, Job
from medray.service.job_store import JobStore

_LOG = logging.getLogger(__name__)
# A job of a dead process is taken up after this; a live one says twice in it that it lives.
LEASE_S = 20.0
_BEAT_S = LEASE_S / 3
_LOOK_S = 5.0
_AT_ONCE = 4
_WITHIN_S = 600.0


class JobReplica:
    """Serve's replica for jobs. Several servers may share one place for jobs."""

    def __init__(self, cases: Any, settings: IngressSettings) -> None:
        self.cases = cases
        self.store = JobStore(settings.jobs_uri) if settings.jobs_uri else None
        self.owner = f"{os.getpid()}-{secrets.token_hex(6)}"
        self._woken = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None
        self._running: dict[str, asyncio.Task[None]] = {}

    async def wake(self) -> None:
        """Look for jobs now."""
        self._start()
        self._woken.set()

    async def check_health(self) -> None:
        """Keep the loop going; Serve asks every few seconds, from the start on."""
        self._start()

    def _start(self) -> None:
        if self.store is not None and (self._loop is None or self._loop.done()):
            self._loop = asyncio.get_running_loop().create_task(self._forever())

    async def _forever(self) -> None:
        assert self.store is not None
        while True:
            self._woken.clear()
            try:
                await self._take_up(self.store)
            except DataError as error:
                _LOG.warning("jobs cannot be listed: %s", error.reason)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), _LOOK_S)

    async def _take_up(self, store: JobStore) -> None:
        jobs: list[Job] = await asyncio.to_thread(lambda: list(store.list_open()))
        for job in jobs:
            if job.id in self._running or len(self._running) >= _AT_ONCE:
                continue
            claim = await asyncio.to_thread(store.claim, job.id, self.owner, LEASE_S)
            if claim is not None:
                task = asyncio.get_running_loop().create_task(self._work(store, claim))
                self._running[job.id] = task

    async def _work(self, store: JobStore, claim: Claim) -> None:
        """Do one job; a failure of ours gives it back."""
        beats = asyncio.get_running_loop().create_task(_beat(store, claim))
        try:
            reply = await self._answered(store, claim.job)
            if reply.refused is not None:
                await asyncio.to_thread(store.fail, claim, reply.refused[0])
            else:
                await asyncio.to_thread(store.finish, claim, _files(reply))
        except DataError as error:
            await asyncio.to_thread(store.fail, claim, error.reason)
        except Exception as error:  # noqa: BLE001 - the job is tried again, three times at most
            _LOG.warning("job %s was not finished: %s", claim.job.id, type(error).__name__)
        finally:
            beats.cancel()
            self._running.pop(claim.job.id, None)
            self._woken.set()

    async def _answered(self, store: JobStore, job: Job) -> CaseReply:
        request = CaseRequest(
            model=job.request.model,
            kind="all",
            suffix=job.request.suffix,
            uri=job.request.uri,
            request_id=job.id,
        )
        body: Any = b""
        if not job.request.uri:
            data = await asyncio.to_thread(storage.read_bytes, store.input_uri(job))
            body = [ray.put(np.frombuffer(data, dtype=np.uint8))]
        reply: CaseReply = await repeated(
            lambda: self.cases.answer.remote(request, body), within_s=_WITHIN_S
        )
        return reply


async def _beat(store: JobStore, claim: Claim) -> None:
    while await asyncio.to_thread(store.heartbeat, claim, LEASE_S):
        await asyncio.sleep(_BEAT_S)


def _files(reply: CaseReply) -> dict[str, bytes]:
    """Return a result's files by flat names."""
    document = json.dumps(reply.document, allow_nan=False).encode()
    files = {name.replace("/", "."): data for name, data in reply.files.items()}
    return {RESULT_FILE: document, **files}
