"""Mammograms with the breast boxed, in YOLO's folder layout; frames and plates blur the outline."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medray.phantoms.breast import burn_frame
from medray.phantoms.breast_layout import BreastImage, breast_images, write_breast_dicom
from medray.phantoms.fields import bounding_box
from medray.phantoms.naming import stream

DATA_YAML = "path: .\ntrain: images\nval: images\nnc: 1\nnames: ['breast']\n"
_DICOM_EVERY = 5  # every fifth patient's images stay DICOM


@dataclass(frozen=True, slots=True, kw_only=True)
class RoiImage:
    """One written image: the file and the breast's box in pixel edges."""

    path: Path
    patient_id: str
    box: tuple[int, int, int, int]


def write_roi_layout(root: Path, *, num_patients: int, seed: int, size: str) -> Iterator[RoiImage]:
    """Write `images/`, `labels/` and `data.yaml`; yield each image.

    Most images carry what a mere threshold takes for breast: a bright frame that touches it, or a
    compression plate beside it.
    """
    (root / "images").mkdir(parents=True, exist_ok=True)
    (root / "labels").mkdir(parents=True, exist_ok=True)
    (root / "data.yaml").write_text(DATA_YAML)
    for n, one in enumerate(breast_images(num_patients=num_patients, seed=seed, size=size)):
        name = f"{one.patient_id}_{n}"
        rng = stream(seed, "roi", n)
        _disturb(one, n, rng)
        box = bounding_box(one.mammogram.breast)
        path = root / "images" / f"{name}.png"
        if one.patient_number % _DICOM_EVERY == _DICOM_EVERY - 1:
            path = write_breast_dicom(path.with_suffix(".dcm"), one)
        else:
            path.write_bytes(png_bytes(np.round(one.mammogram.image * 255).astype(np.uint8)))
        (root / "labels" / f"{name}.txt").write_text(yolo_row(box, one.mammogram.image.shape))
        yield RoiImage(path=path, patient_id=one.patient_id, box=box)


def _disturb(one: BreastImage, number: int, rng: np.random.Generator) -> None:
    """Add a frame, a plate or both, in place; every fifth image is left as it is."""
    image, breast = one.mammogram.image, one.mammogram.breast
    height, width = image.shape
    kind = number % 5
    if kind in (0, 2, 3):
        burn_frame(image, width_px=max(3, height // 64), value=0.8)
    if kind in (1, 2):
        away = slice(width * 2 // 3, width) if breast[:, 0].any() else slice(0, width // 3)
        top = int(rng.uniform(0.02, 0.12) * height)
        plate = np.zeros_like(breast)
        plate[top : top + height * 7 // 8, away] = True
        image[plate & ~breast] = 0.34
    if kind in (1, 3):  # the edge of the table runs across the chest wall
        band = slice(height - height // 12, height - height // 30)
        image[band] = np.maximum(image[band], 0.5)
        column = slice(0, width // 40) if breast[:, 0].any() else slice(width - width // 40, width)
        image[:, column] = np.maximum(image[:, column], 0.5)


def png_bytes(image: np.ndarray) -> bytes:
    """Return an 8-bit PNG."""
    import imagecodecs

    return bytes(imagecodecs.png_encode(np.ascontiguousarray(image)))


def yolo_row(box: tuple[int, int, int, int], shape: tuple[int, ...]) -> str:
    """Return `class cx cy w h`, all but the class as shares of the image."""
    x1, y1, x2, y2 = box
    height, width = shape
    values = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
    return "0 " + " ".join(f"{value:.6f}" for value in values) + "\n"
