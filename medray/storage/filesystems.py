"""fsspec filesystems: one per process, protocol and environment, built when first needed."""

import os
import threading
from typing import Any

from medray.errors import ConfigError
from medray.storage.uri import path_of, protocol_of

# Connections of one process; more threads than this read at once nowhere.
_MAX_CONNECTIONS = 64
_CONNECT_S = 10
_ANSWER_S = 60
_ENVIRONMENT = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID", "AWS_PROFILE",
                "AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION", "AWS_REGION")  # fmt: skip

# Keyed by process: after a fork the event loop's thread is not there, and a lock may be held.
_FILESYSTEMS: dict[tuple[Any, ...], Any] = {}
_LOCKS: dict[int, threading.Lock] = {}


def filesystem_of(protocol: str) -> Any:
    """Return this process's fsspec filesystem of a protocol; safe to call from any thread.

    Endpoint, region and credentials come from the environment (or the machine's role) alone.

    Raises:
        ConfigError: fsspec does not know the protocol or its package is not installed.
    """
    settings = tuple(os.environ.get(name) for name in _ENVIRONMENT) if protocol == "s3" else ()
    key = (os.getpid(), protocol, *settings)
    found = _FILESYSTEMS.get(key)
    if found is not None:
        return found
    with _LOCKS.setdefault(os.getpid(), threading.Lock()):
        if key not in _FILESYSTEMS:
            _FILESYSTEMS[key] = _build(protocol)
        return _FILESYSTEMS[key]


def open_filesystem(uri: str) -> tuple[Any, str]:
    """Return the fsspec filesystem of a URI and the path in it, as Ray Data and pyarrow take them.

    Raises:
        ConfigError: the protocol is unknown, or the URI is inside an archive.
    """
    protocol = protocol_of(uri)
    if protocol == "zip":
        raise ConfigError("members of an archive are read one by one; unpack the archive first")
    path = path_of(uri)
    return filesystem_of(protocol), os.path.abspath(path) if protocol == "file" else path


def _build(protocol: str) -> Any:
    import fsspec

    # fsspec's own cache holds one instance for each thread, every one with its connections.
    options: dict[str, Any] = {"skip_instance_cache": True}
    if protocol == "s3":
        options["use_listings_cache"] = False
        options["config_kwargs"] = {
            "max_pool_connections": _MAX_CONNECTIONS,
            "connect_timeout": _CONNECT_S,
            "read_timeout": _ANSWER_S,
            # Refusals (503 SlowDown) are waited for here; bodies are our own loop's matter.
            "retries": {"mode": "standard", "total_max_attempts": 4},
        }
    try:
        return fsspec.filesystem(protocol, **options)
    except (ValueError, ImportError) as error:
        raise ConfigError(
            f"the protocol {protocol}:// is unknown here; use a local path or s3://, "
            "or install the fsspec package for it"
        ) from error
