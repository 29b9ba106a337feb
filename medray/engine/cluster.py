"""Joining a Ray cluster, or starting a local one that ends with the run."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import ray

from medray.errors import ConfigError

# Volumes never pass the object store (docs/adr/0004), so a laptop keeps its memory.
_LOCAL_OBJECT_STORE_BYTES = 1 << 30
_MIN_OBJECT_STORE_BYTES = 128 << 20
_CONNECT_S = 5.0
_STARTS = 2


@contextmanager
def ray_session(
    address: str | None, *, debug: bool = False, trains: bool = False, num_cpus: int = 0
) -> Iterator[None]:
    """Connect to `address`, else to the job's own cluster, else to a new local Ray.

    A Ray that is already connected is used and left alone.

    Args:
        address: of a cluster, or None.
        debug: with Ray's own narration.
        trains: whether Ray Train will run: a local Ray then starts it 4 s sooner, all else 2 s
            later.
        num_cpus: logical CPUs of a local Ray where its work is more than the machine's cores may
            count, as replicas that wait most of the time; 0: the cores.

    Raises:
        ConfigError: the cluster does not answer.
    """
    _quiet(debug=debug)
    if ray.is_initialized():
        yield
        return
    joined = address or os.environ.get("RAY_ADDRESS")
    if joined:
        _require_listener(joined)
    try:
        if joined:
            ray.init(
                address=joined,
                log_to_driver=debug,
                logging_level=_level(debug=debug),
                runtime_env={"env_vars": WORKER_ENVIRONMENT},
            )
        else:
            _start_local(debug=debug, trains=trains, num_cpus=num_cpus)
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = joined or "a local Ray"
        raise ConfigError(
            f"cannot connect to {where}: {str(error).splitlines()[0]}; check --address"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _require_listener(address: str) -> None:
    """Refuse an address at which nobody listens; Ray itself would wait for minutes.

    Raises:
        ConfigError: no connection within a few seconds.
    """
    host, _, port = address.rpartition("//")[2].rpartition(":")
    if not host or not port.isdigit():
        return  # `auto` and named clusters
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
    except OSError as error:
        raise ConfigError(f"no Ray cluster answers at {address}; check --address") from error


def _start_local(*, debug: bool, trains: bool, num_cpus: int) -> None:
    # RAY_AUTH_MODE is left to the user: unset, Ray makes a token and closes the local cluster,
    # which is what a laptop in a hospital needs. Ray reads it at import, so it cannot be set here.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Inherited by the workers of a local Ray; a runtime_env would cost them their warm start.
    for name, value in {**WORKER_ENVIRONMENT, **TRAIN_ENVIRONMENT}.items():
        os.environ.setdefault(name, value)
    for attempt in range(1, _STARTS + 1):
        try:
            _init_local(debug=debug, trains=trains, num_cpus=num_cpus)
        except Exception as error:
            # Ray gives its processes half a minute, which a busy machine may exceed; it says so by
            # a bare Exception.
            ray.shutdown()
            if type(error) is not Exception:
                raise
            if attempt == _STARTS:
                raise ConfigError(
                    "a local Ray did not start in time, twice; this machine is too busy"
                ) from error
        else:
            return


def _init_local(*, debug: bool, trains: bool, num_cpus: int) -> None:
    available = psutil.virtual_memory().available
    store = max(_MIN_OBJECT_STORE_BYTES, min(_LOCAL_OBJECT_STORE_BYTES, available // 5))
    ray.init(
        address="local",
        num_cpus=max(num_cpus, os.cpu_count() or 1) if num_cpus else None,
        object_store_memory=store,
        include_dashboard=bool(os.environ.get("MEDRAY_DASHBOARD")),
        log_to_driver=debug,
        logging_level=_level(debug=debug),
        runtime_env={"env_vars": train_environment()} if trains else None,
    )


# One thread per task: Ray places tasks by CPU, and ITK, OpenMP and torch would each take all cores.
WORKER_ENVIRONMENT = {
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    # Threads that wait must not spin: on a shared core that costs more than the work.
    "OMP_WAIT_POLICY": "PASSIVE",
    # pydicom warns by quoting header values; none of them may reach a log.
    "PYTHONWARNINGS": "ignore",
}

# Of a machine of one's own. It is not taken away with a warning: the watcher is one more process.
# The end of a rank is seen at the controller's next look, two seconds apart by default.
TRAIN_ENVIRONMENT = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
}


def train_environment() -> dict[str, str]:
    """Return what Ray Train hands on to its processes, as the environment of a whole job.

    Ray gives a worker to another actor only where their environments are the same: said of the job,
    it is the same for the controller, the ranks and those that read for them, and they share.
    """
    return {name: os.environ[name] for name in TRAIN_ENVIRONMENT}


def _level(*, debug: bool) -> int:
    return logging.INFO if debug else logging.ERROR


def _quiet(*, debug: bool) -> None:
    """Keep Ray's own narration off the user's screen unless it was asked for."""
    if debug:
        return
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    # Tune's newer reporter prints settings and folders whatever verbosity it is given.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    for name in ("ray", "ray.data", "ray.serve"):
        logging.getLogger(name).setLevel(logging.ERROR)


def max_node_memory_bytes() -> int:
    """Return the memory of the largest node as Ray counts it."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return int(max((n["Resources"].get("memory", 0) for n in nodes if n["Alive"]), default=0))
