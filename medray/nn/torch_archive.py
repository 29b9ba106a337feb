"""Tensors out of a torch `.pt` file whose pickled classes are never imported, let alone executed.

A `.pt` file is a zip of one pickle and the storages of its tensors. Pickle is a small program; this
reader interprets the few instructions that such files hold. A class that the file names becomes an
inert `Stub`; nothing that a file says is looked up, called or evaluated.
"""

import io
import math
import pickletools
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from medray.errors import DataError

# Whose classes such a file may name; what they stand for is not needed to read its tensors.
_PACKAGES = frozenset(
    {"torch", "models", "utils", "numpy", "collections", "pathlib", "argparse", "_codecs"}
)
_BUILTINS = frozenset({"set", "frozenset", "slice", "range", "complex", "bytearray"})
# What a damaged pickle leads to; it is interpreted, so nothing else can come of it.
_DAMAGED = (
    ValueError, TypeError, KeyError, IndexError, AttributeError, ArithmeticError, RuntimeError,
    EOFError,
)  # fmt: skip
_MOST_BYTES = 4 << 30
_MOST_INSTRUCTIONS = 5_000_000

_DTYPES: dict[str, torch.dtype] = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


@dataclass(slots=True)
class Stub:
    """What stands for an object of a foreign class.

    Attributes:
        name: module and class, as the file says.
        arguments: what it would have been made from.
        state: what it would have been filled with.
    """

    name: str
    arguments: tuple[Any, ...] = ()
    state: Any = None


@dataclass(frozen=True, slots=True)
class _Name:
    """A class or function that the file names."""

    path: str


class _Mark:
    """The place on the stack where a group begins."""


@dataclass(slots=True)
class _Machine:
    """The stack, the memory and the storages while a pickle is read."""

    storage_of: Callable[[Any], Tensor]
    stack: list[Any] = field(default_factory=list)
    memory: dict[int, Any] = field(default_factory=dict)

    def group(self) -> list[Any]:
        """Take everything above the last mark."""
        items: list[Any] = []
        while not isinstance(self.stack[-1], _Mark):
            items.append(self.stack.pop())
        self.stack.pop()
        return items[::-1]


def read_torch_archive(content: bytes) -> Any:
    """Return what a `.pt` file holds: tensors, plain containers and values, and stubs.

    Raises:
        DataError: weights_refused, for a file that is no such archive, that is damaged, or that
            names something no weight file needs.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = _members(archive)
            root = _root(members)
            program = archive.read(members[f"{root}data.pkl"])

            def bytes_of(key: str) -> bytes:
                return archive.read(members[f"{root}data/{key}"])

            return _run(program, _Storages(bytes_of))
    except DataError:
        raise
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise _refused("it is no torch archive (a zip file)") from error
    except _DAMAGED as error:
        raise _refused(f"its content cannot be read ({type(error).__name__})") from error


def _refused(why: str) -> DataError:
    return DataError("weights_refused", f"the weight file is refused: {why}")


def _members(archive: zipfile.ZipFile) -> Mapping[str, zipfile.ZipInfo]:
    """Return the members by name; torch stores them as they are, so that none can explode."""
    members = archive.infolist()
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise _refused("its members are compressed, which torch never does")
    if sum(member.file_size for member in members) > _MOST_BYTES:
        raise _refused(f"it holds more than {_MOST_BYTES >> 30} GiB")
    return {member.filename: member for member in members}


def _root(members: Mapping[str, zipfile.ZipInfo]) -> str:
    found = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(found) != 1:
        raise _refused("it has no data.pkl (files of torch before 1.6 must be saved anew)")
    return found[0].removesuffix("data.pkl")


class _Storages:
    """Storages of the archive by their key, read once each."""

    def __init__(self, bytes_of: Callable[[str], bytes]) -> None:
        self.bytes_of = bytes_of
        self.known: dict[tuple[str, torch.dtype], Tensor] = {}

    def __call__(self, identity: Any) -> Tensor:
        kind, name, key, _, number = identity
        if kind != "storage" or not isinstance(name, _Name):
            raise _refused("it refers to something that is no tensor's storage")
        dtype = _DTYPES.get(name.path.rpartition(".")[2])
        if dtype is None or not name.path.startswith("torch."):
            raise _refused(f"its tensors are of an unknown type {name.path}")
        place = (str(key), dtype)
        if place not in self.known:
            self.known[place] = _storage(bytearray(self.bytes_of(place[0])), int(number), dtype)
        return self.known[place]


def _storage(content: bytearray, number: int, dtype: torch.dtype) -> Tensor:
    if len(content) != number * dtype.itemsize:
        raise _refused("a tensor's storage has another length than it says")
    return torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)


def _run(program: bytes, storages: _Storages) -> Any:
    """Interpret the pickle."""
    machine = _Machine(storages)
    for count, (instruction, argument, _) in enumerate(pickletools.genops(program)):
        if count > _MOST_INSTRUCTIONS:
            raise _refused("its pickle is longer than that of any network")
        if instruction.name == "STOP":
            return machine.stack.pop()
        step = _STEPS.get(instruction.name)
        if step is None:
            raise _refused(f"its pickle has the instruction {instruction.name}")
        step(machine, argument)
    raise _refused("its pickle has no end")


def _push(machine: _Machine, value: Any) -> None:
    machine.stack.append(value)


def _name(machine: _Machine, argument: str) -> None:
    module, _, name = argument.partition(" ")
    _named(machine, module, name)


def _stack_name(machine: _Machine, _: Any) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    _named(machine, str(module), str(name))


def _named(machine: _Machine, module: str, name: str) -> None:
    allowed = module.partition(".")[0] in _PACKAGES
    if module in {"builtins", "__builtin__"}:
        allowed = name in _BUILTINS
    if not allowed:
        raise _refused(f"it names {module}.{name}, which no weights need")
    machine.stack.append(_Name(f"{module}.{name}"))


def _call(machine: _Machine, _: Any) -> None:
    """Build the few things that are data; anything else becomes a stub."""
    arguments, name = machine.stack.pop(), machine.stack.pop()
    path = name.path if isinstance(name, _Name) else ""
    if path == "torch._utils._rebuild_tensor_v2":
        machine.stack.append(_tensor(*arguments[:4]))
    elif path == "torch._utils._rebuild_parameter":
        machine.stack.append(arguments[0])
    elif path in {"collections.OrderedDict", "collections.defaultdict"}:
        machine.stack.append(dict(arguments[0]) if _is_pairs(arguments) else {})
    elif path == "torch.Size":
        machine.stack.append(tuple(arguments[0]))
    else:
        machine.stack.append(Stub(path, tuple(arguments)))


def _is_pairs(arguments: tuple[Any, ...]) -> bool:
    return bool(arguments) and isinstance(arguments[0], list | dict)


def _tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """Return a copy of a part of a storage.

    Raises:
        DataError: the part reaches beyond the storage.
    """
    if len(size) != len(stride) or min((offset, *size, *stride), default=0) < 0:
        raise _refused("a tensor has a negative size or place")
    steps = zip(size, stride, strict=True)
    last = offset + sum((count - 1) * step for count, step in steps)
    if math.prod(size) and last >= storage.numel():
        raise _refused("a tensor reaches beyond its storage")
    if math.prod(size) > storage.numel():
        raise _refused("a tensor has more values than its storage")
    return torch.as_strided(storage, size, stride, offset).clone().contiguous()


def _build(machine: _Machine, _: Any) -> None:
    state = machine.stack.pop()
    if isinstance(machine.stack[-1], Stub):
        machine.stack[-1].state = state


def _set_items(machine: _Machine, _: Any) -> None:
    items = machine.group()
    _into(machine.stack[-1], list(zip(items[::2], items[1::2], strict=True)))


def _set_item(machine: _Machine, _: Any) -> None:
    value, key = machine.stack.pop(), machine.stack.pop()
    _into(machine.stack[-1], [(key, value)])


def _into(target: Any, pairs: list[tuple[Any, Any]]) -> None:
    if isinstance(target, dict):
        target.update((_plain_key(key), value) for key, value in pairs)


def _plain_key(key: Any) -> Any:
    return key if isinstance(key, str | int | float | bool | bytes | None) else repr(type(key))


def _append(machine: _Machine, _: Any) -> None:
    value = machine.stack.pop()
    if isinstance(machine.stack[-1], list):
        machine.stack[-1].append(value)


def _appends(machine: _Machine, _: Any) -> None:
    items = machine.group()
    if isinstance(machine.stack[-1], list):
        machine.stack[-1].extend(items)


def _put(machine: _Machine, place: int) -> None:
    machine.memory[int(place)] = machine.stack[-1]


def _tuple_of(number: int) -> Callable[[_Machine, Any], None]:
    def step(machine: _Machine, _: Any) -> None:
        items = tuple(machine.stack[len(machine.stack) - number :])
        del machine.stack[len(machine.stack) - number :]
        machine.stack.append(items)

    return step


def _value(make: Callable[[], Any]) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.stack.append(make())


_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda _machine, _argument: None),
    **dict.fromkeys(
        ("BININT", "BININT1", "BININT2", "LONG1", "INT", "LONG", "BINFLOAT", "BINUNICODE",
         "SHORT_BINUNICODE", "UNICODE", "BINSTRING", "SHORT_BINSTRING", "BINBYTES",
         "SHORT_BINBYTES"),
        _push,
    ),
    "NONE": _value(lambda: None),
    "NEWTRUE": _value(lambda: True),
    "NEWFALSE": _value(lambda: False),
    "EMPTY_DICT": _value(dict),
    "EMPTY_LIST": _value(list),
    "EMPTY_TUPLE": _value(tuple),
    "EMPTY_SET": _value(list),
    "MARK": _value(_Mark),
    "GLOBAL": _name,
    "STACK_GLOBAL": _stack_name,
    "BINPERSID": lambda machine, _: machine.stack.append(machine.storage_of(machine.stack.pop())),
    "REDUCE": _call,
    "NEWOBJ": _call,
    "BUILD": _build,
    "SETITEM": _set_item,
    "SETITEMS": _set_items,
    "APPEND": _append,
    "APPENDS": _appends,
    "ADDITEMS": _appends,
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.group())),
    "LIST": lambda machine, _: machine.stack.append(machine.group()),
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "BINPUT": _put,
    "LONG_BINPUT": _put,
    "MEMOIZE": lambda machine, _: _put(machine, len(machine.memory)),
    "BINGET": lambda machine, place: machine.stack.append(machine.memory[place]),
    "LONG_BINGET": lambda machine, place: machine.stack.append(machine.memory[place]),
    "POP": lambda machine, _: machine.stack.pop(),
}  # fmt: skip
