"""From instances to stacks: what belongs together, what it is, and whether it is a volume."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from medray.dicom.geometry import MIN_SLICES, StackGeometry, slice_normal, stack_geometry
from medray.dicom.header import InstanceHeader, Plane
from medray.dicom.syntaxes import SUPPORTED_TRANSFER_SYNTAXES
from medray.errors import DataError

PROJECTION_MODALITIES = frozenset(
    {"CR", "DX", "MG", "RG", "PX", "IO", "XA", "RF", "DR", "US", "XC", "ES", "GM", "SM", "OP"}
)
# Objects about images, with or without pixels of their own: never a volume to convert.
_DERIVED_MODALITIES = frozenset(
    {"SEG", "SR", "PR", "KO", "RTSTRUCT", "RTPLAN", "RTDOSE", "RTRECORD", "REG", "FID", "RWV"}
)
_COSINE_TOLERANCE = 1e-3
_SPACING_TOLERANCE = 1e-4
# Arrays alive at once while a stack is decoded, converted and read back: stored, HU, proof.
_PEAK_COPIES = 3
_WORKER_BASE_BYTES = 256 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One file's header with its place in storage."""

    uri: str
    bytes: int
    stamp: str
    header: InstanceHeader


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """One candidate volume or image of a series and what is known of it.

    Attributes:
        instances: copies of one SOP instance included; ordered along the normal where proven.
        verdict: `ok` or a reason code; `detail` says it in a sentence.
        flags: facts a user should know of a good stack (`tilt`, `completeness=unknown`, ...).
    """

    series_key: str
    kind: str
    instances: tuple[Instance, ...]
    verdict: str
    detail: str
    num_slices: int
    geometry: StackGeometry | None = None
    flags: tuple[str, ...] = ()

    @property
    def header(self) -> InstanceHeader:
        """The header that stands for the stack."""
        return self.instances[0].header

    @property
    def native_bytes(self) -> int:
        """Bytes of the decoded pixels of all instances as declared."""
        return sum(item.header.native_bytes for item in self.instances)

    @property
    def predicted_peak_bytes(self) -> int:
        """Memory that decoding and converting the stack is expected to need at its peak."""
        compressed = max((item.bytes for item in self.instances), default=0)
        return _WORKER_BASE_BYTES + _PEAK_COPIES * self.native_bytes + 2 * compressed


def folder_of(uri: str) -> str:
    """Return the folder that holds a file; for an archive's member, the one inside it."""
    member, chained, archive = uri.partition("::")
    return f"{member.rpartition('/')[0]}{chained}{archive}"


def split_series(instances: Iterable[Instance]) -> list[Stack]:
    """Group instances of any number of series into judged stacks, sorted by key."""
    series: dict[tuple[str, ...], list[Instance]] = defaultdict(list)
    owners: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for item in sorted(instances, key=lambda it: (it.header.sop_uid, it.uri)):
        header = item.header
        owners[header.series_uid].add((header.study_uid, header.patient_id))
        folder = "" if header.series_uid else folder_of(item.uri)
        series[header.series_uid, header.study_uid, header.patient_id, folder].append(item)
    stacks: list[Stack] = []
    for (series_uid, study_uid, _, _), members in sorted(series.items()):
        shared = not series_uid or not study_uid or len(owners[series_uid]) > 1
        stacks.extend(_split_one(members, identify_by_content=shared))
    return sorted(stacks, key=lambda stack: stack.series_key)


def _split_one(members: Sequence[Instance], *, identify_by_content: bool) -> list[Stack]:
    """Split one series into stacks; judge each, small ones in the light of their siblings."""
    groups = _similar_groups(members)
    groups = _rejoin_acquisitions(groups)
    stacks = []
    for group in groups:
        kind = _kind(group)
        stack = Stack(
            series_key=_series_key(group, identify_by_content=identify_by_content),
            kind=kind,
            instances=tuple(group),
            verdict="ok",
            detail="",
            num_slices=len(_planes(group)),
        )
        stacks.append(_judge(stack, siblings=[other for other in groups if other is not group]))
    return stacks


def _exact_parts(header: InstanceHeader) -> tuple[object, ...]:
    # A multi-frame object is a stack by itself: its frames are ordered inside it.
    multi_frame = header.sop_uid if header.num_frames > 1 else ""
    projection = header.sop_uid if header.modality in PROJECTION_MODALITIES else ""
    return (
        header.rows,
        header.columns,
        header.acquisition,
        header.image_type,
        header.echo,
        multi_frame,
        projection,
        header.has_pixels,
    )


def _close(a: Sequence[float] | None, b: Sequence[float] | None, tolerance: float) -> bool:
    if a is None or b is None:
        return a is b
    return all(abs(x - y) <= tolerance for x, y in zip(a, b, strict=True))


def _similar_groups(members: Sequence[Instance]) -> list[list[Instance]]:
    """Split by orientation, matrix, pixel spacing, acquisition, image type and echo."""
    groups: list[list[Instance]] = []
    by_exact: dict[tuple[object, ...], list[list[Instance]]] = defaultdict(list)
    for item in members:
        candidates = by_exact[_exact_parts(item.header)]
        plane = item.header.planes[0]
        for group in candidates:
            head = group[0].header.planes[0]
            if _close(plane.orientation, head.orientation, _COSINE_TOLERANCE) and _close(
                plane.spacing_yx_mm, head.spacing_yx_mm, _SPACING_TOLERANCE
            ):
                group.append(item)
                break
        else:
            candidates.append([item])
            groups.append(candidates[-1])
    return groups


def _rejoin_acquisitions(groups: list[list[Instance]]) -> list[list[Instance]]:
    """Join acquisitions of one or two slices that belong to one stack (step and shoot).

    Scanners that count every table step as an acquisition would otherwise leave no volume at all.
    Joined if one of them alone is too small, none interleaves with another, and the whole is a
    regular grid; so two passes over the same body never melt into one. If all are too small they
    are judged together: what is wrong between them says more than that each is small.
    """
    by_rest: dict[tuple[object, ...], list[list[Instance]]] = defaultdict(list)
    for group in groups:
        header = group[0].header
        by_rest[_exact_parts(replace(header, acquisition="")), _plane_key(header)].append(group)
    joined: list[list[Instance]] = []
    for parts in by_rest.values():
        whole = [item for part in parts for item in part]
        sizes = [len(part) for part in parts]
        small = len(parts) > 1 and min(sizes) < MIN_SLICES
        if small and _tiles(parts, whole, when_irregular=max(sizes) < MIN_SLICES):
            joined.append(whole)
        else:
            joined.extend(parts)
    return joined


def _tiles(
    parts: Sequence[Sequence[Instance]], whole: Sequence[Instance], *, when_irregular: bool
) -> bool:
    try:
        order = stack_geometry([item.header.planes[0] for item in whole]).order
    except DataError:
        return when_irregular
    owner = [number for number, part in enumerate(parts) for _ in part]
    sequence = [owner[index] for index in order]
    changes = sum(a != b for a, b in pairwise(sequence))
    return changes == len(parts) - 1


def _plane_key(header: InstanceHeader) -> tuple[object, ...]:
    plane = header.planes[0]
    turned = (
        None if plane.orientation is None else tuple(round(v, 3) + 0.0 for v in plane.orientation)
    )
    spacing = (
        None if plane.spacing_yx_mm is None else tuple(round(v, 4) for v in plane.spacing_yx_mm)
    )
    return turned, spacing


def _series_key(group: Sequence[Instance], *, identify_by_content: bool) -> str:
    """Return the first 16 hex digits of sha256 of the stack's identity (docs/DESIGN section 5)."""
    header = group[0].header
    turned, spacing = _plane_key(header)
    who: list[object] = [header.study_uid, header.series_uid]
    if identify_by_content:
        uids = sorted({item.header.sop_uid or f"{item.uri}:{item.bytes}" for item in group})
        who = [header.study_uid, uids]
    single = header.num_frames > 1 or header.modality in PROJECTION_MODALITIES
    rest = [turned, header.rows, header.columns, spacing, header.acquisition, header.image_type]
    own = [header.sop_uid] if single else []
    identity = json.dumps([*who, *rest, header.echo, *own], separators=(",", ":"))
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


def _planes(group: Sequence[Instance]) -> list[Plane]:
    """Return one plane a slice, copies of one SOP instance counted once."""
    seen: set[str] = set()
    planes: list[Plane] = []
    for item in group:
        uid = item.header.sop_uid
        if uid and uid in seen:
            continue
        seen.add(uid)
        planes.extend(item.header.planes)
    return planes


def _kind(group: Sequence[Instance]) -> str:
    header = group[0].header
    if not header.has_pixels or header.modality in _DERIVED_MODALITIES:
        return "other"
    if header.modality in PROJECTION_MODALITIES:
        return "image"
    if header.rows == 0 or header.columns == 0:
        return "other"
    return "volume"


def _judge(stack: Stack, *, siblings: Sequence[Sequence[Instance]]) -> Stack:
    """Give the stack its verdict and, where it is a volume, its geometry and order."""
    header = stack.header
    try:
        _check_decodable(stack)
        if "LOCALIZER" in header.image_type.upper().split("\\"):
            raise DataError("localizer", "the series is a scout view")
        if stack.kind != "volume":
            return stack
        return _proven(stack, siblings)
    except DataError as error:
        return replace(stack, verdict=error.reason, detail=error.detail)


def _check_decodable(stack: Stack) -> None:
    header = stack.header
    if not header.has_pixels:
        raise DataError("no_pixels", "the object has no pixel data")
    if header.modality in _DERIVED_MODALITIES:
        raise DataError("wrong_modality", "the object is about an image and is none itself")
    if header.rows == 0 or header.columns == 0:
        raise DataError("missing_tag", "Rows or Columns is absent")
    if header.bits_allocated == 0:
        raise DataError("missing_tag", "BitsAllocated is absent")
    if header.transfer_syntax_uid not in SUPPORTED_TRANSFER_SYNTAXES:
        raise DataError("unsupported_transfer_syntax", "no decoder for this transfer syntax")


def _proven(stack: Stack, siblings: Sequence[Sequence[Instance]]) -> Stack:
    group = list(stack.instances)
    if stack.num_slices < MIN_SLICES:
        raise DataError(*_why_small(stack, siblings))
    geometry = stack_geometry(_planes(group))
    ordered = group
    if group[0].header.num_frames == 1:
        ordered = sorted(
            group, key=lambda item: (_distance(item.header), item.header.sop_uid, item.uri)
        )
    return replace(
        stack,
        instances=tuple(ordered),
        geometry=geometry,
        flags=_flags(stack, geometry),
    )


def _distance(header: InstanceHeader) -> float:
    plane = header.planes[0]
    assert plane.position_mm is not None
    assert plane.orientation is not None
    return float(np.dot(plane.position_mm, slice_normal(plane.orientation)))


def _why_small(stack: Stack, siblings: Sequence[Sequence[Instance]]) -> tuple[str, str]:
    """Say why a stack of one or two slices exists: an odd slice of a series, or just few."""
    count = stack.num_slices
    header = stack.header
    plane = header.planes[0]
    for other in siblings:
        theirs, their_plane = other[0].header, other[0].header.planes[0]
        if len(_planes(other)) < MIN_SLICES or theirs.modality != header.modality:
            continue
        if not _close(plane.orientation, their_plane.orientation, _COSINE_TOLERANCE):
            if plane.orientation is None:
                return "no_geometry", "a slice of the series has no orientation"
            return "mixed_orientation", f"{count} slices are turned against the rest of the series"
        if (header.rows, header.columns) != (theirs.rows, theirs.columns):
            return "mixed_size", f"{count} slices have another matrix than the rest of the series"
        if not _close(plane.spacing_yx_mm, their_plane.spacing_yx_mm, _SPACING_TOLERANCE):
            if plane.spacing_yx_mm is None:
                return "no_geometry", "a slice of the series has no pixel spacing"
            return "mixed_size", f"{count} slices have other pixels than the rest of the series"
    return "too_few_slices", f"{count} slices where {MIN_SLICES} are needed"


def _flags(stack: Stack, geometry: StackGeometry) -> tuple[str, ...]:
    flags = []
    if geometry.is_tilted:
        flags.append("tilt")
    numbers = [item.header.instance_number for item in stack.instances]
    declared = stack.header.num_in_acquisition
    if declared and declared > stack.num_slices:
        flags.append("completeness=partial")
    elif None in numbers or min(n for n in numbers if n is not None) != 1:
        flags.append("completeness=unknown")
    return tuple(flags)
