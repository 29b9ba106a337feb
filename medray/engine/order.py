"""Which example goes where: the same global batches for any number of workers. No Ray."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from medray.errors import MedrayError


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A seeded order of the examples for every epoch, dealt out to steps and workers.

    An epoch is padded to whole global batches by going round to its first examples, so that every
    step of every worker is full and no example is left out. Worker r of W takes positions
    `step * W * B + r * B` on: W workers with batches of B see what one sees with W * B.

    Attributes:
        num_examples: of the split.
        batch_size: B, examples a worker takes at one step.
        num_workers: W.
        seed: of the orders and of the examples' own seeds.
        draw: the indices that an epoch visits where that is not each one once; `num_examples` of
            them in every epoch.
    """

    num_examples: int
    batch_size: int
    num_workers: int
    seed: int
    draw: Callable[[int], Sequence[int]] | None = None

    @property
    def global_batch(self) -> int:
        """Return the examples that all workers take at one step."""
        return self.batch_size * self.num_workers

    @property
    def steps_per_epoch(self) -> int:
        """Return the steps that every worker makes in an epoch."""
        return -(-self.num_examples // self.global_batch)

    def positions(self, step: int, rank: int) -> np.ndarray:
        """Return a worker's positions in the epoch's order at a step, (B,) int64."""
        first = (step * self.num_workers + rank) * self.batch_size
        return np.arange(first, first + self.batch_size)

    def examples(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """Return the examples' indices at positions of an epoch."""
        return np.asarray(_epoch_order(self, epoch)[positions % self.num_examples])

    def seeds(self, epoch: int, positions: np.ndarray) -> list[int]:
        """Return one seed per position; an example that comes twice differs the second time."""
        length = self.steps_per_epoch * self.global_batch
        state = np.random.SeedSequence([self.seed, epoch, 1]).generate_state(length)
        return [int(seed) for seed in state[positions]]


@lru_cache(maxsize=4)
def _epoch_order(order: Order, epoch: int) -> np.ndarray:
    """Return the indices in the order of an epoch; asked for row by row where they stream."""
    shuffled = np.random.default_rng([order.seed, epoch]).permutation(order.num_examples)
    if order.draw is None:
        return shuffled
    drawn = np.asarray(order.draw(epoch), dtype=np.int64)
    if drawn.shape != shuffled.shape:
        raise MedrayError(
            f"the task's sampler gave {len(drawn)} cases in epoch {epoch}, before "
            f"{order.num_examples}; every epoch must have as many"
        )
    return np.asarray(drawn[shuffled])


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamPlan:
    """The rows of one stream over all epochs that are left, in blocks that each go to one worker.

    Ray's equal split of an ordered stream deals whole blocks of one size round robin. Block b is
    therefore made for worker b mod W and holds `steps_per_block` of its batches.
    """

    order: Order
    first_epoch: int
    num_epochs: int
    steps_per_block: int

    @property
    def rows_per_block(self) -> int:
        """Return the examples in a block."""
        return self.steps_per_block * self.order.batch_size

    @property
    def num_blocks(self) -> int:
        """Return the number of blocks, the last steps padded to a whole block."""
        steps = (self.num_epochs - self.first_epoch) * self.order.steps_per_epoch
        return -(-steps // self.steps_per_block) * self.order.num_workers

    def place(self, row: int) -> tuple[int, int]:
        """Return (epoch, position in the epoch's order) of a row of the stream."""
        block, inside = divmod(row, self.rows_per_block)
        chunk, rank = divmod(block, self.order.num_workers)
        in_block, slot = divmod(inside, self.order.batch_size)
        step = chunk * self.steps_per_block + in_block
        epoch, step = divmod(step, self.order.steps_per_epoch)
        position = (step * self.order.num_workers + rank) * self.order.batch_size + slot
        return self.first_epoch + epoch, position
