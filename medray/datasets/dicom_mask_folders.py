"""One folder a patient: a DICOM series, one mask file and, for a class, a text file `label`.

Layout (SEEDS_SPEC 4.1, G2): `<patient>/*.dcm`, `<patient>/*.nrrd` or
`<patient>/segmentation.nii.gz`, `<patient>/label` with 0 or 1. Images and labels may lie under two
roots with equal folder names.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from medray.datasets.paths import folder_of, inside, relative_path, stem_of, suffix_of
from medray.datasets.record import FileRef, ImageSource, Record, Rejection, SeriesRef, SourceTree
from medray.datasets.tree import (
    is_volume,
    label_files,
    label_rejection,
    series_folder,
    series_rejection,
    series_source,
    unlabelled_rejection,
)
from medray.errors import DataError

NAME = "dicom_mask_folders"
_MAX_LABEL_BYTES = 64
_MODALITIES = frozenset({"CT"})


@dataclass(slots=True)
class _Case:
    """The label files of one folder."""

    masks: list[FileRef] = field(default_factory=list)
    label: FileRef | None = None


@dataclass(frozen=True, slots=True)
class _Needs:
    """What a folder must hold beside its series."""

    label: bool
    mask: bool


def matches(tree: SourceTree) -> bool:
    """Tell whether folders with a mask file are there."""
    return any(_is_mask(path) for path, _ in label_files(tree))


def _is_mask(path: str) -> bool:
    suffix = suffix_of(path)
    return suffix == ".nrrd" or (suffix in {".nii", ".nii.gz"} and stem_of(path) == "segmentation")


def records(
    tree: SourceTree, *, with_label: bool = False, with_mask: bool = True
) -> Iterator[Record | Rejection]:
    """Offer one record per folder that has a mask, or only a class where no mask is needed.

    Args:
        tree: series and label files.
        with_label: the class of the file `label` is needed.
        with_mask: the mask is needed; else one that lies there is still taken.
    """
    cases: dict[str, _Case] = defaultdict(_Case)
    for path, file in label_files(tree):
        if _is_mask(path):
            cases[folder_of(path)].masks.append(file)
        elif path.rsplit("/", 1)[-1] == "label":
            cases[folder_of(path)].label = file
    needs = _Needs(label=with_label, mask=with_mask)
    placed = [(series_folder(tree, series), series) for series in tree.series]
    used: set[str] = set()
    for folder, case in sorted(cases.items()):
        members = [series for where, series in placed if inside(where, folder)]
        members.sort(key=lambda item: item.series_key)
        used.update(item.series_key for item in members)
        yield from _case_records(tree, folder, case, members, needs)
    for series in sorted(tree.series, key=lambda item: item.series_key):
        if series.series_key not in used:
            yield unlabelled_rejection(
                series, "no folder with a mask holds the series", _MODALITIES
            )


def _case_records(
    tree: SourceTree, folder: str, case: _Case, members: Sequence[SeriesRef], needs: _Needs
) -> Iterator[Record | Rejection]:
    anchor = case.masks[0] if case.masks else case.label
    assert anchor is not None
    usable = [item for item in members if is_volume(item) and item.modality in _MODALITIES]
    chosen = usable[0] if len(usable) == 1 else None
    try:
        yield _record(tree, folder, case, _one_volume(members, usable), needs)
    except DataError as error:
        yield label_rejection(anchor, error.reason, error.detail)
    for item in members:
        if item is not chosen:
            yield series_rejection(
                item,
                reason="no_label",
                detail="the folder's mask belongs to another series",
                skip=True,
            )


def _one_volume(members: Sequence[SeriesRef], usable: Sequence[SeriesRef]) -> SeriesRef:
    if len(usable) == 1:
        return usable[0]
    if usable:
        raise DataError("annotation_unmatched", "the folder holds several volumes for one mask")
    bad = [item for item in members if item.verdict != "ok"]
    if bad:
        raise DataError(bad[0].verdict, bad[0].detail or "the series cannot be used")
    if any(is_volume(item) for item in members):
        raise DataError("wrong_modality", "the volume in the folder of a mask is no CT")
    raise DataError("annotation_unmatched", "the folder of a mask holds no volume")


def _record(tree: SourceTree, folder: str, case: _Case, series: SeriesRef, needs: _Needs) -> Record:
    if needs.mask and not case.masks:
        raise DataError("no_label", "the folder has no mask file")
    if len(case.masks) > 1:
        raise DataError("annotation_invalid", "the folder has several mask files")
    label = _read_label(tree, case.label) if needs.label else -1
    return Record(
        name=relative_path(series.instances[0].file.uri, tree.root),
        patient_id=series.patient_id or folder,
        image=series_source(series),
        strata=str(label) if needs.label else "",
        label=label,
        mask=ImageSource(form="volume_file", files=(case.masks[0],)) if case.masks else None,
    )


def _read_label(tree: SourceTree, file: FileRef | None) -> int:
    if file is None:
        raise DataError("no_label", "the folder has no file named label")
    if file.bytes > _MAX_LABEL_BYTES:
        raise DataError("annotation_invalid", "the file label is no single digit")
    try:
        text = tree.read_bytes(file.uri).decode("ascii").strip()
    except UnicodeDecodeError:
        raise DataError("annotation_invalid", "the file label is no text") from None
    if not text:
        raise DataError("no_label", "the file label is empty")
    if not text.isdecimal():
        raise DataError("annotation_invalid", "the file label is no digit")
    if text not in {"0", "1"}:
        raise DataError("label_unknown", "the file label is neither 0 nor 1")
    return int(text)
