"""What one upload, file or folder offers to a model, found without an index and without Ray."""

from collections.abc import Iterator, Mapping
from typing import Any

from medray import storage
from medray.datasets.record import FileRef, ImageSource, Record
from medray.dicom.series import Instance, split_series
from medray.engine.crawl import read_header, series_row
from medray.engine.predict_sources import PLANAR, VOLUMES, Case, case_of_series
from medray.engine.series_verdict import series_refusal
from medray.errors import ConfigError, DataError

# Told of a file that is not DICOM at all; in a folder of DICOM such files are no inputs.
_FOREIGN = frozenset({"not_dicom", "empty_file"})
_UNKNOWN_MODALITY = "unknown"
# Two names of a digital radiograph.
_KIN = {"DX": "CR"}


def cases_at(uri: str, *, planar: bool, limits: storage.ArchiveLimits | None = None) -> list[Case]:
    """List all that lies at a URI as cases; what cannot be used is a case with its refusal.

    Args:
        uri: a file, an archive or a folder.
        planar: the task takes single images.
        limits: what an archive may hold.

    Raises:
        DataError: nothing is there, or the archive as a whole is refused.
    """
    kind = PLANAR if planar else VOLUMES
    file = kind.named(uri)
    if file is not None:
        return [kind.of_file(file)]
    instances: list[Instance] = []
    foreign: list[FileRef] = []
    refused: list[Case] = []
    for entry in storage.list_files(uri, limits=limits or storage.ArchiveLimits()):
        if entry.error is not None:
            refused.append(_refused(FileRef(entry.uri, entry.bytes, entry.stamp), entry.error))
            continue
        file = FileRef(entry.uri, entry.bytes, entry.stamp)
        try:
            header = read_header(entry.uri, entry.bytes)
        except DataError as error:
            if file.uri.lower().endswith(kind.suffixes):
                foreign.append(file)
            elif error.reason not in _FOREIGN or entry.uri.lower().endswith(".dcm"):
                refused.append(_refused(file, error))
            continue
        if header.has_pixels:
            instances.append(
                Instance(uri=entry.uri, bytes=entry.bytes, stamp=entry.stamp, header=header)
            )
    found = [_judged(series_row(stack), planar=planar) for stack in split_series(instances)]
    # Beside DICOM a volume or a picture may as well be a mask.
    return [*found, *refused] if found else [*map(kind.of_file, foreign), *refused]


def _judged(row: dict[str, Any], *, planar: bool) -> Case:
    refusal = series_refusal(row, planar=planar)
    if refusal is None:
        return case_of_series(row, planar=planar)
    first = row["instances"][0]
    source = ImageSource(
        form="series",
        files=(FileRef(first["uri"], first["bytes"], first["stamp"]),),
        series_key=row["series_key"],
        series_uid=row["series_uid"],
    )
    return Case(
        key=row["series_key"], source=source, native_bytes=0, refusal=(refusal[1], refusal[2])
    )


def _refused(file: FileRef, error: DataError) -> Case:
    source = ImageSource(form="series", files=(file,))
    return Case(key="", source=source, native_bytes=0, refusal=(error.reason, error.detail))


def case_refusal(case: Case, facts: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return why a case is not given to a model, judged before any pixel is read.

    Args:
        case: as it was listed.
        facts: content of the model's model.json.
    """
    if case.refusal:
        return case.refusal[0], case.refusal[1]
    trained_on = {_KIN.get(name, name) for name in facts["fingerprint"].get("modalities", {})}
    trained_on.discard(_UNKNOWN_MODALITY)
    if case.modality and trained_on and _KIN.get(case.modality, case.modality) not in trained_on:
        return "wrong_modality", "the model was trained on images of another modality"
    return None


def one_record(uri: str, *, planar: bool = False) -> Record:
    """Return the only volume, or the only image, at a URI as a record, without an index.

    Raises:
        ConfigError: there is none, or there are several.
        DataError: the only one cannot be used.
    """
    found = cases_at(uri, planar=planar)
    if len(found) == 1 and found[0].refusal:
        raise DataError(found[0].refusal[0], found[0].refusal[1])
    good = [case for case in found if not case.refusal]
    sources = list(_single_images(good)) if planar else [case.source for case in good]
    if len(sources) != 1:
        what = (
            "images lie there; name one file"
            if planar
            else ("volumes lie there; name one series or one volume file")
        )
        raise ConfigError(f"{len(sources)} {what}")
    return Record(name="", patient_id="", image=sources[0])


def _single_images(cases: list[Case]) -> Iterator[ImageSource]:
    for case in cases:
        form = "image_file" if case.source.form == "image_file" else "instance"
        for file in case.source.files:
            yield ImageSource(form=form, files=(file,))
