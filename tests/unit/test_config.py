from dataclasses import dataclass
from typing import Literal

import pytest

from medray.config import override, override_many
from medray.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Numbers:
    size: int = 64
    lr: float = 1e-3
    flip: bool = True
    name: str = "plain"
    mode: Literal["none", "original"] = "none"
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    bins: tuple[int, ...] = ()
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.size <= 0:
            raise ValueError(f"size must be > 0, got {self.size}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Others:
    seed: int = 0


def test_each_type_is_read():
    changed = override(
        Numbers(),
        ["size=32", "lr=1e-4", "flip=false", "name=a=b", "mode=original", "spacing=1,2.5,3",
         "bins=1,2,3", "limit=7"],
    )  # fmt: skip
    assert changed == Numbers(
        size=32, lr=1e-4, flip=False, name="a=b", mode="original", spacing=(1.0, 2.5, 3.0),
        bins=(1, 2, 3), limit=7,
    )  # fmt: skip
    assert override(changed, ["limit=none"]).limit is None


def test_nothing_to_change_gives_the_same_object():
    numbers = Numbers()
    assert override(numbers, []) is numbers


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("sise=3", r"unknown hyperparameter 'sise': did you mean 'size'\?"),
        ("qqqqqq=3", "unknown hyperparameter 'qqqqqq': choose from bins, flip, limit, lr"),
        ("size", "--set 'size' is not of the form name=value"),
        ("=3", "is not of the form name=value"),
        ("size=2.5", "size must be an int, got '2.5'"),
        ("size=-1", "size must be > 0, got -1"),
        ("lr=nan", "lr must be a float, got 'nan'"),
        ("lr=fast", "lr must be a float, got 'fast'"),
        ("flip=maybe", "flip must be true or false, got 'maybe'"),
        ("mode=other", "mode must be one of none, original, got 'other'"),
        ("spacing=1,2", "spacing needs 3 values separated by commas, got '1,2'"),
        ("bins=1,x", "bins must be an int, got 'x'"),
    ],
)
def test_wrong_settings_are_explained(setting, message):
    with pytest.raises(ConfigError, match=message):
        override(Numbers(), [setting])


def test_settings_find_their_owner():
    numbers, others = override_many((Numbers(), Others()), ["seed=3", "size=16"])
    assert (numbers.size, others.seed) == (16, 3)
    with pytest.raises(ConfigError, match="did you mean 'seed'"):
        override_many((Numbers(), Others()), ["sed=3"])
