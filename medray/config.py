"""Typed override of frozen dataclasses by `--set name=value`; wrong names get the nearest one."""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Sequence
from typing import Any, TypeVar

from medray.errors import ConfigError

T = TypeVar("T")
_TRUE = frozenset({"true", "on", "yes", "1"})
_FALSE = frozenset({"false", "off", "no", "0"})


def override(target: T, settings: Sequence[str]) -> T:
    """Return a copy of a frozen dataclass with `name=value` settings applied.

    The dataclass's own checks run again on the result.

    Raises:
        ConfigError: for an unknown name (the nearest right one is named), a value of another type,
            or a value that the dataclass refuses.
    """
    changed: T = override_many((target,), settings)[0]
    return changed


def override_many(targets: tuple[Any, ...], settings: Sequence[str]) -> tuple[Any, ...]:
    """Apply settings to several frozen dataclasses at once, each to the one that has the name.

    Raises:
        ConfigError: as `override`.
    """
    owners = {field: index for index, target in enumerate(targets) for field in _types(target)}
    changes: list[dict[str, Any]] = [{} for _ in targets]
    for setting in settings:
        name, equals, raw = setting.partition("=")
        name = name.strip()
        if not equals or not name:
            raise ConfigError(f"--set {setting!r} is not of the form name=value")
        if name not in owners:
            raise ConfigError(unknown_name("hyperparameter", name, owners))
        index = owners[name]
        changes[index][name] = parse_value(name, raw.strip(), _types(targets[index])[name])
    return tuple(_replaced(*pair) for pair in zip(targets, changes, strict=True))


def unknown_name(what: str, name: str, known: typing.Iterable[str]) -> str:
    """Return the message for a wrong name: the nearest right one, or all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    help_text = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(names)}"
    return f"unknown {what} {name!r}: {help_text}"


def parse_value(name: str, raw: str, annotation: Any) -> Any:
    """Read one value as the type of its field.

    Raises:
        ConfigError: if the text is no such value.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        if raw not in arguments:
            raise ConfigError(f"{name} must be one of {', '.join(arguments)}, got {raw!r}")
        return raw
    if origin in {typing.Union, types.UnionType}:
        if raw.lower() == "none":
            return None
        return parse_value(name, raw, next(kind for kind in arguments if kind is not type(None)))
    if origin is tuple:
        return _parse_tuple(name, raw, arguments)
    return _parse_plain(name, raw, annotation)


def _parse_tuple(name: str, raw: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    parts = [part.strip() for part in raw.strip("()[]").split(",") if part.strip()]
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return tuple(parse_value(name, part, arguments[0]) for part in parts)
    if len(parts) != len(arguments):
        raise ConfigError(f"{name} needs {len(arguments)} values separated by commas, got {raw!r}")
    return tuple(parse_value(name, p, kind) for p, kind in zip(parts, arguments, strict=True))


def _parse_plain(name: str, raw: str, annotation: Any) -> Any:
    if annotation is str:
        return raw
    if annotation is bool:
        if raw.lower() not in _TRUE | _FALSE:
            raise ConfigError(f"{name} must be true or false, got {raw!r}")
        return raw.lower() in _TRUE
    try:
        if annotation is int:
            return int(raw)
        if annotation is float:
            value = float(raw)
            if math.isfinite(value):
                return value
    except ValueError:
        pass
    kind = getattr(annotation, "__name__", str(annotation))
    raise ConfigError(f"{name} must be {'an' if kind == 'int' else 'a'} {kind}, got {raw!r}")


def _types(target: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(type(target))
    return {field.name: hints[field.name] for field in dataclasses.fields(target)}


def _replaced(target: Any, changes: dict[str, Any]) -> Any:
    try:
        return dataclasses.replace(target, **changes) if changes else target
    except ValueError as error:
        raise ConfigError(str(error)) from None
