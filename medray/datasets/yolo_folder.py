"""YOLO folder layout: `images/`, `labels/` and `data.yaml`.

A label row is `class cx cy w h`, all but the class as shares of the image. An image whose label
file is empty has no box; one without a label file is refused, since nothing says that it was looked
at. The way out is `medray.datasets.box_export`.
"""

from collections.abc import Iterator, Sequence

from medray.datasets.box_checks import Box, finite_number
from medray.datasets.paths import stem_of
from medray.datasets.record import FileRef, ImageSource, Record, Rejection, SourceTree
from medray.datasets.tree import (
    file_named,
    label_files,
    label_rejection,
    placed_instances,
    slice_usable,
)
from medray.errors import ConfigError, DataError

NAME = "yolo_folder"
_IMAGES = frozenset({".png", ".jpg", ".jpeg"})
_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_MAX_LABEL_BYTES = 1 << 20
# Shares are written with six digits, so a box at the edge may reach that much beyond it.
_ROUNDING = 1e-5


def matches(tree: SourceTree) -> bool:
    """Tell whether a data.yaml and text files below `labels/` are there."""
    if file_named(tree, "data.yaml") is None:
        return False
    return any("labels" in path.split("/")[:-1] for path, _ in label_files(tree, ".txt"))


def records(tree: SourceTree, class_names: Sequence[str] = ()) -> Iterator[Record | Rejection]:
    """Offer one record per image below `images/`; boxes stay shares until the image is read.

    Raises:
        ConfigError: if data.yaml names other classes than the task.
    """
    num_classes = _num_classes(tree, class_names)
    labels = {
        _key(path, "labels"): file
        for path, file in label_files(tree, ".txt")
        if "labels" in path.split("/")[:-1]
    }
    seen: set[str] = set()
    for path, source, verdict in _images(tree):
        key = _key(path, "images")
        seen.add(key)
        label = labels.get(key)
        uri = source.files[0].uri
        try:
            if verdict:
                raise DataError(verdict, "the image cannot be used")
            if label is None:
                raise DataError(
                    "no_label", "the image has no label file; an empty one means no box"
                )
            uri = label.uri  # what is wrong from here on is the label
            yield _record(path, key, source, _read_boxes(tree, label, num_classes))
        except DataError as error:
            yield Rejection(uri=uri, reason=error.reason, detail=error.detail)
    for key in sorted(labels.keys() - seen):
        yield label_rejection(labels[key], "annotation_unmatched", "a label file has no image")


def _images(tree: SourceTree) -> Iterator[tuple[str, ImageSource, str]]:
    """Return (path, source, reason why not) of every image below a folder `images`."""
    for path, file in label_files(tree, *_IMAGES):
        if "images" in path.split("/")[:-1]:
            yield path, ImageSource(form="image_file", files=(file,)), ""
    for item in placed_instances(tree):
        if "images" in item.path.split("/")[:-1]:
            yield item.path, item.source, "" if slice_usable(item.series) else item.series.verdict


def _key(path: str, folder: str) -> str:
    """Return the part of a path below `images` or `labels`, without suffix."""
    parts = path.split("/")
    below = parts[parts.index(folder) + 1 :]
    return "/".join([*below[:-1], stem_of(below[-1])])


def _record(
    path: str, key: str, source: ImageSource, labels: tuple[tuple[Box, ...], tuple[int, ...]]
) -> Record:
    boxes, classes = labels
    split = _SPLITS.get(key.split("/", maxsplit=1)[0].lower(), "") if "/" in key else ""
    return Record(
        name=path,
        # Files are named <patient>_<number> (SEEDS_SPEC 1.2); a name without number is a patient.
        patient_id=_patient(key.rsplit("/", 1)[-1]),
        image=source,
        split=split,
        strata="boxes" if boxes else "empty",
        boxes_xyxy_px=boxes,
        box_labels=classes,
        meta={"boxes_unit": "share"},
    )


def _patient(stem: str) -> str:
    head, _, tail = stem.rpartition("_")
    return head if head and tail.isdigit() else stem


def _read_boxes(
    tree: SourceTree, file: FileRef, num_classes: int
) -> tuple[tuple[Box, ...], tuple[int, ...]]:
    if file.bytes > _MAX_LABEL_BYTES:
        raise DataError("annotation_invalid", "the label file is larger than one MiB")
    try:
        lines = tree.read_bytes(file.uri).decode("ascii").split("\n") if file.bytes else []
    except UnicodeDecodeError:
        raise DataError("annotation_invalid", "the label file is no text") from None
    boxes, classes = [], []
    for line in lines:
        fields = line.split()
        if not fields:
            continue
        if len(fields) != 5:
            raise DataError("annotation_invalid", "a label row has not five fields")
        if not fields[0].isdecimal() or int(fields[0][:6]) >= num_classes:
            raise DataError("label_unknown", "a label row names no class of the task")
        boxes.append(_box(fields[1:]))
        classes.append(int(fields[0]))
    return tuple(boxes), tuple(classes)


def _box(fields: Sequence[str]) -> Box:
    cx, cy, width, height = (finite_number(field) for field in fields)
    box = (cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2)
    if min(width, height) <= 0 or min(box) < -_ROUNDING or max(box) > 1 + _ROUNDING:
        raise DataError("box_out_of_image", "a box has no area or reaches beyond its image")
    x0, y0, x1, y1 = (min(1.0, max(0.0, side)) for side in box)
    return x0, y0, x1, y1


def _num_classes(tree: SourceTree, class_names: Sequence[str]) -> int:
    """Return how many classes there may be: the task's; data.yaml must not name more."""
    file = file_named(tree, "data.yaml")
    if file is None:
        raise ConfigError(f"the layout {NAME} needs a data.yaml")
    named = yaml_names(tree.read_bytes(file.uri).decode("utf-8", "replace"))
    wanted = max(1, len(class_names))
    if len(named) > wanted:
        raise ConfigError(f"data.yaml names {len(named)} classes, the task has {wanted}")
    return wanted


def yaml_names(text: str) -> list[str]:
    """Read `names` of a data.yaml: `[a, b]`, `{0: a}`, or one a line with `- a` or `0: a`."""
    lines = [line.split("#")[0].rstrip() for line in text.splitlines()]
    starts = [n for n, line in enumerate(lines) if line.startswith("names:")]
    if not starts:
        return []
    inline = lines[starts[0]].partition(":")[2].strip().strip("[]{}")
    if inline:
        items = inline.split(",")
    else:
        items = []
        for line in lines[starts[0] + 1 :]:
            if line and not line.startswith((" ", "\t", "-")):
                break
            items.append(line)
    names = [
        item.strip().removeprefix("-").rpartition(":")[2].strip().strip("'\"") for item in items
    ]
    return [name for name in names if name]
