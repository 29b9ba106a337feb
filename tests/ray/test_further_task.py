"""A further system costs one folder and one registry line; every engine takes it as it is."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from medray import cli, tasks

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]
FOLDER = Path(__file__).parent.parent / "toy_task"


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    rows = []
    for number in range(40):
        label = number % 2
        values = rng.normal(150 if label else 90, 20, (20, 30)).clip(0, 255).astype(np.uint8)
        Image.fromarray(values).save(tmp_path / f"{number}.png")
        rows.append({"image": f"{number}.png", "label": label, "patient_id": f"P{number}"})
    (tmp_path / "datalist.json").write_text(json.dumps({"training": rows}))
    return tmp_path / "datalist.json"


def test_a_folder_and_a_registry_line_make_a_task(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    lines = sum(len(p.read_text().splitlines()) for p in FOLDER.glob("*.py"))
    assert lines <= 80
    monkeypatch.setitem(tasks.TASKS, "toy_brightness", "tests.toy_task.recipe")
    out = tmp_path / "run"
    words = ["run", "toy_brightness", "--data", str(photographs), "--out", str(out), "--json"]
    code = cli.run([*words, "--quiet"])
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert code == 0
    assert summary["metrics"]["auroc"] > 0.95
    assert summary["split"] == "test"
    results = pq.read_table(out / "predict" / "results.parquet").to_pylist()
    assert {row["label"] for row in results} == {"dark", "bright"}
