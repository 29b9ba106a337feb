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
import json
import os
import resource
import select
import signal
import sys
import types

from medray.dicom.decode_wire import ChildSetup, send_line

# pydicom tries these at import: GDCM aborts on hostile bytes, the others cost time and talk HTTP.
_BLOCKED = ("gdcm", "PIL", "pylibjpeg", "openjpeg", "libjpeg", "rle", "jpeg_ls", "pyjpegls",
            "requests", "urllib3", "tqdm", "ssl", "_ssl")  # fmt: skip
_PR_SET_PDEATHSIG = 1


def block_imports() -> None:
    """Keep what a decoder does not need out of this process."""
    for name in _BLOCKED:
        sys.modules[name] = None  # type: ignore[assignment]
    sys.modules["urllib.request"] = types.ModuleType("urllib.request")


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
                os.waitpid(worker, 0)
                os._exit(0)
    finally:
        os.close(handle)


def supervise(setup: ChildSetup) -> None:
    """Keep a worker alive until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    gc.disable()  # a third of the start; the freeze below keeps forks from copying
    block_imports()
    from medray.dicom.decode_worker import Worker

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
                Worker(setup, epoch).run()
            finally:
                os._exit(0)
        status = _watch(worker, setup.lifeline, epoch, parent)
        epoch += 1
        signal_number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        send_line(setup.reply, json.dumps({"epoch": epoch, "signal": signal_number}).encode())


if __name__ == "__main__":
    supervise(ChildSetup(**json.loads(sys.argv[1])))
