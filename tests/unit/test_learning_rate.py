"""Schedules against torch's own."""

import pytest
import torch

from medray.engine.learning_rate import LearningRate
from medray.learning import Objective, Schedule


def _optimizer(lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)


def _rate(schedule: Schedule, num_steps: int = 20, mode: str = "max") -> LearningRate:
    objective = Objective("dice", mode)  # type: ignore[arg-type]
    return LearningRate(
        schedule=schedule, objective=objective, num_steps=num_steps, base_lrs=(0.1,)
    )


def test_one_cycle_is_torchs() -> None:
    optimizer = _optimizer(0.1)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.1, total_steps=20, pct_start=0.3, cycle_momentum=False
    )
    ours = _rate(Schedule(kind="one_cycle", warmup_share=0.3))
    for step in range(20):
        assert ours.rates(step, 0)[0] == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        if step < 19:
            theirs.step()


def test_cosine_is_torchs() -> None:
    optimizer = _optimizer(0.1)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20, eta_min=0.01)
    ours = _rate(Schedule(kind="cosine", floor=0.01))
    for step in range(20):
        assert ours.rates(step, 0)[0] == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        theirs.step()


def test_step_is_torchs() -> None:
    optimizer = _optimizer(0.1)
    theirs = torch.optim.lr_scheduler.StepLR(optimizer, step_size=3, gamma=0.5)
    ours = _rate(Schedule(kind="step", every=3, factor=0.5))
    for epoch in range(10):
        assert ours.rates(0, epoch)[0] == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize("mode", ["max", "min"])
def test_plateau_is_torchs_without_its_threshold(mode: str) -> None:
    optimizer = _optimizer(0.1)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, mode=mode, factor=0.1, patience=2, cooldown=1, min_lr=1e-4, threshold=0.0
    )
    ours = _rate(
        Schedule(kind="plateau", factor=0.1, patience=2, cooldown=1, floor=1e-4), mode=mode
    )
    values = [0.1, 0.2, 0.2, 0.15, 0.1, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.2, 0.2, 0.2, 0.2, 0.2, 0.1]
    for epoch, value in enumerate(values):
        theirs.step(value)
        ours.saw(value)
        assert ours.rates(0, epoch)[0] == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)


def test_plateau_goes_on_from_a_checkpoint() -> None:
    schedule = Schedule(kind="plateau", factor=0.5, patience=1)
    whole, first, second = _rate(schedule), _rate(schedule), _rate(schedule)
    for value in (0.3, 0.2, 0.1):
        whole.saw(value)
        first.saw(value)
    second.restore(first.state())
    for value in (0.1, 0.1, 0.4, 0.1, 0.1):
        whole.saw(value)
        second.saw(value)
        assert second.rates(0, 0) == whole.rates(0, 0)


def test_warm_up_rises_in_a_line_to_the_full_rate() -> None:
    ours = _rate(Schedule(warmup_steps=10))
    rates = [ours.rates(step, 0)[0] for step in range(12)]
    assert rates[0] == pytest.approx(1e-4)
    assert rates[5] == pytest.approx(0.1 * (0.001 + 0.999 * 0.5))
    assert rates[10:] == [0.1, 0.1]
