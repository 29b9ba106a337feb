"""The parent's end of the decoder's child: start, pipes, memory files, end."""

import fcntl
import json
import math
import os
import select
import subprocess
import sys
import time
from typing import Any, Protocol

from medray.dicom.decode_wire import NUM_SLOTS
from medray.errors import ConfigError

# A supervisor that does not answer in this time is itself stuck or stopped.
_START_S = 60.0
_KILL_S = 5.0
_CLOSE_S = 2.0
_MAX_LINE_BYTES = 256 << 20
# Secrets of the environment are none of a decoder's business.
_KEPT_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR")


class ChildGoneError(Exception):
    """The whole child has ended, supervisor included."""


class _Limits(Protocol):
    @property
    def max_memory_bytes(self) -> int: ...
    @property
    def max_frame_bytes(self) -> int: ...
    @property
    def max_pixels_bytes(self) -> int: ...


class ChildLink:
    """One supervisor with its worker.

    Attributes:
        inputs, outputs: memory files, one of each per slot; sealed against shrinking, so that
            reading them can never fault in this process.
        epoch: number of the worker that is alive.
        expects_death: whether the worker has said that it will end.
    """

    def __init__(self, limits: _Limits, plugins: tuple[str, ...]) -> None:
        self._pid = os.getpid()
        self.inputs = tuple(_memory_file() for _ in range(NUM_SLOTS))
        self.outputs = tuple(_memory_file() for _ in range(NUM_SLOTS))
        self.expects_death = False
        control_read, self._control = os.pipe()
        self._reply, reply_write = os.pipe()
        lifeline_read, self._lifeline = os.pipe()
        setup = {
            "control": control_read, "reply": reply_write, "lifeline": lifeline_read,
            "inputs": self.inputs, "outputs": self.outputs, "plugins": plugins,
            "max_memory_bytes": limits.max_memory_bytes,
            "max_frame_bytes": limits.max_frame_bytes,
            "max_pixels_bytes": limits.max_pixels_bytes,
        }  # fmt: skip
        theirs = (control_read, reply_write, lifeline_read)
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [sys.executable, "-W", "ignore", "-m", "medray.dicom.decode_child", json.dumps(setup)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            pass_fds=(*theirs, *self.inputs, *self.outputs), env=_environment(),
        )  # fmt: skip
        for descriptor in theirs:
            os.close(descriptor)
        self._buffer = bytearray()
        self._poller = select.poll()
        self._poller.register(self._reply, select.POLLIN)
        self.epoch = 0
        self._await_start()

    def _await_start(self) -> None:
        try:
            started = self.receive(_START_S) is not None
        except ChildGoneError:
            started = False
        if not started:
            self.close()
            raise ConfigError(
                "the decoder's process does not start; "
                f"see what `{sys.executable} -m medray.dicom.decode_child '{{}}'` says"
            )

    def send(self, order: dict[str, Any]) -> None:
        """Hand a job to the worker; short enough to be written whole or not at all."""
        try:
            os.write(self._control, json.dumps(order).encode() + b"\n")
        except BrokenPipeError:
            raise ChildGoneError from None

    def receive(self, timeout_s: float) -> dict[str, Any] | None:
        """Return the next message, None if there is none in time.

        A message of the supervisor has `epoch` (the new worker's) and, after a death, `signal`; one
        of the worker has `job`, and as `header` the bytes after its tab.

        Raises:
            ChildGoneError: Nobody is there to send one.
        """
        deadline = time.monotonic() + max(0.0, timeout_s)
        scanned = 0
        while True:
            end = self._buffer.find(b"\n", scanned)
            if end >= 0:
                line, scanned = bytes(self._buffer[:end]), 0
                del self._buffer[: end + 1]
                message = _message(line)
                if message is None:
                    continue
                self.epoch = message.get("epoch", self.epoch)
                return message
            scanned = len(self._buffer)
            left_ms = math.ceil(1000 * max(0.0, deadline - time.monotonic()))
            if not self._poller.poll(left_ms):
                return None
            chunk = os.read(self._reply, 1 << 16)
            if not chunk or scanned > _MAX_LINE_BYTES:
                raise ChildGoneError
            self._buffer += chunk

    def kill_worker(self) -> bool:
        """Kill the worker and wait for its successor; False if the supervisor does not answer."""
        deadline = time.monotonic() + _KILL_S
        try:
            os.write(self._lifeline, b"%d\n" % self.epoch)
            while (left := deadline - time.monotonic()) > 0:
                message = self.receive(left)
                if message is not None and "epoch" in message:
                    self.expects_death = False
                    return True
        except (ChildGoneError, BrokenPipeError):
            pass
        return False

    def close(self) -> None:
        """End the child and free the memory files; in a forked copy, only let go of them."""
        if self._control < 0:
            return
        ours = (self._control, self._reply, self._lifeline, *self.inputs, *self.outputs)
        self._control = -1
        for descriptor in ours:
            os.close(descriptor)
        if self._pid != os.getpid():
            return
        try:
            self._process.wait(_CLOSE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _message(line: bytes) -> dict[str, Any] | None:
    """Read one line; what a worker left half-written when it died is none."""
    head, _, header = line.partition(b"\t")
    try:
        message = json.loads(head) if head else None
    except ValueError:
        return None
    if not isinstance(message, dict):
        return None
    message["header"] = header
    return message


def _memory_file() -> int:
    descriptor = os.memfd_create("medray-decode", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    return descriptor


def _environment() -> dict[str, str]:
    """Return what the child needs: our import path, one thread, and nothing secret."""
    kept = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
    paths = [os.path.abspath(path) for path in sys.path]  # noqa: PTH100 - "" is the working folder
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {**kept, **threads, "PYTHONPATH": os.pathsep.join(paths)}
