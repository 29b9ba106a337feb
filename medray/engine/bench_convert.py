"""Benchmarks of decoding and resampling, beside MONAI, dcm2niix and pydicom in the same run."""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom

from medray import storage
from medray.dicom.decoder import process_decoder
from medray.dicom.series import Instance
from medray.engine.bench_measure import Measure, alternating_medians, one_core
from medray.engine.bench_ray import RaySeries, memory_growth, through_ray
from medray.engine.bench_series import JPEG_2000_LOSSLESS, series_on_disk
from medray.engine.convert_task import Grid, load_on_grid, write_volume
from medray.errors import DataError

_SHAPE = (200, 512, 512)
_SMALL_SHAPE = (60, 256, 256)
_GRID = (160, 160, 160)
_SMALL_GRID = (48, 80, 80)
# MONAI interpolates in float32 over the whole grid at once; half a HU is below a stored step.
_ATOL_HU = 0.5


def rows(work: Path, *, small: bool) -> Iterator[Measure]:
    """Yield the rows of the convert stage."""
    shape, grid = (_SMALL_SHAPE, _SMALL_GRID) if small else (_SHAPE, _GRID)
    repeats = 3 if small else 7
    folder = work / "x".join(["ct", *map(str, shape)])
    instances = series_on_disk(folder, shape)
    resized = list(_resize(folder, instances, grid, repeats))
    yield from resized
    yield from _native(folder, instances, work, repeats)
    series = RaySeries(instances=instances, grid=grid, number=6 if small else 16)
    yield from through_ray(series, monai_s=resized[0].peer_median_s)
    yield memory_growth(work, number=4)
    j2k = work / "x".join(["j2k", *map(str, shape)])
    yield _jpeg_2000(
        series_on_disk(j2k, (min(shape[0], 40), *shape[1:]), syntax=JPEG_2000_LOSSLESS), repeats
    )


def _resize(
    folder: Path, instances: Sequence[Instance], grid: tuple[int, ...], repeats: int
) -> Iterator[Measure]:
    """Series to a fixed grid: our loop in one process against MONAI's transforms on one core."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monai = _monai_pipeline(grid)
    try:
        plain = Grid(size_zyx=tuple(grid), antialias=False)
        ours = load_on_grid(instances, plain)[0].array
        difference = _difference(ours, monai(str(folder)).numpy()[0])
        with one_core():
            mine, theirs = alternating_medians(
                lambda: load_on_grid(instances, plain), lambda: monai(str(folder)), repeats=repeats
            )
    finally:
        torch.set_num_threads(threads)
    size = "x".join(map(str, grid))
    yield Measure(
        name=f"CT to {size} float32, bare loop",
        peer="MONAI LoadImage + Orientation + Resize",
        median_s=mine,
        peer_median_s=theirs,
        n=repeats,
        note=f"one core, same grid and dtype, no smoothing; largest difference {difference:.3f} HU",
    )
    smooth = Grid(size_zyx=tuple(grid))
    began = time.perf_counter()
    load_on_grid(instances, smooth)
    yield Measure(
        name=f"CT to {size}, smoothed as by default", median_s=time.perf_counter() - began, n=1
    )


def _monai_pipeline(grid: tuple[int, ...]) -> Callable[[str], Any]:
    from monai import transforms

    pipeline: Callable[[str], Any] = transforms.Compose(
        [
            transforms.LoadImage(image_only=True, dtype=np.float32),
            transforms.EnsureChannelFirst(),
            transforms.Orientation(axcodes="LPS", labels=None),
            transforms.Resize(grid[::-1], mode="trilinear", align_corners=False),
        ]
    )
    return pipeline


def _difference(ours: np.ndarray, monai: np.ndarray) -> float:
    """Return the largest difference in HU; MONAI's axes are (x, y, z).

    Raises:
        DataError: `output_mismatch`, because times of different results compare nothing.
    """
    difference = float(np.abs(ours - monai.transpose(2, 1, 0)).max())
    if difference > _ATOL_HU:
        raise DataError("output_mismatch", f"peer differs by {difference:.2f} HU")
    return difference


def _native(
    folder: Path, instances: Sequence[Instance], work: Path, repeats: int
) -> Iterator[Measure]:
    """Native grid, uncompressed NIfTI, against dcm2niix -z n."""
    binary = shutil.which("dcm2niix", path=str(Path(sys.executable).parent))
    if binary is None:
        return
    target = work / "dcm2niix"
    target.mkdir(exist_ok=True)

    def peer() -> None:
        command = [
            binary,
            "-z",
            "n",
            "-b",
            "n",
            "-w",
            "1",
            "-f",
            "x",
            "-o",
            str(target),
            str(folder),
        ]
        subprocess.run(command, check=True, capture_output=True)  # noqa: S603

    for proof in (False, True):

        def ours(*, proof: bool = proof) -> None:
            volume, _ = load_on_grid(instances, Grid())
            write_volume(str(work / "ours.nii"), volume, gz=False, proof=proof)

        mine, theirs = alternating_medians(ours, peer, repeats=repeats)
        yield Measure(
            name=f"CT to native NIfTI, {'with' if proof else 'without'} read-back",
            peer="dcm2niix -z n",
            median_s=mine,
            peer_median_s=theirs,
            n=repeats,
        )


def _jpeg_2000(instances: Sequence[Instance], repeats: int) -> Measure:
    """JPEG 2000 slices against pydicom with pylibjpeg-openjpeg, and the codec's own share."""
    import imagecodecs
    from pydicom.encaps import generate_frames

    blobs = [storage.read_bytes(item.uri) for item in instances]
    frames = []
    for item in instances:
        dataset = pydicom.dcmread(item.uri)
        frames.append(next(generate_frames(dataset.PixelData, number_of_frames=1)))

    def ours() -> None:
        for found in process_decoder().decode_many(iter(blobs)):
            if isinstance(found, DataError):
                raise found

    def peer() -> None:
        for item in instances:
            dataset = pydicom.dcmread(item.uri)
            dataset.pixel_array_options(decoding_plugin="pylibjpeg")
            _ = dataset.pixel_array

    mine, theirs = alternating_medians(ours, peer, repeats=repeats)
    began = time.perf_counter()
    for frame in frames:
        imagecodecs.jpeg2k_decode(frame)
    codec = time.perf_counter() - began
    return Measure(
        name=f"{len(instances)} JPEG 2000 slices",
        peer="pydicom + pylibjpeg-openjpeg",
        median_s=mine,
        peer_median_s=theirs,
        n=repeats,
        note=f"the codec alone takes {codec:.3f} s, {codec / mine:.0%} of ours",
    )
