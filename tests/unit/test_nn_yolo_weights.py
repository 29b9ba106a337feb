"""Files as the publisher writes them are read without importing what they name."""

import builtins
import io
import os
import pickle
import sys
import types
import zipfile

import pytest
import torch
from torch import nn

from medray.errors import DataError
from medray.nn.torch_archive import Stub, read_torch_archive
from medray.nn.yolo import Yolo, YoloConfig
from medray.nn.yolo_weights import published_state, transfer

SMALL = YoloConfig(num_classes=80, width=0.125, depth=0.1)


def saved(value: object) -> bytes:
    out = io.BytesIO()
    torch.save(value, out)
    return out.getvalue()


def state_of(config: YoloConfig = SMALL, seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return Yolo(config).state_dict()


def foreign_module(name: str, class_name: str) -> type[nn.Module]:
    """Return a module class of a package that does not exist while the file is read."""
    package = types.ModuleType(name)
    made = type(class_name, (nn.Module,), {"__module__": name})
    setattr(package, class_name, made)
    sys.modules[name] = package
    return made


def official_file(state: dict[str, torch.Tensor], **beside: object) -> bytes:
    """Return a pickled fp16 module object, of classes that are gone afterwards."""
    sys.modules["models"] = types.ModuleType("models")
    kind = foreign_module("models.yolo", "DetectionModel")
    root = kind()
    for name, value in state.items():
        *path, last = name.split(".")
        at = root
        for part in path:
            if part not in at._modules:
                at._modules[part] = kind()
            at = at._modules[part]
        at.register_buffer(last, value.half() if value.is_floating_point() else value)
    try:
        return saved({"epoch": -1, "best_fitness": None, "model": root, "ema": None, **beside})
    finally:
        for name in ("models", "models.yolo"):
            del sys.modules[name]


def test_a_pickled_module_becomes_a_plain_state() -> None:
    state = state_of()
    found = published_state(official_file(state, date="2022-11-22"))
    assert sorted(found) == sorted(state)
    for name, value in state.items():
        assert found[name].dtype in {torch.float32, torch.int64}
        assert torch.equal(found[name], value.half().float() if found[name].ndim else value)
    assert "models" not in sys.modules
    Yolo(SMALL).load_state_dict(found, strict=True)


def test_the_average_comes_before_the_last_weights() -> None:
    sys.modules.pop("models", None)
    first = saved({"model": state_of(seed=1), "ema": state_of(seed=2)})
    assert torch.equal(
        published_state(first)["model.0.conv.weight"], state_of(seed=2)["model.0.conv.weight"]
    )


def test_prefixes_of_wrappers_are_stripped() -> None:
    state = state_of()
    wrapped = {f"module.model.{name}": value for name, value in state.items()}
    assert set(published_state(saved(wrapped))) == set(state)


def test_a_head_of_other_classes_stays_fresh() -> None:
    network = Yolo(YoloConfig(num_classes=1, width=0.125, depth=0.1))
    fresh = network.state_dict()["model.24.m.0.weight"].clone()
    moved = transfer(network, state_of())
    assert len(moved.fresh) == 6
    assert all(name.startswith("model.24.m.") for name in moved.fresh)
    assert torch.equal(network.state_dict()["model.24.m.0.weight"], fresh)
    assert torch.equal(network.state_dict()["model.9.cv1.conv.weight"],
                       state_of()["model.9.cv1.conv.weight"])  # fmt: skip


def test_of_the_published_s_343_of_349_move_to_one_class() -> None:
    state = state_of(YoloConfig(num_classes=80))
    moved = transfer(Yolo(YoloConfig(num_classes=1)), state)
    assert (len(moved.taken), len(moved.fresh)) == (343, 6)


def test_a_grey_network_answers_as_to_three_equal_colours() -> None:
    state = state_of()
    colour = Yolo(SMALL).eval()
    transfer(colour, state)
    grey = Yolo(YoloConfig(num_classes=80, width=0.125, depth=0.1, in_channels=1)).eval()
    assert not transfer(grey, state).fresh
    image = torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        assert torch.allclose(
            grey(image)["p4"], colour(image.expand(-1, 3, -1, -1))["p4"], atol=1e-5
        )


def test_another_size_is_refused() -> None:
    with pytest.raises(DataError, match="weights_refused.*another size of the network"):
        transfer(Yolo(YoloConfig(width=0.25, depth=0.1)), state_of())


def test_versions_before_six_are_refused() -> None:
    old = {"model.0.conv.conv.weight": torch.zeros(8, 12, 3, 3)}
    with pytest.raises(DataError, match="weights_refused.*before 6.0"):
        published_state(saved(old))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"fc.weight": torch.zeros(2)}, "no network with the names"),
        ({"model": 3}, "neither a state dict nor a network"),
        ({"model.0.conv.weight": "text"}, "tensors alone"),
    ],
)
def test_files_without_such_a_network_are_refused(value: object, words: str) -> None:
    with pytest.raises(DataError, match=f"weights_refused.*{words}"):
        published_state(saved(value))


class Attack:
    """Runs a command when it is unpickled."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.how = (function, arguments)

    def __reduce__(self) -> tuple:
        return self.how


@pytest.mark.parametrize(
    "attack",
    [Attack(os.system, "touch /tmp/medray-owned"), Attack(builtins.eval, "1/0"),
     Attack(builtins.getattr, "a", "b"), Attack(__import__, "antigravity")],
)  # fmt: skip
def test_what_no_weights_need_is_refused_by_name(attack: Attack) -> None:
    with pytest.raises(DataError, match="weights_refused.*which no weights need"):
        published_state(saved({"model": attack}))


def test_a_foreign_call_is_never_made() -> None:
    """torch.hub is in a package that files may name: it stands there as a name alone."""
    found = read_torch_archive(saved({"model": Attack(torch.hub.load, "someone/repository", "x")}))
    assert found == {"model": Stub("torch.hub.load", ("someone/repository", "x"))}


def test_tensors_keep_shape_stride_and_sharing() -> None:
    base = torch.arange(24.0).view(4, 6)
    found = read_torch_archive(saved([base.t(), base[1:3, ::2], torch.tensor(3), torch.empty(0)]))
    assert torch.equal(found[0], base.t())
    assert torch.equal(found[1], base[1:3, ::2])
    assert found[2].item() == 3
    assert found[3].shape == (0,)


def _with_member(content: bytes, change: dict[str, bytes], compression: int = 0) -> bytes:
    out = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(content)) as source,
        zipfile.ZipFile(out, "w", compression) as target,
    ):
        for name in source.namelist():
            base = name.partition("/")[2]
            target.writestr(name, change.get(base, source.read(name)))
    return out.getvalue()


def test_damaged_files_are_refused() -> None:
    content = saved({"a": torch.arange(8.0)})
    cases = {
        "no torch archive": content[:100],
        "another length": _with_member(content, {"data/0": b"1234"}),
        "compressed": _with_member(content, {}, zipfile.ZIP_DEFLATED),
        "cannot be read": _with_member(content, {"data.pkl": b"\x80\x02]q\x00h"}),
        "has the instruction": _with_member(content, {"data.pkl": b"\x80\x02\x82\x01."}),
        "has no end": _with_member(content, {"data.pkl": b""}),
        "no data.pkl": zip_of({"other": b""}),
    }
    for words, damaged in cases.items():
        with pytest.raises(DataError, match="weights_refused") as caught:
            read_torch_archive(damaged)
        if words != "has no end":
            assert words in str(caught.value)


def zip_of(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as target:
        for name, value in members.items():
            target.writestr(name, value)
    return out.getvalue()


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (((5,), (1,), 0), "beyond its storage"),
        (((2,), (1,), 3), "beyond its storage"),
        (((1000, 1000), (0, 0), 0), "more values"),
        (((2,), (-1,), 1), "negative"),
    ],
)
def test_a_tensor_may_not_reach_beyond_its_storage(how: tuple, words: str) -> None:
    content = saved(torch.zeros(4))
    pickled = _pickle_with_storage(*how)
    with pytest.raises(DataError, match=f"weights_refused.*{words}"):
        read_torch_archive(_with_member(content, {"data.pkl": pickled}))


def _pickle_with_storage(size: tuple[int, ...], stride: tuple[int, ...], offset: int) -> bytes:
    """Return a pickle of one tensor over storage 0 of four floats."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: object) -> object:
            return ("storage", torch.FloatStorage, "0", "cpu", 4) if obj == "STORAGE" else None

    class Tensorlike:
        def __reduce__(self) -> tuple:
            return (torch._utils._rebuild_tensor_v2, ("STORAGE", offset, size, stride, False, {}))

    out = io.BytesIO()
    Pickler(out, protocol=2).dump(Tensorlike())
    return out.getvalue()
