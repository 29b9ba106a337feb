"""The generic layout: `datalist.json` in the MONAI/Decathlon form.

Lists `training`, `validation` and `test` of `{image, label, patient_id}`; paths are relative to the
file, or to the data where the list lies elsewhere (`--labels`). `image` is a DICOM folder or file,
NIfTI, NRRD, MHA, PNG or JPEG; `label` a class (index or name), the path of a mask, or a list of
boxes `[x0, y0, x1, y1]` in pixels. `mask` beside a class gives both. With `training` alone the
split is made by medray.
"""

import json
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medray.datasets.box_checks import Box, check_boxes, finite_number
from medray.datasets.paths import inside, relative_path, suffix_of
from medray.datasets.record import FileRef, ImageSource, Record, Rejection, SeriesRef, SourceTree
from medray.datasets.tree import Placed, is_volume, placed_instances, series_source, slice_usable
from medray.errors import ConfigError, DataError
from medray.formats.images import IMAGE_SUFFIXES
from medray.formats.volumes import VOLUME_SUFFIXES

NAME = "datalist"
_LISTS = {"training": "train", "validation": "val", "test": "test"}
_MAX_BYTES = 256 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a task asks of a generic layout.

    Attributes:
        image: `volume` or `image` (2D).
        label: `class`, `mask` or `boxes`.
        class_names: names that a class label, or a box label, may use beside its index.
        modalities: those that DICOM volumes may have; () takes any.
    """

    image: str
    label: str
    class_names: tuple[str, ...] = ()
    modalities: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Files:
    """Every file by the path that a row would name it by."""

    plain: Mapping[str, FileRef]
    dicom: Mapping[str, Placed]
    series: Sequence[tuple[str, SeriesRef]]


def matches(tree: SourceTree) -> bool:
    """Tell whether a `datalist.json` lies at the top."""
    return datalist_uri(tree) is not None


def datalist_uri(tree: SourceTree) -> str | None:
    """Return the URI of the datalist: named as data or labels, or `datalist.json` at the top."""
    named = [root for root in (tree.labels_root, tree.root) if root.endswith(".json")]
    if named:  # wins over another list that lies beside it
        return named[0]
    for root in (tree.labels_root, tree.root):
        for file in tree.files:
            if relative_path(file.uri, root) == "datalist.json":
                return file.uri
    return None


def records(tree: SourceTree, wanted: Wanted) -> Iterator[Record | Rejection]:
    """Offer one record per row; a row that cannot be used is a rejection of its own.

    Raises:
        ConfigError: if the file is no datalist at all.
    """
    uri = datalist_uri(tree)
    if uri is None:
        raise ConfigError("the layout datalist needs a datalist.json at the top of --data")
    document = _document(tree, uri)
    files = _index_files(tree, uri.rpartition("/")[0])
    keep_split = any(document.get(name) for name in ("validation", "test"))
    for name, split in _LISTS.items():
        for row in document.get(name) or []:
            try:
                yield _record(row, files, wanted, split if keep_split else "")
            except DataError as error:
                unlabelled_test = split == "test" and error.reason == "no_label"
                yield Rejection(
                    uri=uri, reason=error.reason, detail=error.detail, skip=unlabelled_test
                )


def _document(tree: SourceTree, uri: str) -> dict[str, Any]:
    data = tree.read_bytes(uri)
    if len(data) > _MAX_BYTES:
        raise ConfigError("datalist.json is larger than 256 MiB")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        raise ConfigError("datalist.json is no valid JSON") from None
    lists = [document.get(name) for name in _LISTS] if isinstance(document, dict) else []
    if not any(isinstance(rows, list) and rows for rows in lists):
        raise ConfigError("datalist.json has no list training, validation or test")
    if not all(rows is None or isinstance(rows, list) for rows in lists):
        raise ConfigError("training, validation and test of datalist.json must be lists")
    return dict(document)


def _index_files(tree: SourceTree, folder: str) -> _Files:
    data = tree.root.rpartition("/")[0] if tree.root.endswith(".json") else tree.root

    def place(uri: str) -> str:
        path = relative_path(uri, folder)
        return relative_path(uri, data) if path == relative_path(uri, "/") else path

    plain = {place(file.uri): file for file in tree.files}
    placed = [
        Placed(item.series, item.instance, place(item.instance.file.uri))
        for item in placed_instances(tree)
    ]
    series = []
    for stack in sorted(tree.series, key=lambda item: item.series_key):
        path = place(stack.instances[0].file.uri)
        series.append((posixpath.dirname(path), stack))
    return _Files(plain, {item.path: item for item in placed}, series)


def _record(row: object, files: _Files, wanted: Wanted, split: str) -> Record:
    row = {"image": row} if isinstance(row, str) else row
    if not isinstance(row, dict) or not isinstance(row.get("image"), str):
        raise DataError("annotation_invalid", "a row names no image")
    path = _safe_path(row["image"])
    image, series = _image(path, files, wanted)
    label = row.get("label")
    if label is None or (label == "" and wanted.label != "boxes"):
        raise DataError("no_label", "a row has no label")
    patient = row.get("patient_id") or (series.patient_id if series else "") or path
    facts = _label(label, row, files, wanted)
    if series is not None and facts.get("boxes_xyxy_px"):
        check_boxes(facts["boxes_xyxy_px"], width=series.columns, height=series.rows)
    strata = str(facts["label"]) if "label" in facts else _box_strata(facts)
    return Record(
        name=path, patient_id=str(patient), image=image, split=split, strata=strata, **facts
    )


def _box_strata(facts: Mapping[str, Any]) -> str:
    boxes = facts.get("boxes_xyxy_px")
    return "" if boxes is None else ("boxes" if boxes else "empty")


def _safe_path(text: str) -> str:
    """Normalise a path of the list; none may leave the folder of the list."""
    path = posixpath.normpath(text.replace("\\", "/"))
    if path.startswith(("/", "..")) or "\0" in path or "://" in text:
        raise DataError("annotation_invalid", "a path leads out of the data set")
    return path


def _image(path: str, files: _Files, wanted: Wanted) -> tuple[ImageSource, SeriesRef | None]:
    suffix = suffix_of(path)
    if path in files.plain and suffix in VOLUME_SUFFIXES + IMAGE_SUFFIXES:
        form = "volume_file" if suffix in VOLUME_SUFFIXES else "image_file"
        if (form == "volume_file") != (wanted.image == "volume"):
            raise DataError(
                "annotation_invalid", f"the task needs a {wanted.image}, the row names another kind"
            )
        return ImageSource(form=form, files=(files.plain[path],)), None
    if path in files.dicom:
        placed = files.dicom[path]
        if wanted.image == "volume":
            return _stack([placed.series], wanted)
        if not slice_usable(placed.series):
            raise DataError(
                placed.series.verdict, placed.series.detail or "the image cannot be used"
            )
        return placed.source, placed.series
    stacks = [stack for folder, stack in files.series if inside(folder, path)]
    if not stacks:
        raise DataError("annotation_unmatched", "the image of a row is not here or cannot be read")
    if wanted.image != "volume":
        raise DataError("annotation_invalid", "the task needs a 2D image, the row names a folder")
    return _stack(stacks, wanted)


def _stack(stacks: Sequence[SeriesRef], wanted: Wanted) -> tuple[ImageSource, SeriesRef]:
    volumes = [stack for stack in stacks if is_volume(stack)]
    usable = [s for s in volumes if not wanted.modalities or s.modality in wanted.modalities]
    if volumes and not usable:
        raise DataError("wrong_modality", "the volume of a row is of another modality")
    if len(usable) == 1:
        return series_source(usable[0]), usable[0]
    if usable:
        raise DataError(
            "annotation_unmatched", "a folder holds several volumes; name one of its files"
        )
    bad = stacks[0]
    if bad.verdict == "ok":
        raise DataError("too_few_slices", "the image of a row is no volume")
    raise DataError(bad.verdict, bad.detail or "the series cannot be used")


def _label(label: object, row: Mapping[str, Any], files: _Files, wanted: Wanted) -> dict[str, Any]:
    if wanted.label == "mask":
        return {"mask": _mask(label, files)}
    if wanted.label == "boxes":
        boxes = _boxes(label)
        return {"boxes_xyxy_px": boxes, "box_labels": _box_labels(row, len(boxes), wanted)}
    facts: dict[str, Any] = {"label": _class(label, wanted.class_names)}
    if row.get("mask") is not None:
        facts["mask"] = _mask(row["mask"], files)
    return facts


def _mask(label: object, files: _Files) -> ImageSource:
    if not isinstance(label, str):
        raise DataError("annotation_invalid", "the task needs the path of a mask as label")
    path = _safe_path(label)
    if path not in files.plain or suffix_of(path) not in VOLUME_SUFFIXES:
        raise DataError("no_label", "the mask of a row is not here or is no NIfTI, NRRD or MHA")
    return ImageSource(form="volume_file", files=(files.plain[path],))


def _class(label: object, names: Sequence[str]) -> int:
    if isinstance(label, str) and label in names:
        return names.index(label)
    if isinstance(label, (dict, list)):
        raise DataError("annotation_invalid", "the task needs a class as label")
    text = str(int(label)) if isinstance(label, (bool, float)) and label in (0, 1) else str(label)
    if (
        not text.isdecimal()
        or not text.isascii()
        or len(text) > 6
        or int(text) >= max(1, len(names))
    ):
        raise DataError("label_unknown", "a label is no class of the task")
    return int(text)


def _boxes(label: object) -> tuple[Box, ...]:
    if not isinstance(label, list):
        raise DataError("annotation_invalid", "the task needs a list of boxes as label")
    boxes = []
    for item in label:
        if not isinstance(item, (list, tuple)) or len(item) != 4:
            raise DataError("annotation_invalid", "a box has not four numbers")
        if not all(isinstance(number, (int, float)) for number in item):
            raise DataError("annotation_invalid", "a coordinate is no number")
        x0, y0, x1, y1 = (finite_number(number) for number in item)
        boxes.append((x0, y0, x1, y1))
    return tuple(boxes)


def _box_labels(row: Mapping[str, Any], count: int, wanted: Wanted) -> tuple[int, ...]:
    given = row.get("box_labels", [0] * count)
    if not isinstance(given, list) or len(given) != count:
        raise DataError("annotation_invalid", "there are not as many box labels as boxes")
    return tuple(_class(item, wanted.class_names or ("",)) for item in given)
