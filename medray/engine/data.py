"""Mapping items over the cluster with Ray Data: admitted by memory, biggest first, nothing lost."""

import json
import resource
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import ray
import ray.data

from medray.engine.metrics import count_outcome
from medray.errors import DataError

# Requests for memory are rounded up to these, so that a few operators serve all sizes.
_MEMORY_CLASSES_BYTES = tuple(256 << (20 + power) for power in range(0, 10))
# Items that are predicted to take less than this together share one task: Ray's cost per task is
# about 5 ms, which must stay far below the work.
_TASK_BYTES = 24 << 20
_MAX_ITEMS_PER_TASK = 64
_BASE_BYTES_PER_ITEM = 1 << 18


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One unit of work.

    Attributes:
        key: names it in logs and results.
        payload: JSON-able description; never pixels.
        work_bytes: size that predicts its time.
        peak_bytes: predicted peak memory of its task.
    """

    key: str
    payload: dict[str, Any] = field(repr=False)
    work_bytes: int
    peak_bytes: int


Process = Callable[..., dict[str, Any]]


def map_items(
    items: Sequence[Item],
    process: Process,
    *,
    name: str,
    settings: dict[str, Any],
    num_cpus: float = 1,
) -> Iterator[dict[str, Any]]:
    """Run `process(payload, **settings)` for every item on the cluster; yield its results.

    `process` returns a JSON-able dict and raises `DataError` for a bad input, which comes back as
    `{"key", "reason", "detail"}`; order is that of completion.
    """
    run = _named(process, settings, name)
    classes = [(memory, put_blocks(group)) for memory, group in _by_memory(items).items()]
    yield from _execute(classes, run, num_cpus=num_cpus)


def stream_items(
    items: Iterable[Item], process: Process, *, name: str, settings: dict[str, Any], memory: int
) -> Iterator[dict[str, Any]]:
    """Do the same for any number of items of one size, never holding all of them in the driver."""
    yield from _execute([(memory, put_blocks(items))], _named(process, settings, name))


def put_blocks(items: Iterable[Item]) -> list[Any]:
    """Move descriptions of items into the object store, one block a task."""
    return [
        ray.put(
            pa.table(
                {"key": [i.key for i in chunk], "payload": [json.dumps(i.payload) for i in chunk]}
            )
        )
        for chunk in _chunks(items)
    ]


def _execute(
    classes: Sequence[tuple[int, list[Any]]],
    run: Callable[[pa.Table], pa.Table],
    *,
    num_cpus: float = 1,
) -> Iterator[dict[str, Any]]:
    """Run blocks of several memory classes as one streaming execution."""
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    with ray.data.DataContext.current(context):
        parts = [
            ray.data.from_arrow_refs(list(blocks)).map_batches(
                run, batch_size=None, batch_format="pyarrow", num_cpus=num_cpus, memory=memory
            )
            for memory, blocks in classes
            if blocks
        ]
        if not parts:
            return
        dataset = parts[0].union(*parts[1:]) if len(parts) > 1 else parts[0]
        dataset.set_name(run.__name__)
        for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            table: Any = batch
            for text in table.column("result").to_pylist():
                yield json.loads(text)


def _by_memory(items: Sequence[Item]) -> dict[int, list[Item]]:
    """Group items by the memory that their task asks for, biggest class and item first."""
    groups: dict[int, list[Item]] = {}
    for item in sorted(items, key=lambda it: (-it.work_bytes, it.key)):
        wanted = next((c for c in _MEMORY_CLASSES_BYTES if c >= item.peak_bytes), item.peak_bytes)
        groups.setdefault(wanted, []).append(item)
    return dict(sorted(groups.items(), reverse=True))


def _named(process: Process, settings: dict[str, Any], name: str) -> Callable[[pa.Table], pa.Table]:
    """Return the function that a task runs, under the name that the Ray dashboard shows."""

    def run(table: pa.Table) -> pa.Table:
        payloads = zip(table["key"].to_pylist(), table["payload"].to_pylist(), strict=True)
        results = [
            run_guarded(process, key, json.loads(text), settings, name) for key, text in payloads
        ]
        return pa.table({"result": [json.dumps(result) for result in results]})

    run.__name__ = name
    run.__qualname__ = name
    return run


def run_guarded(
    process: Process, key: str, payload: dict[str, Any], settings: dict[str, Any], name: str
) -> dict[str, Any]:
    """Run one item; a bad input becomes a result, with what it cost."""
    began = time.perf_counter()
    try:
        result = process(payload, **settings)
    except DataError as error:
        result = {"reason": error.reason, "detail": error.detail}
    except MemoryError:
        result = {"reason": "decode_memory", "detail": "the worker ran out of memory"}
    result.setdefault("reason", "")
    result["key"] = key
    result["cost"] = {
        "seconds": time.perf_counter() - began,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        **result.get("cost", {}),
    }
    count_outcome(name, result["reason"], int(result["cost"].get("bytes", 0)))
    return result


def _chunks(items: Iterable[Item]) -> Iterator[list[Item]]:
    chunk: list[Item] = []
    size = 0
    for item in items:
        cost = item.work_bytes + _BASE_BYTES_PER_ITEM
        if chunk and (size + cost > _TASK_BYTES or len(chunk) >= _MAX_ITEMS_PER_TASK):
            yield chunk
            chunk, size = [], 0
        chunk.append(item)
        size += cost
    if chunk:
        yield chunk
