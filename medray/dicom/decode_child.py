"""The process that touches foreign pixels: `python -m medray.dicom.decode_child`.

A supervisor imports everything once and forks a worker, which parses and decodes; the supervisor
itself never sees foreign bytes. When a worker dies, by a native codec's abort or on the parent's
word, the next one is a fork away (milliseconds, where a new interpreter takes half a second).

Pipes carry JSON lines, shared memory carries bytes. A worker has a memory cap above what it had at
its start, no core dumps, no codec but ours, and dies with the supervisor; the supervisor dies with
the parent.
"""

import ctypes
import gc
import importlib
import io
import json
import mmap
import os
import resource
import select
import signal
import sys
import types
from dataclasses import dataclass
from typing import Any, Final

# pydicom tries these at import: GDCM aborts on hostile bytes, the others cost time and talk HTTP.
_BLOCKED: Final = ("gdcm", "PIL", "pylibjpeg", "openjpeg", "libjpeg", "rle", "jpeg_ls", "pyjpegls",
                   "requests", "urllib3", "tqdm", "ssl", "_ssl")  # fmt: skip
if __name__ == "__main__":
    gc.disable()  # a third of the start; the fork freezes what is left
    sys.modules.update(dict.fromkeys(_BLOCKED))  # type: ignore[arg-type]
    sys.modules["urllib.request"] = types.ModuleType("urllib.request")

import numpy as np
from pydicom.dataset import Dataset

from medray.dicom.dataset import open_dataset
from medray.dicom.decode_wire import ChildSetup, grow_memory_file, send_line, tables_to_json
from medray.dicom.header import InstanceHeader, parse_header
from medray.dicom.pixels import PixelElement, PixelLimits, decode_pixels, find_pixel_element
from medray.dicom.tables import LutTables, read_tables
from medray.errors import DataError

_PR_SET_PDEATHSIG = 1
_HEAD_BYTES = 64 << 10
_PIXEL_TAGS = (0x7FE00010, 0x7FE00008, 0x7FE00009)
# Deflated data may grow this much, or to the first limit if that is more: header and slack.
_MAX_DEFLATE_RATIO = 200
_MIN_DEFLATE_LIMIT = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedFile:
    """One file as the worker sees it."""

    header: InstanceHeader
    frames: np.ndarray
    tables: LutTables


def decode_file(data: memoryview, limits: PixelLimits, **options: Any) -> DecodedFile:
    """Parse and decode one DICOM file.

    Args:
        data: the file.
        limits: what it may unpack to.
        options: `allocate` of `decode_pixels`.

    Raises:
        DataError: one of the read and decode reasons.
        MemoryError: It needs more memory than the process may have.
    """
    dataset, element = _parse(data, limits)
    header = parse_header(dataset, has_pixels=element is not None)
    if element is None:
        raise DataError("no_pixels", "the object has no pixel data")
    frames = decode_pixels(dataset, header, element, limits=limits, **options)
    return DecodedFile(header=header, frames=frames, tables=read_tables(dataset, header))


def _parse(data: memoryview, limits: PixelLimits) -> tuple[Dataset, PixelElement | None]:
    """Parse up to the pixel element; the parser gets the file's head before all of it."""
    if b"1.2.840.10008.1.2.1.99" in bytes(data[:4096]):
        return _parse_deflated(data, limits)
    if len(data) > _HEAD_BYTES:
        try:
            found = _parse_part(data, _HEAD_BYTES)
        except DataError:
            found = None
        if found is not None and found[1] is not None:
            return found
    return _parse_part(data, len(data))


def _parse_part(data: memoryview, size: int) -> tuple[Dataset, PixelElement | None]:
    stream = io.BytesIO(data[:size])
    dataset, met = open_dataset(stream, stop_before_pixels=True)
    return dataset, find_pixel_element(data, stream.tell(), dataset) if met else None


def _parse_deflated(
    data: memoryview, limits: PixelLimits
) -> tuple[Dataset, PixelElement | None]:
    limit = max(_MIN_DEFLATE_LIMIT, _MAX_DEFLATE_RATIO * len(data))
    dataset, _ = open_dataset(
        io.BytesIO(data),
        stop_before_pixels=False,
        max_inflated_bytes=min(limit, limits.max_pixels_bytes + _MIN_DEFLATE_LIMIT),
    )
    for tag in _PIXEL_TAGS:
        if tag in dataset:
            value = dataset.get_item(tag).value
            if not isinstance(value, bytes):
                break
            return dataset, PixelElement(
                tag=tag, value=memoryview(value), declared_bytes=len(value), big_endian=False
            )
    return dataset, None


class _Worker:
    """Takes jobs from the control pipe until it closes."""

    def __init__(self, setup: ChildSetup, epoch: int) -> None:
        self._setup = setup
        self._epoch = epoch
        self._limits = PixelLimits(
            max_frame_bytes=setup.max_frame_bytes, max_pixels_bytes=setup.max_pixels_bytes
        )
        self._inputs: dict[int, mmap.mmap] = {}
        self._outputs: dict[int, mmap.mmap] = {}

    def run(self) -> None:
        """Answer jobs of this worker's epoch; older ones were meant for one that died."""
        pending = b""
        while chunk := os.read(self._setup.control, 1 << 16):
            *lines, pending = (pending + chunk).split(b"\n")
            for line in lines:
                job = json.loads(line)
                if job["epoch"] == self._epoch and not self._answer(job):
                    return

    def _answer(self, job: dict[str, Any]) -> bool:
        """Decode one job and reply; False where this process should not go on."""
        reply: dict[str, Any] = {"job": job["job"]}
        header = b""
        # A parent that is gone or asleep does not leave a hung codec behind.
        signal.setitimer(signal.ITIMER_REAL, job["seconds"])
        try:
            answer, header = self._decode(job["slot"], job["bytes"])
            reply |= answer
        except DataError as error:
            reply |= {"reason": error.reason, "detail": error.detail}
        except MemoryError:
            # After a failed allocation the heap and the codec's state are not to be trusted.
            reply |= {"reason": "decode_memory", "detail": "decoding needs more memory than the "
                      "limit", "last": True}  # fmt: skip
        except Exception as error:  # noqa: BLE001 - hostile headers raise anything
            reply |= {"reason": "unreadable", "detail": f"failed with {type(error).__name__}"}
        signal.setitimer(signal.ITIMER_REAL, 0)
        send_line(self._setup.reply, json.dumps(reply).encode() + b"\t" + header)
        return "last" not in reply

    def _decode(self, slot: int, size: int) -> tuple[dict[str, Any], bytes]:
        data = memoryview(self._input(slot, size))[:size]
        made: list[np.ndarray] = []

        def allocate(shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> np.ndarray:
            made.append(self._output(slot, shape, dtype))
            return made[-1]

        found = decode_file(data, self._limits, allocate=allocate)
        frames, source = found.frames, np.frombuffer(data, np.uint8)
        # What the file holds as it is stays there: the parent reads it from its own bytes.
        native = frames.flags.c_contiguous and np.may_share_memory(frames, source)
        if not native and not (made and frames is made[-1]):
            target = allocate(frames.shape, frames.dtype.newbyteorder("="))
            target[...] = frames
            frames = target
        answer = {
            "native": native,
            "offset": frames.ctypes.data - source.ctypes.data if native else 0,
            "dtype": frames.dtype.str,
            "shape": frames.shape,
            "tables": tables_to_json(found.tables),
        }
        return answer, found.header.to_json().encode()

    def _input(self, slot: int, size: int) -> mmap.mmap:
        known = self._inputs.get(slot)
        if known is None or len(known) < size:
            descriptor = self._setup.inputs[slot]
            known = mmap.mmap(descriptor, os.fstat(descriptor).st_size, prot=mmap.PROT_READ)
            self._inputs[slot] = known
        return known

    def _output(
        self, slot: int, shape: tuple[int, ...], dtype: np.dtype[np.generic]
    ) -> np.ndarray:
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        known = self._outputs.get(slot)
        if known is None or len(known) < size:
            self._outputs.pop(slot, None)
            descriptor = self._setup.outputs[slot]
            grow_memory_file(descriptor, size)
            try:
                known = mmap.mmap(descriptor, os.fstat(descriptor).st_size)
            except OSError:
                raise MemoryError from None
            self._outputs[slot] = known
        return np.ndarray(shape, dtype, buffer=known)


def _confine(supervisor: int, max_memory_bytes: int) -> None:
    """Bind the worker's life to the supervisor's, and its memory to the cap above its start."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != supervisor:
        os._exit(0)
    with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 - pathlib is not worth its import
        baseline = int(file.read().split()[0]) * resource.getpagesize()
    cap = baseline + max_memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (cap, cap))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _watch(worker: int, lifeline: int, epoch: int, parent: int) -> int:
    """Wait for the worker's end and return its wait status; kill it on the parent's word.

    Ends this process when the parent is gone.
    """
    poller = select.poll()
    handle = os.pidfd_open(worker)
    poller.register(handle, select.POLLIN)
    poller.register(lifeline, select.POLLIN | select.POLLHUP)
    try:
        while True:
            ready = dict(poller.poll(1000))
            if handle in ready:
                return os.waitpid(worker, 0)[1]
            orders = os.read(lifeline, 4096).split() if lifeline in ready else None
            # Another process may hold the pipe open past the parent's death.
            gone = orders == [] or os.getppid() != parent
            if gone or (orders and orders[-1] == b"%d" % epoch):
                os.kill(worker, signal.SIGKILL)
            if gone:
                os._exit(0)
    finally:
        os.close(handle)


def supervise(setup: ChildSetup) -> None:
    """Keep a worker alive until the parent is gone."""
    for name in setup.plugins:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    gc.enable()
    supervisor, parent, epoch = os.getpid(), os.getppid(), 1
    send_line(setup.reply, json.dumps({"epoch": epoch}).encode())
    while True:
        worker = os.fork()
        if worker == 0:
            try:
                os.close(setup.lifeline)
                _confine(supervisor, setup.max_memory_bytes)
                _Worker(setup, epoch).run()
            finally:
                os._exit(0)
        status = _watch(worker, setup.lifeline, epoch, parent)
        epoch += 1
        signal_number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        send_line(setup.reply, json.dumps({"epoch": epoch, "signal": signal_number}).encode())


if __name__ == "__main__":
    supervise(ChildSetup(**json.loads(sys.argv[1])))
