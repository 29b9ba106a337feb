"""A sheet of augmented examples to look at: what training sees, boxes and masks drawn in."""

import time
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from medray import storage
from medray.datasets.loading import load_sample
from medray.datasets.record import Record
from medray.dicom.decoder import process_decoder
from medray.engine.examples import batch_arrays
from medray.engine.prepare_task import CountingReader
from medray.engine.run import Run
from medray.engine.source_tree import TreeOptions, read_tree
from medray.errors import DataError
from medray.learning import Batch
from medray.pictures import contact_sheet, example_tile
from medray.recipe import Recipe

SHEET = "augment.png"
_EXAMPLES, _VARIANTS = 6, 5


def augmented_sheet(work: Path, out: str, recipe: Recipe[Any]) -> str:
    """Write the sheet below `out`; needs a running `ray_session`.

    Each row is one example of a phantom as it was prepared, then as five seeds change it.

    Returns:
        The sheet's URI.
    """
    import torch

    learning, hparams = recipe.learning, recipe.tiny_hparams
    examples = list(islice(_examples(work, recipe), _EXAMPLES))
    collated = learning.collate(examples)
    batch: Batch = {name: torch.from_numpy(np.array(array)) for name, array in collated.items()}
    batch["label"] = torch.zeros(len(examples), dtype=torch.int64)
    columns = [batch]
    for variant in range(_VARIANTS):
        seeds = [1000 * variant + number for number in range(len(examples))]
        columns.append(learning.augment(dict(batch), seeds, hparams))
    tiles = [
        example_tile(_shown(column, number))
        for number in range(len(examples))
        for column in columns
    ]
    where = storage.join(out, SHEET)
    storage.write_atomic(where, contact_sheet(tiles, columns=1 + _VARIANTS))
    return where


def _examples(work: Path, recipe: Recipe[Any]) -> Iterator[dict[str, np.ndarray]]:
    """Yield prepared examples of a small phantom, those with a lesion first."""
    data = work / f"phantom-augment-{recipe.name}"
    if not (data / "truth.json").exists():
        recipe.phantom(data, num_patients=_EXAMPLES, seed=3, defects=False, size="tiny")
    out = str(work / f"augment-{time.time_ns()}")
    with Run(verb="prepare", out=out, parameters={}, inputs=(str(data),)) as run:
        tree = read_tree(run, TreeOptions(data=str(data)), quiet=True)
        records = [r for r in recipe.records(tree, recipe.tiny_hparams) if isinstance(r, Record)]
    records.sort(key=lambda record: (not record.boxes_xyxy_px, record.name))
    reader = CountingReader(process_decoder())
    for record in records:
        try:
            prepared = recipe.prepare(load_sample(record, reader), recipe.tiny_hparams)
        except DataError:
            continue  # a sheet shows what training sees
        yield batch_arrays(prepared.arrays)


def _shown(batch: Mapping[str, Any], number: int) -> dict[str, np.ndarray]:
    """Return one example of a batch, boxes without their padding."""
    arrays = {name: batch[name][number].numpy() for name in ("image", "mask") if name in batch}
    if "boxes" in batch:
        arrays["boxes"] = batch["boxes"][number].numpy()[: int(batch["num_boxes"][number])]
    return arrays
