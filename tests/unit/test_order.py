"""Who trains on what: the same global batches for any number of workers."""

import numpy as np
import pytest

from medray.engine.order import Order, StreamPlan
from medray.errors import MedrayError


def _global_batches(num_workers: int, batch_size: int, epoch: int) -> list[set[int]]:
    order = Order(num_examples=11, batch_size=batch_size, num_workers=num_workers, seed=3)
    return [
        {
            int(index)
            for rank in range(num_workers)
            for index in order.examples(epoch, order.positions(step, rank))
        }
        for step in range(order.steps_per_epoch)
    ]


@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_two_workers_see_what_one_sees_with_twice_the_batch(epoch: int) -> None:
    assert _global_batches(2, 2, epoch) == _global_batches(1, 4, epoch)
    assert _global_batches(4, 1, epoch) == _global_batches(1, 4, epoch)


def test_no_example_is_left_out_and_every_step_is_full() -> None:
    order = Order(num_examples=11, batch_size=2, num_workers=2, seed=0)
    seen = [
        int(i)
        for step in range(order.steps_per_epoch)
        for rank in range(2)
        for i in order.examples(5, order.positions(step, rank))
    ]
    assert set(seen) == set(range(11))
    assert len(seen) == 12


def test_epochs_differ_and_a_seed_repeats_them() -> None:
    first, again, other = (
        Order(num_examples=50, batch_size=50, num_workers=1, seed=s) for s in (1, 1, 2)
    )
    positions = np.arange(50)
    assert (first.examples(0, positions) == again.examples(0, positions)).all()
    assert (first.examples(0, positions) != first.examples(1, positions)).any()
    assert (first.examples(0, positions) != other.examples(0, positions)).any()


def test_an_example_that_comes_twice_has_two_seeds() -> None:
    order = Order(num_examples=3, batch_size=4, num_workers=1, seed=0)
    positions = order.positions(0, 0)
    indices, seeds = order.examples(0, positions), order.seeds(0, positions)
    assert indices[0] == indices[3]
    assert len(set(seeds)) == 4


@pytest.mark.parametrize(
    ("workers", "batch", "per_block", "first"), [(1, 1, 1, 0), (2, 2, 3, 1), (3, 1, 2, 0)]
)
def test_round_robin_blocks_give_each_rank_its_positions(
    workers: int, batch: int, per_block: int, first: int
) -> None:
    order = Order(num_examples=7, batch_size=batch, num_workers=workers, seed=0)
    plan = StreamPlan(order=order, first_epoch=first, num_epochs=3, steps_per_block=per_block)
    rows = [plan.place(row) for row in range(plan.num_blocks * plan.rows_per_block)]
    blocks = [
        rows[n * plan.rows_per_block : (n + 1) * plan.rows_per_block]
        for n in range(plan.num_blocks)
    ]
    for rank in range(workers):
        dealt = [place for block in blocks[rank::workers] for place in block]
        wanted = [
            (epoch, int(position))
            for epoch in range(first, 3)
            for step in range(order.steps_per_epoch)
            for position in order.positions(step, rank)
        ]
        assert dealt[: len(wanted)] == wanted


def _positives_thrice(epoch: int) -> list[int]:
    return [0, 1, 2, 3, 4, *[5 + epoch % 2] * 3]


def test_an_epoch_visits_what_the_sampler_drew() -> None:
    order = Order(num_examples=8, batch_size=4, num_workers=1, seed=0, draw=_positives_thrice)
    for epoch in (0, 1):
        seen = order.examples(epoch, np.arange(8))
        assert sorted(seen) == _positives_thrice(epoch)
        assert list(seen) != _positives_thrice(epoch), "drawn cases must be mixed"


def test_a_sampler_of_changing_length_is_an_error() -> None:
    order = Order(num_examples=7, batch_size=7, num_workers=1, seed=0, draw=_positives_thrice)
    with pytest.raises(MedrayError, match="8 cases in epoch 0, before 7"):
        order.examples(0, np.arange(7))
