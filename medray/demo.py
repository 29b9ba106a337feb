"""`make demo`: phantom and, where it is at hand, real data, up to a trained model and its masks."""

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from medray import cli
from medray.engine.cluster import ray_session
from medray.verbs.options import EXIT_DONE, EXIT_REJECTS

_GOOD_CODES = frozenset({EXIT_DONE, EXIT_REJECTS})
_REAL_SERIES = "ct_series/lung_pet_ct_dx_A0001"


def main() -> int:
    """Run the demo and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="demo-out")
    root = Path(parser.parse_args().out)
    began = time.monotonic()
    root.mkdir(parents=True, exist_ok=True)
    _say("A local Ray starts; everything below runs as its tasks.")
    with ray_session(None, trains=True):
        codes = _phantoms(root) + _real(root) + _learn(root) + _tune(root) + _predict(root)
    codes += _serve(root)
    _finish(root, time.monotonic() - began)
    return 0 if set(codes) <= _GOOD_CODES else 1


def _phantoms(root: Path) -> list[int]:
    lung = str(root / "phantom-lung")
    _say("1. Synthetic patients, in the true layout of Lung-PET-CT-Dx, with a zoo of defects")
    codes = [_phantom("lung_detection", lung, "--defects")]
    _say("2. Index: which files are there, which series do they make, what is wrong with them")
    codes.append(_run("index", lung, "--out", str(root / "index")))
    _say("3. Convert: volumes of 1.5 mm as NIfTI, each read back by another reader")
    codes.append(_run("convert", lung, "--out", str(root / "nifti"), "--spacing", "1.5"))
    _say("4. Prepare: training examples with boxes")
    data = ("--data", lung, "--out", str(root / "prepared-lung"), "--tiny")
    return [*codes, _run("prepare", "lung_detection", *data)]


def _learn(root: Path) -> list[int]:
    _say("6. Learn: a model that draws the pancreas of synthetic patients it never saw")
    pancreas, out = str(root / "phantom-pancreas"), root / "pancreas"
    codes = [_phantom("pancreas_segmentation", pancreas, "--size", "tiny", patients=40)]
    data = ("--data", pancreas, "--out", str(out), "--tiny")
    codes.append(_run("run", "pancreas_segmentation", *data))
    codes.append(_run("info", str(out / "train")))
    report = out / "evaluate" / "report.json"
    if report.exists():
        dice = json.loads(report.read_text())["metrics"]["dice"]
        low, high = dice["ci95"]
        _say(f"Dice {dice['value']:.3f} ({low:.3f} to {high:.3f}) on unseen patients")
        sys.stdout.write(f"report: {out}/evaluate/report.html\n")
        sys.stdout.write(f"masks over the CT, with pictures: {out}/predict/*/prediction.nii.gz\n")
    return codes


def _tune(root: Path) -> list[int]:
    task, data = "pancreas_segmentation", str(root / "pancreas" / "prepare")
    if not (root / "pancreas" / "train" / "model").is_dir():
        return []
    _say("7. Tune: threshold and stray parts, on predictions that are made once")
    model = ("--model", str(root / "pancreas" / "train"), "--inference")
    codes = [_run("tune", task, "--data", data, "--out", str(root / "threshold"), *model)]
    _say("8. Tune: the weight of a pancreas voxel in the loss, a small training each")
    space = ("--search", "grid", "--stop", "none", "--space", "dice_weight=choice(1,7,10)")
    small = ("--tiny", "--epochs", "4", "--set", "loss=weighted_ce", "--concurrent", "2")
    out = ("--data", data, "--out", str(root / "dice-weight"))
    return [*codes, _run("tune", task, *out, *space, *small)]


def _predict(root: Path) -> list[int]:
    model, fresh, out = root / "pancreas" / "train", root / "phantom-fresh", root / "predicted"
    if not (model / "model").is_dir():
        return []
    _say("9. Predict: CTs of further patients; NIfTI, DICOM Segmentation, JSON and a picture each")
    made = ("--size", "tiny", "--seed", "11")
    codes = [_phantom("pancreas_segmentation", str(fresh), *made, patients=4)]
    codes.append(_run("predict", str(model), str(fresh), "--out", str(out)))
    sys.stdout.write(f"pictures: {out}/*/preview.png\n")
    return codes


def _serve(root: Path) -> list[int]:
    """Serve the model as a user would: a process of its own, a key, a call by curl."""
    from medray.service.keys import make_key

    model, fresh = root / "pancreas" / "train", root / "phantom-fresh"
    curl = shutil.which("curl")
    if curl is None or not (model / "model").is_dir():
        return []
    _say("10. Serve: the same model over HTTP, a key, and a call by curl")
    made = make_key(datetime.now(UTC), key_id="demo")
    keys = root / "keys.txt"
    keys.touch(mode=0o600)
    keys.write_text(made.line + "\n")
    series = sorted({path.parent for path in fresh.rglob("*.dcm")})[0]
    archive = shutil.make_archive(str(root / "series"), "zip", series)
    port = _free_port()
    command = [sys.executable, "-m", "medray.cli", "serve", f"pancreas={model}"]
    options = ["--keys", str(keys), "--port", str(port), "--max-replicas", "1"]
    sys.stdout.write(f"$ medray serve pancreas={model} --keys {keys} --port {port}\n")
    sys.stdout.flush()
    server = subprocess.Popen(  # noqa: S603 - our own command
        [*command, *options], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        sys.stdout.write(server.stdout.readline())
        where = f"http://127.0.0.1:{port}/v1/models/pancreas/predict"
        sys.stdout.write(f'$ curl -H "X-API-Key: $KEY" -F file=@{archive} {where}\n')
        call = [curl, "-sS", "--fail-with-body", "-H", "@-", "-F", f"file=@{archive}", where]
        # By stdin: arguments of a process are seen by all users of a machine.
        header = f"X-API-Key: {made.key}\n"
        done = subprocess.run(  # noqa: S603 - no shell, own arguments
            call, input=header, capture_output=True, text=True, check=False
        )
        sys.stdout.write(f"{done.stdout}{done.stderr}\n")
        return [EXIT_DONE if done.returncode == 0 else 1]
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _real(root: Path) -> list[int]:
    where = os.environ.get("MEDRAY_TEST_DATA", "../shared/data")
    source = Path(where) / _REAL_SERIES
    if not source.is_dir():
        _say("5. Real data: skipped, MEDRAY_TEST_DATA does not lead to any")
        return []
    _say("5. Real data: one patient of Lung-PET-CT-Dx (CC BY 4.0)")
    codes = [_run("index", str(source), "--out", str(root / "real-index"))]
    codes.append(_run("convert", str(source), "--out", str(root / "real-nifti")))
    # One patient cannot be split: all of it is training and validation, and no gate can pass.
    data = ("--data", str(source), "--out", str(root / "real-prepared"))
    loose = ("--set", "split=none", "--set", "gates=off")
    return [*codes, _run("prepare", "lung_detection", *data, *loose)]


def _phantom(task: str, out: str, *options: str, patients: int = 8) -> int:
    """Make a phantom unless an earlier demo left it; its files then count as unchanged."""
    if (Path(out) / "truth.json").exists():
        sys.stdout.write(f"{out} is there already\n")
        return EXIT_DONE
    return _run("phantom", task, "--out", out, "--patients", str(patients), *options)


def _run(*arguments: str) -> int:
    sys.stdout.write(f"$ medray {' '.join(arguments)}\n")
    sys.stdout.flush()
    code = cli.run(arguments)
    if code not in _GOOD_CODES:
        sys.stderr.write(f"demo: that command ended with exit code {code}\n")
    return code


def _finish(root: Path, seconds: float) -> None:
    _say(f"Done in {seconds:.0f} s; Ray has stopped. What is there now:")
    for path in sorted(root.glob("*/*")):
        if not path.name.startswith("."):
            many = f"  ({sum(1 for _ in path.rglob('*'))} files)" if path.is_dir() else ""
            sys.stdout.write(f"  {path}{many}\n")
    sys.stdout.write(
        "Look at the contact sheet and at report.html in pancreas/evaluate, threshold and "
        "dice-weight. Next, on your own data:\n"
        "  .venv/bin/medray index YOUR_DICOM --out index\n"
        "  .venv/bin/medray convert YOUR_DICOM --out nifti\n"
        "  .venv/bin/medray run TASK --data YOUR_DATA --out run\n"
        "  .venv/bin/medray serve NAME=run --no-auth      (a page for people is at its address)\n"
    )


def _say(line: str) -> None:
    sys.stdout.write(f"\n== {line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
