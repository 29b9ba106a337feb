"""Checkpoints: safetensors and JSON in a folder that counts only with its complete-marker."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from medray import storage
from medray.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

FOLDER = "checkpoints"
WEIGHTS = "weights.safetensors"
_MARKER = "COMPLETE.json"
_STATE = "state.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A complete checkpoint whose every byte was checked.

    Attributes:
        name: its folder below `checkpoints/`.
        blobs: its files by name, without state.json.
        state: content of state.json.
    """

    name: str
    blobs: Mapping[str, bytes] = field(repr=False)
    state: Mapping[str, Any] = field(repr=False)

    def tensors(self, name: str) -> "dict[str, Tensor]":
        """Return the tensors of one file."""
        from safetensors.torch import load

        loaded: dict[str, Tensor] = load(self.blobs[name])
        return loaded

    @property
    def epoch(self) -> int:
        """Number of epochs that are finished."""
        return int(self.state["epoch"])


def name_of(epoch: int) -> str:
    """Return the folder name of the checkpoint after so many epochs."""
    return f"epoch-{epoch:06d}"


def save_checkpoint(
    out: str,
    name: str,
    groups: "Mapping[str, Mapping[str, Tensor]]",
    state: Mapping[str, Any],
) -> None:
    """Write one checkpoint; it counts from the moment its marker is there.

    Args:
        out: the run's --out.
        name: folder name.
        groups: file name to its tensors.
        state: plain values.

    Raises:
        DataError: sink_full or sink_denied; earlier checkpoints are untouched.
    """
    from safetensors.torch import save

    where = storage.join(out, FOLDER, name)
    storage.remove(storage.join(where, _MARKER))
    text = json.dumps(state, sort_keys=True).encode()
    receipts = {_STATE: storage.write_atomic(storage.join(where, _STATE), text)}
    for file, tensors in groups.items():
        plain = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        receipts[file] = storage.write_atomic(storage.join(where, file), save(plain))
    marker = {
        "files": {file: {"bytes": r.bytes, "sha256": r.sha256} for file, r in receipts.items()}
    }
    storage.write_json(storage.join(where, _MARKER), marker)


def read_checkpoint(out: str, name: str) -> Checkpoint | None:
    """Return a checkpoint, or None where it is not complete to the last byte."""
    import hashlib

    where = storage.join(out, FOLDER, name)
    try:
        files = storage.read_json(storage.join(where, _MARKER))["files"]
        blobs = {file: storage.read_bytes(storage.join(where, file)) for file in files}
    except (DataError, KeyError, TypeError):
        return None
    if any(hashlib.sha256(blobs[file]).hexdigest() != files[file]["sha256"] for file in files):
        return None
    state = json.loads(blobs.pop(_STATE))
    return Checkpoint(name=name, blobs=blobs, state=state)


def newest_checkpoint(out: str) -> Checkpoint | None:
    """Return the newest complete checkpoint of a run."""
    for name in sorted(checkpoint_names(out), reverse=True):
        found = read_checkpoint(out, name)
        if found is not None:
            return found
    return None


def checkpoint_names(out: str) -> set[str]:
    """Return the folder names of all checkpoints, complete or not."""
    root = storage.join(out, FOLDER)
    if not storage.exists(root):
        return set()
    return {entry.uri.rsplit("/", 2)[1] for entry in storage.list_files(root)}


def drop_checkpoints(out: str, keep: Iterable[str]) -> None:
    """Remove all checkpoints but some; each stops to count before its files go."""
    kept = set(keep)
    root = storage.join(out, FOLDER)
    for name in checkpoint_names(out) - kept:
        storage.remove(storage.join(root, name, _MARKER))
        for entry in list(storage.list_files(storage.join(root, name))):
            storage.remove(entry.uri)


def pack_optimizer(optimizer: "Optimizer") -> "tuple[dict[str, Tensor], dict[str, Any]]":
    """Return an optimiser's state as named tensors and plain values; nothing is pickled."""
    import torch

    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for index, values in state["state"].items():
        for name, value in values.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{index}/{name}"] = value
            else:
                plain.setdefault(str(index), {})[name] = value
    return tensors, {"plain": plain, "param_groups": state["param_groups"]}


def unpack_optimizer(
    optimizer: "Optimizer", tensors: "Mapping[str, Tensor]", facts: Mapping[str, Any]
) -> None:
    """Give an optimiser back what `pack_optimizer` took."""
    state: dict[int, dict[str, Any]] = {}
    for index, values in facts["plain"].items():
        state.setdefault(int(index), {}).update(values)
    for key, value in tensors.items():
        index, _, name = key.partition("/")
        state.setdefault(int(index), {})[name] = value
    fresh = optimizer.state_dict()["param_groups"]
    groups = [
        {name: tuple(v) if isinstance(new.get(name), tuple) else v for name, v in old.items()}
        for old, new in zip(facts["param_groups"], fresh, strict=True)
    ]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
