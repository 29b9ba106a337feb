"""Examples in other people's forms: YOLO folders, COCO boxes, and a sheet of pictures."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from medray import storage
from medray.datasets.box_export import (
    BoxItem,
    coco_json,
    yolo_data_yaml,
    yolo_image_path,
    yolo_label_file,
)
from medray.engine.examples import decode_example
from medray.formats.images import write_png
from medray.pictures import contact_sheet, example_plane, example_tile

EXPORTS = ("yolo", "coco")
_SHEET_TILES = 24


def write_sheet(out: str, rows: Sequence[dict[str, Any]]) -> None:
    """Write contact_sheet.png: examples spread evenly over the table, those with lesions first."""
    telling = [row for row in rows if row["num_boxes"] > 0 or row["num_mask_voxels"] > 0]
    chosen = telling or list(rows)
    if not chosen:
        return
    step = max(1, len(chosen) // _SHEET_TILES)
    tiles = []
    for row in chosen[::step][:_SHEET_TILES]:
        arrays, _ = decode_example(storage.read_bytes(storage.join(out, row["uri"])))
        tiles.append(example_tile(arrays))
    storage.write_atomic(storage.join(out, "contact_sheet.png"), contact_sheet(tiles))


def write_export(
    out: str, rows: Sequence[dict[str, Any]], class_names: Sequence[str], form: str
) -> None:
    """Write images and boxes of 2D examples as a YOLO folder or a COCO file."""
    names = tuple(class_names) or ("lesion",)
    folder = storage.join(out, form)
    items = []
    for item, image in _box_items(out, rows):
        items.append(item)
        png = write_png(example_plane(image))
        storage.write_atomic(storage.join(folder, yolo_image_path(item)), png)
        if form == "yolo":
            path, content = yolo_label_file(item)
            storage.write_atomic(storage.join(folder, path), content)
    if form == "yolo":
        path, content = yolo_data_yaml(names, (item.split for item in items))
        storage.write_atomic(storage.join(folder, path), content)
    else:
        storage.write_atomic(storage.join(folder, "annotations.json"), coco_json(items, names))


def _box_items(out: str, rows: Sequence[dict[str, Any]]) -> Iterator[tuple[BoxItem, np.ndarray]]:
    for row in rows:
        arrays, _ = decode_example(storage.read_bytes(storage.join(out, row["uri"])))
        if "boxes" not in arrays:
            continue
        image, boxes = arrays["image"], arrays["boxes"]
        labels = arrays.get("box_labels", np.zeros(len(boxes), dtype=np.int64))
        yield (
            BoxItem(
                name=row["key"],
                split=row["split"],
                height=image.shape[-2],
                width=image.shape[-1],
                boxes_xyxy_px=boxes,
                labels=labels,
            ),
            image,
        )
