"""Published YOLOv5 weights: out of an official `.pt` file, into a network of ours.

medray ships no weights; their publisher claims a licence of its own for them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from medray.errors import DataError
from medray.nn.torch_archive import Stub, read_torch_archive
from medray.nn.yolo import Yolo

_STEM, _HEAD = "model.0.conv.weight", "model.24.m."
# Of versions before 6.0: the stem of two convolutions, and a buffer that went.
_OLD_NAMES = ("model.0.conv.conv.weight", "model.24.anchor_grid")
_MOST_MODULES = 10_000


@dataclass(frozen=True, slots=True)
class Transferred:
    """Names of a network's state that were taken from other weights, and that stayed fresh."""

    taken: tuple[str, ...]
    fresh: tuple[str, ...]


def published_state(content: bytes) -> dict[str, Tensor]:
    """Return the state dict in a file of YOLOv5 v6 or v7, float32; `ema` before `model`.

    Args:
        content: an official `.pt` file, or a state dict saved by torch.

    Raises:
        DataError: weights_refused, for anything else and for earlier versions.
    """
    saved = read_torch_archive(content)
    holder = saved
    if isinstance(saved, dict) and ("model" in saved or "ema" in saved):
        holder = saved.get("ema") or saved.get("model")
    state = _plain_names(_tensors(holder))
    if any(name in state for name in _OLD_NAMES):
        raise _refused("it is of a version before 6.0, whose network is another")
    if _STEM not in state:
        raise _refused("it holds no network with the names of YOLOv5")
    return {
        name: value.float() if value.is_floating_point() else value for name, value in state.items()
    }


def adopt(network: nn.Module, content: bytes) -> str:
    """Load a published file; return how much of it was taken.

    Raises:
        DataError: weights_refused.
    """
    assert isinstance(network, Yolo)
    moved = transfer(network, published_state(content))
    fresh = f"; left as drawn: {', '.join(moved.fresh)}" if moved.fresh else ""
    return f"{len(moved.taken)} entries loaded{fresh}"


def _misfit(wrong: list[str], left_over: list[str], given: Mapping[str, Tensor]) -> str:
    absent = [name for name in wrong if name not in given]
    if absent:
        return f"entries of the network are absent: {len(absent)}, the first is {absent[0]}"
    if wrong:
        return f"{wrong[0]} does not fit; the weights are of another size of the network"
    return f"{left_over[0]} is no entry of the network"


def transfer(network: Yolo, state: Mapping[str, Tensor]) -> Transferred:
    """Load published weights; the six tensors of a head with other classes stay fresh.

    A network of grey images takes the sum over the stem's three colours: it then answers to a grey
    image as the published one to the same image in each colour.

    Raises:
        DataError: weights_refused, where anything but the head does not fit.
    """
    own = network.state_dict()
    given = dict(state)
    if network.config.in_channels == 1 and _STEM in given:
        given[_STEM] = given[_STEM].sum(dim=1, keepdim=True)
    fits = {
        name for name, value in own.items() if name in given and given[name].shape == value.shape
    }
    wrong = sorted(name for name in own if name not in fits and not name.startswith(_HEAD))
    left_over = sorted(set(given) - set(own))
    if wrong or left_over:
        raise _refused(_misfit(wrong, left_over, given))
    network.load_state_dict({**own, **{name: given[name] for name in fits}})
    return Transferred(
        taken=tuple(name for name in own if name in fits),
        fresh=tuple(name for name in own if name not in fits),
    )


def _refused(why: str) -> DataError:
    return DataError("weights_refused", f"the weight file is refused: {why}")


def _tensors(holder: Any) -> dict[str, Tensor]:
    """Return the tensors of a state dict, or of a stub of a module, by their dotted names."""
    if isinstance(holder, dict):
        tensors = {str(k): v for k, v in holder.items() if isinstance(v, Tensor)}
        if len(tensors) != len(holder):
            raise _refused("a state dict must hold tensors alone")
        return tensors
    found: dict[str, Tensor] = {}
    waiting: list[tuple[str, Any]] = [("", holder)]
    for _ in range(_MOST_MODULES):
        if not waiting:
            return found
        prefix, module = waiting.pop()
        facts = module.state if isinstance(module, Stub) else None
        if not isinstance(facts, dict):
            raise _refused("it holds neither a state dict nor a network")
        for kind in ("_parameters", "_buffers"):
            own = facts.get(kind) or {}
            found.update({f"{prefix}{k}": v for k, v in own.items() if isinstance(v, Tensor)})
        inner = facts.get("_modules") or {}
        waiting += [(f"{prefix}{name}.", one) for name, one in inner.items() if one is not None]
    raise _refused("it has more modules than any such network")


def _plain_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state without the prefixes of wrappers around the network."""
    names = dict(state)
    while names and all(name.startswith(("model.model.", "module.")) for name in names):
        names = {name.partition(".")[2]: value for name, value in names.items()}
    return names
