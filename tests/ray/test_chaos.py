"""A worker and a driver are killed in mid-work; the result is that of a quiet run.

`make chaos` does the same with 20 kills each.
"""

import json

import pytest

from medray.engine.chaos import chaos

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.chaos]


@pytest.mark.parametrize(("stage", "target"), [("convert", "worker"), ("prepare", "driver")])
def test_a_kill_changes_nothing(tmp_path, stage, target):
    summary = chaos(
        (stage,),
        str(tmp_path),
        kills=1,
        seed=1,
        task="pancreas_segmentation",
        targets=(target,),
        quiet=True,
    )
    assert json.loads((tmp_path / "chaos.json").read_text()) == summary
    (outcome,) = summary["outcomes"]
    assert outcome["num_kills"] == 1, "the kill did not land in mid-work"
    assert outcome["num_different"] == 0, outcome
    assert outcome["num_redone"] == 0, outcome
    assert outcome["num_temps"] == 0, outcome
    if target == "driver":
        assert outcome["num_runs"] == outcome["num_kills"] + outcome["num_rounds"]
