"""Samples of phantoms as the loader gives them, and the same spoilt in one known way."""

from dataclasses import replace
from functools import cache

import numpy as np

from medray.datasets.record import Sample
from medray.phantoms.abdomen import abdomen, make_belly
from medray.phantoms.abdomen_layout import GRIDS
from medray.phantoms.lung_layout import SIZES
from medray.phantoms.radiograph import radiograph
from medray.phantoms.radiograph_layout import SIDES_PX
from medray.phantoms.thorax import chest_hu, chest_suv, make_chest
from medray.volume import Image2D, Volume

AXIAL = np.array([[0, 0, 1.0, 0], [0, 1.0, 0, 0], [1.0, 0, 0, 0], [0, 0, 0, 1]])
CT = {"modality": "CT", "rescale_slope": 1.0, "rescale_intercept": -1024.0}


def volume_sample(values, spacing_zyx_mm, **meta):
    affine = AXIAL @ np.diag([*spacing_zyx_mm, 1.0])
    whole = np.clip(np.rint(values), -32768, 32767).astype(np.int16)
    return Sample(image=Volume(array=whole, affine_lps=affine), meta={**CT, **meta})


@cache
def abdomen_sample(seed, number, size="tiny"):
    grid = GRIDS[size]
    found = abdomen(grid, make_belly(seed, number))
    return volume_sample(found.hu, grid.spacing_zyx_mm, contrast=True)


@cache
def thorax_sample(seed, number, size="tiny"):
    grid = SIZES[size].thick
    return volume_sample(chest_hu(grid, _chest(seed, number)), grid.spacing_zyx_mm, contrast=False)


def pet_values(seed, number, grid):
    """Bq/ml of one chest."""
    return chest_suv(grid, _chest(seed, number)) * 4500.0


def _chest(seed, number):
    return make_chest(seed, number=number, histology="ABG"[number % 3], group=number // 3)


@cache
def radiograph_sample(seed, number, size="tiny"):
    film = radiograph(
        seed,
        number,
        side_px=SIDES_PX[size],
        num_opacities=number % 4,
        view=("AP", "PA")[number % 2],
    )
    array = np.round(film.image * 255).astype(np.int16)
    pixel = 0.143 * 1024 / array.shape[0]
    meta = {"modality": "CR", "contrast": False, "bits_stored": 8, "photometric": "MONOCHROME2"}
    image = Image2D(array=array, spacing_yx_mm=(pixel, pixel), meta=meta)
    return Sample(image=image, meta=meta)


def varied(sample, rng):
    """Another crop, scale, noise and offset, as scanners and habits differ."""
    image, is_volume = sample.image, isinstance(sample.image, Volume)
    cut = [
        (int(rng.uniform(0, 0.12) * n), int(rng.uniform(0, 0.12) * n)) for n in image.array.shape
    ]
    inner = tuple(slice(a, n - b) for n, (a, b) in zip(image.array.shape, cut, strict=True))
    values = image.array[inner].astype(np.float32)
    scale = float(np.exp(rng.uniform(-0.35, 0.35)))
    if is_volume:
        values += rng.normal(0, rng.uniform(0, 30), values.shape) + rng.normal(0, 4)
        steps = np.diag([float(np.exp(rng.uniform(-0.5, 0.5))), scale, scale, 1.0])
        image = replace(image, affine_lps=image.affine_lps @ steps)
    else:
        values = (values / 255) ** rng.uniform(0.8, 1.25) * 255
        values = np.clip(values + rng.normal(0, rng.uniform(0, 6), values.shape), 0, 255)
        y, x = image.spacing_yx_mm
        image = replace(image, spacing_yx_mm=(y * scale, x * scale))
    return replace(sample, image=replace(image, array=np.rint(values).astype(np.int16)))


def with_values(sample, values):
    """The same image with other values, as int16 where they fit."""
    values = np.asarray(values)
    if values.dtype.kind == "f" and np.abs(values).max() < 32768:
        values = np.rint(values).astype(np.int16)
    return replace(sample, image=replace(sample.image, array=values))


def with_meta(sample, **meta):
    return replace(sample, meta={**sample.meta, **meta})


def without_header(sample):
    """As if it came from a NIfTI or PNG file."""
    return replace(sample, meta={"modality": ""} if isinstance(sample.image, Volume) else {})


def native_phase(sample):
    """Organs and vessels as without contrast agent: what lies above muscle comes down to it."""
    hu = sample.image.array.astype(np.float32)
    enhanced = (hu > 60) & (hu < 250)
    return with_values(sample, np.where(enhanced, 48 + 0.15 * (hu - 60), hu))


def enhanced_phase(sample):
    """Tissue above muscle as with contrast agent."""
    hu = sample.image.array.astype(np.float32)
    tissue = (hu > 35) & (hu < 300)
    return with_values(sample, np.where(tissue, hu + 2.2 * (hu - 35), hu))


def thicker(sample, factor=3):
    """Neighbouring slices averaged, as a thick reconstruction has them."""
    array = sample.image.array
    depth = len(array) // factor * factor
    mean = array[:depth].reshape(-1, factor, *array.shape[1:]).mean(axis=1)
    affine = sample.image.affine_lps @ np.diag([factor, 1.0, 1.0, 1.0])
    return replace(sample, image=Volume(array=np.rint(mean).astype(np.int16), affine_lps=affine))


def noise_like(sample, number):
    """White noise with the image's mean and spread."""
    array = sample.image.array
    rng = np.random.default_rng(number)
    return with_values(sample, rng.normal(array.mean(), array.std(), array.shape))


def shuffled(sample, number):
    """The image's own values at random places."""
    values = sample.image.array.ravel().copy()
    np.random.default_rng(number).shuffle(values)
    return with_values(sample, values.reshape(sample.image.array.shape))


def flipped(sample, axis):
    return with_values(sample, np.flip(sample.image.array, axis=axis))


def pet_as_ct(sample, number, *, suv):
    grid_shape = sample.image.array.shape
    grid = replace(
        SIZES["tiny"].thick, shape=grid_shape, spacing_zyx_mm=sample.image.spacing_zyx_mm
    )
    values = pet_values(9, number, grid)
    return with_values(sample, (values / 4500).astype(np.float32) if suv else values)


def common_ct_shifts():
    return {
        "PET (Bq/ml) as CT": lambda s, n: pet_as_ct(s, n, suv=False),
        "PET (SUV) as CT": lambda s, n: pet_as_ct(s, n, suv=True),
        "modality MR": lambda s, n: with_meta(s, modality="MR"),
        "stored values (+1024)": lambda s, n: with_values(s, s.image.array + 1024),
        "values x10": lambda s, n: with_values(s, s.image.array.astype(np.float32) * 10),
        "values /10": lambda s, n: with_values(s, s.image.array.astype(np.float32) / 10),
        "sign": lambda s, n: with_values(s, -s.image.array),
        "thick slices x3": lambda s, n: thicker(s),
        "white noise": noise_like,
        "voxels shuffled": shuffled,
        "left-right flip": lambda s, n: flipped(s, 2),
        "head-feet flip": lambda s, n: flipped(s, 0),
        "front-back flip": lambda s, n: flipped(s, 1),
        "half of the slices": lambda s, n: with_values(s, s.image.array[: len(s.image.array) // 2]),
    }


def abdomen_shifts(size):
    return {
        "without contrast, by HU": lambda s, n: native_phase(s),
        "without contrast, header": lambda s, n: with_meta(s, contrast=False),
        "thorax": lambda s, n: with_meta(thorax_sample(7, n, size), contrast=True),
        **common_ct_shifts(),
    }


def thorax_shifts(size):
    return {
        "with contrast, by HU": lambda s, n: enhanced_phase(s),
        "with contrast, header": lambda s, n: with_meta(s, contrast=True),
        "abdomen": lambda s, n: with_meta(abdomen_sample(7, n, size), contrast=False),
        **common_ct_shifts(),
    }


def radiograph_shifts(size):
    def ct_slice(_, number):
        found = abdomen_sample(7, number, size)
        meta = {"modality": "CR", "contrast": False}
        return Sample(image=Image2D(array=found.image.array[10], meta=meta), meta=meta)

    return {
        "modality MG": lambda s, n: with_meta(s, modality="MG"),
        "CT slice as CR": ct_slice,
        "12 bit (x16)": lambda s, n: with_values(s, s.image.array * 16),
        "0..1 floats": lambda s, n: replace(
            s, image=replace(s.image, array=s.image.array.astype(np.float32) / 255)
        ),
        "inverted": lambda s, n: with_values(s, 255 - s.image.array),
        "sign": lambda s, n: with_values(s, -s.image.array),
        "white noise": noise_like,
        "pixels shuffled": shuffled,
        "left-right flip": lambda s, n: flipped(s, 1),
        "upside down": lambda s, n: flipped(s, 0),
        "upper half": lambda s, n: with_values(s, s.image.array[: len(s.image.array) // 2]),
        "quarter of the pixels": lambda s, n: with_values(s, s.image.array[::4, ::4]),
    }


TASKS = {
    "pancreas_segmentation": (abdomen_sample, abdomen_shifts),
    "lung_classification": (thorax_sample, thorax_shifts),
    "pneumonia_detection": (radiograph_sample, radiograph_shifts),
}
