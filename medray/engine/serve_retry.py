"""Calls of one deployment by another that survive the death of a replica.

Every call here can be repeated: a network has no memory, and a case is only read.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any

from ray.exceptions import ActorUnavailableError, RayActorError, WorkerCrashedError
from ray.serve.exceptions import ReplicaUnavailableError

_DIED = (RayActorError, ActorUnavailableError, WorkerCrashedError, ReplicaUnavailableError)
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 2.0


async def repeated(call: Callable[[], Any], *, within_s: float) -> Any:
    """Return what a call gives; where its replica died, call again.

    Args:
        call: makes one awaitable response, such as `handle.method.remote(...)`.
        within_s: after this long the last error counts.
    """
    end = time.monotonic() + within_s
    pause_s = _FIRST_PAUSE_S
    while True:
        try:
            return await call()
        except _DIED:
            if time.monotonic() + pause_s > end:
                raise
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
