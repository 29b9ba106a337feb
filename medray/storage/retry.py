"""One loop for everything that a network may break: tries, backoff, and the final verdict."""

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from medray.errors import DataError

_LOG = logging.getLogger(__name__)
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryPolicy:
    """How often and how long one call is tried.

    Attributes:
        attempts: tries of the whole call, the first included.
        base_s: longest wait before the second try; doubles with each further one.
        cap_s: longest wait at all.
        answer_s: time for a call that moves no bytes to speak of.
        min_bytes_per_s: a body that comes slower than this is broken off and tried again.
    """

    attempts: int = 8  # 0.3 ** 8: one read in 15,000 fails where 30 % of all calls break
    base_s: float = 0.25
    cap_s: float = 8.0
    answer_s: float = 60.0
    min_bytes_per_s: int = 64 * 1024

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"attempts must be >= 1, got {self.attempts}")


POLICY = RetryPolicy()


class TransientError(Exception):
    """A failure that may pass; `reason` is the verdict if it does not."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


def with_retries(call: Callable[[], _T]) -> _T:
    """Call until it does not raise TransientError; waits grow and are spread by chance.

    Raises:
        DataError: every attempt failed; the reason is that of the last one.
    """
    policy = POLICY
    for attempt in range(1, policy.attempts + 1):
        try:
            return call()
        except TransientError as error:
            _LOG.debug("attempt %d of %d: %s", attempt, policy.attempts, error.detail)
            if attempt == policy.attempts:
                raise DataError(
                    error.reason, f"{error.detail} (the last of {attempt} attempts)"
                ) from error
        # Full jitter: many workers that were refused together do not come back together.
        longest_s = min(policy.cap_s, policy.base_s * 2 ** (attempt - 1))
        time.sleep(random.SystemRandom().uniform(0, longest_s))
    raise AssertionError("unreachable")


def until_agreed(call: Callable[[], _T]) -> _T:
    """Call until two calls have answered the same.

    For answers without any checksum (a listing, a range) over a connection without TLS: damage
    by chance does not strike twice in one way.

    Raises:
        DataError: no two calls agreed, or one failed for good.
    """
    answers: list[_T] = []
    for _ in range(2 * POLICY.attempts):
        answer = with_retries(call)
        if answer in answers:
            return answer
        answers.append(answer)
    raise DataError("checksum_mismatch", "the same question got a different answer each time")
