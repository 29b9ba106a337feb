"""Decoding foreign DICOM files in a child process, with a memory cap and a time limit.

Native codecs abort on hostile bytes, hang and eat memory; here each of these costs one file a
reason code, and the next file goes on (docs/DESIGN section 10).
"""

import hashlib
import math
import mmap
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from medray.dicom.decode_link import ChildGoneError, ChildLink
from medray.dicom.decode_wire import NUM_SLOTS, grow_memory_file
from medray.dicom.header import InstanceHeader
from medray.dicom.tables import LutTables, tables_from_json
from medray.errors import REASONS, DataError

_MAX_DEATHS = 2
# Memory of a large file is given back; what an ordinary one takes is kept for the next.
_KEEP_BYTES = 64 << 20
# The worker's own alarm comes after the parent's limit: it is for parents that are gone.
_ALARM_SLACK_S = 5.0
_SIGALRM = 14
_DTYPES = frozenset(
    {"|u1", "|i1"} | {e + t for e in "<>" for t in ("u2", "i2", "u4", "i4", "f4", "f8")}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeLimits:
    """What one file may cost.

    Attributes:
        max_memory_bytes: the child's memory above its start: file, work and pixels.
        seconds, seconds_per_mib: time limit, plus this for each MiB of the file.
        max_frame_bytes: one decoded frame.
        max_pixels_bytes: all decoded frames.
    """

    max_memory_bytes: int = 3 << 30
    seconds: float = 10.0
    seconds_per_mib: float = 10.0
    max_frame_bytes: int = 512 << 20
    max_pixels_bytes: int = 2 << 30

    def __post_init__(self) -> None:
        for name in ("max_memory_bytes", "max_frame_bytes", "max_pixels_bytes"):
            if getattr(self, name) < 1 << 20:
                raise ValueError(f"decode.{name} must be >= 1 MiB, got {getattr(self, name)}")
        if not (0 < self.seconds < math.inf and 0 <= self.seconds_per_mib < math.inf):
            raise ValueError("decode.seconds must be > 0 and seconds_per_mib >= 0, both finite")

    def seconds_for(self, size: int) -> float:
        """Return the time limit of a file of `size` bytes."""
        return self.seconds + self.seconds_per_mib * size / (1 << 20)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DecodedInstance:
    """One decoded file.

    Attributes:
        header: its facts.
        frames: (num_frames, rows, columns) or (num_frames, rows, columns, 3) stored values; YBR
            and palette colour are RGB here. Owned by the caller.
        sha256: of the file's bytes, hexadecimal.
        tables: its lookup tables.
    """

    header: InstanceHeader
    frames: np.ndarray
    sha256: str
    tables: LutTables = field(default_factory=LutTables)


@dataclass(slots=True, eq=False)
class _Job:
    """One file on its way; `outcome` is the child's answer and its frames, or an error."""

    number: int
    data: bytes
    slot: int
    deaths: int = 0
    sent: bool = False
    started: float | None = None
    outcome: tuple[dict[str, Any], bytes, np.ndarray] | DataError | None = None
    sha256: Future[str] = field(default_factory=Future)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class PixelDecoder:
    """Decodes files in one child process; safe to call from several threads.

    Args:
        limits: what one file may cost.
        plugins: modules that the child imports at its start, to register codecs.
    """

    def __init__(
        self, limits: DecodeLimits | None = None, *, plugins: tuple[str, ...] = ()
    ) -> None:
        self.limits = limits or DecodeLimits()
        self._plugins = plugins
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._hasher = ThreadPoolExecutor(1, thread_name_prefix="medray-sha256")
        self._flying: deque[_Job] = deque()
        self._number = 0
        self._link: ChildLink | None = None
        self._maps: dict[int, mmap.mmap] = {}

    def decode(self, data: bytes) -> DecodedInstance:
        """Decode one file.

        Raises:
            DataError: one of the read and decode reasons.
        """
        found = self._collect(self._submit(data))
        if isinstance(found, DataError):
            raise found
        return found

    def decode_many(
        self, items: Iterable[bytes | DataError]
    ) -> Iterator[DecodedInstance | DataError]:
        """Decode files in order; one is fetched from `items` while another is decoded.

        An item that is an error already (a failed read) comes out in its place.
        """
        waiting: deque[_Job | DataError] = deque()
        for item in items:
            waiting.append(item if isinstance(item, DataError) else self._try_submit(item))
            if len(waiting) == NUM_SLOTS:
                yield self._collect(waiting.popleft())
        while waiting:
            yield self._collect(waiting.popleft())

    def close(self) -> None:
        """End the child; the next call starts another."""
        if self._pid != os.getpid():
            self._reset()
        with self._lock:
            self._drop_link()

    def __enter__(self) -> "PixelDecoder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _try_submit(self, data: bytes) -> "_Job | DataError":
        try:
            return self._submit(data)
        except DataError as error:
            return error

    def _submit(self, data: bytes) -> _Job:
        if self._pid != os.getpid():  # after a fork the child is the other process's
            self._reset()
        if not data:
            raise DataError("empty_file", "the file has no bytes")
        if 2 * len(data) > self.limits.max_memory_bytes:
            raise DataError("too_large", f"{len(data)} bytes are too many for the decoder's memory")
        with self._lock:
            while len(self._flying) >= NUM_SLOTS:
                self._finish_oldest()
            taken = {job.slot for job in self._flying}
            slot = next(slot for slot in range(NUM_SLOTS) if slot not in taken)
            self._number += 1
            job = _Job(self._number, data, slot)
            self._flying.append(job)
            self._notice_idle_death()
            self._send_jobs()
        # While the child works and the next file is read: hashing takes as long as both.
        job.sha256 = self._hasher.submit(_sha256, data)
        return job

    def _collect(self, job: "_Job | DataError") -> DecodedInstance | DataError:
        if isinstance(job, DataError):
            return job
        with self._lock:
            while job.outcome is None:
                self._finish_oldest()
        if isinstance(job.outcome, DataError):
            return job.outcome
        answer, header, frames = job.outcome
        return DecodedInstance(
            header=InstanceHeader.from_json(header.decode()),
            frames=frames,
            sha256=job.sha256.result(),
            tables=tables_from_json(answer["tables"]),
        )

    def _send_jobs(self) -> None:
        """Hand over what is not with the child yet; a file that killed one goes alone."""
        for job in self._flying:
            if job.sent:
                continue
            if self._flying[0].deaths and job is not self._flying[0]:
                break
            link = self._started_link()
            self._fill(job, link)
            seconds = self.limits.seconds_for(len(job.data))
            order = {
                "epoch": link.epoch, "job": job.number, "slot": job.slot, "bytes": len(job.data),
                "seconds": 2 * seconds + _ALARM_SLACK_S,
            }  # fmt: skip
            job.sent = True
            job.started = time.monotonic() if job is self._flying[0] else None
            try:
                link.send(order)
            except ChildGoneError:
                return  # the next receive says so, and counts it

    def _notice_idle_death(self) -> None:
        """See a death between two files, so that it is not counted against the next one."""
        if self._link is None or any(job.sent for job in self._flying):
            return
        try:
            while self._link.receive(0) is not None:
                self._link.expects_death = False
        except ChildGoneError:
            self._drop_link()

    def _started_link(self) -> ChildLink:
        if self._link is None:
            self._link = ChildLink(self.limits, self._plugins)
            weakref.finalize(self, ChildLink.close, self._link)
            self._maps.clear()
        return self._link

    def _drop_link(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None
            self._maps.clear()
        for job in self._flying:
            job.sent = False

    def _fill(self, job: _Job, link: ChildLink) -> None:
        descriptor = link.inputs[job.slot]
        grow_memory_file(descriptor, len(job.data))
        self._mapped(descriptor, len(job.data))[: len(job.data)] = job.data

    def _mapped(self, descriptor: int, size: int) -> mmap.mmap:
        known = self._maps.get(descriptor)
        if known is None or len(known) < size:
            known = mmap.mmap(descriptor, os.fstat(descriptor).st_size)
            self._maps[descriptor] = known
        return known

    def _finish_oldest(self) -> None:
        """Wait for the oldest job's answer, its timeout, or its second death."""
        job = self._flying[0]
        self._send_jobs()
        link = self._started_link()
        if job.started is None:
            job.started = time.monotonic()
        limit = self.limits.seconds_for(len(job.data))
        try:
            message = link.receive(job.started + limit - time.monotonic())
        except ChildGoneError:
            self._drop_link()
            self._count_death(job, signal_number=0)
            return
        if message is None:
            self._kill_worker(link)
            self._settle(
                job, DataError("decode_timeout", f"decoding took longer than {limit:.0f} s")
            )
        elif "epoch" in message:
            for other in self._flying:
                other.sent = False
            if not link.expects_death:
                self._count_death(job, signal_number=message["signal"])
            link.expects_death = False
        elif message.get("job") == job.number:
            link.expects_death = bool(message.get("last"))
            self._settle(job, self._outcome(job, message, link))

    def _kill_worker(self, link: ChildLink) -> None:
        if not link.kill_worker():
            self._drop_link()
        for other in self._flying:
            other.sent = False

    def _count_death(self, job: _Job, *, signal_number: int) -> None:
        job.deaths += 1
        if signal_number == _SIGALRM:
            self._settle(job, DataError("decode_timeout", "decoding took longer than the limit"))
        elif job.deaths >= _MAX_DEATHS:
            self._settle(
                job, DataError("decoder_crashed", "the decoder's process died on it twice")
            )

    def _settle(
        self, job: _Job, outcome: tuple[dict[str, Any], bytes, np.ndarray] | DataError
    ) -> None:
        job.outcome = outcome
        self._flying.remove(job)
        if self._flying:
            self._send_jobs()

    def _outcome(
        self, job: _Job, message: dict[str, Any], link: ChildLink
    ) -> tuple[dict[str, Any], bytes, np.ndarray] | DataError:
        """Check the child's answer: it has touched foreign bytes and is not trusted either."""
        reason = message.get("reason")
        if reason is not None:
            known = reason if reason in REASONS else "decode_error"
            return DataError(known, str(message.get("detail", ""))[:200])
        try:
            return message, message["header"], self._read_frames(job, message, link)
        except (KeyError, TypeError, ValueError):
            return DataError("decoder_crashed", "the decoder's answer makes no sense")

    def _read_frames(self, job: _Job, message: dict[str, Any], link: ChildLink) -> np.ndarray:
        if message["dtype"] not in _DTYPES:
            raise ValueError("dtype")
        dtype, shape = np.dtype(message["dtype"]), tuple(int(size) for size in message["shape"])
        count, offset = math.prod(shape), int(message["offset"])
        end = offset + count * dtype.itemsize
        if min(shape) < 1 or offset < 0 or end - offset > self.limits.max_pixels_bytes:
            raise ValueError("shape")
        if message["native"]:
            return _owned(job.data, dtype, shape, offset)
        descriptor = link.outputs[job.slot]
        if os.fstat(descriptor).st_size < end:
            raise ValueError("size")
        frames = _owned(self._mapped(descriptor, end), dtype, shape, offset)
        self._trim(link, job.slot)
        return frames

    def _trim(self, link: ChildLink, slot: int) -> None:
        for descriptor in (link.inputs[slot], link.outputs[slot]):
            known = self._maps.get(descriptor)
            if known is not None and len(known) > _KEEP_BYTES:
                known.madvise(mmap.MADV_REMOVE, _KEEP_BYTES, len(known) - _KEEP_BYTES)


def _owned(
    buffer: bytes | mmap.mmap, dtype: np.dtype[Any], shape: tuple[int, ...], offset: int
) -> np.ndarray:
    """Copy an array out of a buffer, into native byte order."""
    view = np.frombuffer(buffer, dtype, math.prod(shape), offset).reshape(shape)
    return view.astype(dtype.newbyteorder("="), copy=True)


_decoders: dict[tuple[int, DecodeLimits], PixelDecoder] = {}
_decoders_lock = threading.Lock()


def process_decoder(limits: DecodeLimits | None = None) -> PixelDecoder:
    """Return this process's decoder for these limits; its child ends with the process."""
    key = (os.getpid(), limits or DecodeLimits())
    with _decoders_lock:
        found = _decoders.get(key)
        if found is None:
            _decoders.clear()
            found = _decoders[key] = PixelDecoder(key[1])
        return found
