"""`medray chaos`: kill own workers and drivers at random moments; the result must not change.

Every process that is killed here was started here: the runs are children of this process, and their
Ray workers are found as descendants of them, never by name on the machine.
"""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from medray import storage
from medray.engine.chaos_train import TARGETS, HurtTraining

STAGES = ("convert", "prepare", "train")
# Short epochs, and enough of them: each kill costs one or two.
_EPOCHS = 40
_NOT_COMPARED = frozenset({"run.json", ".medray-lock"})
_PHANTOM = ("--patients", "16", "--seed", "7", "--size", "small")
_POLL_S = 0.1
_RUN_LIMIT_S = 900.0
# Chance of a kill at each look while tasks run; before that there is nothing to lose.
_STRIKE_SHARE = 0.25
_SHORT_STAGES = frozenset({"read_headers", "judge_series"})
_MAX_ROUNDS = 12


@dataclass(slots=True)
class Outcome:
    """What a stage went through.

    Attributes:
        num_kills: processes that were killed while the run was in mid-work.
        num_runs: drivers that were started.
        num_rounds: outputs that were made from nothing to the end.
        num_different: of these, how many differ from an undisturbed run, byte by byte.
        num_redone: finished items that were written again.
        num_temps: half-written files that were left behind.
    """

    stage: str
    target: str
    num_kills: int = 0
    num_runs: int = 0
    num_rounds: int = 0
    num_different: int = 0
    num_redone: int = 0
    num_temps: int = 0
    struck: dict[str, int] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Tell whether nothing was lost, changed or done twice."""
        lost = self.num_different + self.num_redone + self.num_temps
        return bool(self.num_kills) and not lost


def chaos(  # noqa: PLR0913 - one argument an option of the command
    stages: Sequence[str],
    out: str,
    *,
    kills: int,
    seed: int,
    task: str,
    settings: Sequence[str] = (),
    targets: Sequence[str] = ("worker", "driver"),
    quiet: bool = False,
) -> dict[str, Any]:
    """Run each stage undisturbed, with killed workers and with killed drivers; compare.

    Args:
        task: whose phantom the stages work on.
        settings: hyperparameters as `name=value` that make its training short.
    """
    root = Path(out)
    root.mkdir(parents=True, exist_ok=True)
    make = _phantom_command(root, task)
    outcomes: list[Outcome] = []
    for stage in stages:
        found = (
            _training_outcomes(root, task, settings, kills=kills)
            if stage == "train"
            else _stage_outcomes(root, make, stage, targets, kills=kills, seed=seed)
        )
        for outcome in found:
            outcomes.append(outcome)
            if not quiet:
                sys.stdout.write(f"{_line(outcome)}\n")
                sys.stdout.flush()
    summary = {
        "outcomes": [{**asdict(o), "passed": o.passed} for o in outcomes],
        "passed": all(o.passed for o in outcomes),
        "seed": seed,
    }
    storage.write_json(str(root / "chaos.json"), summary)
    return summary


def _stage_outcomes(
    root: Path,
    make: Callable[[str, Path], list[str]],
    stage: str,
    targets: Sequence[str],
    *,
    kills: int,
    seed: int,
) -> Iterable[Outcome]:
    """Yield what a stage of Ray Data went through, target by target."""
    clean = root / f"{stage}-clean"
    _run_to_end(make(stage, clean))
    expected = tree_digest(clean)
    for target in targets:
        rng = random.Random(f"{seed}-{stage}-{target}")  # noqa: S311 - moments, not secrets
        outcome = Outcome(stage=stage, target=target)
        while outcome.num_kills < kills and outcome.num_rounds < _MAX_ROUNDS:
            folder = root / f"{stage}-{target}-{outcome.num_rounds}"
            _disturbed(make(stage, folder), folder, outcome, kills, rng)
            outcome.num_rounds += 1
            outcome.num_different += tree_digest(folder) != expected
            outcome.num_temps += sum(1 for _ in folder.rglob("*.medray-tmp"))
        yield outcome


def _training_outcomes(
    root: Path, task: str, settings: Sequence[str], *, kills: int
) -> Iterable[Outcome]:
    """Return what trainings went through that were hit in every way, `kills` times each."""
    data = str(root / "train-data")
    chosen = [word for setting in ("gates=off", *settings) for word in ("--set", setting)]
    make = ["prepare", task, "--tiny", *chosen, "--data", str(root / "data"), "--out", data]
    _run_to_end([*make, "--quiet"])
    arguments = [task, "--tiny", *chosen, "--data", data, "--epochs", str(_EPOCHS)]
    return train_kills(arguments, root, kills=kills)


def train_kills(arguments: Sequence[str], root: Path, *, kills: int) -> list[Outcome]:
    """Train once undisturbed and `kills` times with a worker, a checkpoint and a driver killed.

    Args:
        arguments: of `medray train`, with epochs enough for three kills.
    """
    clean = HurtTraining(arguments, root / "train-clean")
    clean.start()
    clean.finish()
    outcomes = [Outcome(stage="train", target=target) for target in TARGETS]
    for number in range(kills):
        hurt = HurtTraining(arguments, root / f"train-{number}")
        hurt.start()
        for outcome in outcomes:
            where = hurt.hit(outcome.target)
            outcome.num_kills += 1
            outcome.struck[where] = outcome.struck.get(where, 0) + 1
        hurt.finish()
        same = hurt.weights_sha256() == clean.weights_sha256() and hurt.losses() == clean.losses()
        for outcome in outcomes:
            outcome.num_rounds += 1
            outcome.num_runs += hurt.num_runs
            outcome.num_different += not same
            outcome.num_temps += sum(1 for _ in hurt.out.rglob("*.medray-tmp"))
    return outcomes


def _line(outcome: Outcome) -> str:
    verdict = "same result" if outcome.passed else "FAILED"
    return (
        f"{outcome.stage}: {outcome.num_kills} {outcome.target}s killed in "
        f"{outcome.num_runs} runs {outcome.struck}: {verdict}, {outcome.num_redone} redone, "
        f"{outcome.num_temps} temporary files left"
    )


def _phantom_command(root: Path, task: str) -> Callable[[str, Path], list[str]]:
    """Return commands that work on a phantom made once below `root`."""
    data = root / "data"
    if not (data / "truth.json").exists():
        _run_to_end(["phantom", task, *_PHANTOM, "--out", str(data), "--quiet"])
    verbs = {
        "convert": ["convert", str(data), "--spacing", "1.0"],
        "prepare": ["prepare", task, "--data", str(data), "--set", "gates=off"],
    }
    return lambda stage, folder: [*verbs[stage], "--out", str(folder), "--quiet"]


def _start(arguments: Sequence[str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "medray.cli", *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)  # noqa: S603


def _run_to_end(arguments: Sequence[str]) -> None:
    process = _start(arguments)
    code = process.wait(timeout=_RUN_LIMIT_S)
    if code not in (0, 4):
        raise RuntimeError(f"medray {arguments[0]} ended with exit code {code}")


def _disturbed(
    arguments: Sequence[str], folder: Path, outcome: Outcome, kills: int, rng: random.Random
) -> None:
    """Run until done, killing at random moments while items are being finished."""
    while True:
        outcome.num_runs += 1
        before = _ledger(folder)
        process = _start(arguments)
        root = psutil.Process(process.pid)
        began = time.monotonic()
        while process.poll() is None:
            if time.monotonic() - began > _RUN_LIMIT_S:
                _end(process, root)
                raise RuntimeError(f"{outcome.stage} did not end by itself")
            if outcome.num_kills < kills and rng.random() < _STRIKE_SHARE:
                stage = _strike(process, root, outcome, rng, kills)
                if stage:
                    outcome.num_kills += 1
                    outcome.struck[stage] = outcome.struck.get(stage, 0) + 1
            time.sleep(_POLL_S)
        after = _ledger(folder)
        outcome.num_redone += sum(1 for name, stamp in before.items() if after.get(name) != stamp)
        if process.returncode in (0, 4):
            return
        if process.returncode != -signal.SIGKILL:
            raise RuntimeError(f"{outcome.stage} ended with exit code {process.returncode}")


def _workers(root: psutil.Process) -> list[psutil.Process]:
    """Return the Ray workers below a driver that are running a task."""
    found = []
    try:
        for child in root.children(recursive=True):
            title = " ".join(child.cmdline()[:1])
            # Tasks of Ray Data carry their operator's name; actors of Ray itself are not ours.
            if title.startswith("ray::MapBatches("):
                found.append(child)
    except psutil.Error:
        return found
    return found


def _strike(
    process: subprocess.Popen[bytes],
    root: psutil.Process,
    outcome: Outcome,
    rng: random.Random,
    kills: int,
) -> str:
    """Kill one busy worker, or the driver with all that hangs on it; return the stage that ran."""
    busy = _workers(root)
    if not busy or process.poll() is not None:
        return ""
    victim = rng.choice(busy)
    try:
        stage = str(victim.cmdline()[0]).partition("(")[2].rstrip(")")
        # The first stages are short; without a bound they would take every kill.
        bound = max(1, kills // 4) if stage in _SHORT_STAGES else kills
        if outcome.struck.get(stage, 0) >= bound:
            return ""
        if outcome.target == "worker":
            victim.kill()
        else:
            _end(process, root)
    except (psutil.Error, IndexError):
        return ""
    return stage


def _end(process: subprocess.Popen[bytes], root: psutil.Process) -> None:
    """SIGKILL a driver, then its orphans, so that they do not outlive the experiment."""
    try:
        orphans = root.children(recursive=True)
    except psutil.Error:
        orphans = []
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    for orphan in orphans:
        try:
            orphan.kill()
        except psutil.Error:
            continue
    psutil.wait_procs(orphans, timeout=10)


def _ledger(folder: Path) -> dict[str, int]:
    records = (folder / ".medray" / "ledger").rglob("*.json")
    return {path.name: path.stat().st_mtime_ns for path in records}


def tree_digest(folder: Path) -> str:
    """Return a hash over names and bytes of everything that a run leaves for its user."""
    digest = hashlib.sha256()
    for path in _compared(folder):
        digest.update(str(path.relative_to(folder)).encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _compared(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        hidden = ".medray" in path.relative_to(folder).parts
        if path.is_file() and path.name not in _NOT_COMPARED and not hidden:
            yield path
