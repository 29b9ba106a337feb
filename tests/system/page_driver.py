"""Chromium on the page: what the tests of the page share."""

import base64
import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from medray.formats.nifti import write_nifti
from medray.phantoms.series import SeriesSpec, write_ct_series
from medray.volume import Volume
from tests.stub_server import KEY

CHROMIUM = Path("/usr/bin/chromium")
ARGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
]  # fmt: skip
# The colour in the middle of each of a slice's pixels.
_READ = """([width, height]) => {
  const canvas = document.getElementById('canvas');
  const names = ['left', 'top', 'right', 'down'];
  const [left, top, right, down] = names.map((name) => Number(canvas.dataset[name]));
  const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
  const out = new Uint8Array(3 * width * height);
  for (let j = 0; j < height; j += 1) for (let i = 0; i < width; i += 1) {
    const x = Math.floor(left + (i + 0.5) * right), y = Math.floor(top + (j + 0.5) * down);
    const at = 4 * (y * canvas.width + x);
    out.set(data.subarray(at, at + 3), 3 * (j * width + i));
  }
  let text = '';
  for (let n = 0; n < out.length; n += 8192) {
    text += String.fromCharCode(...out.subarray(n, n + 8192));
  }
  return { slice: Number(canvas.dataset.slice), rgb: btoa(text) };
}"""


@contextmanager
def chromium() -> Iterator[object]:
    """Start the system's Chromium; a visible skip where it or its driver is missing."""
    sync_api = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is missing")
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=ARGS)
        yield browser
        browser.close()


def enter(page, url: str, key: str = KEY) -> None:
    """Open the page, give the key and wait for the models."""
    page.goto(url)
    page.fill("#key", key)
    page.click("text=Continue")
    says(page, "Ready.")


def says(page, sentence: str) -> None:
    """Wait until the status line holds a sentence."""
    page.wait_for_function(
        "text => document.getElementById('status').textContent.includes(text)", arg=sentence
    )


def pixels(page, slice_number: int, shape: tuple[int, int]) -> np.ndarray:
    """Return (height, width, 3) of a shown slice, read back from the canvas."""
    page.evaluate(
        """n => { const s = document.getElementById('slider'); s.value = n;
        s.dispatchEvent(new Event('input')); }""",
        slice_number,
    )
    page.wait_for_function(
        "n => document.getElementById('canvas').dataset.slice === String(n)", arg=slice_number
    )
    page.evaluate("() => new Promise(r => requestAnimationFrame(() => requestAnimationFrame(r)))")
    found = page.evaluate(_READ, [shape[1], shape[0]])
    assert found["slice"] == slice_number
    rgb = np.frombuffer(base64.b64decode(found["rgb"]), np.uint8)
    return rgb.reshape(*shape, 3).astype(int)


def coloured(rgb: np.ndarray) -> np.ndarray:
    """Return where a picture is not grey."""
    return np.ptp(rgb, axis=-1) > 0


def series_zip(folder: Path, volume: Volume, spec: SeriesSpec | None = None) -> Path:
    """Write a volume as a zip of DICOM files, deflated, in an order of its own."""
    files = write_ct_series(folder / "series", volume, spec)
    path = folder / "series.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(files):
            archive.write(file, f"some patient/{file.name}")
        archive.writestr("some patient/README.txt", "no image")
    return path


def nifti_bytes(volume: Volume, *, gz: bool = True) -> bytes:
    """Return a volume as NIfTI."""
    target = io.BytesIO()
    write_nifti(target, volume, gz=gz)
    return target.getvalue()
