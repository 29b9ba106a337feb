"""The example file: named arrays with their geometry in one safetensors file, and its table row."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from safetensors.numpy import load, save

from medray.datasets.record import Record
from medray.recipe import Prepared

# One metadata entry alone: safetensors writes several in an order that differs between runs.
_METADATA_KEY = "medray"
_WHOLE_IMAGE_BOX = 0.95
_NOT_FOR_BATCHES = "native_"

EXAMPLES = pa.schema(
    [
        ("key", pa.string()),
        ("patient_id", pa.string()),
        ("split", pa.string()),
        ("uri", pa.string()),
        ("sha256", pa.string()),
        ("shapes", pa.string()),
        ("dtypes", pa.string()),
        ("label", pa.int64()),
        ("num_boxes", pa.int32()),
        ("max_box_share", pa.float64()),
        ("num_mask_voxels", pa.int64()),
        ("value_min", pa.float64()),
        ("value_max", pa.float64()),
        ("pixel_sha256", pa.string()),
        ("series_key", pa.string()),
        ("strata", pa.string()),
    ]
)


def encode_example(prepared: Prepared, *, key: str) -> bytes:
    """Return the bytes of an example file; equal examples give equal bytes."""
    facts = example_facts(prepared, key=key)
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    arrays = {name: np.ascontiguousarray(array) for name, array in sorted(prepared.arrays.items())}
    return save(arrays, metadata={_METADATA_KEY: text})


def example_facts(prepared: Prepared, *, key: str) -> dict[str, Any]:
    """Return what an example's file says beside its arrays."""
    affine = prepared.affine_lps
    return {
        "key": key,
        "affine_lps": None if affine is None else np.ravel(affine).tolist(),
        "spacing_mm": list(prepared.spacing_mm),
        "label": prepared.label,
        "meta": dict(prepared.meta),
    }


def decode_example(data: bytes) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the arrays and facts of an example file."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    return load(data), json.loads(header["__metadata__"][_METADATA_KEY])


def batch_arrays(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return what goes into batches: all but what serves evaluation on the original grid."""
    return {n: array for n, array in arrays.items() if not n.startswith(_NOT_FOR_BATCHES)}


def example_row(record: Record, prepared: Prepared, *, key: str, sha256: str) -> dict[str, Any]:
    """Return the row of examples.parquet; the split comes later."""
    image = prepared.arrays["image"]
    boxes = prepared.arrays.get("boxes")
    mask = prepared.arrays.get("mask")
    return {
        "key": key,
        "patient_id": record.patient_id,
        "split": record.split,
        "uri": f"examples/{key}.safetensors",
        "sha256": sha256,
        "shapes": _plain({name: list(array.shape) for name, array in prepared.arrays.items()}),
        "dtypes": _plain({name: str(array.dtype) for name, array in prepared.arrays.items()}),
        "label": prepared.label,
        "num_boxes": 0 if boxes is None else len(boxes),
        "max_box_share": _max_share(boxes, image.shape),
        "num_mask_voxels": -1 if mask is None else int(np.count_nonzero(mask)),
        "value_min": float(image.min()),
        "value_max": float(image.max()),
        "pixel_sha256": hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest(),
        "series_key": record.image.series_key,
        "strata": record.strata,
    }


def _plain(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _max_share(boxes: np.ndarray | None, shape: tuple[int, ...]) -> float:
    """Return the largest share of the image that one box covers, 0 without boxes."""
    if boxes is None or not len(boxes):
        return 0.0
    height, width = shape[-2:]
    sides = np.clip(boxes[:, 2:] - boxes[:, :2], 0, None)
    return float((sides[:, 0] * sides[:, 1]).max() / (height * width))
