"""Workers and drivers are killed in mid-work; the result is that of a quiet run."""

import json

import pytest

from medray.engine.chaos import chaos

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.chaos]


@pytest.mark.parametrize("stage", ["convert", "prepare"])
def test_three_kills_of_workers_and_of_drivers_change_nothing(tmp_path, stage):
    summary = chaos(
        (stage,), str(tmp_path), kills=3, seed=1, task="pancreas_segmentation", quiet=True
    )
    assert json.loads((tmp_path / "chaos.json").read_text()) == summary
    for outcome in summary["outcomes"]:
        assert outcome["num_kills"] >= 1, "no kill landed in mid-work"
        assert outcome["identical"], outcome
        assert outcome["num_redone"] == 0, outcome
        assert outcome["num_temps"] == 0, outcome
    drivers = next(o for o in summary["outcomes"] if o["target"] == "driver")
    assert drivers["num_runs"] == drivers["num_kills"] + 1
