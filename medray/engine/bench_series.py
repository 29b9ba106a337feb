"""Series that the benchmarks work on, made once."""

from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

from medray.dicom.series import Instance, split_series
from medray.engine.crawl import read_header
from medray.phantoms.series import SeriesSpec, affine_from_dicom, write_ct_series
from medray.volume import Volume

JPEG_2000_LOSSLESS = "1.2.840.10008.1.2.4.90"


def body(shape_zyx: tuple[int, int, int], seed: int) -> Volume:
    """Return a chest-like CT in HU with the noise of a real one; codecs and gzip see both."""
    rng = np.random.default_rng(seed)
    depth, height, width = shape_zyx
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    outline = (x / 0.8) ** 2 + (y / 0.6) ** 2 < 1
    lungs = ((abs(x) - 0.35) / 0.25) ** 2 + (y / 0.4) ** 2 < 1
    plane = np.where(outline, 40.0, -1000.0)
    plane[lungs & outline] = -850
    texture = gaussian_filter(rng.normal(0, 60, (height, width)), 2)
    array = np.empty(shape_zyx, dtype=np.int16)
    for k in range(depth):
        noise = rng.normal(0, 12, (height, width)) + np.roll(texture, k, axis=0)
        array[k] = np.where(outline, plane + noise, plane).astype(np.int16)
    spacing = (1.0, 0.75, 0.75)
    return Volume(array=array, affine_lps=affine_from_dicom(spacing_zyx_mm=spacing))


def series_on_disk(
    folder: Path, shape_zyx: tuple[int, int, int], *, seed: int = 0, syntax: str = ""
) -> list[Instance]:
    """Write a series unless it is there, and return its instances along the normal."""
    done = folder / ".written"
    if not done.exists():
        spec = SeriesSpec(seed=seed, syntax=syntax) if syntax else SeriesSpec(seed=seed)
        write_ct_series(folder, body(shape_zyx, seed), spec)
        done.touch()
    found = []
    for path in sorted(folder.glob("*.dcm")):
        size = path.stat().st_size
        stamp = str(path.stat().st_mtime_ns)
        found.append(
            Instance(uri=str(path), bytes=size, stamp=stamp, header=read_header(str(path), size))
        )
    (stack,) = split_series(found)
    return list(stack.instances)
