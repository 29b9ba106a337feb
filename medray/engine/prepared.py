"""A prepared data set as training sees it: checked against its task, and its gates. No Ray."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medray import storage
from medray.config import override_many
from medray.datasets.gates import Finding, GateRules, find_failures
from medray.errors import ConfigError, DataError, GateError
from medray.recipe import Recipe

_TRAINED_ON = {"train": ("train", "none"), "val": ("val", "none"), "test": ("test",)}


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedData:
    """An output of `medray prepare`.

    Attributes:
        uri: its folder.
        rows: of examples.parquet.
        facts: its run.json.
        fingerprint: its fingerprint.json.
    """

    uri: str
    rows: tuple[dict[str, Any], ...]
    facts: dict[str, Any]
    fingerprint: dict[str, Any]

    def split(self, name: str) -> tuple[dict[str, Any], ...]:
        """Return the examples of a split; `split=none` makes all of them train and val."""
        return tuple(row for row in self.rows if row["split"] in _TRAINED_ON[name])

    @property
    def example_bytes(self) -> int:
        """Mean size of a training example's arrays in memory."""
        rows = self.split("train")
        return int(sum(_array_bytes(row) for row in rows) / max(1, len(rows)))

    @property
    def sha256(self) -> str:
        """Digest of the examples' own digests: it names the content."""
        import hashlib

        lines = "".join(f"{row['key']} {row['sha256']} {row['split']}\n" for row in self.rows)
        return hashlib.sha256(lines.encode()).hexdigest()


def _array_bytes(row: Mapping[str, Any]) -> int:
    import numpy as np

    shapes, dtypes = json.loads(row["shapes"]), json.loads(row["dtypes"])
    return sum(math.prod(shapes[n]) * np.dtype(dtypes[n]).itemsize for n in shapes)


def open_prepared(uri: str, recipe: Recipe[Any]) -> PreparedData:
    """Read the tables of a prepared data set.

    Raises:
        ConfigError: nothing prepared there, an unfinished run, another task or version.
    """
    uri = storage.normalise(uri)  # train workers have a working directory of their own
    where = storage.join(uri, "run.json")
    if not storage.exists(where):
        raise ConfigError(
            f"{uri} holds no finished `medray prepare` (no run.json); prepare {recipe.name} first"
        )
    facts = storage.read_json(where)
    if facts.get("verb") != "prepare":
        raise ConfigError(f"{uri} is an output of `medray {facts.get('verb')}`, not of prepare")
    if facts.get("task") != recipe.name:
        raise ConfigError(f"{uri} was prepared for {facts.get('task')}, not for {recipe.name}")
    if facts.get("transform_version") != recipe.transform_version:
        raise ConfigError(
            f"{uri} was prepared by version {facts.get('transform_version')} of the transform, "
            f"this is version {recipe.transform_version}; prepare it again"
        )
    if facts.get("status") == "failed":
        raise ConfigError(f"{uri} holds a prepare run that failed; prepare it again")
    return PreparedData(
        uri=uri,
        rows=tuple(_table(storage.join(uri, "examples.parquet"))),
        facts=facts,
        fingerprint=storage.read_json(storage.join(uri, "fingerprint.json")),
    )


def _table(uri: str) -> list[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = storage.read_parquet(uri).to_pylist()
    except DataError as error:
        raise ConfigError(f"examples.parquet cannot be read: {error.detail}") from error
    return rows


def training_settings(
    recipe: Recipe[Any],
    base: Any,
    prepared: PreparedData,
    others: Sequence[Any],
    settings: list[str],
) -> tuple[Any, ...]:
    """Return hyperparameters and `others` with `--set` applied, on top of what the data have.

    Raises:
        ConfigError: a setting that the data were prepared without, or a wrong name or value.
    """
    made = prepared.facts["hyperparameters"]
    known = {field.name for field in dataclasses.fields(base)}
    chosen = {name: _plain(made[name]) for name in recipe.data_fields if name in made}
    fitted = dataclasses.replace(base, **{k: v for k, v in chosen.items() if k in known})
    hparams, *rest = override_many((fitted, *others), settings)
    for name in recipe.data_fields:
        if getattr(hparams, name) != getattr(fitted, name):
            raise ConfigError(
                f"the data were prepared with {name}={getattr(fitted, name)}; "
                f"prepare them again for {name}={getattr(hparams, name)}"
            )
    return hparams, *rest


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def gate_rules(recipe: Recipe[Any], hparams: Any) -> GateRules:
    """Return which gates a task has."""
    compat = getattr(hparams, "compat", "none") != "none"
    return GateRules(
        num_classes=0 if recipe.lesion_boxes else len(recipe.class_names_of(hparams)),
        lesion_in_each=recipe.lesion_in_each,
        lesion_boxes=recipe.lesion_boxes and not compat,
    )


def pass_gates(
    prepared: PreparedData, recipe: Recipe[Any], hparams: Any, *, gates: str
) -> tuple[Finding, ...]:
    """Stop before the first step where the examples must not be trained on.

    Returns:
        What was found while the gates are off.

    Raises:
        GateError: offenders by key.
        ConfigError: no example to train or to validate with.
    """
    findings = find_failures(prepared.rows, gate_rules(recipe, hparams))
    if findings and gates == "on":
        raise GateError(findings)
    for name in ("train", "val"):
        if not prepared.split(name):
            raise ConfigError(f"the prepared data have no example in split {name}")
    return findings
