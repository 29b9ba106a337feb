from collections import Counter

import pytest

from medray.datasets.record import FileRef, ImageSource, Record
from medray.datasets.split import SplitOptions, make_split, split_rows

IMAGE = ImageSource(form="image_file", files=(FileRef("x", 1, "0"),))


def record(patient, strata="", split=""):
    return Record(name=patient, patient_id=patient, image=IMAGE, strata=strata, split=split)


def cohort(counts):
    return [record(f"{name}{n}", name) for name, count in counts.items() for n in range(count)]


def test_each_patient_once_and_in_proportion():
    records = cohort({"A": 200, "B": 40}) * 3
    rows = make_split(records, SplitOptions())
    assert len(rows) == 240
    assert [row.patient_id for row in rows] == sorted({r.patient_id for r in records})
    for strata, count in {"A": 200, "B": 40}.items():
        found = Counter(row.split for row in rows if row.strata == strata)
        assert found == {"train": count * 0.7, "val": count * 0.15, "test": count * 0.15}


def test_the_same_patients_give_the_same_split_in_any_order():
    records = cohort({"A": 30, "B": 11})
    assert make_split(records, SplitOptions()) == make_split(records[::-1], SplitOptions())
    assert make_split(records, SplitOptions()) != make_split(records, SplitOptions(split_seed=1))


def test_small_classes_are_in_every_split():
    rows = make_split(cohort({"A": 20, "B": 3}), SplitOptions())
    assert {row.split for row in rows if row.strata == "B"} == {"train", "val", "test"}


def test_singletons_are_divided_together():
    rows = make_split([record(f"p{n}", f"s{n}") for n in range(20)], SplitOptions())
    assert Counter(row.split for row in rows) == {"train": 14, "val": 3, "test": 3}


@pytest.mark.parametrize("count", [1, 2])
def test_training_always_has_a_patient(count):
    rows = make_split(cohort({"A": count}), SplitOptions())
    assert "train" in {row.split for row in rows}


def test_shares_over_many_small_groups_add_up():
    records = [record(f"{n}", f"s{n % 12}") for n in range(12 * 5)]
    found = Counter(row.split for row in make_split(records, SplitOptions()))
    assert found["val"] >= 9
    assert found["test"] >= 9
    assert found["train"] >= 30


def test_folds_are_even_and_leave_out_the_test_split():
    rows = make_split(cohort({"A": 50, "B": 25}), SplitOptions(folds=5))
    assert {row.fold for row in rows if row.split == "test"} == {-1}
    sizes = Counter(row.fold for row in rows if row.split != "test")
    assert set(sizes) == set(range(5))
    assert max(sizes.values()) - min(sizes.values()) <= 1
    for fold in range(5):
        assert {row.strata for row in rows if row.fold == fold} == {"A", "B"}


def test_a_patient_of_several_strata_has_one():
    rows = make_split([record("p", "x"), record("p", "y")], SplitOptions())
    assert rows[0].strata == "x+y"


def test_fixed_splits_are_kept():
    records = [record("a", split="train"), record("b", split="val"), record("c", split="test")]
    assert [row.split for row in make_split(records, SplitOptions())] == ["train", "val", "test"]


def test_validation_is_taken_from_training_where_a_layout_has_none():
    records = [record(f"a{n}", split="train") for n in range(20)] + [record("t", split="test")]
    rows = make_split(records, SplitOptions())
    assert Counter(row.split for row in rows) == {"train": 17, "val": 3, "test": 1}


def test_a_patient_in_two_fixed_splits_is_shown_to_the_gate():
    records = [record("a", split="train"), record("a", split="test"), record("b", split="train")]
    rows = make_split(records, SplitOptions(val_share=0))
    assert [(row.split, row.fold) for row in rows] == [("test+train", -1), ("train", 0)]


def test_no_split():
    rows = make_split(cohort({"A": 4}), SplitOptions(split="none"))
    assert {(row.split, row.fold) for row in rows} == {("none", -1)}
    assert split_rows(rows)[0] == {"patient_id": "A0", "split": "none", "fold": -1, "strata": "A"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "row"}, "split must be patient or none"),
        ({"val_share": 1.5}, r"must lie in \[0, 1\)"),
        ({"val_share": 0.5, "test_share": 0.5}, "must leave patients for training"),
        ({"folds": 1}, "folds must be at least 2"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        SplitOptions(**options)
