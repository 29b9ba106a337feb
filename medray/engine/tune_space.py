"""What a sweep tries: `--space`, grids and random points. No Ray, no torch."""

import dataclasses
import itertools
import math
import re
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from medray.config import parse_value, unknown_name
from medray.errors import ConfigError
from medray.learning import Choice, Domain, LogUniform, Uniform
from medray.recipe import Recipe

Space: TypeAlias = Mapping[str, Domain]
Point: TypeAlias = dict[str, Any]

GRID_STEPS = 5
_FORM = re.compile(r"(\w+)\((.*)\)")
_FORMS = "choice(a,b,...), uniform(low,high) or loguniform(low,high)"
# A grid of more points is a mistake, or a search for which random points are better.
_MOST_POINTS = 100_000


def training_space(recipe: Recipe[Any], hparams: Any, texts: Sequence[str]) -> dict[str, Domain]:
    """Return which hyperparameters are swept: those of `--space`, without any the recipe's.

    Raises:
        ConfigError: an unknown name, an empty or inverted range, a value of another type or one
            that the task refuses, or one that the data were prepared with.
    """
    hints = typing.get_type_hints(type(hparams))
    types = {field.name: hints[field.name] for field in dataclasses.fields(hparams)}
    space = chosen_space(recipe.learning.search_space, texts, types)
    for name, domain in space.items():
        if name in recipe.data_fields:
            raise ConfigError(f"the data were prepared with one {name}; it cannot be swept")
        for value in _ends(domain):
            _require_accepted(hparams, name, value)
    return space


def inference_space(recipe: Recipe[Any], texts: Sequence[str]) -> dict[str, Domain]:
    """Return which inference parameters are swept: those of `--space`, without any the recipe's.

    Raises:
        ConfigError: as `training_space`; the task has no inference parameter.
    """
    sweep = recipe.learning.sweep
    if not sweep.space:
        raise ConfigError(f"{recipe.name} has no inference parameters to sweep")
    if not texts:
        return dict(sweep.space)
    known = {**sweep.space, **sweep.on_request}
    space = chosen_space(known, texts, {name: type(_ends(d)[0]) for name, d in known.items()})
    for name, (low, high) in sweep.limits.items():
        for value in _ends(space[name]) if name in space else ():
            if not low <= value <= high:
                raise ConfigError(f"--space {name}: {value:g} lies beyond {low:g} to {high:g}")
    return space


def chosen_space(known: Space, texts: Sequence[str], types: Mapping[str, Any]) -> dict[str, Domain]:
    """Return the parameters of `name=range` or `name` alone, which takes the recipe's range.

    Args:
        known: the recipe's space, taken whole where there are no texts.
        texts: of `--space`.
        types: of everything that may be named.

    Raises:
        ConfigError: a text that says no range of a known parameter.
    """
    space: dict[str, Domain] = {}
    for text in texts:
        name, equals, form = (part.strip() for part in text.partition("="))
        if name not in types:
            raise ConfigError(unknown_name("parameter", name, types))
        if equals:
            space[name] = _domain(name, form, types[name])
        elif name in known:
            space[name] = known[name]
        else:
            raise ConfigError(f"the recipe has no range of {name}; say --space {name}=RANGE")
    return space or dict(known)


def grid_points(space: Space) -> list[Point]:
    """Return every combination; a range is taken at `GRID_STEPS` values, its ends included.

    Raises:
        ConfigError: too many of them.
    """
    axes = [axis_values(domain) for domain in space.values()]
    number = math.prod(len(axis) for axis in axes)
    if number > _MOST_POINTS:
        raise ConfigError(f"the grid has {number} points; narrow it by --space, or --search random")
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*axes)]


def axis_values(domain: Domain) -> list[Any]:
    """Return the values of one parameter in a grid."""
    if isinstance(domain, Choice):
        return list(domain.values)
    steps = np.geomspace if isinstance(domain, LogUniform) else np.linspace
    return [float(f"{value:.6g}") for value in steps(domain.low, domain.high, GRID_STEPS)]


def random_points(space: Space, number: int, *, seed: int) -> list[Point]:
    """Return points without repeats; a longer list begins with the shorter one.

    Fewer are returned where the space has no more.
    """
    found: dict[str, Point] = {}
    limit = math.inf
    if all(isinstance(domain, Choice) for domain in space.values()):
        limit = math.prod(len(axis_values(domain)) for domain in space.values())
    attempt = 0
    while len(found) < min(number, limit):
        rng = np.random.default_rng([seed, attempt])
        point = {name: _drawn(domain, rng) for name, domain in space.items()}
        found.setdefault(repr(point), point)
        attempt += 1
    return list(found.values())


def position(domain: Domain, value: Any) -> float:
    """Return where in its range a value lies, 0 to 1: what distances are measured by."""
    if isinstance(domain, Choice):
        return domain.values.index(value) / max(1, len(domain.values) - 1)
    if isinstance(domain, LogUniform):
        return math.log(value / domain.low) / math.log(domain.high / domain.low)
    return float((value - domain.low) / (domain.high - domain.low))


def _drawn(domain: Domain, rng: np.random.Generator) -> Any:
    if isinstance(domain, Choice):
        return domain.values[int(rng.integers(len(domain.values)))]
    if isinstance(domain, LogUniform):
        return float(math.exp(rng.uniform(math.log(domain.low), math.log(domain.high))))
    return float(rng.uniform(domain.low, domain.high))


def _domain(name: str, form: str, annotation: Any) -> Domain:
    match = _FORM.fullmatch(form)
    kind, inside = match.groups() if match else ("", "")
    if kind == "choice":
        return Choice(_choices(name, inside, annotation))
    if kind not in {"uniform", "loguniform"}:
        raise ConfigError(f"--space {name} must be {_FORMS}, got {form!r}")
    if annotation is not float:
        raise ConfigError(f"{name} is no float; say --space {name}=choice(...)")
    ends = [parse_value(name, part.strip(), float) for part in inside.split(",")]
    if len(ends) != 2:
        raise ConfigError(f"--space {name}={kind} needs two ends, got {inside!r}")
    low, high = ends
    if low >= high:
        raise ConfigError(f"--space {name}: the range from {low:g} to {high:g} is empty")
    if kind == "loguniform" and low <= 0:
        raise ConfigError(f"--space {name}: a loguniform range begins above 0, got {low:g}")
    return LogUniform(low, high) if kind == "loguniform" else Uniform(low, high)


def _choices(name: str, inside: str, annotation: Any) -> tuple[Any, ...]:
    """Return the values; of tuples, each stands in brackets: choice([4,8],[8,16])."""
    parts = re.findall(r"\[[^\]]*\]|[^,\[\]]+", inside)
    texts = [part.strip() for part in parts if part.strip()]
    values = tuple(parse_value(name, text, annotation) for text in texts)
    if not values:
        raise ConfigError(f"--space {name}: choice() is empty")
    return tuple(dict.fromkeys(values))


def _ends(domain: Domain) -> tuple[Any, ...]:
    return domain.values if isinstance(domain, Choice) else (domain.low, domain.high)


def _require_accepted(hparams: Any, name: str, value: Any) -> None:
    try:
        dataclasses.replace(hparams, **{name: value})
    except ValueError as error:
        raise ConfigError(f"--space {name}: {error}") from None
