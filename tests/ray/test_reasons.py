"""Every reason code of reading, decoding, volumes, labels, gates and stores, by real files."""

import ast
import json
import resource
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from pydicom.encaps import encapsulate

from medray import cli
from medray.errors import REASONS
from medray.formats.images import write_png
from medray.phantoms.series import SeriesSpec, known_volume, write_ct_series
from medray.tasks import get_recipe

# The one that tests/ray/poison_worker.py takes over; importing it here would poison this process.
OBEYED_SYNTAX = "1.2.840.10008.1.2.4.80"

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("poisoned_ray")]
MODEL_STAGE = {name for name, reason in REASONS.items() if reason.stage == "model"}


@pytest.fixture(scope="module")
def poisoned_ray() -> Iterator[None]:
    """Local Ray whose workers decode one encoding with a codec that does what a frame says."""
    import ray

    from medray.engine.cluster import WORKER_ENVIRONMENT

    root = str(Path(__file__).parents[2])
    ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=256 << 20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env={
            "env_vars": {**WORKER_ENVIRONMENT, "PYTHONPATH": root},
            "worker_process_setup_hook": "tests.ray.poison_worker.setup",
        },
    )
    yield
    ray.shutdown()


def medray(*arguments: object) -> int:
    return cli.run([*map(str, arguments), "--quiet"])


def reasons_of(out: Path) -> set[str]:
    return set(pq.read_table(out / "rejected.parquet")["reason"].to_pylist())


# Series: index, then perhaps a change on disk, then convert ----------------------------------

SHAPE = (5, 24, 20)


def series(folder: Path, **more: object) -> list[Path]:
    spec = SeriesSpec(seed=len(folder.name), name=folder.name, study_uid=f"1.2.{hash_of(folder)}")
    return write_ct_series(folder, known_volume(SHAPE), replace(spec, **more))


def hash_of(folder: Path) -> int:
    return int.from_bytes(folder.name.encode()[:6], "big")


def obeying(folder: Path, deed: str) -> None:
    """A series with one frame that makes the decoder's process misbehave."""

    def edit(dataset, k):
        frame = f"{deed if k == 2 else 'nothing'}:".encode()
        dataset.PixelData = encapsulate([frame + b"\0" * (len(frame) % 2)])

    series(folder, syntax=OBEYED_SYNTAX, edit=edit)


def small_matrix(folder: Path) -> None:
    """Two slices of another matrix than the rest of their series."""
    person = {"PatientID": "one"}
    series(folder, series_uid="1.2.77", tags=person)
    odd = SeriesSpec(
        seed=3, tags=person, name="odd", study_uid=f"1.2.{hash_of(folder)}", series_uid="1.2.77",
        file_pattern="2-{number}.dcm", leave_out=(2, 3, 4),
    )  # fmt: skip
    write_ct_series(folder, known_volume((5, 12, 10)), odd)


BEFORE: dict[str, Callable[[Path], object]] = {
    "checksum_mismatch": series,
    "source_unavailable": series,
    "truncated": series,
    "decoder_crashed": lambda folder: obeying(folder, "abort"),
    "decode_timeout": lambda folder: obeying(folder, "hang"),
    "decode_memory": lambda folder: obeying(folder, "claim"),
    "mixed_size": small_matrix,
    "nothing_wrong": series,
}


def other_position(path: Path) -> None:
    """Move a slice by changing digits: the file keeps its size."""
    data = path.read_bytes()
    moved = (
        data.replace(b"-45.0", b"-46.0", 1) if b"-45.0" in data else data.replace(b"-45", b"-46")
    )
    assert moved != data
    path.write_bytes(moved)


AFTER: dict[str, Callable[[Path], object]] = {
    "checksum_mismatch": other_position,
    "source_unavailable": Path.unlink,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-100]),
}


@pytest.fixture(scope="module")
def series_outcomes(tmp_path_factory) -> dict[str, set[str]]:
    """Reasons by folder, after index, changes on disk and convert."""
    root = tmp_path_factory.mktemp("series")
    for name, write in BEFORE.items():
        write(root / "in" / name)
    assert medray("index", root / "in", "--out", root / "index") == 0
    for name, change in AFTER.items():
        change(sorted((root / "in" / name).iterdir())[2])
    assert medray("convert", root / "index", "--out", root / "nifti") == cli.EXIT_REJECTS
    found: dict[str, set[str]] = {name: set() for name in BEFORE}
    for row in pq.read_table(root / "nifti" / "rejected.parquet").to_pylist():
        found[Path(row["uri"]).parent.name].add(row["reason"])
    return found


@pytest.mark.parametrize("reason", [name for name in BEFORE if name in REASONS])
def test_a_bad_series_costs_itself(series_outcomes, reason):
    assert series_outcomes[reason] == {reason}
    assert series_outcomes["nothing_wrong"] == set()


# Files that are named, and outputs that take nothing ------------------------------------------


def test_a_named_file_that_is_no_archive_is_unreadable(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04 and no archive" * 50)
    code = medray("index", tmp_path / "a.zip", "--out", tmp_path / "o")
    assert code == cli.EXIT_REJECTS
    assert reasons_of(tmp_path / "o") <= {"unreadable", "truncated", "unsafe_archive"}
    (tmp_path / "data" / "images").mkdir(parents=True)
    (tmp_path / "data" / "images" / "a.png").write_bytes(b"no picture at all")
    write_datalist(tmp_path / "data", training=[*lesions(tmp_path / "data"), row("images/a.png")])
    assert prepare(tmp_path / "data", "lung_detection", "gates=off") == cli.EXIT_REJECTS
    assert reasons_of(tmp_path / "data-out") == {"unreadable"}


def test_an_output_below_a_file_is_denied(tmp_path, capsys):
    series(tmp_path / "in")
    (tmp_path / "file").write_text("in the way")
    assert medray("index", tmp_path / "in", "--out", tmp_path / "file" / "o") == cli.EXIT_INTERNAL
    assert "sink_denied" in capsys.readouterr().err


def test_an_output_without_room_is_full(tmp_path, capsys):
    series(tmp_path / "in")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, before[1]))
    try:
        code = medray("index", tmp_path / "in", "--out", tmp_path / "o")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code == cli.EXIT_INTERNAL
    assert "sink_full" in capsys.readouterr().err
    assert medray("index", tmp_path / "in", "--out", tmp_path / "o") == cli.EXIT_DONE


def test_pet_without_weight_has_no_suv(tmp_path):
    recipe = get_recipe("lung_classification")
    root = tmp_path / "data"
    truth = recipe.phantom(root, num_patients=1, seed=3, defects=True, size="tiny")
    (planted,) = [d for d in truth["defects"] if d.get("needs")]
    settings = ("gates=off", "pet_channel=true", "split=none")
    assert prepare(root, "lung_classification", *settings) == cli.EXIT_REJECTS
    rows = pq.read_table(tmp_path / "data-out" / "rejected.parquet").to_pylist()
    (row,) = [row for row in rows if row["reason"] == "suv_not_computable"]
    assert row["uri"].startswith(f"{root}/{planted['path']}/")


# Gates: prepare on a doctored datalist.json ----------------------------------------------------


def prepare(root: Path, task: str, *settings: str) -> int:
    data = root / "datalist.json" if (root / "datalist.json").exists() else root
    if task == "lung_detection":
        settings = ("pixels=windows", *settings)  # pictures of 8 bit hold no HU
    chosen = [word for setting in settings for word in ("--set", setting)]
    out = root.with_name(root.name + "-out")
    return medray("prepare", task, "--data", data, "--out", out, "--tiny", *chosen)


def picture(path: Path, seed: int, *, flat: bool = False) -> str:
    """A breast-like half ellipse with noise, or one value alone; return its path in the list."""
    y, x = np.indices((64, 48))
    noise = np.random.default_rng([5, seed]).integers(60, 200, (64, 48))
    values = np.where(((y - 32) / 26) ** 2 + (x / 34) ** 2 < 1, noise, 8).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(write_png(np.full_like(values, 9) if flat else values))
    return f"{path.parent.name}/{path.name}"


def row(image: str, label: object = None, patient: str = "") -> dict[str, object]:
    boxes = [[10, 12, 20, 24]] if label is None else label
    return {"image": image, "label": boxes, "patient_id": patient or f"of-{image}"}


def lesions(root: Path, *labels: object) -> list[dict[str, object]]:
    labels = labels or (None, None, None)
    images = [picture(root / "images" / f"{n}.png", n) for n in range(len(labels))]
    return [row(image, label) for image, label in zip(images, labels, strict=True)]


def write_datalist(root: Path, **lists: list[dict[str, object]]) -> None:
    (root / "datalist.json").write_text(json.dumps(lists))


def labels_constant(root: Path) -> str:
    write_datalist(root, training=lesions(root, 0, 0, 0, 0))
    return "breast_classification"


def class_missing(root: Path) -> str:
    rows = lesions(root, 0, 1, 0, 1, 0)
    write_datalist(root, training=rows[:2], validation=rows[2:4], test=rows[4:])
    return "breast_classification"


def split_leak(root: Path) -> str:
    rows = lesions(root)
    rows[0]["patient_id"] = rows[2]["patient_id"] = "one and the same"
    write_datalist(root, training=rows[:2], test=rows[2:])
    return "lung_detection"


def duplicate_image(root: Path) -> str:
    rows = lesions(root)
    picture(root / "images" / "2.png", 0)  # the pixels of the first
    write_datalist(root, training=rows[:2], test=rows[2:])
    return "lung_detection"


def mask_empty(root: Path) -> str:
    write_datalist(root, training=lesions(root, [], None, None))
    return "breast_roi"


def box_whole_image(root: Path) -> str:
    pixels = np.random.default_rng([6, 6]).integers(0, 255, (64, 64)).astype(np.uint8)
    rows = lesions(root)
    (root / "images" / "whole.png").write_bytes(write_png(pixels))
    write_datalist(root, training=[*rows, row("images/whole.png", [[0, 0, 64, 64]])])
    return "lung_detection"


def image_constant(root: Path) -> str:
    pixels = np.full((64, 64), 9, np.uint8)  # square: the frame's grey would be a second value
    rows = lesions(root)
    (root / "images" / "flat.png").write_bytes(write_png(pixels))
    write_datalist(root, training=[*rows, row("images/flat.png")])
    return "lung_detection"


GATES = (
    labels_constant, class_missing, split_leak, duplicate_image, mask_empty, box_whole_image,
    image_constant,
)  # fmt: skip


@pytest.mark.parametrize("doctor", GATES, ids=lambda doctor: doctor.__name__)
def test_a_gate_stops_the_run_with_its_reason(doctor, tmp_path, capsys):
    root = tmp_path / "data"
    root.mkdir()
    task = doctor(root)
    assert prepare(root, task) == cli.EXIT_GATE
    out = tmp_path / "data-out"
    summary = json.loads((out / "run.json").read_text())
    assert {reason for reason, _ in summary["gates"]} == {doctor.__name__}
    assert summary["status"] == "stopped"
    assert doctor.__name__ in capsys.readouterr().err
    examples = pq.read_table(out / "examples.parquet").to_pylist()
    assert len(examples) == summary["counts"]["num_inputs"]
    keys = [key for key in (r["key"] for r in examples) if key in summary["gates"][0][1]]
    assert keys, "offenders are named by key"


# The closed list ------------------------------------------------------------------------------


def test_every_reason_is_reached_by_a_file():
    zoo = set()
    for name in Path(get_recipe.__code__.co_filename).parents[1].joinpath("phantoms").glob("zoo*"):
        zoo |= {
            n.value for n in ast.walk(ast.parse(name.read_text())) if isinstance(n, ast.Constant)
        }
    planted = zoo & set(REASONS)  # tests/ray/test_zoo.py asserts that each of them surfaces
    here = {*BEFORE, *(gate.__name__ for gate in GATES)} & set(REASONS)
    here |= {"unreadable", "sink_denied", "sink_full", "suv_not_computable"}
    assert planted | here == set(REASONS) - MODEL_STAGE
