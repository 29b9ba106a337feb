"""Temporary folders of processes."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from medray.service.scratch import scratch_folder


def test_what_dead_processes_left_is_removed_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    mine = Path(scratch_folder())
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"],
                           capture_output=True, text=True, check=True)  # fmt: skip
    dead = tmp_path / f"medray-scratch-{ended.stdout.strip()}-x"
    other = tmp_path / "medray-scratch-no-number"
    for folder in (dead, other):
        folder.mkdir()
        (folder / "upload.zip").write_bytes(b"x")
    (mine / "kept").write_bytes(b"x")
    again = Path(scratch_folder())
    assert not dead.exists()
    assert other.exists()
    assert (mine / "kept").exists()
    assert again != mine
    assert f"-{os.getpid()}-" in again.name
    assert again.stat().st_mode & 0o077 == 0
