"""RSNA Pneumonia Detection Challenge, stage 2: boxes by image in one CSV table.

Layout (SEEDS_SPEC 5.1): `stage_2_train_labels.csv`, `stage_2_detailed_class_info.csv` and
`stage_2_train_images/<patientId>.dcm`. `patientId` names the image.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from medray.datasets.box_checks import Box, check_boxes, finite_number
from medray.datasets.paths import stem_of
from medray.datasets.record import Record, Rejection, SourceTree
from medray.datasets.tables import read_table
from medray.datasets.tree import (
    Placed,
    file_named,
    label_rejection,
    placed_instances,
    series_rejection,
    slice_usable,
    unlabelled_rejection,
)
from medray.errors import ConfigError, DataError

NAME = "rsna_pneumonia"
LABELS_FILE = "stage_2_train_labels.csv"
CLASSES_FILE = "stage_2_detailed_class_info.csv"
_SIDES = ("x", "y", "width", "height")
_CLASSES = {"Lung Opacity": 1, "No Lung Opacity / Not Normal": 0, "Normal": 0}
_Rows = list[dict[str, str] | None]


def matches(tree: SourceTree) -> bool:
    """Tell whether the challenge's label table is there."""
    return file_named(tree, LABELS_FILE) is not None


def records(tree: SourceTree) -> Iterator[Record | Rejection]:
    """Offer one record per labelled image; healthy images have no box.

    Raises:
        ConfigError: if the label table is absent or has other columns.
    """
    file = file_named(tree, LABELS_FILE)
    if file is None:
        raise ConfigError(f"the layout {NAME} needs {LABELS_FILE}")
    rows = read_table(tree, file, ("patientId", *_SIDES, "Target"))
    classes = _detailed_classes(tree)
    by_image: dict[str, _Rows] = defaultdict(list)
    for row in rows:
        if row is None or not row["patientId"]:
            yield label_rejection(
                file, "annotation_invalid", "a row has another number of fields or no id"
            )
            continue
        by_image[row["patientId"]].append(row)
    placed, test_images = _images(tree)
    for image_id in sorted(by_image):
        try:
            yield _record(image_id, by_image[image_id], placed.get(image_id), classes)
        except DataError as error:
            uri = placed[image_id].instance.file.uri if image_id in placed else file.uri
            yield Rejection(uri=uri, reason=error.reason, detail=error.detail)
    yield from _unlabelled(placed, test_images, by_image)


def _images(tree: SourceTree) -> tuple[dict[str, Placed], list[Placed]]:
    """Return training images by id and the images of the test folder, which has no labels."""
    placed: dict[str, Placed] = {}
    test: list[Placed] = []
    for item in placed_instances(tree):
        if any(part.endswith("test_images") for part in item.path.split("/")):
            test.append(item)
        else:
            placed.setdefault(stem_of(item.path), item)
    return placed, test


def _unlabelled(
    placed: Mapping[str, Placed], test: Sequence[Placed], labelled: Mapping[str, object]
) -> Iterator[Rejection]:
    for image_id in sorted(placed.keys() - labelled.keys()):
        item = placed[image_id]
        yield unlabelled_rejection(item.series, "the label table has no row for the image")
    for item in test:
        detail = "images of the test folder have no labels"
        yield series_rejection(item.series, reason="no_label", detail=detail, skip=True)


def _detailed_classes(tree: SourceTree) -> dict[str, set[str]]:
    file = file_named(tree, CLASSES_FILE)
    found: dict[str, set[str]] = defaultdict(set)
    if file is not None:
        for row in read_table(tree, file, ("patientId", "class")):
            if row is not None:
                found[row["patientId"]].add(row["class"])
    return found


def _record(
    image_id: str, rows: _Rows, item: Placed | None, classes: Mapping[str, set[str]]
) -> Record:
    target, boxes = _target(rows)
    detailed = _detailed(classes.get(image_id, set()), target)
    if item is None:
        raise DataError("annotation_unmatched", "the image of a label row is not here")
    if not slice_usable(item.series):
        raise DataError(item.series.verdict, item.series.detail or "the image cannot be used")
    check_boxes(boxes, width=item.series.columns, height=item.series.rows)
    return Record(
        name=item.path,
        patient_id=image_id,
        image=item.source,
        strata=detailed or str(target),
        label=target,
        boxes_xyxy_px=boxes,
        box_labels=(0,) * len(boxes),
        meta={"detailed_class": detailed},
    )


def _target(rows: _Rows) -> tuple[int, tuple[Box, ...]]:
    """Return the image's label and boxes; contradictions between rows are refused."""
    targets, boxes = set(), []
    for row in rows:
        assert row is not None
        if row["Target"] not in {"0", "1"}:
            raise DataError(
                "label_unknown" if row["Target"] else "no_label", "Target is neither 0 nor 1"
            )
        targets.add(int(row["Target"]))
        sides = [row[side] for side in _SIDES]
        if any(sides):
            x, y, width, height = (finite_number(side) for side in sides)
            boxes.append((x, y, x + width, y + height))
        elif row["Target"] == "1":
            raise DataError("annotation_invalid", "Target is 1 and the row has no box")
    if len(targets) > 1 or (targets == {0} and boxes):
        raise DataError("annotation_invalid", "Target and boxes of an image contradict one another")
    return targets.pop(), tuple(boxes)


def _detailed(names: set[str], target: int) -> str:
    if not names:
        return ""
    if len(names) > 1 or not names <= _CLASSES.keys():
        raise DataError(
            "annotation_invalid", "the detailed class is unknown or not the same in all rows"
        )
    name = next(iter(names))
    if _CLASSES[name] != target:
        raise DataError(
            "annotation_invalid", "the detailed class and Target contradict one another"
        )
    return name
