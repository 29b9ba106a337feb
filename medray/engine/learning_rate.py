"""The learning rate as a function of step and epoch, and of how the objective went."""

import math
from dataclasses import dataclass, field
from typing import Any

from medray.learning import Objective, Schedule

_WARMUP_START = 1e-3
# torch.optim.lr_scheduler.OneCycleLR's own: start at a 25th, end at 1e-4 of the start.
_ONE_CYCLE_START, _ONE_CYCLE_END = 1 / 25, 1e-4


@dataclass(slots=True)
class LearningRate:
    """Multiplier of each group's own learning rate.

    Attributes:
        schedule: the recipe's.
        objective: what `plateau` watches.
        num_steps: optimiser steps of the whole training.
    """

    schedule: Schedule
    objective: Objective
    num_steps: int
    base_lrs: tuple[float, ...]
    _plateau: dict[str, Any] = field(
        default_factory=lambda: {"factor": 1.0, "best": None, "bad": 0, "cooldown": 0}
    )

    def rates(self, step: int, epoch: int) -> list[float]:
        """Return each group's learning rate at an optimiser step."""
        return [float(self._rate(base, step, epoch)) for base in self.base_lrs]

    def _rate(self, base: float, step: int, epoch: int) -> float:
        plan = self.schedule
        warm = 1.0
        if step < plan.warmup_steps:
            warm = _WARMUP_START + (1 - _WARMUP_START) * step / plan.warmup_steps
        if plan.kind == "plateau":
            # torch lowers each rate to the floor, never a rate that lies below it already.
            return warm * max(base * float(self._plateau["factor"]), min(base, plan.floor))
        if plan.kind == "step":
            return warm * base * float(plan.factor ** (epoch // plan.every))
        if plan.kind == "cosine":
            share = min(1.0, step / max(1, self.num_steps))
            return warm * (plan.floor + (base - plan.floor) * (1 + math.cos(math.pi * share)) / 2)
        if plan.kind == "one_cycle":
            return warm * base * self._one_cycle(step)
        return warm * base

    def _one_cycle(self, step: int) -> float:
        up = self.schedule.warmup_share * self.num_steps - 1
        down = self.num_steps - 1
        low, end = _ONE_CYCLE_START, _ONE_CYCLE_START * _ONE_CYCLE_END
        if step <= up:
            return _cosine(low, 1.0, step / up if up > 0 else 1.0)
        return _cosine(1.0, end, min(1.0, (step - up) / max(1e-9, down - up)))

    def saw(self, value: float) -> None:
        """Take note of the objective after an epoch."""
        state, plan = self._plateau, self.schedule
        if self.objective.is_better(value, state["best"]):
            state["best"], state["bad"] = value, 0
        else:
            state["bad"] += 1
        if state["cooldown"] > 0:
            state["cooldown"] -= 1
            state["bad"] = 0
        if state["bad"] > plan.patience:
            state["factor"] *= plan.factor
            state["cooldown"], state["bad"] = plan.cooldown, 0

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must keep."""
        return dict(self._plateau)

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._plateau = dict(state)


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
