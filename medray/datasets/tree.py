"""Views on a source tree that several layout readers need."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np

from medray.datasets.paths import folder_of, relative_path, suffix_of
from medray.datasets.record import (
    FileRef,
    ImageSource,
    InstanceRef,
    Rejection,
    SeriesRef,
    SourceTree,
)
from medray.errors import REASONS

# Verdicts that forbid a volume and say nothing against a single slice.
_STACK_VERDICTS = frozenset(
    reason
    for reason, entry in REASONS.items()
    if entry.stage == "volume" and reason not in {"localizer", "wrong_modality"}
)

# Objects without pixels and scout views are no images, so none is lost.
_NO_LOSS = frozenset({"localizer", "no_pixels"})
_NO_ROW = "the label table has no row for the image"


@dataclass(frozen=True, slots=True)
class Placed:
    """One DICOM instance with the series that holds it and its path in the data set."""

    series: SeriesRef
    instance: InstanceRef
    path: str

    @property
    def source(self) -> ImageSource:
        """The instance as a single image."""
        return ImageSource(
            form="instance",
            files=(self.instance.file,),
            series_key=self.series.series_key,
            series_uid=self.series.series_uid,
        )


def placed_instances(tree: SourceTree) -> Iterator[Placed]:
    """Return every DICOM instance with its path below the data root, sorted by path."""
    items = [
        Placed(series, instance, relative_path(instance.file.uri, tree.root))
        for series in tree.series
        for instance in series.instances
    ]
    yield from sorted(items, key=lambda item: (item.path, item.series.series_key))


def label_files(tree: SourceTree, *suffixes: str) -> list[tuple[str, FileRef]]:
    """Return (path, file) of files without DICOM content by suffix, sorted by path.

    Paths are relative to the labels' root for files below it, else to the data root.
    """
    found = []
    for file in tree.files:
        path = tree_path(tree, file.uri)
        if not suffixes or suffix_of(path) in suffixes:
            found.append((path, file))
    return sorted(found, key=lambda pair: (pair[0], pair[1].uri))


def tree_path(tree: SourceTree, uri: str) -> str:
    """Return a file's path below the labels' root if it lies there, else below the data root."""
    if tree.labels_root != tree.root and uri.startswith(tree.labels_root.rstrip("/") + "/"):
        return relative_path(uri, tree.labels_root)
    return relative_path(uri, tree.root)


def file_named(tree: SourceTree, name: str) -> FileRef | None:
    """Return the file of this name that lies nearest to the top, or None."""
    hits = [
        (path.count("/"), path, file)
        for path, file in label_files(tree)
        if path.rsplit("/", 1)[-1] == name
    ]
    return min(hits, key=lambda hit: hit[:2])[2] if hits else None


def series_source(series: SeriesRef) -> ImageSource:
    """Return a stack as the source of a volume."""
    return ImageSource(
        form="series",
        files=tuple(instance.file for instance in series.instances),
        series_key=series.series_key,
        series_uid=series.series_uid,
    )


def series_folder(tree: SourceTree, series: SeriesRef) -> str:
    """Return the folder that holds the first file of a stack, below the data root."""
    return folder_of(relative_path(series.instances[0].file.uri, tree.root))


def is_volume(series: SeriesRef) -> bool:
    """Tell whether a stack can be assembled to a volume of values."""
    return series.kind == "volume" and series.verdict == "ok" and series.pixel_layout == "mono"


def slice_usable(series: SeriesRef) -> bool:
    """Tell whether single slices of a stack may be used, whatever its geometry says."""
    return series.verdict == "ok" or series.verdict in _STACK_VERDICTS


def series_rejection(
    series: SeriesRef, *, reason: str = "", detail: str = "", skip: bool = False
) -> Rejection:
    """Return why a whole stack is left out: its own verdict unless a reason is given."""
    reason = reason or series.verdict
    return Rejection(
        uri=series.instances[0].file.uri,
        reason=reason,
        detail=detail or series.detail or REASONS[reason].meaning,
        stage=REASONS[reason].stage,
        series_uid=series.series_uid,
        skip=skip,
    )


def unlabelled_rejection(
    series: SeriesRef, detail: str, modalities: Collection[str], *, skip: bool = False
) -> Rejection:
    """Return that a stack has no label; one that is bad or foreign by itself keeps that reason.

    Args:
        series: a stack that no label names.
        detail: how it lacks a label.
        modalities: those of the layout; another one is `wrong_modality`.
        skip: an unlabelled stack is ordinary here and no loss.
    """
    if series.verdict != "ok":
        return series_rejection(series, skip=skip or series.verdict in _NO_LOSS)
    if series.modality not in modalities:
        detail = "the series is of a modality that the layout does not have"
        return series_rejection(series, reason="wrong_modality", detail=detail)
    return series_rejection(series, reason="no_label", detail=detail, skip=skip)


def images_without_row(
    tree: SourceTree, used: Collection[str], modalities: Collection[str]
) -> Iterator[Rejection]:
    """Return the images that no row of a label table named; those of a test folder are skipped.

    Args:
        tree: every series that is there.
        used: URIs of the images that rows named.
        modalities: those of the layout.
    """
    for series in sorted(tree.series, key=lambda item: item.series_key):
        free = [item for item in series.instances if item.file.uri not in used]
        if not free:
            continue
        if len(free) == len(series.instances):
            folders = relative_path(free[0].file.uri, tree.root).split("/")[:-1]
            is_test = any(folder.endswith("test_images") for folder in folders)
            why = "images of the test folder have no labels" if is_test else _NO_ROW
            yield unlabelled_rejection(series, why, modalities, skip=is_test)
            continue
        for item in free:
            yield Rejection(
                uri=item.file.uri, reason="no_label", detail=_NO_ROW, series_uid=series.series_uid
            )


def label_rejection(file: FileRef, reason: str, detail: str, *, skip: bool = False) -> Rejection:
    """Return why a label file, or what it labels, is left out."""
    return Rejection(uri=file.uri, reason=reason, detail=detail, skip=skip)


def slice_distances_mm(series: SeriesRef) -> dict[str, float]:
    """Return each instance's distance along the slice normal by file URI, {} where unknown."""
    if any(item.position_mm is None for item in series.instances):
        return {}
    axis = np.array([0.0, 0.0, 1.0])
    if len(series.affine_lps) == 16:
        affine = np.asarray(series.affine_lps).reshape(4, 4)
        axis = np.cross(affine[:3, 2], affine[:3, 1])
        axis = axis / (np.linalg.norm(axis) or 1.0)
    return {
        item.file.uri: float(np.dot(item.position_mm, axis))
        for item in series.instances
        if item.position_mm
    }
