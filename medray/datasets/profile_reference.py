"""Training images as one reference, and how far an image may be from it before that is unusual.

How far is said by the training images themselves: each is compared with all the others, as a later
image will be compared with all of them.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medray.datasets.profile import NUM_LEVELS, NUM_SOFT, PROFILE_VERSION, SHARE, SOFT_STEP_HU

Profile = Mapping[str, Any]
# Hash, group and profile.
_Member = tuple[str, str, Profile]
# Below these no difference is worth a flag: shares of voxels, HU, shares of the image's own range,
# one minus a correlation, and factors (as logarithms) of lengths and ratios.
_LEAST = {
    "levels": 0.02,
    "soft": 4.0,
    "shape": 0.02,
    "layout": 0.01,
    "slice_mm": 0.22,
    "pixel_mm": 0.22,
    "extent_z_mm": 0.3,
    "extent_y_mm": 0.3,
    "extent_x_mm": 0.3,
    "matrix_px": 0.4,
    "aspect": 0.2,
    "roughness": 0.4,
    "content": 0.7,
}
ASPECTS = tuple(_LEAST)
# Enough for a 95 % quantile; more would cost seconds and change nothing.
_MOST_COMPARED = 300
_MOST_KINDS = 8
_UPPER, _LOW, _HIGH, _USUAL, _JOINT = 0.98, 0.02, 0.98, 0.95, 0.975
# One training case says nothing about spread.
_SINGLE_FACTOR = 4.0


def make_reference(profiles: Sequence[Profile], groups: Sequence[str]) -> dict[str, Any]:
    """Return what `conformity` compares with, whatever the order of the images.

    Args:
        profiles: of `image_profile`.
        groups: one text an image; images of one patient share it, empty is a group of its own.
    """
    by_kind: dict[str, list[_Member]] = defaultdict(list)
    for profile, group in zip(profiles, groups, strict=True):
        text = json.dumps(profile, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()
        by_kind[profile["kind"]].append((digest, group, profile))
    usual = sorted(by_kind, key=lambda kind: (-len(by_kind[kind]), kind))[:_MOST_KINDS]
    return {
        "version": PROFILE_VERSION,
        "kinds": {kind: _kind_reference(by_kind[kind]) for kind in sorted(usual)},
    }


def _kind_reference(found: list[_Member]) -> dict[str, Any]:
    # The order of hashes is that of no list, so the first ones are as good as any.
    chosen = sorted(found, key=lambda member: member[:2])[:_MOST_COMPARED]
    profiles = [profile for _, _, profile in chosen]
    members: dict[str, list[int]] = defaultdict(list)
    for index, (_, group, _) in enumerate(chosen):
        members[group or f"\0{index}"].append(index)
    table = _Table.of(profiles)
    apart = _left_out(profiles, table, list(members.values()))
    scales = {
        name: max(float(np.quantile(values, _USUAL)), _LEAST[name])
        for name, values in _columns(apart).items()
    }
    scales |= {name: _LEAST[name] for name in ASPECTS if name not in scales}
    worst = [max((v / scales[n] for n, v in row.items()), default=0.0) for row in apart]
    factor = _factor(worst, len(members))
    return {
        "num_examples": len(found),
        "num_compared": len(profiles),
        "contrast": dict(sorted(Counter(profile["contrast"] for profile in profiles).items())),
        **table.centre(np.arange(len(profiles))),
        "limits": {name: round(scale * factor, 6) for name, scale in scales.items()},
    }


def _factor(worst: Sequence[float], num_groups: int) -> float:
    """Return how far beyond its own scale the worst aspect of an image may lie.

    Each image has a dozen aspects, so the worst of them is what few images may have.
    """
    if not worst:
        return _SINGLE_FACTOR
    # The spread of a dozen cases is known badly, that of a hundred well.
    margin = 1 + 1 / float(np.sqrt(num_groups)) + 2 / num_groups
    return margin * max(1.0, float(np.quantile(worst, _JOINT)))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    """Profiles of one kind as arrays, one row an image; NaN where an image has no such number."""

    levels: np.ndarray
    soft: np.ndarray
    shape: np.ndarray
    layout: np.ndarray
    logs: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, profiles: Sequence[Profile]) -> "_Table":
        """Stack profiles."""
        levels = np.zeros((len(profiles), NUM_LEVELS))
        for row, profile in zip(levels, profiles, strict=True):
            for index, share in profile["levels"].items():
                row[int(index)] = share
        names = sorted({name for profile in profiles for name in profile["numbers"]})
        nothing = [np.nan] * NUM_SOFT
        return cls(
            levels=levels,
            soft=np.array([profile["soft"] or nothing for profile in profiles], dtype=float),
            shape=np.array([profile["shape"] for profile in profiles], dtype=float),
            layout=np.array([profile["layout"] for profile in profiles], dtype=float),
            logs={
                name: np.log([profile["numbers"].get(name, np.nan) for profile in profiles])
                for name in names
            },
        )

    def centre(self, rows: np.ndarray) -> dict[str, Any]:
        """Return what is usual of the images in some rows."""
        levels = self.levels[rows]
        used = np.flatnonzero(levels.any(axis=0))
        upper = np.quantile(levels[:, used], _UPPER, axis=0)
        logs = {name: values[rows] for name, values in self.logs.items()}
        known = {name: values[~np.isnan(values)] for name, values in logs.items()}
        return {
            "levels": {str(i): round(float(v), 1) for i, v in zip(used, upper, strict=True)},
            "soft": _mean(self.soft[rows]),
            "shape": _mean(self.shape[rows]),
            "layout": _mean(self.layout[rows]),
            "numbers": {
                name: [round(float(v), 6) for v in np.quantile(values, [_LOW, _HIGH])]
                for name, values in known.items()
                if values.size
            },
        }


def _mean(rows: np.ndarray) -> list[float]:
    rows = rows[~np.isnan(rows).any(axis=1)]
    return np.round(rows.mean(axis=0), 1).tolist() if len(rows) else []


def deviations(profile: Profile, reference: Mapping[str, Any]) -> dict[str, float]:
    """Return how far an image is from a reference, by aspect; only what both of them have.

    Returns:
        `levels`: the share of voxels whose values the training images have not or not as often;
        `soft`: HU by which soft tissue would have to be moved; `shape`: the same in shares of the
        image's own range; `layout`: one minus the correlation; else logarithms of factors beyond
        the training range.
    """
    found = {
        "levels": _excess(profile["levels"], reference["levels"]),
        "shape": _moved(profile["shape"], reference["shape"]) / len(reference["shape"]),
        "layout": 1 - _correlation(profile["layout"], reference["layout"]),
    }
    if profile["soft"] and reference["soft"]:
        found["soft"] = SOFT_STEP_HU * _moved(profile["soft"], reference["soft"])
    for name, (low, high) in reference["numbers"].items():
        if name in profile["numbers"]:
            value = float(np.log(profile["numbers"][name]))
            above = 0.0 if name == "content" else value - high
            found[name] = max(0.0, low - value, above)
    return found


def _excess(levels: Mapping[str, int], upper: Mapping[str, float]) -> float:
    """Return the share of voxels beyond the training's upper shares, one bin to either side."""
    beyond = 0.0
    for index, share in levels.items():
        place = int(index)
        near = max(upper.get(str(place + step), 0.0) for step in (-1, 0, 1))
        beyond += max(0.0, share - near)
    return beyond / SHARE


def _moved(shares: Sequence[float], others: Sequence[float]) -> float:
    """Return how many bins the mass of one histogram moves on average to become the other."""
    differences = np.cumsum(np.asarray(shares, float) - np.asarray(others, float))
    return float(np.abs(differences).sum()) / SHARE


def _correlation(first: Sequence[float], second: Sequence[float]) -> float:
    a, b = (np.asarray(values, float) for values in (first, second))
    if a.shape != b.shape:
        return 0.0
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / size if size > 0 else 0.0


def _left_out(
    profiles: Sequence[Profile], table: _Table, groups: Sequence[list[int]]
) -> list[dict[str, float]]:
    """Return each image's deviations from the images of all other groups."""
    if len(groups) < 2:
        return []
    found = []
    for group in groups:
        others = table.centre(np.delete(np.arange(len(profiles)), group))
        found += [deviations(profiles[index], others) for index in group]
    return found


def _columns(rows: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    columns: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        for name, value in row.items():
            columns[name].append(value)
    return columns
