"""Kills in the middle of a training: a worker, the driver, and rank 0 while it writes.

One training is hit in all three ways, one after the other, and goes on to its end; its weights and
its losses must be those of a training that nobody disturbed. Every process that is killed here was
started here: the ranks are found below our own child, never by name on the machine.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from medray.engine.checkpoint import name_of

TARGETS = ("worker", "checkpoint", "driver")
_DEADLINE_S = 300.0
_LOOK_S = 0.02
# Between a checkpoint's first file and its marker lie a few milliseconds.
_LOOK_CLOSELY_S = 0.0005
_TRIES = 20


class HurtTraining:
    """`medray train` as a process of its own, with its own local Ray.

    Attributes:
        out: the training's output.
        num_runs: drivers that were started.
    """

    def __init__(self, arguments: Sequence[str], out: Path) -> None:
        self.out = out
        self.num_runs = 0
        self._command = [sys.executable, "-m", "medray.cli", "train", *arguments]
        self._command += ["--out", str(out), "--quiet"]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the driver, or start it again."""
        environment = {**os.environ, "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3"}
        self._process = subprocess.Popen(  # noqa: S603
            self._command, env=environment, start_new_session=True
        )
        self.num_runs += 1

    def finish(self) -> None:
        """Wait for the end.

        Raises:
            RuntimeError: it failed.
        """
        code = self._running().wait(timeout=_DEADLINE_S)
        if code != 0:
            raise RuntimeError(f"the training ended with exit code {code}")

    def hit(self, target: str) -> str:
        """Kill `worker`, `checkpoint` or `driver`; return when, in finished epochs."""
        return {
            "worker": self._kill_worker,
            "checkpoint": self._kill_in_checkpoint,
            "driver": self._kill_driver,
        }[target]()

    def weights_sha256(self) -> str:
        """Return the hash that the model package states."""
        facts = json.loads((self.out / "model" / "model.json").read_text())
        return str(facts["weights_sha256"])

    def losses(self) -> list[tuple[int, str, float]]:
        """Return (epoch, split, loss) of the whole training."""
        rows = map(json.loads, (self.out / "metrics.jsonl").read_text().splitlines())
        return [(r["epoch"], r["split"], r["value"]) for r in rows if r["name"] == "loss"]

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("the training was not started")
        return self._process

    def _ranks(self) -> list[psutil.Process]:
        """Return the train workers among this process's own descendants."""
        found = []
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self._running().pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if "RayTrainWorker" in " ".join(child.cmdline()):
                        found.append(child)
        return found

    def _until(self, condition: Callable[[], bool], *, every_s: float = _LOOK_S) -> None:
        deadline = time.monotonic() + _DEADLINE_S
        while not condition():
            if self._running().poll() is not None:
                raise RuntimeError("the training ended before it was killed")
            if time.monotonic() > deadline:
                raise RuntimeError("nothing happened that could be killed")
            time.sleep(every_s)

    def _finished_epochs(self) -> int:
        markers = (self.out / "checkpoints").glob("*/COMPLETE.json")
        return max((int(m.parent.name.rpartition("-")[2]) for m in markers), default=0)

    def _after_another_epoch(self) -> None:
        before = self._finished_epochs()
        self._until(lambda: self._finished_epochs() > before and bool(self._ranks()))

    def _kill_worker(self) -> str:
        self._after_another_epoch()
        _kill(self._ranks())
        return f"epoch {self._finished_epochs() + 1}"

    def _kill_in_checkpoint(self) -> str:
        """Kill the writing rank after a checkpoint's first file and before its marker."""
        for _ in range(_TRIES):
            self._until(lambda: bool(self._ranks()))
            ranks = self._ranks()
            torn = self.out / "checkpoints" / name_of(self._finished_epochs() + 1)
            first = torn / "state.json"
            self._until(first.exists, every_s=_LOOK_CLOSELY_S)
            with contextlib.suppress(psutil.NoSuchProcess):
                for rank in ranks:
                    rank.suspend()
                if not (torn / "COMPLETE.json").exists():
                    _kill(ranks)
                    # Gone on means: this checkpoint was made again, whole.
                    self._until((torn / "COMPLETE.json").exists)
                    return f"checkpoint {torn.name}"
                for rank in ranks:
                    rank.resume()
        raise RuntimeError("no checkpoint was ever caught half written")

    def _kill_driver(self) -> str:
        """Kill the driver; its ranks go with it, which is waited for; then start it again."""
        self._after_another_epoch()
        process, family = self._running(), self._ranks()
        process.send_signal(signal.SIGKILL)
        process.wait()
        _, alive = psutil.wait_procs(family, timeout=60)
        if any(rank.is_running() for rank in alive):
            raise RuntimeError("ranks outlived their driver")
        done = self._finished_epochs()
        self.start()
        return f"epoch {done + 1}"


def _kill(ranks: Sequence[psutil.Process]) -> None:
    for rank in ranks:
        with contextlib.suppress(psutil.NoSuchProcess):
            rank.send_signal(signal.SIGKILL)
