"""A local Ray that ends with the block that started it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def local_ray_of(*, num_cpus: int, dashboard: bool) -> Iterator[None]:
    """Start a Ray of logical CPUs; its dashboard serves the state API."""
    import ray

    from medray.engine.cluster import TRAIN_ENVIRONMENT, WORKER_ENVIRONMENT

    os.environ.update(TRAIN_ENVIRONMENT)
    ray.init(
        address="local",
        num_cpus=num_cpus,
        object_store_memory=256 << 20,
        include_dashboard=dashboard,
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env={"env_vars": {**WORKER_ENVIRONMENT, **TRAIN_ENVIRONMENT}},
    )
    yield
    ray.shutdown()
