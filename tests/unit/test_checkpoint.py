"""A checkpoint counts when every byte of it is there; weights are read strictly or refused."""

from pathlib import Path

import pytest
import torch

from medray.engine import checkpoint as cp
from medray.engine.weights import load_weights, read_weights
from medray.errors import ConfigError, DataError


def _network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 2)
    )


def _save(out: Path, epoch: int) -> None:
    state = {"epoch": epoch, "best": {}}
    cp.save_checkpoint(str(out), cp.name_of(epoch), {cp.WEIGHTS: _network().state_dict()}, state)


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    _save(tmp_path, 3)
    found = cp.newest_checkpoint(str(tmp_path))
    assert found is not None
    assert found.epoch == 3
    for name, value in _network().state_dict().items():
        assert torch.equal(found.tensors(cp.WEIGHTS)[name], value)


@pytest.mark.parametrize("damage", ["no marker", "cut", "flipped", "file gone", "marker garbage"])
def test_an_incomplete_checkpoint_is_never_taken(tmp_path: Path, damage: str) -> None:
    for epoch in (1, 2):
        _save(tmp_path, epoch)
    folder = tmp_path / "checkpoints" / cp.name_of(2)
    weights = folder / cp.WEIGHTS
    data = weights.read_bytes()
    if damage == "no marker":
        (folder / "COMPLETE.json").unlink()
    elif damage == "cut":
        weights.write_bytes(data[:-1])
    elif damage == "flipped":
        weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "file gone":
        weights.unlink()
    else:
        (folder / "COMPLETE.json").write_text("{")
    found = cp.newest_checkpoint(str(tmp_path))
    assert found is not None
    assert found.epoch == 1


def test_only_the_wanted_checkpoints_stay(tmp_path: Path) -> None:
    for epoch in (1, 2, 3, 4):
        _save(tmp_path, epoch)
    cp.drop_checkpoints(str(tmp_path), keep={cp.name_of(2), cp.name_of(4)})
    assert cp.checkpoint_names(str(tmp_path)) == {cp.name_of(2), cp.name_of(4)}


def test_saving_again_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        _save(tmp_path / name, 1)
    files = [sorted(p for p in (tmp_path / n).rglob("*") if p.is_file()) for n in ("a", "b")]
    assert [p.read_bytes() for p in files[0]] == [p.read_bytes() for p in files[1]]


@pytest.mark.parametrize("kind", ["adam", "adamw", "sgd"])
def test_an_optimiser_goes_on_as_if_nothing_had_happened(kind: str) -> None:
    makers = {
        "adam": lambda p: torch.optim.Adam(p, lr=1e-2, betas=(0.8, 0.9)),
        "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2),
        "sgd": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9),
    }

    def step(network: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        network(torch.ones(4, 4)).square().sum().backward()
        optimizer.step()

    network, other = _network(), _network()
    optimizer = makers[kind](network.parameters())
    for _ in range(3):
        step(network, optimizer)
    tensors, facts = cp.pack_optimizer(optimizer)
    tensors = {name: value.clone() for name, value in tensors.items()}
    other.load_state_dict(network.state_dict())
    restored = makers[kind](other.parameters())
    cp.unpack_optimizer(restored, tensors, facts)
    for _ in range(3):
        step(network, optimizer)
        step(other, restored)
    for left, right in zip(network.parameters(), other.parameters(), strict=True):
        assert torch.equal(left, right)


def test_pickled_weights_are_refused_unread(tmp_path: Path) -> None:
    where = tmp_path / "weights.pt"
    torch.save({"a": torch.zeros(1)}, where)
    with pytest.raises(DataError, match="weights_refused: only .safetensors and model packages"):
        read_weights(str(where))
    renamed = tmp_path / "weights.safetensors"
    renamed.write_bytes(where.read_bytes())
    with pytest.raises(DataError, match="weights_refused: the file is no safetensors file"):
        read_weights(str(renamed))


def test_weights_of_another_network_are_named(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    where = tmp_path / "other.safetensors"
    save_file({"0.weight": torch.zeros(3, 5), "extra": torch.zeros(1)}, where)
    with pytest.raises(
        ConfigError, match=r"missing 0.bias.*left over extra; another shape 0.weight"
    ):
        load_weights(_network(), str(where))


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="model_missing"):
        read_weights(str(tmp_path))
