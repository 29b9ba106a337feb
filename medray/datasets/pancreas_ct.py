"""NIH Pancreas-CT: one CT series and one NIfTI label a case, matched by case number.

Layout (SEEDS_SPEC 4.1): `Pancreas-CT/PANCREAS_0001/<study>/<series>/*.dcm` and
`TCIA_pancreas_labels-*/label0001.nii.gz`. The labels carry no usable geometry; they are laid on the
image by index, and loading proves that (`medray.datasets.pancreas_align`).
"""

import re
import struct
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence

from medray.datasets.paths import relative_path
from medray.datasets.record import FileRef, ImageSource, Record, Rejection, SeriesRef, SourceTree
from medray.datasets.tree import (
    is_volume,
    label_files,
    label_rejection,
    series_rejection,
    series_source,
    unlabelled_rejection,
)

NAME = "pancreas_ct"
# Withdrawn by the publishers: the same scan as case 2, cropped differently.
WITHDRAWN_CASES = frozenset({25, 70})
_CASE = re.compile(r"PANCREAS_(\d{4})", re.IGNORECASE)
_LABEL = re.compile(r"(?:^|/)label(\d{4})\.nii(?:\.gz)?$", re.IGNORECASE)
_HEADER_BYTES = 348
_MODALITIES = frozenset({"CT"})


def matches(tree: SourceTree) -> bool:
    """Tell whether files named `label0001.nii.gz` are there."""
    return any(_LABEL.search(path) for path, _ in label_files(tree, ".nii", ".nii.gz"))


def records(tree: SourceTree) -> Iterator[Record | Rejection]:
    """Offer one record per case that has an image and a label."""
    labels, repeated = _labels(tree)
    yield from repeated
    by_case: dict[int, list[SeriesRef]] = defaultdict(list)
    for series in sorted(tree.series, key=lambda item: item.series_key):
        case = _case_of(tree, series)
        if case is None:
            yield unlabelled_rejection(series, "the series is of no numbered case", _MODALITIES)
            continue
        by_case[case].append(series)
    for case in sorted(by_case.keys() | labels.keys()):
        yield from _case_records(tree, case, by_case.get(case, []), labels.get(case))


def _case_of(tree: SourceTree, series: SeriesRef) -> int | None:
    path = relative_path(series.instances[0].file.uri, tree.root)
    for text in (path, series.patient_id):
        hits = _CASE.findall(text)
        if hits:
            return int(hits[-1])
    return None


def _labels(tree: SourceTree) -> tuple[dict[int, FileRef], list[Rejection]]:
    labels: dict[int, FileRef] = {}
    repeated = []
    for path, file in label_files(tree, ".nii", ".nii.gz"):
        hit = _LABEL.search(path)
        if hit is None:
            continue
        if int(hit[1]) in labels:
            repeated.append(
                label_rejection(file, "annotation_invalid", "the case has two label files")
            )
            continue
        labels[int(hit[1])] = file
    return labels, repeated


def _case_records(
    tree: SourceTree, case: int, series: Sequence[SeriesRef], label: FileRef | None
) -> Iterator[Record | Rejection]:
    if case in WITHDRAWN_CASES:
        detail = "the publishers withdrew this case"
        for item in series:
            yield series_rejection(item, reason="duplicate_conflict", detail=detail, skip=True)
        if label is not None:
            yield label_rejection(label, "annotation_unmatched", detail, skip=True)
        return
    usable = [item for item in series if is_volume(item) and item.modality in _MODALITIES]
    if label is None:
        why = "there is no label file for the case"
        yield from (unlabelled_rejection(item, why, _MODALITIES) for item in series)
        return
    chosen = _fitting(tree, usable, label)
    if chosen is None:
        # The case is one example: it is lost for its series' reason, its label goes with it.
        bad = [item for item in series if item.verdict not in {"ok", "localizer"}]
        if bad and not usable:
            yield series_rejection(bad[0])
            others = [item for item in series if item is not bad[0]]
        else:
            why = (
                "no CT volume fits the label"
                if len(usable) < 2
                else "several CT volumes fit the label"
            )
            yield label_rejection(label, "annotation_unmatched", why)
            others = list(series)
    else:
        yield _record(tree, case, chosen, label)
        others = [item for item in series if item is not chosen]
    for item in others:
        detail = "another series of the case carries the label"
        yield series_rejection(item, reason="no_label", detail=detail, skip=True)


def _fitting(tree: SourceTree, usable: Sequence[SeriesRef], label: FileRef) -> SeriesRef | None:
    """Return the only volume of a case, or the only one with the label's number of slices."""
    if len(usable) < 2:
        return usable[0] if usable else None
    shape = nifti_shape(tree.read_bytes(label.uri))
    fitting = [item for item in usable if item.num_slices == shape[2]]
    return fitting[0] if len(fitting) == 1 else None


def nifti_shape(data: bytes) -> tuple[int, int, int]:
    """Read the first three dimensions from a NIfTI-1 header; (0, 0, 0) if it is none."""
    if data[:2] == b"\x1f\x8b":
        try:
            data = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(data, _HEADER_BYTES)
        except zlib.error:
            return 0, 0, 0
    if len(data) < _HEADER_BYTES:
        return 0, 0, 0
    order = "<" if struct.unpack_from("<i", data)[0] == _HEADER_BYTES else ">"
    x, y, z = struct.unpack_from(f"{order}3h", data, 42)
    return x, y, z


def _record(tree: SourceTree, case: int, series: SeriesRef, label: FileRef) -> Record:
    return Record(
        name=relative_path(series.instances[0].file.uri, tree.root),
        patient_id=series.patient_id or f"PANCREAS_{case:04d}",
        image=series_source(series),
        mask=ImageSource(form="volume_file", files=(label,), align="pancreas_ct"),
    )
