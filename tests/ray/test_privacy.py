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
STUDY_DAY, BIRTH_DAY, MOMENT = "19870613", "19310227", "104837.918273"
CANARIES = tuple(
    text.encode() for text in (NAME, PATIENT, TEXT, PATH, STUDY_DAY, BIRTH_DAY, MOMENT)
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
    bad = TEXT.encode()
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
    torn.write_bytes(data[:-300] + TEXT.encode() * 20 + data[-100:])
    (root / f"{PATH}.dcm").write_bytes(f"{NAME} is no DICOM".encode() * 30)
    (root / f"{PATH}.zip").write_bytes(b"PK\x03\x04" + NAME.encode() * 30)
    wrong = (
        {"image": f"{PATH}/nowhere.dcm", "label": [[1, 2, 3, 4]]},
        {"image": rows[0]["image"], "label": TEXT, "patient_id": PATIENT},
        {"image": rows[0]["image"], "label": [[TEXT, 2, 3, 4]]},
        {"image": rows[0]["image"], "label": [[1, 2, 3000, 4]], "patient_id": PATIENT},
        {"image": rows[0]["image"], "label": [[1, 2, 3, 4]], "box_labels": [TEXT]},
        {"image": f"../{PATH}", "label": [[1, 2, 3, 4]]},
        {"image": f"{PATH}-cut/1-001.dcm", "label": [[1, 2, 9, 9]], "patient_id": PATIENT},
        *({"image": f"{PATH}-cut/1-00{n}.dcm", "label": [[1, 2, 9, 9]]} for n in range(1, 6)),
        *({"image": f"{PATH}-torn/1-00{n}.dcm", "label": [[1, 2, 9, 9]]} for n in range(1, 6)),
    )
    (root / "datalist.json").write_text(json.dumps({"training": [*rows, *wrong]}))


@dataclass
class Runs:
    """Outputs and every word that three verbs said."""

    out: Path
    said: dict[str, str]
    codes: dict[str, int]
    ray_logs: Path


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Iterator[Runs]:
    root = tmp_path_factory.mktemp("privacy")
    write_data(root / "data")
    out = root / "out"
    ray_logs = Path(tempfile.mkdtemp(prefix="r"))  # a socket's path must be short
    environment = {**os.environ, "RAY_TMPDIR": str(ray_logs), "RAY_AUTH_MODE": "disabled"}
    data = str(root / "data")
    commands = {
        "index": ["index", data],
        "convert": ["convert", data],
        "prepare": [
            "prepare", "lung_detection", "--data", f"{data}/datalist.json", "--tiny",
            "--export", "yolo", "--set", "split=none",
        ],
    }  # fmt: skip
    said, codes = {}, {}
    for verb, command in commands.items():
        done = subprocess.run(
            [sys.executable, "-m", "medray.cli", *command, "--out", str(out / verb), "--debug"],
            env=environment, capture_output=True, text=True, timeout=200, check=False,
        )  # fmt: skip
        said[verb], codes[verb] = done.stdout + done.stderr, done.returncode
    yield Runs(out, said, codes, ray_logs)
    shutil.rmtree(ray_logs, ignore_errors=True)


def hits(data: bytes) -> list[str]:
    return [canary.decode() for canary in CANARIES if canary in data]


def test_the_runs_met_good_and_broken_files(runs):
    assert runs.codes == {"index": 4, "convert": 4, "prepare": 4}, runs.said
    counts = {
        verb: json.loads((runs.out / verb / "run.json").read_text())["counts"] for verb in runs.said
    }
    assert all(c["num_done"] > 2 and c["num_rejected"] > 2 for c in counts.values()), counts
    assert len(counts["convert"]["rejected_by_reason"]) > 3


def test_nothing_personal_is_said(runs):
    for verb, text in runs.said.items():
        assert len(text) > 100
        assert not [line for line in text.splitlines() if hits(line.encode())], verb


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
    ids = {"patient_id", "uri", "header", "instances", "strata"}
    for path in sorted(runs.out.rglob("*.parquet")):
        for row in pq.read_table(path).to_pylist():
            for column, value in row.items():
                found = hits(json.dumps(value).encode())
                allowed = {PATIENT, PATH} if column in ids else set()
                assert not set(found) - allowed, (path.name, column, found)
