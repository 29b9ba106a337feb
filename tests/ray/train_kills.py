"""Kills in the middle of a training: its workers, its driver, and rank 0 while it writes."""

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

from medray.engine import checkpoint as cp

_DEADLINE_S = 180


class Training:
    """`medray train` as a process of its own, with its own local Ray."""

    def __init__(self, arguments: Sequence[str], out: Path) -> None:
        self.out = out
        self.command = [sys.executable, "-m", "medray.cli", "train", *arguments, "--out", str(out)]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        environment = {**os.environ, "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3"}
        self.process = subprocess.Popen(
            [*self.command, "--quiet"], env=environment, start_new_session=True
        )

    def wait(self) -> int:
        assert self.process is not None
        return self.process.wait(timeout=_DEADLINE_S)

    def ranks(self) -> list[psutil.Process]:
        """Return the train workers among this process's own descendants."""
        assert self.process is not None
        try:
            children = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        found = []
        for child in children:
            try:
                if "RayTrainWorker" in " ".join(child.cmdline()):
                    found.append(child)
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
        return found

    def until(self, condition: Callable[[], bool], *, every_s: float = 0.02) -> None:
        deadline = time.monotonic() + _DEADLINE_S
        while not condition():
            assert self.process is not None
            assert self.process.poll() is None, "the training ended before the kill"
            assert time.monotonic() < deadline, "nothing happened that could be killed"
            time.sleep(every_s)

    def finished_epochs(self) -> int:
        markers = (self.out / "checkpoints").glob("*/COMPLETE.json")
        return max((int(m.parent.name.rpartition("-")[2]) for m in markers), default=0)

    def kill_rank(self) -> int:
        """Kill one worker in the middle of an epoch; return how many epochs were done."""
        before = self.finished_epochs()
        self.until(lambda: self.finished_epochs() > before and bool(self.ranks()))
        done = self.finished_epochs()
        _kill(self.ranks())
        return done

    def kill_in_checkpoint(self) -> str:
        """Kill the writing rank between a checkpoint's first file and its marker.

        Returns:
            The name of the checkpoint that was left without its marker.
        """
        for _ in range(20):
            self.until(lambda: bool(self.ranks()))
            ranks = self.ranks()
            before = self.finished_epochs()
            torn = self.out / "checkpoints" / cp.name_of(before + 1)
            self.until(lambda torn=torn: (torn / "state.json").exists(), every_s=0.0005)
            with contextlib.suppress(psutil.NoSuchProcess):
                for rank in ranks:
                    rank.suspend()
                if not (torn / "COMPLETE.json").exists():
                    _kill(ranks)
                    return torn.name
                for rank in ranks:
                    rank.resume()
        raise AssertionError("no checkpoint was ever caught half written")

    def kill_driver(self) -> int:
        """Kill the driver; its ranks go with it, which is waited for (Ray's agents take longer)."""
        before = self.finished_epochs()
        self.until(lambda: self.finished_epochs() > before)
        assert self.process is not None
        family = self.ranks()
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        _, alive = psutil.wait_procs(family, timeout=60)
        names = [" ".join(process.cmdline())[:80] for process in alive if process.is_running()]
        assert not alive, f"outlived their driver: {names}"
        return self.finished_epochs()


def _kill(ranks: Sequence[psutil.Process]) -> None:
    for rank in ranks:
        with contextlib.suppress(psutil.NoSuchProcess):
            rank.send_signal(signal.SIGKILL)


def weights_sha256(out: Path) -> str:
    """Return the hash that the model package states."""
    return str(json.loads((out / "model" / "model.json").read_text())["weights_sha256"])
