"""A source tree from a folder, without Ray: what `medray prepare` hands to the readers."""

import io
from collections.abc import Iterable
from pathlib import Path

from medray.datasets.record import FileRef, InstanceRef, SeriesRef, SourceTree
from medray.dicom.dataset import open_dataset
from medray.dicom.decoder import process_decoder
from medray.dicom.header import parse_header
from medray.dicom.series import Instance, Stack, split_series
from medray.errors import DataError


def tree_of(root: Path, *, labels: Path | None = None, layout: str = "") -> SourceTree:
    """Index a folder in this process."""
    instances, files = [], []
    folders = [root] if labels is None or labels.is_relative_to(root) else [root, labels]
    for path in sorted(p for folder in folders for p in folder.rglob("*") if p.is_file()):
        data = path.read_bytes()
        try:
            dataset, has_pixels = open_dataset(io.BytesIO(data), stop_before_pixels=True)
            header = parse_header(dataset, has_pixels=has_pixels)
        except DataError:
            files.append(FileRef(str(path), len(data), "0"))
            continue
        instances.append(Instance(uri=str(path), bytes=len(data), stamp="0", header=header))
    return SourceTree(
        root=str(root),
        labels_root=str(labels or root),
        layout=layout,
        series=[series_ref(stack) for stack in split_series(instances)],
        files=files,
        read_bytes=lambda uri: Path(uri).read_bytes(),
    )


def series_ref(stack: Stack) -> SeriesRef:
    """Return a judged stack as readers see it."""
    header, geometry = stack.header, stack.geometry
    return SeriesRef(
        series_key=stack.series_key,
        kind=stack.kind,
        patient_id=header.patient_id,
        study_uid=header.study_uid,
        series_uid=header.series_uid,
        modality=header.modality,
        rows=header.rows,
        columns=header.columns,
        num_slices=stack.num_slices,
        spacing_zyx_mm=geometry.spacing_zyx_mm if geometry else (),
        affine_lps=tuple(geometry.affine_lps.ravel().tolist()) if geometry else (),
        transfer_syntax_uid=header.transfer_syntax_uid,
        pixel_layout=header.pixel_layout,
        bytes=sum(item.bytes for item in stack.instances),
        predicted_peak_bytes=stack.predicted_peak_bytes,
        verdict=stack.verdict,
        detail=stack.detail,
        instances=tuple(
            InstanceRef(
                file=FileRef(item.uri, item.bytes, item.stamp),
                sop_uid=item.header.sop_uid,
                instance_number=item.header.instance_number,
                position_mm=item.header.planes[0].position_mm,
            )
            for item in stack.instances
        ),
    )


class LocalIO:
    """Reads local files and decodes them."""

    def read(self, file: FileRef) -> bytes:
        return Path(file.uri).read_bytes()

    def decode_many(self, blobs: Iterable[bytes]):
        return process_decoder().decode_many(blobs)
