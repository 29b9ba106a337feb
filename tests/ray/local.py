"""A local Ray that also tells what ran where, and pools of actors without Ray."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pytest

from medray.engine.actor_pool import Pool
from medray.engine.data import Item
from tests.local_ray import local_ray_of


@pytest.fixture(scope="module")
def ray_with_state() -> Iterator[None]:
    """Local Ray with its state API, which the dashboard serves."""
    with local_ray_of(num_cpus=2, dashboard=True):
        yield


def answers_in_process(items: Sequence[Item], pool: Pool) -> Iterator[dict[str, Any]]:
    """Call the same actor in this process: an actor of Ray takes seconds to import torch."""
    if items:
        actor = pool.actor(**pool.settings)
        for item in items:
            payload = pa.table({"key": [item.key], "payload": [json.dumps(item.payload)]})
            yield json.loads(actor(payload)["result"][0].as_py())
