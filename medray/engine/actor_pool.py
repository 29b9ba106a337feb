"""Items through a pool of actors that each load their model once."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import ray
import ray.data

from medray.engine.data import Item, Process, put_blocks, run_guarded

# One case a block: the model is loaded already, and cases are slow.
_BLOCK_BYTES = 24 << 20
_MAX_CPU_ACTORS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """What an actor needs.

    Attributes:
        actor: class whose call takes a block of items and returns one JSON text each in `result`.
        settings: arguments of its constructor.
        use_gpu: one GPU an actor.
    """

    actor: type
    settings: Mapping[str, Any]
    use_gpu: bool = False


def map_with_actors(items: Sequence[Item], pool: Pool) -> Iterator[dict[str, Any]]:
    """Yield the result of every item, as they come; biggest items first."""
    if not items:
        return
    memory = max(item.peak_bytes for item in items)
    size = _pool_size(len(items), memory, use_gpu=pool.use_gpu)
    ordered = sorted(items, key=lambda item: (-item.work_bytes, item.key))
    blocks = put_blocks(replace(item, work_bytes=_BLOCK_BYTES) for item in ordered)
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    with ray.data.DataContext.current(context):
        dataset = ray.data.from_arrow_refs(blocks).map_batches(
            pool.actor,
            fn_constructor_kwargs=dict(pool.settings),
            compute=ray.data.ActorPoolStrategy(size=size),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=1,
            num_gpus=1 if pool.use_gpu else 0,
            memory=memory,
        )
        for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            table: Any = batch
            for text in table.column("result").to_pylist():
                yield json.loads(text)


def _pool_size(num_items: int, memory: int, *, use_gpu: bool) -> int:
    """Return how many actors the nodes can hold at once, at least one."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    resources = [node["Resources"] for node in nodes if node["Alive"]]
    fitting = sum(int(node.get("memory", 0) // max(memory, 1)) for node in resources)
    gpus = int(sum(node.get("GPU", 0) for node in resources))
    cpus = int(sum(node.get("CPU", 0) for node in resources))
    workers = gpus if use_gpu else min(_MAX_CPU_ACTORS, cpus - 1)
    return max(1, min(workers, fitting, num_items))


def answer_block(table: pa.Table, process: Process, stage: str) -> pa.Table:
    """Run an actor's method for every item of a block; each result is a JSON text."""
    pairs = zip(table["key"].to_pylist(), table["payload"].to_pylist(), strict=True)
    results = [run_guarded(process, key, json.loads(text), {}, stage) for key, text in pairs]
    return pa.table({"result": [json.dumps(result) for result in results]})
