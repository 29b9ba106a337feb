"""Canaries in headers, labels and paths: none may reach a log, a message, a picture or a volume."""

import gzip
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from medray.phantoms.series import SeriesSpec, known_volume, write_ct_series
from medray.phantoms.zoo import find_element, with_element

pytestmark = pytest.mark.ray
NAME, PATIENT, TEXT, PATH = "KANARIVOGEL", "KANARIID7714", "KANARITEXT", "KANARIPATH"
WRONG = "KANARIWRONG"  # a value that its tag or label cannot have
STUDY_DAY, BIRTH_DAY, MOMENT = "19870613", "19310227", "104837.918273"
CANARIES = tuple(
    text.encode() for text in (NAME, PATIENT, TEXT, PATH, WRONG, STUDY_DAY, BIRTH_DAY, MOMENT)
)
SHAPE = (5, 40, 32)
PIXELS = (0x7FE0, 0x0010)


def personal(dataset: Dataset, k: int) -> None:
    """Put canaries wherever a header may speak of a person."""
    dataset.PatientName = f"{NAME}^ANNA"
    for keyword in ("StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate"):
        setattr(dataset, keyword, STUDY_DAY)
    for keyword in ("StudyTime", "SeriesTime", "AcquisitionTime", "ContentTime"):
        setattr(dataset, keyword, MOMENT)
    dataset.PatientBirthDate = BIRTH_DAY
    for keyword in (
        "AccessionNumber", "InstitutionName", "ReferringPhysicianName", "OperatorsName", "StudyID",
        "StudyDescription", "SeriesDescription", "PatientComments", "ContrastBolusAgent",
        "ProtocolName", "StationName", "DeviceSerialNumber", "ImageComments",
    ):  # fmt: skip
        setattr(dataset, keyword, TEXT[:16])
    other = Dataset()
    other.PatientID, other.IssuerOfPatientID = PATIENT, TEXT
    other.add_new(0x00111010, "LO", NAME)
    inner = Dataset()
    inner.PersonName = NAME
    other.PersonIdentificationCodeSequence = Sequence([inner])
    dataset.OtherPatientIDsSequence = Sequence([other])
    block = dataset.private_block(0x0009, "MAKER", create=True)
    block.add_new(0x01, "LO", TEXT)
    block.add_new(0x02, "UN", NAME.encode())
    block.add_new(0x03, "SQ", Sequence([other]))


def series(folder: Path, number: int, **more: object) -> list[Path]:
    tags = {"PatientID": f"{PATIENT}-{number}"}
    spec = SeriesSpec(seed=number, name=folder.name, tags=tags, edit=personal, **more)
    return write_ct_series(folder, known_volume(SHAPE), spec)


def spoil(folder: Path, number: int, tag: tuple[int, int], value: bytes) -> None:
    """A series with one slice whose value is a canary that is no such value."""
    path = series(folder, number)[2]
    path.write_bytes(with_element(path.read_bytes(), tag, value))


def write_data(root: Path) -> None:
    """Good and broken series, labels that fit and labels that do not."""
    rows: list[dict[str, object]] = []
    for number in range(3):
        folder = root / f"{PATH}-{number}"
        for path in series(folder, number)[:2]:
            where = path.relative_to(root).as_posix()
            boxes = [[4, 5, 12 + number, 15]]
            rows.append({"image": where, "label": boxes, "patient_id": f"{PATIENT}-{number}"})
    bad = WRONG.encode()
    for number, (tag, value) in enumerate(
        (
            ((0x0028, 0x1053), bad),  # RescaleSlope
            ((0x0028, 0x0030), bad + b"\\" + bad),  # PixelSpacing
            ((0x0020, 0x0032), bad),  # ImagePositionPatient
            ((0x0020, 0x0013), bad),  # InstanceNumber
            ((0x0008, 0x0005), bad),  # SpecificCharacterSet
            ((0x0008, 0x0020), bad),  # StudyDate
            ((0x0020, 0x000D), bad + b"^&%"),  # StudyInstanceUID
            ((0x0028, 0x0004), bad),  # PhotometricInterpretation
            ((0x0008, 0x0008), bad),  # ImageType
        ),
        start=20,
    ):
        spoil(root / f"{PATH}-bad-{number}", number, tag, value)
    cut = series(root / f"{PATH}-cut", 40)
    cut[1].write_bytes(cut[1].read_bytes()[:-400])
    start, _, _ = find_element(cut[2].read_bytes(), (0x0020, 0x0032))
    cut[2].write_bytes(cut[2].read_bytes()[: start + 3])
    torn = series(root / f"{PATH}-torn", 41, syntax="1.2.840.10008.1.2.4.90")[0]
    data = torn.read_bytes()
    torn.write_bytes(data[:-300] + WRONG.encode() * 20 + data[-100:])
    (root / f"{PATH}.dcm").write_bytes(f"{NAME} is no DICOM".encode() * 30)
    (root / f"{PATH}.zip").write_bytes(b"PK\x03\x04" + NAME.encode() * 30)
    wrong = (
        {"image": f"{PATH}/nowhere.dcm", "label": [[1, 2, 3, 4]]},
        {"image": rows[0]["image"], "label": WRONG, "patient_id": PATIENT},
        {"image": rows[0]["image"], "label": [[WRONG, 2, 3, 4]]},
        {"image": rows[0]["image"], "label": [[1, 2, 3000, 4]], "patient_id": PATIENT},
        {"image": rows[0]["image"], "label": [[1, 2, 3, 4]], "box_labels": [WRONG]},
        {"image": f"../{PATH}", "label": [[1, 2, 3, 4]]},
        {"image": f"{PATH}-cut/1-001.dcm", "label": [[1, 2, 9, 9]], "patient_id": PATIENT},
        *({"image": f"{PATH}-cut/1-00{n}.dcm", "label": [[1, 2, 9, 9]]} for n in range(1, 6)),
        *({"image": f"{PATH}-torn/1-00{n}.dcm", "label": [[1, 2, 9, 9]]} for n in range(1, 6)),
    )
    (root / "datalist.json").write_text(json.dumps({"training": [*rows, *wrong]}))
    leak = {"training": rows[::2], "test": rows[1::2]}
    (root / "leak.json").write_text(json.dumps(leak))


@dataclass
class Runs:
    """Outputs of several verbs on one Ray, and every word that they said."""

    out: Path
    said: str
    codes: dict[str, int]
    ray_logs: Path


# One process, so that Ray starts once; it is started as `--debug` starts it.
_DRIVER = """
import json, sys
from medray import cli
from medray.engine.cluster import ray_session
with ray_session(None, debug=True):
    codes = {name: cli.run([*words, "--debug"]) for name, words in json.loads(sys.argv[1]).items()}
print(json.dumps(codes))
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Iterator[Runs]:
    root = tmp_path_factory.mktemp("privacy")
    write_data(root / "data")
    data, out = f"{root}/data", f"{root}/out"
    lung = ["prepare", "lung_detection", "--tiny", "--export", "yolo", "--out"]
    commands = {
        "index": ["index", data, "--out", f"{out}/index"],
        "convert": ["convert", data, "--out", f"{out}/convert"],
        "prepare": [*lung, f"{out}/prepare", "--data", f"{data}/datalist.json",
                    "--set", "split=none"],
        "gate": [*lung, f"{out}/gate", "--data", f"{data}/leak.json"],
        "config": ["prepare", "breast_classification", "--out", f"{out}/config",
                   "--data", f"{data}/datalist.json"],
    }  # fmt: skip
    ray_logs = Path(tempfile.mkdtemp(prefix="r"))  # a socket's path must be short
    done = subprocess.run(
        [sys.executable, "-c", _DRIVER, json.dumps(commands)],
        env={**os.environ, "RAY_TMPDIR": str(ray_logs), "RAY_AUTH_MODE": "disabled"},
        capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    codes = json.loads(done.stdout.splitlines()[-1])
    yield Runs(Path(out), done.stdout + done.stderr, codes, ray_logs)
    shutil.rmtree(ray_logs, ignore_errors=True)


def hits(data: bytes) -> list[str]:
    return [canary.decode() for canary in CANARIES if canary in data]


def test_the_runs_met_good_and_broken_files(runs):
    assert runs.codes == {"index": 4, "convert": 4, "prepare": 4, "gate": 3, "config": 2}
    for verb in ("index", "convert", "prepare"):
        counts = json.loads((runs.out / verb / "run.json").read_text())["counts"]
        assert counts["num_done"] > 2, verb
        assert len(counts["rejected_by_reason"]) > 2, verb


def test_nothing_personal_is_said(runs):
    assert "Traceback" in runs.said
    assert "split_leak" in runs.said
    assert not [line for line in runs.said.splitlines() if hits(line.encode())]


def test_nothing_personal_is_in_the_logs_of_ray(runs):
    logs = [path for path in runs.ray_logs.rglob("*") if path.is_file() and not path.is_symlink()]
    assert sum("logs" in path.parts for path in logs) > 10
    found = {str(path): hits(path.read_bytes()) for path in logs}
    assert not {path: what for path, what in found.items() if what}


def test_nothing_personal_is_in_an_output(runs):
    kinds = set()
    for path in sorted(runs.out.rglob("*")):
        if not path.is_file() or ".medray" in path.parts or path.suffix == ".parquet":
            continue
        data = path.read_bytes()
        kinds.add(path.suffix)
        assert not hits(gzip.decompress(data) if path.suffix == ".gz" else data), path.name
        assert not hits(str(path).encode())
    assert kinds >= {".gz", ".png", ".safetensors", ".json", ".txt"}


def test_tables_carry_a_patient_only_where_they_must(runs):
    """Ids and paths in the columns that are made for them, nothing else in any."""
    met = set()
    ids = {"patient_id", "uri", "study_uid", "header", "instances"}
    for path in sorted(runs.out.rglob("*.parquet")):
        for row in pq.read_table(path).to_pylist():
            for column, value in row.items():
                found = hits(json.dumps(value).encode())
                allowed = {PATIENT, PATH, WRONG} if column in ids else set()
                assert not set(found) - allowed, (path.name, column, found)
                met.update(found)
    assert met == {PATIENT, PATH, WRONG}, "the canaries were met"
