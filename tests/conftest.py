"""Shared fixtures: no network, one local Ray a module, real data only through the environment."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

# Before anything imports Ray: no token file, no usage report, no joining of a user's cluster.
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_DATA_DISABLE_PROGRESS_BARS"] = "1"
os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
os.environ.pop("RAY_ADDRESS", None)
# Threads that spin for one another on busy cores take 10 times as long as one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

_REAL_CONNECT = socket.socket.connect


def _loopback_only(self: socket.socket, address: object) -> None:
    if self.family in (socket.AF_INET, socket.AF_INET6):
        host = str(address[0])  # type: ignore[index]
        own = {"127.0.0.1", "::1", "localhost", socket.gethostbyname(socket.gethostname())}
        if host not in own and not host.startswith("127."):
            raise OSError("tests run without the network")
    return _REAL_CONNECT(self, address)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket.socket, "connect", _loopback_only)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put modules of slow tests first: of several processes none then waits for the last one."""
    slow = {item.path for item in items if "slow" in {mark.name for mark in item.iter_markers()}}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real files; a visible skip without it."""
    where = os.environ.get("MEDRAY_TEST_DATA")
    if not where:
        pytest.skip("MEDRAY_TEST_DATA is not set")
    return Path(where)


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """One local Ray for a test module; stopped by the module that started it."""
    from tests.local_ray import local_ray_of

    with local_ray_of(num_cpus=2, dashboard=False):
        yield
