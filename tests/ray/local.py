"""A local Ray that also tells what ran where."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def ray_with_state() -> Iterator[None]:
    """Local Ray with its state API, which the dashboard serves."""
    import ray

    from medray.engine.cluster import WORKER_ENVIRONMENT

    ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=256 << 20,
        include_dashboard=True,
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env={"env_vars": WORKER_ENVIRONMENT},
    )
    yield
    ray.shutdown()
