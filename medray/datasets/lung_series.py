"""Facts of a Lung-PET-CT-Dx series: histology letter, place of the tumour, companion PET."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from medray.datasets.box_checks import Box
from medray.datasets.record import InstanceRef, SeriesRef
from medray.datasets.tree import is_volume

_HISTOLOGIES = frozenset("ABEG")


def letter_of(patient: str, names: Sequence[str]) -> tuple[str, float]:
    """Return the histology letter and the share of named boxes that agree with it.

    The patient's letter counts (names are written in both cases, empty or unknown); the most
    frequent known name decides only where the patient id says nothing.
    """
    known = [name.strip().upper() for name in names if name.strip().upper() in _HISTOLOGIES]
    letter = patient[:1].upper()
    if letter not in _HISTOLOGIES:
        ranked = sorted(Counter(known).items(), key=lambda pair: (-pair[1], pair[0]))
        letter = ranked[0][0] if ranked else ""
    agreement = known.count(letter) / len(names) if names else 0.0
    return letter, round(agreement, 4)


def study_pet(series: Sequence[SeriesRef], study_uid: str) -> SeriesRef | None:
    """Return the PET volume of a study with the most slices, or None."""
    found = [
        item
        for item in series
        if item.study_uid == study_uid and item.modality == "PT" and is_volume(item)
    ]
    return min(found, key=lambda item: (-item.num_slices, item.series_key)) if found else None


def tumour_centre_mm(
    series: SeriesRef, marked: Sequence[tuple[InstanceRef, Sequence[Box]]]
) -> tuple[float, float, float]:
    """Return the centre of the largest marked tumour in LPS mm.

    The largest box names the tumour; boxes of other slices belong to it if their centre lies in
    that box. Its extent over slices and in the plane is halved.
    """
    affine = np.asarray(series.affine_lps, dtype=np.float64).reshape(4, 4)
    largest = max(
        (box for _, boxes in marked for box in boxes),
        key=lambda box: ((box[2] - box[0]) * (box[3] - box[1]), box),
    )
    points = []
    for instance, boxes in marked:
        for x0, y0, x1, y1 in boxes:
            centre_x, centre_y = (x0 + x1) / 2, (y0 + y1) / 2
            if not (largest[0] <= centre_x <= largest[2] and largest[1] <= centre_y <= largest[3]):
                continue
            origin = np.asarray(instance.position_mm, dtype=np.float64)
            for x, y in ((x0, y0), (x1, y1)):
                points.append(origin + affine[:3, 1] * (y - 0.5) + affine[:3, 2] * (x - 0.5))
    corners = np.array(points)
    middle = (corners.min(axis=0) + corners.max(axis=0)) / 2
    return float(middle[0]), float(middle[1]), float(middle[2])
