"""Examples on their way to the workers: read by Ray Data, kept in memory or streamed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import ray.data
import ray.train
from ray.data import ExecutionOptions

from medray.engine.checkpoint import newest_checkpoint
from medray.engine.example_table import ExampleTable, reader
from medray.engine.examples import batch_arrays, decode_example
from medray.engine.order import Order, StreamPlan
from medray.learning import stack_examples

if TYPE_CHECKING:
    import torch

    from medray.learning import Batch

Arrays = dict[str, np.ndarray]
# Read tasks wait for storage most of the time.
_READ_CPUS = 0.25
_BLOCK_BYTES = 32 << 20
_MAX_STEPS_PER_BLOCK = 16
_BLOCKS_PER_WORKER = 8


def _dataset(
    table: ExampleTable,
    place: Callable[[int], tuple[int, int, int]],
    *,
    num_blocks: int,
    rows_per_block: int,
) -> ray.data.Dataset:
    context = ray.data.DataContext.get_current().copy()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    with ray.data.DataContext.current(context):
        rows = ray.data.range(num_blocks * rows_per_block, override_num_blocks=num_blocks)
        return rows.map_batches(
            reader(table, place), batch_size=None, batch_format="pyarrow", num_cpus=_READ_CPUS
        )


def whole_split(
    table: ExampleTable, *, example_bytes: int, num_workers: int = 1
) -> ray.data.Dataset:
    """Return every example once; what an equal split needs beyond has position -1.

    Blocks are of one size, so that an equal split gives each worker whole blocks.
    """
    largest = max(1, _BLOCK_BYTES // max(1, example_bytes))
    rows_per_block = min(largest, -(-len(table) // (num_workers * _BLOCKS_PER_WORKER)))
    share = -(-len(table) // (num_workers * rows_per_block))

    def place(row: int) -> tuple[int, int, int]:
        return 0, row if row < len(table) else -1, row % len(table)

    return _dataset(table, place, num_blocks=share * num_workers, rows_per_block=rows_per_block)


def stream_factory(
    table: ExampleTable, order: Order, *, num_epochs: int, example_bytes: int, out: str
) -> Callable[[], ray.data.Dataset]:
    """Return what Ray Train calls at each start of its workers: the rest of the stream."""
    steps = _BLOCK_BYTES // max(1, example_bytes * order.batch_size)
    steps_per_block = int(min(_MAX_STEPS_PER_BLOCK, order.steps_per_epoch, max(1, steps)))

    def make() -> ray.data.Dataset:
        last = newest_checkpoint(out)
        plan = StreamPlan(
            order=order,
            first_epoch=last.epoch if last else 0,
            num_epochs=num_epochs,
            steps_per_block=steps_per_block,
        )

        def place(row: int) -> tuple[int, int, int]:
            epoch, position = plan.place(row)
            return epoch, position, int(order.examples(epoch, np.array([position]))[0])

        return _dataset(
            table, place, num_blocks=max(1, plan.num_blocks), rows_per_block=plan.rows_per_block
        )

    return make


def data_config(split: Sequence[str]) -> ray.train.DataConfig:
    """Return how Ray Train deals out the datasets: in order, so that every run is the same."""
    return ray.train.DataConfig(
        datasets_to_split=list(split), execution_options=ExecutionOptions(preserve_order=True)
    )


@dataclass(frozen=True, slots=True)
class Loaded:
    """One example in a worker's memory."""

    epoch: int
    position: int
    index: int
    arrays: Arrays


def _rows_of(dataset: Any) -> Iterator[Loaded]:
    for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1):
        table: pa.Table = batch
        for number in range(table.num_rows):
            arrays = _arrays(table["data"][number].as_buffer())
            donor = table["donor"][number].as_buffer()
            if donor.size:
                labels = _arrays(donor)
                arrays = {n: a if n == "image" else labels[n] for n, a in arrays.items()}
            yield Loaded(
                table["epoch"][number].as_py(),
                table["position"][number].as_py(),
                table["index"][number].as_py(),
                arrays,
            )


def _arrays(buffer: Any) -> Arrays:
    arrays, _ = decode_example(buffer.to_pybytes())
    return batch_arrays(arrays)


@dataclass(slots=True, kw_only=True)
class RankFeed:
    """What one worker trains on and validates with.

    Attributes:
        order: of the training split.
        tables: `train` and `val`.
        rank: of this worker.
        cache: `host`, `device` or `none`.
        device: where batches go.
        collate: of the recipe.
    """

    order: Order
    tables: Mapping[str, ExampleTable]
    rank: int
    cache: str
    device: "torch.device"
    collate: Callable[[Sequence[Arrays]], Arrays]
    _held: list[Arrays] = field(default_factory=list)
    _on_device: "Batch" = field(default_factory=dict)
    _held_val: list[Loaded] = field(default_factory=list)
    _stream: Iterator[Loaded] | None = None

    def train_batches(self, epoch: int) -> "Iterator[tuple[Batch, list[int]]]":
        """Yield (batch on the device, one seed per example) for each step of an epoch."""
        if self.cache != "none" and not self._held and not self._on_device:
            self._hold()
        for step in range(self.order.steps_per_epoch):
            positions = self.order.positions(step, self.rank)
            seeds = self.order.seeds(epoch, positions)
            if self.cache == "none":
                yield self._streamed(epoch, positions), seeds
            else:
                yield self._from_memory(self.order.examples(epoch, positions)), seeds

    def val_batches(self) -> "Iterator[tuple[Batch, list[int]]]":
        """Yield (batch on the device, indices) of this worker's share; all shares are the split."""
        group: list[Loaded] = []
        for row in self._val_rows():
            group.append(row)
            if len(group) == self.order.batch_size:
                yield self._val_batch(group)
                group = []
        if group:
            yield self._val_batch(group)

    def _val_rows(self) -> Iterator[Loaded]:
        """Yield this worker's share, from memory after the first time."""
        if self._held_val:
            yield from self._held_val
            return
        seen = []
        for row in _rows_of(ray.train.get_dataset_shard("val")):
            if row.position < 0:
                continue  # what made the share equal
            if self.cache != "none":
                seen.append(row)
            yield row
        self._held_val = seen

    def _val_batch(self, group: list[Loaded]) -> "tuple[Batch, list[int]]":
        labels = [self.tables["val"].labels[row.index] for row in group]
        return self._batch([row.arrays for row in group], labels), [row.index for row in group]

    def _hold(self) -> None:
        """Read the whole training split once, in parallel over the cluster's CPUs."""
        import torch

        rows = [row for row in _rows_of(ray.train.get_dataset_shard("train")) if row.position >= 0]
        rows.sort(key=lambda row: row.index)
        arrays = [row.arrays for row in rows]
        if self.cache == "device" and self.collate is stack_examples:
            stacked = stack_examples(arrays)
            self._on_device = {n: torch.from_numpy(a).to(self.device) for n, a in stacked.items()}
        else:
            self._held = arrays

    def _from_memory(self, indices: np.ndarray) -> "Batch":
        import torch

        labels = self._labels(indices)
        if not self._on_device:
            return self._batch([self._held[index] for index in indices], labels)
        chosen = torch.from_numpy(indices).to(self.device)
        batch = {name: whole[chosen] for name, whole in self._on_device.items()}
        batch["label"] = torch.tensor(labels, device=self.device)
        return batch

    def _streamed(self, epoch: int, positions: np.ndarray) -> "Batch":
        if self._stream is None:
            self._stream = _rows_of(ray.train.get_dataset_shard("train"))
        rows = [next(self._stream) for _ in positions]
        found = [(row.epoch, row.position) for row in rows]
        if found != [(epoch, int(position)) for position in positions]:
            raise RuntimeError(f"Ray Data dealt {found[:2]}, not epoch {epoch} {positions[:2]}")
        indices = np.array([row.index for row in rows])
        return self._batch([row.arrays for row in rows], self._labels(indices))

    def _labels(self, indices: np.ndarray) -> list[int]:
        table = self.tables["train"]
        sources = [table.donors[i] for i in indices] if table.donors else indices
        return [table.labels[index] for index in sources]

    def _batch(self, arrays: Sequence[Arrays], labels: Sequence[int]) -> "Batch":
        import torch

        batch = {name: torch.from_numpy(array) for name, array in self.collate(arrays).items()}
        batch["label"] = torch.tensor(labels)
        if self.device.type == "cuda":
            batch = {name: value.pin_memory() for name, value in batch.items()}
        return {name: value.to(self.device, non_blocking=True) for name, value in batch.items()}
