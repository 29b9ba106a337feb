"""House rules that a linter does not know: sizes, names, entry points, where Ray may appear."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = sorted((ROOT / "medray").rglob("*.py"))
JOBS = sorted((ROOT / "jobs").glob("*.py"))
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 40
MAX_JOB_LINES = 40
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}
# Frameworks are built on inheritance; everything else is composed.
ALLOWED_BASES = {
    "Exception", "MedrayError", "DataError", "Protocol", "Module", "Generic", "NamedTuple",
    "TypedDict", "Enum", "StrEnum", "RawIOBase", "BufferedIOBase", "HTMLParser", "Thread",
    "Callback", "TuneReportCallback",
}  # fmt: skip
FORBIDDEN_CALLS = {"eval", "exec", "extractall"}
FORBIDDEN_MODULES = {"pickle", "joblib", "dill", "marshal", "shelve"}


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def _code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    assert function.end_lineno is not None
    body = function.body
    length = function.end_lineno - function.lineno + 1
    first = body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
        length -= (first.end_lineno or first.lineno) - first.lineno + 1
    return length


@pytest.mark.parametrize("path", PACKAGE, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_stay_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_FILE_LINES
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    long = [
        f"{node.name} has {_code_lines(node)} lines"
        for node in ast.walk(_tree(path))
        if isinstance(node, functions) and _code_lines(node) > MAX_FUNCTION_LINES
    ]
    assert not long


def test_no_module_is_a_drawer_for_everything() -> None:
    assert not [p for p in PACKAGE if p.stem in FORBIDDEN_NAMES or p.parent.name in FORBIDDEN_NAMES]


@pytest.mark.parametrize("path", JOBS, ids=lambda p: p.name)
def test_jobs_are_thin(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_JOB_LINES


def test_only_the_engine_imports_ray() -> None:
    guilty = []
    for path in PACKAGE:
        if "engine" in path.relative_to(ROOT / "medray").parts:
            continue
        for node in ast.walk(_tree(path)):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            guilty += [f"{path.name}: {n}" for n in names if n.split(".")[0] == "ray"]
    assert not guilty


def test_no_engine_names_a_task() -> None:
    from medray.tasks import TASKS

    for path in (ROOT / "medray" / "engine").rglob("*.py"):
        strings = [n.value for n in ast.walk(_tree(path)) if isinstance(n, ast.Constant)]
        assert not [s for s in strings if isinstance(s, str) and s in TASKS], path.name


def test_every_task_folder_is_registered_and_named_like_its_recipe() -> None:
    from medray.tasks import TASKS, get_recipe

    folders = {p.parent.name for p in (ROOT / "medray" / "tasks").glob("*/recipe.py")}
    assert folders == set(TASKS)
    assert all(get_recipe(name).name == name for name in TASKS)


def test_classes_inherit_only_from_frameworks() -> None:
    guilty = []
    for path in PACKAGE:
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.ClassDef):
                for base in node.bases:
                    name = ast.unparse(base).split("[")[0].rpartition(".")[2]
                    if name not in ALLOWED_BASES:
                        guilty.append(f"{path.name}: {node.name}({name})")
    assert not guilty


def test_nothing_is_unpickled_evaluated_or_run_through_a_shell() -> None:
    guilty = []
    for path in PACKAGE:
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.Import | ast.ImportFrom):
                module = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
                if module and module.split(".")[0] in FORBIDDEN_MODULES:
                    guilty.append(f"{path.name}: import {module}")
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func).rpartition(".")[2]
                shell = any(k.arg == "shell" for k in node.keywords)
                if (name in FORBIDDEN_CALLS and ast.unparse(node.func) in FORBIDDEN_CALLS) or shell:
                    guilty.append(f"{path.name}: {name}")
    assert not guilty


COMMANDS = {
    "index": {"--out", "--address", "--json", "--quiet", "--debug"},
    "convert": {"--out", "--spacing", "--size", "--format", "--proof", "--no-proof", "--address",
                "--json", "--quiet", "--debug"},
    "prepare": {"--data", "--out", "--layout", "--labels", "--set", "--tiny", "--export",
                "--address", "--json", "--quiet", "--debug"},
    "train": {"--data", "--out", "--num-workers", "--gpu", "--epochs", "--weights", "--keep",
              "--set", "--tiny", "--address", "--json", "--quiet", "--debug"},
    "tune": {"--data", "--out", "--inference", "--model", "--trials", "--concurrent", "--space",
             "--search", "--stop", "--metric", "--time-budget", "--seed", "--num-workers", "--gpu",
             "--epochs", "--set", "--tiny", "--address", "--json", "--quiet", "--debug"},
    "evaluate": {"--data", "--out", "--split", "--gpu", "--address", "--json", "--quiet",
                 "--debug"},
    "run": {"--data", "--out", "--layout", "--labels", "--num-workers", "--gpu", "--epochs",
            "--set", "--tiny", "--address", "--json", "--quiet", "--debug"},
    "predict": {"--out", "--format", "--policy", "--only", "--compat", "--gpu", "--address",
                "--json", "--quiet", "--debug"},
    "serve": {"--host", "--port", "--keys", "--no-auth", "--allow-uri", "--max-body",
              "--max-unpacked", "--policy", "--jobs-dir", "--set", "--min-replicas",
              "--max-replicas", "--gpus", "--haproxy", "--compat-query-key", "--write-config",
              "--address", "--quiet", "--debug"},
    "phantom": {"--out", "--patients", "--seed", "--defects", "--size", "--json", "--quiet",
                "--debug"},
    "bench": {"--task", "--gpu", "--out", "--small", "--json", "--quiet", "--debug"},
    "chaos": {"--out", "--kills", "--seed", "--json", "--quiet", "--debug"},
    "key": {"--id", "--days", "--json"},
    "info": {"--json"},
}  # fmt: skip


def test_the_command_line_is_frozen() -> None:
    """Scripts of other people depend on it: a new option is a decision, not an accident."""
    import typer.main

    from medray.cli import app

    group = typer.main.get_command(app)
    found = {}
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        options = {
            o for p in command.params for o in (*p.opts, *p.secondary_opts) if o.startswith("-")
        }
        found[name] = options - {"--help"}
    assert found == COMMANDS
    assert {p.stem for p in JOBS} - {"__init__"} == set(COMMANDS)
