"""Source trees made of label files in a folder and series that exist in a table alone."""

from dataclasses import replace
from pathlib import Path

from medray.datasets.record import FileRef, InstanceRef, Record, Rejection, SeriesRef, SourceTree


def fake_series(
    root: Path,
    folder: str,
    *,
    num: int = 5,
    series_uid: str = "1.2.3.4.1",
    patient_id: str = "Lung_Dx-A0001",
    study_uid: str = "1.2.3.9",
    modality: str = "CT",
    kind: str = "volume",
    pixel_layout: str = "mono",
    verdict: str = "ok",
    matrix: tuple[int, int] = (64, 80),
    names: list[str] | None = None,
    step_mm: float = 5.0,
) -> SeriesRef:
    """Return a stack of `num` slices with SOP UIDs `<series_uid>.<n>`; no file is written."""
    names = names or [f"1-{n:02d}.dcm" for n in range(num)]
    affine = (0, 0, 1, 0, 0, 1, 0, 0, step_mm, 0, 0, 0, 0, 0, 0, 1)
    return SeriesRef(
        series_key=f"key-{series_uid}",
        kind=kind,
        patient_id=patient_id,
        study_uid=study_uid,
        series_uid=series_uid,
        modality=modality,
        rows=matrix[0],
        columns=matrix[1],
        num_slices=len(names),
        spacing_zyx_mm=(step_mm, 1.0, 1.0),
        affine_lps=tuple(float(v) for v in affine),
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        pixel_layout=pixel_layout,
        bytes=1000,
        predicted_peak_bytes=1000,
        verdict=verdict,
        detail="" if verdict == "ok" else "the stack is bad",
        instances=tuple(
            InstanceRef(
                file=FileRef(str(root / folder / name), 100, "0"),
                sop_uid=f"{series_uid}.{n}",
                instance_number=n + 1,
                position_mm=(0.0, 0.0, n * step_mm),
            )
            for n, name in enumerate(names)
        ),
    )


def fake_tree(
    root: Path, series: list[SeriesRef], *, layout: str = "", labels: Path | None = None
) -> SourceTree:
    """Return a tree of these series and every file that lies below the folders."""
    folders = [root] if labels is None or labels.is_relative_to(root) else [root, labels]
    paths = sorted(p for folder in folders for p in folder.rglob("*") if p.is_file())
    return SourceTree(
        root=str(root),
        labels_root=str(labels or root),
        layout=layout,
        series=series,
        files=[FileRef(str(path), path.stat().st_size, "0") for path in paths],
        read_bytes=lambda uri: Path(uri).read_bytes(),
    )


def write(path: Path, content: str | bytes = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def parts(found) -> tuple[list[Record], list[Rejection], list[Rejection]]:
    """Divide what a reader gave into records, rejections and skips."""
    items = list(found)
    records = [item for item in items if isinstance(item, Record)]
    rejections = [item for item in items if isinstance(item, Rejection)]
    assert len(records) + len(rejections) == len(items)
    return (
        records,
        [item for item in rejections if not item.skip],
        [item for item in rejections if item.skip],
    )


def reasons(rejections: list[Rejection]) -> list[str]:
    return sorted(item.reason for item in rejections)


__all__ = ["fake_series", "fake_tree", "parts", "reasons", "replace", "write"]
