"""Boxes of prepared examples in the forms of other tools: YOLO folder and COCO JSON."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxItem:
    """One prepared image with its boxes, for an export.

    Attributes:
        name: file name without suffix (an example's key).
        split: `train`, `val`, `test` or `none`.
        height, width: of the image in pixels.
        boxes_xyxy_px: (n, 4).
        labels: (n,) class indices.
    """

    name: str
    split: str
    height: int
    width: int
    boxes_xyxy_px: np.ndarray
    labels: np.ndarray


def yolo_label_file(item: BoxItem) -> tuple[str, bytes]:
    """Return path and content of an image's label file."""
    rows = []
    for (x0, y0, x1, y1), label in zip(
        item.boxes_xyxy_px.tolist(), item.labels.tolist(), strict=True
    ):
        shares = (
            (x0 + x1) / 2 / item.width,
            (y0 + y1) / 2 / item.height,
            (x1 - x0) / item.width,
            (y1 - y0) / item.height,
        )
        rows.append(" ".join([str(int(label)), *(f"{share:.6f}" for share in shares)]))
    text = "".join(f"{row}\n" for row in rows)
    return f"labels/{item.split}/{item.name}.txt", text.encode()


def yolo_image_path(item: BoxItem) -> str:
    """Return where the image of an item belongs; PNG keeps its values."""
    return f"images/{item.split}/{item.name}.png"


def yolo_data_yaml(class_names: Sequence[str], splits: Iterable[str]) -> tuple[str, bytes]:
    """Return path and content of data.yaml."""
    present = sorted(set(splits))
    rows = ["path: .", *(f"{split}: images/{split}" for split in present)]
    names = ", ".join(f"'{name}'" for name in class_names)
    return "data.yaml", "\n".join(
        [*rows, f"nc: {len(class_names)}", f"names: [{names}]", ""]
    ).encode()


def coco_json(items: Iterable[BoxItem], class_names: Sequence[str]) -> bytes:
    """Return the content of a COCO annotation file; ids count from 1 in order of the names."""
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for image_id, item in enumerate(sorted(items, key=lambda each: each.name), start=1):
        images.append(
            {
                "id": image_id,
                "file_name": yolo_image_path(item),
                "height": item.height,
                "width": item.width,
            }
        )
        for (x0, y0, x1, y1), label in zip(
            item.boxes_xyxy_px.tolist(), item.labels.tolist(), strict=True
        ):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": int(label) + 1,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": 0,
                }
            )
    categories = [{"id": index, "name": name} for index, name in enumerate(class_names, start=1)]
    document = {"images": images, "annotations": annotations, "categories": categories}
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
