"""`make numbers`: measure every public number; resumable, raw results kept, tables written.

Each section is a command whose JSON is kept below --out; a section that is there is not run again.
"""

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from tests.benchmarks.conformity import table

ROOT = Path(__file__).parent.parent.parent
PHANTOMS = {
    "pancreas_segmentation": 40,
    "lung_classification": 120,
    "lung_detection": 100,
    "breast_roi": 40,
    "breast_classification": 120,
    "pneumonia_detection": 360,
    "pancreas_classification": 340,
}
# On the coarsest matrix a mass and a duct of equal volume are the same few voxels, and a small
# tumour is a few pixels.
PHANTOM_SIZES = {"pancreas_classification": "small", "lung_detection": "small"}
# Their tumours are a few voxels of a whole thorax at this size.
PHANTOM_SETTINGS = {"lung_classification": ["--set", "view=box"]}
# Shapes of 0 and 255 in place of HU, and two classes of their own.
ADRENAL = (
    "view=thorax", "class_names=normal,hyperplasia", "window_low_hu=0", "window_high_hu=255",
    "epochs=15", "lr=2e-3",
)  # fmt: skip
# The same slices are learned and judged: whether boxes, pixels and network fit together at all.
OVERFIT = (
    "split=none", "gates=off", "background_per_series=0", "size=256", "epochs=150", "mosaic=0",
    "batch_size=5",
)  # fmt: skip
# Chest radiographs through the mammogram's network: another body part, nothing but other data.
CHEST = ("foreground=whole", "height=64", "width=64", "epochs=20")
# Points of thresholds, suppression and box size, judged on predictions that are made once.
POINTS = {"pancreas_segmentation": 200, "lung_classification": 200, "lung_detection": 200}
# Eight small trainings, once one after the other and once two at a time, one thread each.
TRIALS = "--tiny --set view=box --epochs 12 --search random --trials 8 --stop none --space lr"
# Steps of the full networks, fed for real and from resident tensors, where a GPU is at hand.
GPU_STEPS = ("pancreas_segmentation", "breast_classification", "pneumonia_detection")
# Sections that are no command of the user's.
_MODULES = {
    "conformity": "tests.benchmarks.conformity",
    "serve-trials": "tests.benchmarks.service",
}
CORPUS = ("broken", "transfer_syntaxes", "ct_series", "masks")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="numbers-out")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--only", default="", help="sections whose names start so")
    options = parser.parse_args()
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    data = os.environ.get("MEDRAY_TEST_DATA")
    if data is None:
        sys.stdout.write("MEDRAY_TEST_DATA is not set: the numbers of real files are left out\n")
    sections = engine_sections(options.kills)
    sections = {name: [*words, "--out", str(out / name)] for name, words in sections.items()}
    sections |= learning_sections(out, data) | tuning_sections(out)
    for folder in CORPUS if data else ():
        source = str(Path(data) / folder)
        sections[f"corpus-{folder}"] = ["convert", source, "--out", str(out / f"corpus-{folder}")]
    sections["conformity"] = ["--size", "tiny", "--cases", "48", "--seed", "700"]
    sections["serve-trials"] = ["--out", str(out / "serve-trials")]
    chosen = {name: words for name, words in sections.items() if name.startswith(options.only)}
    failed = [name for name, words in chosen.items() if not section(out, name, words)]
    write_tables(out)
    return 1 if failed else 0


def engine_sections(kills: int) -> dict[str, list[str]]:
    """Return what is measured of the engine itself, and what is killed; --out to be added."""
    sections = {f"bench-{stage}": ["bench", stage] for stage in ("index", "convert", "prepare")}
    sections["bench-train"] = ["bench", "train", "--task", "pancreas_segmentation", "--small"]
    sections |= {f"bench-{stage}": ["bench", stage] for stage in ("predict", "serve")}
    for stage, number in (("convert", kills), ("prepare", kills), ("train", 3)):
        sections[f"chaos-{stage}"] = ["chaos", stage, "--kills", str(number)]
    for task in GPU_STEPS if shutil.which("nvidia-smi") else ():
        sections[f"bench-train-gpu-{task}"] = ["bench", "train", "--task", task, "--gpu"]
    return sections


def on_gpu(words: list[str], *, epochs: int) -> list[str]:
    """Return the same run on a GPU and for longer, beside the one on two cores."""
    at = words.index("--out") + 1
    longer = [f"epochs={epochs}" if word.startswith("epochs=") else word for word in words]
    return [*longer[:at], f"{words[at]}-gpu", *longer[at + 1 :], "--gpu"]


def learning_sections(out: Path, data: str | None) -> dict[str, list[str]]:
    """Return what is learned: phantoms with the small presets, and real shapes where at hand."""
    sections = {}
    for task, patients in PHANTOMS.items():
        made, done = str(out / f"phantom-{task}"), str(out / f"learn-{task}")
        size = PHANTOM_SIZES.get(task, "tiny")
        phantom = ["phantom", task, "--out", made, "--patients", str(patients), "--size", size]
        sections[f"learn-{task}-phantom"] = phantom
        more = PHANTOM_SETTINGS.get(task, [])
        sections[f"learn-{task}"] = ["run", task, "--data", made, "--out", done, "--tiny", *more]
    if data:
        shapes = str(Path(data) / "cls3d" / "adrenalmnist3d_64" / "datalist.json")
        done = str(out / "learn-adrenal")
        settings = [word for setting in ADRENAL for word in ("--set", setting)]
        words = ["run", "lung_classification", "--data", shapes, "--out", done, "--tiny", *settings]
        sections["learn-adrenal"] = words
        if shutil.which("nvidia-smi"):
            sections["learn-adrenal-gpu"] = on_gpu(words, epochs=40)
        sections |= real_images(out, Path(data))
    return sections


def tuning_sections(out: Path) -> dict[str, list[str]]:
    """Return the sweeps; they follow the trainings whose data and models they take."""
    sections = {}
    for task, points in POINTS.items():
        done = out / f"learn-{task}"
        words = ["tune", task, "--inference", "--model", str(done / "train")]
        words += ["--data", str(done / "prepare"), "--search", "random", "--trials", str(points)]
        sections[f"tune-points-{task}"] = [*words, "--out", str(out / f"tune-points-{task}")]
    prepared = str(out / "learn-lung_classification" / "prepare")
    for number in (1, 2):
        name = f"tune-concurrent-{number}"
        words = ["tune", "lung_classification", "--data", prepared, *TRIALS.split()]
        sections[name] = [*words, "--concurrent", str(number), "--out", str(out / name)]
    return sections


def real_images(out: Path, data: Path) -> dict[str, list[str]]:
    """Return what is learned of real CT slices and of real radiographs."""
    lung = str(data / "ct_series" / "lung_pet_ct_dx_A0001")
    chest = data / "cxr" / "nih1000_64px"
    labels = out / "nih" / "datalist.json"
    labels.parent.mkdir(exist_ok=True)
    labels.write_text(nih_datalist(chest))
    jobs = {
        "learn-overfit": ("lung_detection", lung, OVERFIT, []),
        "learn-chest": ("breast_classification", str(chest), CHEST, ["--labels", str(labels)]),
    }
    return {
        name: [
            "run", task, "--data", source, *more, "--out", str(out / name), "--tiny",
            *(word for setting in settings for word in ("--set", setting)),
        ]
        for name, (task, source, settings, more) in jobs.items()
    }  # fmt: skip


def nih_datalist(folder: Path) -> str:
    """Return the radiographs and their labels as a datalist; medray makes the split."""
    with (folder / "labels.csv").open() as lines:
        rows = [
            {"image": row["file"], "label": int(row["abnormal"]), "patient_id": row["patient_id"]}
            for row in csv.DictReader(lines)
        ]
    return json.dumps({"training": rows})


def section(out: Path, name: str, words: list[str]) -> bool:
    """Run one command unless its result is kept; keep its summary with the command."""
    kept = out / f"{name}.json"
    if kept.exists():
        sys.stdout.write(f"{name}: kept\n")
        return True
    module = _MODULES.get(name, "medray.cli")
    command = [sys.executable, "-m", module, *words, "--json", "--quiet"]
    began = time.monotonic()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, check=False)
    seconds = time.monotonic() - began
    sys.stdout.write(f"{name}: exit {done.returncode} in {seconds:.0f} s\n")
    if done.returncode not in (0, 4):
        return False
    summary = json.loads(done.stdout.splitlines()[-1])
    program = f"python -m {module}" if name in _MODULES else "medray"
    shown = f"{program} {' '.join(words)}".replace(os.environ.get("MEDRAY_TEST_DATA", "\0"), "DATA")
    record = {
        "command": shown,
        "seconds": round(seconds, 1),
        "summary": summary,
    }
    kept.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    return True


def write_tables(out: Path) -> None:
    """Write docs/performance.md and docs/results.md from what is kept."""
    records = {path.stem: json.loads(path.read_text()) for path in sorted(out.glob("*.json"))}
    benches = {name: r for name, r in records.items() if name.startswith("bench-")}
    if benches:
        (ROOT / "docs" / "performance.md").write_text(performance(benches))
    rest = {name: r for name, r in records.items() if not name.startswith("bench-")}
    if rest:
        (ROOT / "docs" / "results.md").write_text(results(rest))


def performance(records: dict[str, dict]) -> str:
    first = next(iter(records.values()))["summary"]
    machine, versions = first["machine"], first["versions"]
    size = machine["memory_bytes"] / 2**30
    lines = [
        "# Performance",
        "",
        "Medians of warm runs on generated data. Peers stand in the same run, take turns with us,",
        "and have the same threads, grid and dtype; outputs are compared. Made by `make numbers`.",
        "",
        f"Machine: {machine['cores']} cores of {machine['cpu']}, {size:.0f} GiB. ",
        f"Commit {first['commit'][:12]}. " + ", ".join(map(" ".join, versions.items())) + ".",
        "",
        "| what | ours s | peer | peer s | ratio | n | note |",
        "|---|---|---|---|---|---|---|",
    ]
    rows = [row for record in records.values() for row in record["summary"]["rows"]]
    lines += [f"| {' | '.join(performance_row(row))} |" for row in rows]
    lines += ["", "Commands:", ""]
    lines += [f"- `{record['command']}` ({record['seconds']:.0f} s)" for record in records.values()]
    return "\n".join(lines) + "\n"


def performance_row(row: dict) -> list[str]:
    peer = f"{row['peer_median_s']:.4f}" if row["peer_median_s"] else ""
    ratio = f"{row['ratio']:.2f}" if row["ratio"] else ""
    ours = f"{row['median_s']:.4f}"
    return [row["name"], ours, row["peer"], peer, ratio, str(row["n"]), row["note"]]


def results(records: dict[str, dict]) -> str:
    lines = ["# Results", "", "Made by `make numbers`; every row with its command.", ""]
    for name, record in records.items():
        lines += [f"## {name}", "", f"`{record['command']}` ({record['seconds']:.0f} s)", ""]
        kind = "phantom" if name.endswith("-phantom") else name.partition("-")[0]
        lines += _ROWS.get(kind, corpus_rows)(record)
        lines.append("")
    return "\n".join(lines)


def chaos_rows(record: dict) -> list[str]:
    lines = [
        "| stage | killed | kills | runs | where | differing outputs | redone | temps |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for item in record["summary"]["outcomes"]:
        where = ", ".join(
            f"{number} in {stage}" for stage, number in sorted(item["struck"].items())
        )
        cells = [item["stage"], item["target"], item["num_kills"], item["num_runs"], where]
        cells += [item["num_different"], item["num_redone"], item["num_temps"]]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def phantom_rows(record: dict) -> list[str]:
    summary = record["summary"]
    baseline = ", ".join(f"{name} {value:.3f}" for name, value in summary["baseline"].items())
    return [f"{summary['num_cases']} cases; threshold-and-blob baseline: {baseline}"]


def learning_rows(record: dict) -> list[str]:
    """Return the metrics with intervals over patients and the trivial baseline."""
    summary = record["summary"]
    where = Path(record["command"].partition("--out ")[2].split()[0])
    report = json.loads((ROOT / where / "evaluate" / "report.json").read_text())
    chosen = summary["hyperparameters"]
    seconds = ", ".join(f"{n} {stage['seconds']:.0f}" for n, stage in summary["stages"].items())
    learned = "split=none" in record["command"]
    seen = "the same that it was trained on: an overfit check" if learned else "unseen in training"
    lines = [
        *last_epoch(ROOT / where / "train"),
        f"Split {report['split']}, patients: {report['num_patients']}, {seen}.",
        f"Seed {chosen['seed']}, {chosen['epochs']} epochs. Seconds: {seconds}.",
        "",
        "| metric | value | 95 % interval | baseline |",
        "|---|---|---|---|",
    ]
    for name, found in report["metrics"].items():
        low, high = found["ci95"]
        beside = report["baseline"].get(name)
        lines.append(f"| {name} | {_n(found['value'])} | {_n(low)} to {_n(high)} | {_n(beside)} |")
    return lines


def last_epoch(trained: Path) -> list[str]:
    """Return what validation said at the last epoch, and which epoch was kept."""
    facts = json.loads((trained / "model" / "model.json").read_text())
    rows = map(json.loads, (trained / "metrics.jsonl").read_text().splitlines())
    wanted = ("val", facts["objective"])
    values = [(row["epoch"], row["value"]) for row in rows if (row["split"], row["name"]) == wanted]
    last, value = max(values)
    said = f"Validation {facts['objective']} at the last epoch ({last}): {_n(value)}"
    return [f"{said}; epoch {facts['epoch']} was kept.", ""]


def tuning_rows(record: dict) -> list[str]:
    """Return what a sweep chose, and the seconds of its stages without Ray's start."""
    summary = record["summary"]
    best, stages = summary["best"], summary["stages"]
    seconds = ", ".join(f"{name} {stage['seconds']:.0f}" for name, stage in stages.items())
    params = ", ".join(f"{name} {_short(value)}" for name, value in best["params"].items())
    number = best.get("num_points") or best["num_trials"]
    ends = best["ci95"] or (None, None)
    lines = [f"{number} points. Seconds: {seconds}.", ""]
    held = f"; of patients left out {_n(best['held_out'])}" if "held_out" in best else ""
    between = f"({_n(ends[0])} to {_n(ends[1])})"
    return [*lines, f"Best {best['metric']} {_n(best['value'])} {between}{held}: {params}"]


def serve_rows(record: dict) -> list[str]:
    """Show what a service bore; everything beside the latencies is what was done or seen."""
    summary = record["summary"]
    known = ("trial", "requests", "codes", "failed", "p50_ms", "p95_ms", "p99_ms")
    lines = [
        f"Commit {summary['commit'][:12]}, {summary['cores']} cores, clients on the same ones.",
        "",
        "| trial | requests | answers | p50 ms | p95 ms | p99 ms | meanwhile |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in summary["rows"]:
        answers = ", ".join(f"{count} x {code}" for code, count in row["codes"].items())
        more = ", ".join(f"{n} {v}" for n, v in row.items() if n not in known)
        times = " | ".join(f"{row[name]:g}" for name in known[4:])
        lines.append(f"| {row['trial']} | {row['requests']} | {answers} | {times} | {more} |")
    return lines


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _n(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def corpus_rows(record: dict) -> list[str]:
    counts = record["summary"]["counts"]
    names = ("inputs", "done", "skipped", "rejected")
    numbers = ", ".join(f"{counts[f'num_{name}']} {name}" for name in names)
    reasons = ", ".join(f"{reason} {n}" for reason, n in counts["rejected_by_reason"].items())
    return [f"{numbers}: {reasons}"]


def conformity_rows(record: dict) -> list[str]:
    rows = record["summary"]["rows"]
    seconds = max(row["seconds_each"] for row in rows if "seconds_each" in row)
    size = max(row["reference_bytes"] for row in rows if "reference_bytes" in row)
    said = f"At most {1000 * seconds:.0f} ms an image and {size} bytes in model.json."
    return [
        "Flagged: a score below 0.5. Without a shift these are false flags; real files follow.",
        said,
        "",
        *table(rows),
    ]


_ROWS = {
    "serve": serve_rows,
    "chaos": chaos_rows,
    "phantom": phantom_rows,
    "learn": learning_rows,
    "tune": tuning_rows,
    "conformity": conformity_rows,
}


if __name__ == "__main__":
    sys.exit(main())
