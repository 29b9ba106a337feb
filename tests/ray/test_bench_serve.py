"""`medray bench serve` and `bench predict`: the stages run, and their rows say what they must."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from medray.cli import app

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def rows_of(stage: str, out: Path) -> list[dict[str, Any]]:
    answer = CliRunner().invoke(app, ["bench", stage, "--small", "--quiet", "--out", str(out)])
    assert answer.exit_code == 0, answer.output
    rows: list[dict[str, Any]] = json.loads((out / "bench.json").read_text())["rows"]
    assert all(row["median_s"] > 0 for row in rows)
    assert all(" 0 failed" in f" {row['note']}" for row in rows if "failed" in row["note"])
    return rows


def test_the_service_is_measured_beside_its_peers(tmp_path: Path) -> None:
    rows = {(row["name"], row["peer"]): row for row in rows_of("serve", tmp_path)}
    plain = "plain FastAPI + uvicorn"
    stub = rows["network that does nothing, PNG of 64 KiB, 1 client", plain]
    assert stub["ratio"] > 0
    assert re.search(r"p95 [\d.]+ ms, p99 [\d.]+ ms, [\d.]+ requests/s", stub["note"])
    tail = rows["network that does nothing, PNG of 64 KiB, 1 client, p95", f"{plain}, p95"]
    assert tail["median_s"] >= stub["median_s"]
    assert rows["network that does nothing, PNG of 1 MB, 8 clients", plain]["n"] > 0
    pause = rows["network of 100 ms, PNG of 64 KiB, 1 client", plain]
    assert min(pause["median_s"], pause["peer_median_s"]) >= 0.1
    names = {name for name, _ in rows}
    assert any("of the bare network's throughput" in row["note"] for row in rows.values())
    assert "first answer from zero replicas of a network" in names
    assert {"from 1 to 2 replicas, 16 clients", "from 2 to none, idle"} <= names
    staged = next(row for (name, _), row in rows.items() if "folder to written mask" in name)
    shares = [int(share) for share in re.findall(r"\((\d+)%\)", staged["note"])]
    assert len(shares) == 6
    assert sum(shares) == pytest.approx(100, abs=3)
    assert sum("over HTTP" in name for name in names) == 2


def test_a_prediction_is_measured_stage_by_stage(tmp_path: Path) -> None:
    whole, steady, bare = rows_of("predict", tmp_path)
    assert "cases/s" in whole["note"]
    busy = re.search(r"computes for (\d+)% of an actor's busy time and (\d+)%", steady["note"])
    assert busy is not None
    assert 0 < int(busy[1]) <= 100
    assert steady["n"] == whole["n"] == bare["n"] == 3
    assert "network" in bare["note"]
