"""What the README promises is what the code does."""

import re
import subprocess
import sys
from pathlib import Path

from medray.datasets.conformity import FLAGS
from medray.datasets.layouts import LAYOUTS
from medray.errors import REASONS
from medray.tasks import TASKS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_reason_table_is_the_closed_list():
    for code, reason in REASONS.items():
        assert f"| `{code}` | {reason.stage} | {reason.meaning} | {reason.mend} |" in README


def test_the_table_of_flags_is_the_closed_list():
    for flag, meaning in FLAGS.items():
        assert f"| `{flag}` | {meaning} |" in README


def test_every_layout_and_folder_is_named():
    for name in LAYOUTS:
        assert f"`{name}`" in README
    for folder in (ROOT / "medray").iterdir():
        if folder.is_dir() and folder.name not in {"__pycache__", "nn", "losses", "metrics"}:
            assert f"  {folder.name}/" in README


def test_commands_of_the_readme_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`?make ([a-z]+)", README)) <= targets
    for verb in set(re.findall(r"^medray ([a-z]+)", README, re.MULTILINE)):
        command = [sys.executable, "-m", "medray.cli", verb, "--help"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert "Example:" in done.stdout


def test_ci_runs_the_readmes_test_command():
    assert "\nmake test\n" in (ROOT / ".ci" / "run").read_text()
    assert "make test " in README


def test_nothing_names_a_machine_or_a_registry():
    hosts = re.compile(r"pypi\.org|files\.pythonhosted|deb\.debian|registry\.npmjs|/work/|/root/")
    listing = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=True
    )
    for name in listing.stdout.split():
        path = ROOT / name
        if path.suffix in {".py", ".md", ".toml", ".lock", ".yaml", ".json", ""} and path.is_file():
            if path == Path(__file__):
                continue
            assert not hosts.search(path.read_text(errors="ignore")), name


def test_info_answers_at_once_and_loads_neither_ray_nor_torch():
    probe = "import sys; from medray import cli; cli.run(['info']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    *tasks, modules = done.stdout.splitlines()
    assert [line.strip() for line in tasks[1:]] == list(TASKS)
    assert not {"ray", "torch", "pydicom", "monai"} & set(modules.split())
