"""Patient-grouped, stratified, seeded split; the same patients and seed give the same split.

It is made from records, before anything is decoded, so that a refused image moves no patient.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from medray.datasets.record import Record

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitOptions:
    """How patients are divided.

    Attributes:
        split: `patient`, or `none`: everything is training and validation at once.
        split_seed: another seed, another division.
        val_share, test_share: shares of patients; training has the rest.
        folds: number of folds for cross-validation over the patients outside the test split.
    """

    split: str = "patient"
    split_seed: int = 0
    val_share: float = 0.15
    test_share: float = 0.15
    folds: int = 5

    def __post_init__(self) -> None:
        if self.split not in {"patient", "none"}:
            raise ValueError(f"split must be patient or none, got {self.split!r}")
        if not (0 <= self.val_share < 1 and 0 <= self.test_share < 1):
            raise ValueError("val_share and test_share must lie in [0, 1)")
        if self.val_share + self.test_share >= 1:
            raise ValueError("val_share + test_share must leave patients for training")
        if self.folds < 2:
            raise ValueError(f"folds must be at least 2, got {self.folds}")


@dataclass(frozen=True, slots=True)
class SplitRow:
    """One row of split.parquet; `fold` is -1 for patients outside training and validation."""

    patient_id: str
    split: str
    fold: int
    strata: str


def make_split(records: Iterable[Record], options: SplitOptions) -> tuple[SplitRow, ...]:
    """Divide the patients of all records; sorted by patient.

    Splits that a layout fixes are kept; where it fixes training but no validation, validation is
    taken from training.

    A patient whom a layout puts into two splits has both, as `test+train`: the gate on the examples
    stops the run.
    """
    strata, fixed = _patients(records)
    if options.split == "none":
        return tuple(SplitRow(patient, "none", -1, strata[patient]) for patient in sorted(strata))
    chosen = dict(fixed)
    val_missing = bool(fixed) and not any("val" in name.split("+") for name in fixed.values())
    free = {
        p: s for p, s in strata.items() if p not in fixed or (val_missing and fixed[p] == "train")
    }
    test_share = 0.0 if fixed else options.test_share
    chosen.update(_divide(free, options, options.val_share, test_share))
    folds = _folds({p: s for p, s in strata.items() if "test" not in chosen[p]}, options)
    return tuple(
        SplitRow(patient, chosen[patient], folds.get(patient, -1), strata[patient])
        for patient in sorted(strata)
    )


def split_rows(rows: Sequence[SplitRow]) -> list[dict[str, object]]:
    """Return the rows as plain columns for split.parquet."""
    return [asdict(row) for row in rows]


def _patients(records: Iterable[Record]) -> tuple[dict[str, str], dict[str, str]]:
    """Return each patient's stratum (all of its records' joined) and its fixed split, if any."""
    strata: dict[str, set[str]] = defaultdict(set)
    fixed: dict[str, set[str]] = defaultdict(set)
    for record in records:
        strata[record.patient_id].add(record.strata)
        if record.split:
            fixed[record.patient_id].add(record.split)
    joined = {patient: "+".join(sorted(parts)) for patient, parts in strata.items()}
    return joined, {patient: "+".join(sorted(splits)) for patient, splits in fixed.items()}


def _groups(strata: Mapping[str, str], options: SplitOptions, smallest: int) -> list[list[str]]:
    """Return patients by stratum in a seeded order; strata too small to divide come together."""
    by_stratum: dict[str, list[str]] = defaultdict(list)
    for patient in sorted(strata, key=lambda p: _rank(p, options.split_seed)):
        by_stratum[strata[patient]].append(patient)
    large = [group for _, group in sorted(by_stratum.items()) if len(group) >= smallest]
    small = [
        patient
        for _, group in sorted(by_stratum.items())
        if len(group) < smallest
        for patient in group
    ]
    return [*large, small] if small else large


def _rank(patient: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}:{patient}".encode()).hexdigest()


def _divide(
    strata: Mapping[str, str], options: SplitOptions, val_share: float, test_share: float
) -> dict[str, str]:
    """Give each stratum its shares; what rounding leaves over is carried to the next stratum."""
    wanted = 1 + (val_share > 0) + (test_share > 0)
    chosen: dict[str, str] = {}
    debt = {"val": 0.0, "test": 0.0}
    for group in _groups(strata, options, wanted):
        left = len(group)
        start = 0
        for name, share in (("test", test_share), ("val", val_share)):
            exact = len(group) * share + debt[name]
            count = round(exact)
            if share > 0 and len(group) >= wanted:
                count = max(1, count)
            # Training keeps one patient of every group.
            count = max(0, min(count, left - 1))
            debt[name] = max(-1.0, min(1.0, exact - count))
            for patient in group[start : start + count]:
                chosen[patient] = name
            start += count
            left -= count
        for patient in group[start:]:
            chosen[patient] = "train"
    return chosen


def _folds(strata: Mapping[str, str], options: SplitOptions) -> dict[str, int]:
    """Deal patients out to the folds, stratum after stratum; sizes differ by one at most."""
    dealt = [patient for group in _groups(strata, options, 1) for patient in group]
    return {patient: position % options.folds for position, patient in enumerate(dealt)}
