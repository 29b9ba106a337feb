"""What a prediction works on: series of an index, and volumes or images outside DICOM."""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from medray import storage
from medray.datasets.record import FileRef, ImageSource, Record
from medray.engine.index import index_of
from medray.engine.run import Run
from medray.engine.series_table import foreign_files, read_series, unpack_instances
from medray.engine.series_verdict import refused_series, series_refusal
from medray.errors import DataError
from medray.formats.images import IMAGE_SUFFIXES
from medray.formats.volumes import VOLUME_SUFFIXES

# A packed volume unpacks to about so many times its bytes.
_USUAL_PACKING = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One series or file, before anything is decoded.

    Attributes:
        key: the series_key; empty for a file, whose bytes name it.
        native_bytes: how large its decoded pixels are, about.
        modality: of the series; empty where the file does not say.
        sop_uids: of the source's files, in their order; empty outside DICOM and for volumes.
        patient_id: of the series; only a challenge's table may carry it.
        flags: what the index says of the series.
        refusal: reason and sentence, empty if nothing speaks against it.
    """

    key: str
    source: ImageSource
    native_bytes: int
    modality: str = ""
    sop_uids: tuple[str, ...] = ()
    patient_id: str = ""
    flags: tuple[str, ...] = ()
    refusal: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What names the case before its bytes are read."""
        return self.key or hashlib.sha256(self.source.files[0].uri.encode()).hexdigest()[:16]

    def refused(self, reason: str, detail: str) -> dict[str, Any]:
        """Return the rejected row."""
        return {
            "key": self.name,
            "uri": self.source.files[0].uri,
            "series_uid": self.source.series_uid,
            "stage": "predict",
            "reason": reason,
            "detail": detail,
        }

    def payload(self) -> dict[str, Any]:
        """Return what a worker needs to know, JSON-able."""
        return {
            "key": self.key,
            "name": self.name,
            "flags": list(self.flags),
            "sop_uids": list(self.sop_uids),
            "patient_id": self.patient_id,
            "source": asdict(self.source),
        }


def source_record(raw: dict[str, Any]) -> Record:
    """Return the record of a case's source as `payload` gave it."""
    files = tuple(FileRef(**item) for item in raw["files"])
    return Record(name="", patient_id="", image=ImageSource(**{**raw, "files": files}))


@dataclass(slots=True)
class Found:
    """Everything below the sources.

    Attributes:
        cases: to be predicted, or refused with a reason of ours.
        rejected: rows of series that the index refused.
        index_uri: the index; empty where all sources are files outside DICOM.
    """

    cases: list[Case]
    rejected: list[dict[str, Any]]
    index_uri: str = ""


def find_cases(
    run: Run,
    sources: Sequence[str],
    *,
    planar: bool = False,
    only: Collection[str] = (),
    quiet: bool,
) -> Found:
    """Index the sources and list what may be predicted, counting what is refused at once.

    A file outside DICOM counts where it was named, or where its source holds no DICOM series:
    beside DICOM it may as well be a mask. Where `only` names series, nothing else is looked at.

    Args:
        planar: the task takes single images: PNG and JPEG, and each instance of a series.
    """
    kind = PLANAR if planar else VOLUMES
    named = {source: file for source in sources if (file := kind.named(source)) is not None}
    others = [source for source in sources if source not in named]
    found = Found(cases=[kind.of_file(file) for file in named.values()], rejected=[])
    if not others:
        return found
    found.index_uri = index_of(run, others, quiet=quiet)
    roots = others
    if found.index_uri == others[0]:
        roots = storage.read_json(storage.join(others[0], "run.json"))["inputs"]
    homes = {storage.normalise(root) for root in roots}
    with_dicom = set()
    for row in read_series(found.index_uri):
        with_dicom.add(_home(row["instances"][0]["uri"], homes))
        if only and row["series_key"] not in only:
            continue
        refusal = series_refusal(row, planar=planar)
        if refusal is None:
            found.cases.append(case_of_series(row, planar=planar))
        else:
            run.counts.add(*refusal[:2])
            if refusal[0] == "rejected":
                found.rejected.append(refused_series(row, refusal[1], refusal[2]))
    if only:
        return found
    met = {case.source.files[0].uri for case in found.cases}
    for file in foreign_files(found.index_uri):
        wanted = file.uri.lower().endswith(kind.suffixes) and file.uri not in met
        if wanted and _home(file.uri, homes) not in with_dicom:
            found.cases.append(kind.of_file(file))
    return found


@dataclass(frozen=True, slots=True)
class FileKind:
    """Files outside DICOM that a task takes.

    Attributes:
        form: as in ImageSource.
        suffixes: of their names, lower case.
        packed: suffixes of those that unpack to a multiple of their bytes.
    """

    form: str
    suffixes: tuple[str, ...]
    packed: tuple[str, ...]

    def named(self, uri: str) -> FileRef | None:
        """Return the file that a source names, None where it is anything else."""
        if not uri.lower().endswith(self.suffixes):
            return None
        try:
            entry = storage.stat(uri)
        except DataError:
            return None  # a folder of this name
        return FileRef(entry.uri, entry.bytes, entry.stamp)

    def of_file(self, file: FileRef) -> Case:
        """Return the case of a file."""
        packing = _USUAL_PACKING if file.uri.lower().endswith(self.packed) else 1
        source = ImageSource(form=self.form, files=(file,))
        return Case(key="", source=source, native_bytes=packing * file.bytes)


VOLUMES = FileKind("volume_file", VOLUME_SUFFIXES, (".gz", ".nrrd", ".mha"))
PLANAR = FileKind("image_file", IMAGE_SUFFIXES, IMAGE_SUFFIXES)


def case_of_series(row: dict[str, Any], *, planar: bool) -> Case:
    """Return the case of a series; headers are parsed only where images are named one by one."""
    files = tuple(FileRef(item["uri"], item["bytes"], item["stamp"]) for item in row["instances"])
    return Case(
        key=row["series_key"],
        source=ImageSource(
            form="series",
            files=files,
            series_key=row["series_key"],
            series_uid=row["series_uid"],
        ),
        native_bytes=2 * row["rows"] * row["columns"] * row["num_slices"],
        modality=row["modality"],
        sop_uids=tuple(item.header.sop_uid for item in unpack_instances(row["instances"]))
        if planar
        else (),
        patient_id=row["patient_id"],
        flags=tuple(row["flags"]),
    )


def _home(uri: str, homes: set[str]) -> str:
    """Return the source below which a file lies."""
    outer = uri.rpartition("::")[2]
    for home in homes:
        if outer == home or outer.startswith(f"{home.rstrip('/')}/"):
            return home
    return ""
