"""What a layout reader sees of the data: series of the index, and every other file."""

from dataclasses import dataclass
from typing import Any

from medray import storage
from medray.datasets.record import FileRef, InstanceRef, SeriesRef, SourceTree
from medray.dicom.header import InstanceHeader
from medray.engine.index import index_of
from medray.engine.run import Run
from medray.engine.series_table import foreign_files, read_series

# Labels and tables; a larger file under a label's name is none.
_MAX_LABEL_BYTES = 512 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeOptions:
    """Where images and labels lie, and how they are laid out."""

    data: str
    labels: str = ""
    layout: str = ""


def read_tree(run: Run, options: TreeOptions, *, quiet: bool) -> SourceTree:
    """Index the data, unless they are an index already, and list what lies beside.

    Raises:
        ConfigError: the data or labels do not exist.
    """
    root, layout = options.data, options.layout
    if root.endswith(".json"):
        layout = layout or "datalist"
    folder = root.rpartition("/")[0] if root.endswith(".json") else root
    labels = options.labels or folder
    index_uri = index_of(run, [folder], quiet=quiet)
    if index_uri == folder:
        folder = storage.read_json(storage.join(folder, "run.json"))["inputs"][0]
        labels = options.labels or folder
    run.extra["index_uri"] = index_uri
    return SourceTree(
        root=root if root.endswith(".json") else folder,
        labels_root=labels,
        layout=layout,
        series=[_series(row) for row in read_series(index_uri)],
        files=_files(index_uri, labels, folder),
        read_bytes=_read_small,
    )


def _read_small(uri: str) -> bytes:
    return storage.read_bytes(uri, max_bytes=_MAX_LABEL_BYTES)


def _files(index_uri: str, labels: str, folder: str) -> list[FileRef]:
    """Return files without DICOM content below the data and, where they lie apart, the labels."""
    found = {file.uri: file for file in foreign_files(index_uri)}
    if labels != folder:
        for entry in storage.list_files(labels):
            found[entry.uri] = FileRef(entry.uri, entry.bytes, entry.stamp)
    return [found[uri] for uri in sorted(found)]


def _series(row: dict[str, Any]) -> SeriesRef:
    return SeriesRef(
        series_key=row["series_key"],
        kind=row["kind"],
        patient_id=row["patient_id"],
        study_uid=row["study_uid"],
        series_uid=row["series_uid"],
        modality=row["modality"],
        rows=row["rows"],
        columns=row["columns"],
        num_slices=row["num_slices"],
        spacing_zyx_mm=tuple(row["spacing_zyx_mm"]),
        affine_lps=tuple(row["affine_lps"]),
        transfer_syntax_uid=row["transfer_syntax_uid"],
        pixel_layout=row["pixel_layout"],
        bytes=row["bytes"],
        predicted_peak_bytes=row["predicted_peak_bytes"],
        verdict=row["verdict"],
        detail=row["detail"],
        instances=tuple(_instance(item) for item in row["instances"]),
    )


def _instance(item: dict[str, Any]) -> InstanceRef:
    header = InstanceHeader.from_json(item["header"])
    return InstanceRef(
        file=FileRef(item["uri"], item["bytes"], item["stamp"]),
        sop_uid=header.sop_uid,
        instance_number=header.instance_number,
        position_mm=header.planes[0].position_mm,
    )
