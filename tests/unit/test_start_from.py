"""Where a training may start: our own weights strictly, other libraries' with a report."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from medray.engine.weights import start_from
from medray.errors import ConfigError, DataError
from medray.tasks import get_recipe


def _network(task: str, **changes: Any) -> tuple[Any, torch.nn.Module]:
    recipe = get_recipe(task)
    torch.manual_seed(0)
    return recipe, recipe.model(dataclasses.replace(recipe.tiny_hparams, **changes))


def test_our_own_file_is_taken_whole(tmp_path: Path) -> None:
    recipe, network = _network("breast_classification", height=32, width=32)
    given = {name: value + 1 for name, value in network.state_dict().items()}
    save_file(given, tmp_path / "own.safetensors")
    assert start_from(recipe, network, str(tmp_path / "own.safetensors")) == ""
    assert all(torch.equal(value, given[name]) for name, value in network.state_dict().items())


def test_a_file_of_another_library_says_what_it_left_out(tmp_path: Path) -> None:
    recipe, network = _network("breast_classification", height=32, width=32)
    stem = network.state_dict()["layer0.conv1.weight"]
    torch.save(
        {"conv1.weight": torch.ones(len(stem), 3, *stem.shape[2:]), "fc.bias": torch.zeros(1000)},
        tmp_path / "timm.pth",
    )
    said = start_from(recipe, network, str(tmp_path / "timm.pth"))
    assert said.startswith("1 entries loaded")
    assert "1 left out: fc.bias" in said
    # One grey channel answers as grey in three colours does.
    assert torch.equal(network.state_dict()["layer0.conv1.weight"], torch.full_like(stem, 3))


def test_what_is_pickled_or_fits_nowhere_is_refused(tmp_path: Path) -> None:
    recipe, network = _network("breast_classification", height=32, width=32)
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    with pytest.raises(DataError, match="weights_refused"):
        start_from(recipe, network, str(tmp_path / "module.pt"))
    save_file({"a": torch.ones(2)}, tmp_path / "alien.safetensors")
    with pytest.raises(DataError, match="weights_refused"):
        start_from(recipe, network, str(tmp_path / "alien.safetensors"))
    recipe, network = _network("lung_classification", size=16)
    with pytest.raises(DataError, match="nothing pickled is"):
        start_from(recipe, network, str(tmp_path / "module.pt"))
    with pytest.raises(ConfigError, match="weights of another network"):
        start_from(recipe, network, str(tmp_path / "alien.safetensors"))


@pytest.mark.parametrize(
    "task", ["lung_detection", "breast_roi", "breast_classification", "pneumonia_detection"]
)
def test_every_task_that_promises_it_reads_files_of_other_libraries(
    task: str, tmp_path: Path
) -> None:
    recipe, network = _network(task)
    torch.save({"no.entry.of.any": torch.ones(2)}, tmp_path / "other.pt")
    with pytest.raises(DataError, match="weights_refused") as refused:
        start_from(recipe, network, str(tmp_path / "other.pt"))
    assert "nothing pickled is" not in str(refused.value)
    with pytest.raises(DataError, match="source_unavailable"):
        start_from(recipe, network, str(tmp_path / "absent.pt"))
