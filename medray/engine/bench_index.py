"""Benchmarks of the header crawl: headers a second and core, memory of the driver."""

import gc
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pydicom

from medray.engine.bench_measure import Measure, alternating_medians
from medray.engine.crawl import read_header
from medray.engine.index import index
from medray.phantoms.series import SeriesSpec, affine_from_dicom, write_ct_series
from medray.volume import Volume

_PEER_TAGS = [
    "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality", "Rows", "Columns",
    "ImagePositionPatient",
]  # fmt: skip
_SLICES = 50


def write_small_files(folder: Path, num_files: int) -> None:
    """Write series of 50 slices of 16 x 16 pixels; kept from run to run."""
    done = folder / f".{num_files}-written"
    if done.exists():
        return
    volume = Volume(
        array=np.arange(_SLICES * 256, dtype=np.int16).reshape(_SLICES, 16, 16) % 1000,
        affine_lps=affine_from_dicom(),
    )
    template = folder / "template"
    paths = write_ct_series(template, volume, SeriesSpec(seed=0))
    slices = [(path.name, path.read_bytes(), _uids(path)) for path in paths]
    for number in range(num_files // _SLICES):
        target = folder / f"{number // 100:03d}" / f"{number:05d}"
        target.mkdir(parents=True, exist_ok=True)
        for name, data, uids in slices:
            for uid in uids:  # of equal length, so that every offset stays true
                data = data.replace(uid, uid[:-6] + f"{number:06d}".encode())  # noqa: PLW2901
            (target / name).write_bytes(data)
    shutil.rmtree(template)
    done.touch()


def _uids(path: Path) -> list[bytes]:
    dataset = pydicom.dcmread(path, stop_before_pixels=True)
    names = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID")
    return [str(dataset[name].value).encode() for name in names]


def rows(work: Path, *, small: bool) -> Iterator[Measure]:
    """Yield the rows of the index stage."""
    num_files = 2_000 if small else 10_000
    folder = work / f"headers-{num_files}"
    write_small_files(folder, num_files)
    yield _one_core(folder, repeats=3 if small else 5)
    yield from _through_ray(work, folder, num_files)
    if not small:
        yield _hundred_thousand(work)


def _one_core(folder: Path, *, repeats: int) -> Measure:
    paths = sorted(str(p) for p in folder.rglob("*.dcm"))[:2_000]

    def ours() -> None:
        for path in paths:
            read_header(path, 1)

    def peer() -> None:
        for path in paths:
            pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_PEER_TAGS))

    mine, theirs = alternating_medians(ours, peer, repeats=repeats)
    return Measure(
        name=f"headers, {len(paths)} files, one core",
        peer="pydicom, 7 tags",
        median_s=mine,
        peer_median_s=theirs,
        n=repeats,
        note=f"{len(paths) / mine:.0f} headers/s; ours reads and checks {44} tags",
    )


def _through_ray(work: Path, folder: Path, num_files: int) -> Iterator[Measure]:
    fresh = work / f"index-{num_files}-{time.time_ns()}"
    for name in ("first run", "second run, nothing new"):
        began = time.perf_counter()
        summary = index([str(folder)], str(fresh), quiet=True)
        seconds = time.perf_counter() - began
        headers_s = summary["stages"]["headers"]["seconds"]
        yield Measure(
            name=f"index, {num_files} files, {name}",
            median_s=seconds,
            n=1,
            note=f"{num_files / headers_s:.0f} headers/s on all cores",
        )


def _hundred_thousand(work: Path) -> Measure:
    """Index ten times the files; the driver must not grow with them."""
    process = psutil.Process()
    growth = {}
    seconds = 0.0
    for num_files in (10_000, 100_000):
        folder = work / f"headers-{num_files}"
        write_small_files(folder, num_files)
        gc.collect()
        before = process.memory_info().rss
        began = time.perf_counter()
        index([str(folder)], str(work / f"flat-{num_files}-{time.time_ns()}"), quiet=True)
        seconds = time.perf_counter() - began
        growth[num_files] = max(0, process.memory_info().rss - before)
    return Measure(
        name="index, 100000 files",
        median_s=seconds,
        n=1,
        note=f"driver grew by {growth[10_000] >> 20} MiB at 10000 files, "
        f"{growth[100_000] >> 20} MiB at 100000",
    )
