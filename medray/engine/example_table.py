"""The examples of a split by index, and how a Ray Data task reads them; light to import."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from medray import storage
from medray.errors import DataError
from medray.learning import Case


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleTable:
    """What reading the examples of one split takes.

    Attributes:
        uris, sha256s, labels, keys, patient_ids, num_boxes: by index.
        donors: index whose label and mask an example gets; () leaves each its own.
    """

    uris: tuple[str, ...]
    sha256s: tuple[str, ...]
    labels: tuple[int, ...]
    keys: tuple[str, ...]
    patient_ids: tuple[str, ...]
    num_boxes: tuple[int, ...]
    donors: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.uris)

    def cases(self) -> list[Case]:
        """Return what a task's sampler sees of each example, labels dealt out anew included."""
        sources = self.donors or range(len(self))
        return [
            {
                "key": self.keys[index],
                "patient_id": self.patient_ids[index],
                "label": self.labels[source],
                "num_boxes": self.num_boxes[source],
            }
            for index, source in enumerate(sources)
        ]

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
        num_boxes=tuple(int(row["num_boxes"]) for row in rows),
        donors=donors,
    )


def reader(
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
