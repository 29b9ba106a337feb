"""RSNA Screening Mammography: one row a image in `train.csv`, the label is the breast's.

Layout (SEEDS_SPEC 3.1): `train.csv` and `train_images/<patient_id>/<image_id>.dcm`.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from medray.datasets.box_checks import finite_number
from medray.datasets.paths import relative_path, stem_of
from medray.datasets.record import FileRef, Record, Rejection, SourceTree
from medray.datasets.tables import has_columns, read_table
from medray.datasets.tree import (
    Placed,
    label_files,
    label_rejection,
    placed_instances,
    series_rejection,
    slice_usable,
    unlabelled_rejection,
)
from medray.errors import ConfigError, DataError

NAME = "rsna_breast"
_REQUIRED = ("patient_id", "image_id", "laterality", "view")
# Known before reading an image; biopsy, invasive, BIRADS, density and difficult_negative_case are
# results of the reading and never features.
_META = ("site_id", "machine_id", "age", "implant")
_Row = dict[str, str]


def matches(tree: SourceTree) -> bool:
    """Tell whether a train.csv with the challenge's columns is there."""
    return _table(tree) is not None


def _table(tree: SourceTree) -> FileRef | None:
    for path, file in label_files(tree, ".csv"):
        if path.rsplit("/", 1)[-1] == "train.csv" and has_columns(tree, file, _REQUIRED):
            return file
    return None


def records(tree: SourceTree, *, with_label: bool = True) -> Iterator[Record | Rejection]:
    """Offer one record per image of the table.

    Args:
        tree: images and table.
        with_label: cancer labels are needed; without, rows serve for their images alone.

    Raises:
        ConfigError: if there is no such table.
    """
    file = _table(tree)
    if file is None:
        raise ConfigError(f"the layout {NAME} needs a train.csv with {', '.join(_REQUIRED)}")
    needed = (*_REQUIRED, "cancer") if with_label else _REQUIRED
    rows: dict[str, list[_Row]] = defaultdict(list)
    for row in read_table(tree, file, needed):
        if row is None or not row["image_id"] or not row["patient_id"]:
            yield label_rejection(
                file, "annotation_invalid", "a row has another number of fields or no id"
            )
            continue
        rows[row["image_id"]].append(row)
    images = _images(tree)
    breasts = _breast_labels(rows)
    cancer = {patient for (patient, _), labels in breasts.items() if "1" in labels}
    for image_id in sorted(rows):
        item = images.get((rows[image_id][0]["patient_id"], image_id))
        try:
            row = _only(rows[image_id])
            label = _label(row, breasts) if with_label else -1
            yield _record(row, label, item, has_cancer=row["patient_id"] in cancer)
        except DataError as error:
            uri = item.instance.file.uri if item else file.uri
            yield Rejection(uri=uri, reason=error.reason, detail=error.detail)
    yield from _without_row(tree, images, rows)


def _images(tree: SourceTree) -> dict[tuple[str, str], Placed]:
    """Return images by (patient folder, file stem)."""
    images: dict[tuple[str, str], Placed] = {}
    for item in placed_instances(tree):
        folder = item.path.rsplit("/", 2)[-2] if "/" in item.path else ""
        images.setdefault((folder, stem_of(item.path)), item)
    return images


def _breast_labels(rows: Mapping[str, Sequence[_Row]]) -> dict[tuple[str, str], set[str]]:
    breasts: dict[tuple[str, str], set[str]] = defaultdict(set)
    for group in rows.values():
        for row in group:
            breasts[row["patient_id"], row["laterality"]].add(row.get("cancer", ""))
    return breasts


def _only(rows: Sequence[_Row]) -> _Row:
    if any(row != rows[0] for row in rows):
        raise DataError("annotation_invalid", "two rows of one image contradict one another")
    return rows[0]


def _label(row: _Row, breasts: Mapping[tuple[str, str], set[str]]) -> int:
    value = row["cancer"]
    if not value:
        raise DataError("no_label", "the row of an image has no value for cancer")
    if value not in {"0", "1"}:
        raise DataError("label_unknown", "cancer is neither 0 nor 1")
    if {"0", "1"} <= breasts[row["patient_id"], row["laterality"]]:
        raise DataError("annotation_invalid", "images of one breast have different labels")
    return int(value)


def _record(row: _Row, label: int, item: Placed | None, *, has_cancer: bool) -> Record:
    if row["laterality"] not in {"L", "R"}:
        raise DataError("annotation_invalid", "laterality is neither L nor R")
    if item is None:
        raise DataError("annotation_unmatched", "the image of a label row is not here")
    if not slice_usable(item.series):
        raise DataError(item.series.verdict, item.series.detail or "the image cannot be used")
    meta: dict[str, object] = {"laterality": row["laterality"], "view": row["view"]}
    meta.update({name: row[name] for name in _META if row.get(name)})
    if "age" in meta:
        meta["age"] = finite_number(row["age"])
    site = row.get("site_id", "")
    return Record(
        name=item.path,
        patient_id=row["patient_id"],
        image=item.source,
        # Whether the patient has any cancer, so that a split holds whole patients in proportion.
        strata=f"cancer{int(has_cancer)}_site{site}",
        label=label,
        meta=meta,
    )


def _without_row(
    tree: SourceTree, images: Mapping[tuple[str, str], Placed], rows: Mapping[str, Sequence[_Row]]
) -> Iterator[Rejection]:
    for (folder, image_id), item in sorted(images.items()):
        if any(row["patient_id"] == folder for row in rows.get(image_id, [])):
            continue
        is_test = "test_images" in relative_path(item.instance.file.uri, tree.root).split("/")
        detail = (
            "images of the test folder have no labels"
            if is_test
            else "the table has no row for the image"
        )
        if is_test:
            yield series_rejection(item.series, reason="no_label", detail=detail, skip=True)
        else:
            yield unlabelled_rejection(item.series, detail)
