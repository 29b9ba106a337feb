"""Prepared data sets made without Ray: what training tests feed on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from medray import storage
from medray.datasets.record import ImageSource, Record
from medray.engine.examples import EXAMPLES, encode_example, example_row
from medray.recipe import Prepared, Recipe

_FINGERPRINT = {"num_examples": 0, "modalities": {"CT": 1}}


def write_prepared(
    out: Path,
    recipe: Recipe[Any],
    hparams: Any,
    examples: Mapping[str, list[Prepared]],
    **facts: Any,
) -> Path:
    """Write examples by split as `medray prepare` would; one patient an example."""
    rows = []
    for split, members in examples.items():
        for number, prepared in enumerate(members):
            key = f"{split}{number:04d}".ljust(16, "0")
            record = Record(
                name=key,
                patient_id=f"P-{key}",
                image=ImageSource(form="volume_file", files=()),
                label=prepared.label,
            )
            receipt = storage.write_atomic(
                str(out / "examples" / f"{key}.safetensors"), encode_example(prepared, key=key)
            )
            row = example_row(record, prepared, key=key, sha256=receipt.sha256)
            rows.append({**row, "split": split})
    storage.write_parquet(str(out / "examples.parquet"), pa.Table.from_pylist(rows, EXAMPLES))
    storage.write_json(str(out / "fingerprint.json"), _FINGERPRINT)
    chosen = {name: getattr(hparams, name) for name in recipe.data_fields}
    run = {
        "verb": "prepare",
        "task": recipe.name,
        "status": "done",
        "transform_version": recipe.transform_version,
        "class_names": list(recipe.class_names_of(hparams)),
        "hyperparameters": {**chosen, "split": "patient", "gates": "on"},
        **facts,
    }
    storage.write_json(str(out / "run.json"), run)
    return out


def ball_volume(
    rng: np.random.Generator, size: int, radius: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return (image int16 HU, mask uint8): noise with one ball of soft tissue in it."""
    center = rng.uniform(radius, size - radius, 3)
    grid = np.stack(np.meshgrid(*[np.arange(size)] * 3, indexing="ij"), axis=-1)
    inside = np.linalg.norm(grid - center, axis=-1) <= radius
    image = rng.normal(-100, 20, (size,) * 3)
    image[inside] += 200
    return image.astype(np.int16), inside.astype(np.uint8)


def shape_examples(count: int, *, size: int, num_classes: int, seed: int) -> list[Prepared]:
    """Return volumes whose class shows in the size of a ball."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        label = number % num_classes
        image, mask = ball_volume(rng, size, radius=size * (0.15 + 0.08 * label))
        made.append(_prepared(image, label=label, mask=None))
        del mask
    return made


def mask_examples(count: int, *, size: int, seed: int) -> list[Prepared]:
    """Return volumes with a ball and its mask, the original grid being the example's own."""
    from medray.preprocess.native_mask import pack_mask

    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        image, mask = ball_volume(rng, size, radius=size * rng.uniform(0.15, 0.25))
        bits, box = pack_mask(mask)
        prepared = _prepared(image, label=-1, mask=mask)
        prepared.arrays["native_mask_bits"] = bits
        prepared.meta["native_mask_box_kji"] = [list(ends) for ends in box]
        made.append(prepared)
    return made


def _prepared(image: np.ndarray, *, label: int, mask: np.ndarray | None) -> Prepared:
    arrays = {"image": image} if mask is None else {"image": image, "mask": mask}
    affine = np.array([[0, 0, 2.0, 0], [0, 2.0, 0, 0], [2.0, 0, 0, 0], [0, 0, 0, 1]])
    return Prepared(
        arrays=arrays,
        affine_lps=affine,
        spacing_mm=(2.0, 2.0, 2.0),
        label=label,
        meta={"original_shape": list(image.shape), "original_affine_lps": affine.ravel().tolist()},
    )
