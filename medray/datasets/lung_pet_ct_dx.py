"""TCIA Lung-PET-CT-Dx: VOC boxes on CT, PET and fused slices, matched by SOP Instance UID.

Layout (SEEDS_SPEC 1.1): `Lung-PET-CT-Dx/Lung_Dx-A0001/<study>/<series>/*.dcm` and
`Annotation/A0001/<SOPInstanceUID>.xml`. The letter of the patient id is the histology.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from medray.datasets.box_checks import Box, check_boxes
from medray.datasets.lung_series import letter_of, study_pet, tumour_centre_mm
from medray.datasets.paths import relative_path, stem_of
from medray.datasets.record import FileRef, Record, Rejection, SeriesRef, SourceTree
from medray.datasets.tree import (
    Placed,
    is_volume,
    label_files,
    label_rejection,
    placed_instances,
    series_rejection,
    series_source,
    slice_distances_mm,
    slice_usable,
    unlabelled_rejection,
)
from medray.datasets.voc import MAX_XML_BYTES, VocAnnotation, parse_voc
from medray.errors import DataError

NAME = "lung_pet_ct_dx"
STREAMS = ("ct", "fused", "both")
# Order of the class indices; large cell comes last so that leaving it out moves no other class.
LETTERS = ("A", "B", "G", "E")
_MODALITIES = frozenset({"CT", "PT"})
_UID = re.compile(r"[0-9]+(\.[0-9]+){2,}")
_PATIENT = re.compile(r"(?:Lung_Dx-)?([A-Za-z]\d{3,5})")


def matches(tree: SourceTree) -> bool:
    """Tell whether XML files named by a UID are there."""
    return any(_UID.fullmatch(stem_of(path)) for path, _ in label_files(tree, ".xml"))


@dataclass(frozen=True, slots=True)
class _Annotated:
    """One slice with its annotation file."""

    placed: Placed
    patient: str
    annotation: VocAnnotation

    @property
    def boxes(self) -> tuple[Box, ...]:
        return self.annotation.boxes_xyxy_px


@dataclass(frozen=True, slots=True)
class _Annotations:
    """Everything that the XML files gave: slices by series key, and what was left out.

    Attributes:
        unsure: keys of the series with a slice whose file was refused: there may be a tumour on it.
    """

    by_series: Mapping[str, list[_Annotated]]
    rejections: Sequence[Rejection] = field(default_factory=list)
    unsure: frozenset[str] = frozenset()


def slice_records(
    tree: SourceTree, *, stream: str = "ct", background_per_series: int = 0, margin_mm: float = 10.0
) -> Iterator[Record | Rejection]:
    """Offer one record per annotated slice, and background slices where they are safe.

    Args:
        tree: series and label files.
        stream: `ct` (grey CT), `fused` (RGB) or `both`; slices of other streams are skipped.
        background_per_series: at most so many slices without a box from each series whose
            annotated slices follow one another without a gap, none of their files refused.
        margin_mm: how far a background slice lies from every annotated one.
    """
    found = _read_annotations(tree)
    yield from found.rejections
    series_by_key = {series.series_key: series for series in tree.series}
    for key, items in sorted(found.by_series.items()):
        series = series_by_key[key]
        refusal = _stream_refusal(series, stream)
        if refusal is not None:
            for item in items:
                yield _slice_rejection(item, *refusal)
            continue
        for item in items:
            yield _slice_record(item)
        if key not in found.unsure:
            yield from _background(series, items, background_per_series, margin_mm)
    yield from _series_without_annotation(tree, found.by_series)


def series_records(
    tree: SourceTree, *, large_cell: bool = False, pet_channel: bool = False
) -> Iterator[Record | Rejection]:
    """Offer one record per annotated CT series, its label from the patient's letter.

    Args:
        tree: series and label files.
        large_cell: keep the five large cell patients as a fourth class; else they are skipped
            and counted.
        pet_channel: attach the PET series of the same study as `extra_images["pet"]`.
    """
    found = _read_annotations(tree)
    yield from found.rejections
    for series in sorted(tree.series, key=lambda item: item.series_key):
        items = found.by_series.get(series.series_key)
        if items:
            yield _series_record(
                tree, series, items, large_cell=large_cell, pet_channel=pet_channel
            )
    yield from _series_without_annotation(tree, found.by_series)


def _read_annotations(tree: SourceTree) -> _Annotations:
    """Read every XML; a bad one costs itself and nothing else."""
    placed: dict[str, Placed] = {}
    for item in placed_instances(tree):
        placed.setdefault(item.instance.sop_uid, item)
    by_series: dict[str, list[_Annotated]] = defaultdict(list)
    rejections: list[Rejection] = []
    seen: set[str] = set()
    unsure: set[str] = set()
    for path, file in label_files(tree, ".xml"):
        try:
            annotated = _read_one(tree, path, file, placed)
            if stem_of(path) in seen:
                raise DataError("annotation_invalid", "another file annotates the same slice")
        except DataError as error:
            rejections.append(label_rejection(file, error.reason, error.detail))
            if stem_of(path) in placed:
                unsure.add(placed[stem_of(path)].series.series_key)
            continue
        seen.add(stem_of(path))
        by_series[annotated.placed.series.series_key].append(annotated)
    return _Annotations(by_series, rejections, frozenset(unsure))


def _read_one(
    tree: SourceTree, path: str, file: FileRef, placed: Mapping[str, Placed]
) -> _Annotated:
    if file.bytes > MAX_XML_BYTES:
        raise DataError("annotation_invalid", "the XML is larger than one MiB")
    annotation = parse_voc(tree.read_bytes(file.uri))
    item = placed.get(stem_of(path))
    if item is None:
        raise DataError("annotation_unmatched", "no image here has the SOP UID of the file's name")
    series = item.series
    patient = _patient(item.path, series.patient_id)
    folder = _PATIENT.fullmatch(path.split("/")[-2]) if "/" in path else None
    if patient and folder and folder[1].upper() != patient:
        raise DataError("annotation_unmatched", "the file lies in the folder of another patient")
    declared = (annotation.width, annotation.height)
    if all(declared) and declared != (series.columns, series.rows):
        raise DataError("annotation_invalid", "the annotated matrix is not the matrix of the slice")
    if not annotation.boxes_xyxy_px:
        raise DataError("no_label", "the annotation has no box, and that is no proof of health")
    check_boxes(annotation.boxes_xyxy_px, width=series.columns, height=series.rows)
    return _Annotated(item, patient or (folder[1].upper() if folder else ""), annotation)


def _patient(path: str, patient_id: str) -> str:
    """Return the patient as the annotation folders name it (`A0001`), empty if unknown."""
    for text in (patient_id, *reversed(path.split("/")[:-1])):
        hit = _PATIENT.fullmatch(text.strip())
        if hit:
            return hit[1].upper()
    return ""


def _stream_refusal(series: SeriesRef, stream: str) -> tuple[str, str, bool] | None:
    """Return (reason, detail, skip) if slices of this series are not wanted or not usable."""
    if not slice_usable(series):
        return series.verdict, series.detail or "the series cannot be used", False
    kind = "ct" if series.pixel_layout == "mono" and series.modality == "CT" else ""
    # Fused slices are told by their colour; their Modality tag is not reliable.
    if series.pixel_layout == "rgb":
        kind = "fused"
    if kind and stream in {kind, "both"}:
        return None
    return "wrong_modality", "the slice is of a stream that was not asked for", True


def _slice_rejection(item: _Annotated, reason: str, detail: str, skip: bool) -> Rejection:  # noqa: FBT001
    return Rejection(
        uri=item.placed.instance.file.uri,
        reason=reason,
        detail=detail,
        series_uid=item.placed.series.series_uid,
        skip=skip,
    )


def _slice_record(item: _Annotated) -> Record:
    letter, agreement = letter_of(item.patient, item.annotation.names)
    return Record(
        name=item.placed.path,
        patient_id=item.placed.series.patient_id or item.patient,
        image=item.placed.source,
        strata=letter or "unknown",
        boxes_xyxy_px=item.boxes,
        box_labels=(0,) * len(item.boxes),
        meta={"histology": letter, "xml_agreement": agreement, "background": False},
    )


def _background(
    series: SeriesRef, items: Sequence[_Annotated], count: int, margin_mm: float
) -> Iterator[Record]:
    """Return evenly chosen slices far from a tumour that was annotated without gaps."""
    distances = slice_distances_mm(series)
    if count <= 0 or not distances:
        return
    marked = {item.placed.instance.file.uri for item in items}
    ordered = sorted(distances, key=lambda uri: (distances[uri], uri))
    ranks = [rank for rank, uri in enumerate(ordered) if uri in marked]
    if ranks[-1] - ranks[0] + 1 != len(ranks):
        return
    low, high = distances[ordered[ranks[0]]], distances[ordered[ranks[-1]]]
    free = [
        uri
        for uri in ordered
        if distances[uri] <= low - margin_mm or distances[uri] >= high + margin_mm
    ]
    step = max(1.0, len(free) / count)
    chosen = {free[int(n * step)] for n in range(count) if int(n * step) < len(free)}
    template = _slice_record(items[0])
    root_name = items[0].placed
    for instance in sorted(series.instances, key=lambda it: it.file.uri):
        if instance.file.uri in chosen:
            placed = Placed(series, instance, _sibling_path(root_name, instance.file.uri))
            yield Record(
                name=placed.path,
                patient_id=template.patient_id,
                image=placed.source,
                strata=template.strata,
                boxes_xyxy_px=(),
                meta={**template.meta, "background": True},
            )


def _sibling_path(placed: Placed, uri: str) -> str:
    """Return the relative path of another file of the same series."""
    known = placed.instance.file.uri
    root = known[: len(known) - len(placed.path)] if known.endswith(placed.path) else ""
    return relative_path(uri, root.rstrip("/")) if root else uri


def _series_without_annotation(
    tree: SourceTree, by_series: Mapping[str, object]
) -> Iterator[Rejection]:
    for series in sorted(tree.series, key=lambda item: item.series_key):
        if series.series_key not in by_series:
            # Most series of the collection have no annotation, which is no loss.
            why = "no slice of the series is annotated"
            yield unlabelled_rejection(series, why, _modalities(series), skip=True)


def _modalities(series: SeriesRef) -> frozenset[str]:
    """Return what is expected: CT and PET; colour slices carry any modality."""
    return _MODALITIES | ({series.modality} if series.pixel_layout != "mono" else set())


def _series_record(
    tree: SourceTree,
    series: SeriesRef,
    items: Sequence[_Annotated],
    *,
    large_cell: bool,
    pet_channel: bool,
) -> Record | Rejection:
    refusal = _volume_refusal(series)
    if refusal is not None:
        return refusal
    names = tuple(name for item in items for name in item.annotation.names)
    letter, agreement = letter_of(items[0].patient, names)
    if letter not in LETTERS:
        detail = "neither the patient id nor the boxes name a known histology"
        return series_rejection(series, reason="label_unknown", detail=detail)
    if letter == "E" and not large_cell:
        detail = "large cell carcinoma is left out by the option"
        return series_rejection(series, reason="label_unknown", detail=detail, skip=True)
    pet = study_pet(tree.series, series.study_uid) if pet_channel else None
    if pet_channel and pet is None:
        detail = "the study has no PET series that forms a volume"
        return series_rejection(series, reason="wrong_modality", detail=detail)
    centre = tumour_centre_mm(series, [(item.placed.instance, item.boxes) for item in items])
    return Record(
        name=relative_path(series.instances[0].file.uri, tree.root),
        patient_id=series.patient_id or items[0].patient,
        image=series_source(series),
        strata=letter,
        label=LETTERS.index(letter),
        extra_images={"pet": series_source(pet)} if pet else {},
        meta={"histology": letter, "xml_agreement": agreement, "tumour_centre_lps_mm": centre},
    )


def _volume_refusal(series: SeriesRef) -> Rejection | None:
    """Return why an annotated series is no CT volume, None if it is one."""
    if series.modality != "CT" or series.pixel_layout != "mono":
        detail = "the annotated series is no grey CT"
        return series_rejection(series, reason="wrong_modality", detail=detail, skip=True)
    if is_volume(series):
        return None
    if series.verdict != "ok":
        return series_rejection(series)
    detail = "the annotated series is no volume"
    return series_rejection(series, reason="too_few_slices", detail=detail)
