"""`.tcia` download manifests: is every series that was to be fetched really here?"""

import re
from collections.abc import Iterator

from medray.datasets.record import FileRef, Rejection, SourceTree
from medray.datasets.tree import label_files, label_rejection

_MARK = "ListOfSeriesToDownload="
_UID = re.compile(r"[0-9]+(\.[0-9]+)+")
_MAX_BYTES = 16 << 20


def check_manifests(tree: SourceTree) -> Iterator[Rejection]:
    """Return one rejection for each listed series that is missing; extra series are fine."""
    here = {series.series_uid for series in tree.series}
    missing_before: set[str] = set()
    for _, file in label_files(tree, ".tcia"):
        uids = manifest_uids(tree, file)
        if uids is None:
            yield label_rejection(file, "annotation_invalid", "the manifest lists no series")
            continue
        for uid in uids:
            if uid in here or uid in missing_before:
                continue
            missing_before.add(uid)
            yield Rejection(
                uri=file.uri,
                reason="source_unavailable",
                detail="a series of the download manifest is not here",
                stage="read",
                series_uid=uid,
            )


def manifest_uids(tree: SourceTree, file: FileRef) -> tuple[str, ...] | None:
    """Return the series UIDs that a manifest lists, None if it cannot be read."""
    if file.bytes > _MAX_BYTES:
        return None
    lines = tree.read_bytes(file.uri).decode("utf-8", "replace").splitlines()
    stripped = [line.strip() for line in lines]
    if _MARK not in stripped:
        return None
    listed = [line for line in stripped[stripped.index(_MARK) + 1 :] if line]
    if not listed or not all(_UID.fullmatch(line) for line in listed):
        return None
    return tuple(dict.fromkeys(listed))
