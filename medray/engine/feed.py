"""Examples on their way to the workers: read by Ray Data, kept in memory or streamed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import ray.data
import ray.train
from ray.data import ExecutionOptions

from medray import storage
from medray.engine.checkpoint import newest_checkpoint
from medray.engine.examples import decode_example
from medray.engine.order import Order, StreamPlan
from medray.errors import DataError
from medray.learning import stack_examples

if TYPE_CHECKING:
    import torch

    from medray.learning import Batch

Arrays = dict[str, np.ndarray]
# Read tasks wait for storage most of the time.
_READ_CPUS = 0.25
_BLOCK_BYTES = 32 << 20
_MAX_STEPS_PER_BLOCK = 16
# For evaluation on the original grid only; never part of a batch.
_NOT_FOR_BATCHES = "native_"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleTable:
    """What reading the examples of one split takes.

    Attributes:
        uris, sha256s, labels, keys, patient_ids: by index.
        donors: index whose label and mask an example gets; () leaves each its own.
    """

    uris: tuple[str, ...]
    sha256s: tuple[str, ...]
    labels: tuple[int, ...]
    keys: tuple[str, ...]
    patient_ids: tuple[str, ...]
    donors: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.uris)

    def read(self, index: int) -> bytes:
        """Return the bytes of an example file.

        Raises:
            DataError: checksum_mismatch, or why storage does not give it.
        """
        try:
            return storage.read_bytes(self.uris[index], sha256=self.sha256s[index])
        except DataError as error:
            detail = f"example {self.keys[index]}: {error.detail}"
            raise DataError(error.reason, detail) from error


def example_table(
    uri: str, rows: Sequence[Mapping[str, Any]], *, shuffle_seed: int = -1
) -> ExampleTable:
    """Return the table of a split's rows; with a seed >= 0 the labels are dealt out anew."""
    donors: tuple[int, ...] = ()
    if shuffle_seed >= 0:
        permuted = np.random.default_rng([shuffle_seed, 2]).permutation(len(rows))
        donors = tuple(int(index) for index in permuted)
    return ExampleTable(
        uris=tuple(storage.join(uri, str(row["uri"])) for row in rows),
        sha256s=tuple(str(row["sha256"]) for row in rows),
        labels=tuple(int(row["label"]) for row in rows),
        keys=tuple(str(row["key"]) for row in rows),
        patient_ids=tuple(str(row["patient_id"]) for row in rows),
        donors=donors,
    )


def _reader(
    table: ExampleTable, place: Callable[[int], tuple[int, int, int]]
) -> Callable[[pa.Table], pa.Table]:
    """Return what a Ray Data task does with row numbers: it reads the files they stand for."""

    def read_examples(rows: pa.Table) -> pa.Table:
        places = [place(row) for row in rows["id"].to_pylist()]
        donors = [table.donors[index] if table.donors else -1 for *_, index in places]
        return pa.table(
            {
                "epoch": pa.array([epoch for epoch, _, _ in places], pa.int64()),
                "position": pa.array([position for _, position, _ in places], pa.int64()),
                "index": pa.array([index for *_, index in places], pa.int64()),
                # 64-bit offsets: a block of volumes may pass 2 GiB
                "data": pa.array([table.read(index) for *_, index in places], pa.large_binary()),
                "donor": pa.array(
                    [table.read(index) if index >= 0 else b"" for index in donors],
                    pa.large_binary(),
                ),
            }
        )

    return read_examples


def _dataset(
    table: ExampleTable,
    place: Callable[[int], tuple[int, int, int]],
    *,
    num_blocks: int,
    rows_per_block: int,
) -> ray.data.Dataset:
    rows = ray.data.range(num_blocks * rows_per_block, override_num_blocks=num_blocks)
    return rows.map_batches(
        _reader(table, place), batch_size=None, batch_format="pyarrow", num_cpus=_READ_CPUS
    )


def whole_split(table: ExampleTable, *, multiple_of: int = 1) -> ray.data.Dataset:
    """Return every example once, a row each; padded for an equal split by rows with index -1."""
    num_rows = -(-len(table) // multiple_of) * multiple_of

    def place(row: int) -> tuple[int, int, int]:
        return 0, row if row < len(table) else -1, row % len(table)

    return _dataset(table, place, num_blocks=num_rows, rows_per_block=1)


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
    return {name: a for name, a in arrays.items() if not name.startswith(_NOT_FOR_BATCHES)}


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

        rows = sorted(_rows_of(ray.train.get_dataset_shard("train")), key=lambda row: row.index)
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
