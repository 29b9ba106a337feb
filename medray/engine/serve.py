"""`medray serve`: the application on a running Ray, until somebody ends it."""

import contextlib
import json
import os
import socket
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from ray import serve

from medray.engine.serve_options import APP, ServeOptions, application
from medray.engine.serve_spec import RecipeOf
from medray.errors import ConfigError

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
# Longer than any answer that is not a job's.
_REQUEST_TIMEOUT_S = 900.0
_GUARD = "medray.engine.serve_proxy:middlewares"


def check_exposure(options: ServeOptions, host: str) -> None:
    """Refuse a service that anybody could use.

    Raises:
        ConfigError: no key is configured, or --no-auth on an address that others reach.
    """
    http = options.http
    if http.no_auth:
        if host not in LOOPBACK:
            raise ConfigError(f"--no-auth serves loopback only, not {host}; give --keys FILE")
        return
    if not http.keys_file and not http.keys_text:
        raise ConfigError(
            "no API key is configured; make one by `medray key`, give its line by --keys FILE or "
            "MEDRAY_API_KEYS, or serve this machine alone by --no-auth"
        )
    http.keys()


def require_free_port(host: str, port: int) -> None:
    """Refuse a port that somebody else has.

    Raises:
        ConfigError: it cannot be bound.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise ConfigError(
            f"port {port} of {host} cannot be used ({error.strerror}); choose another by --port"
        ) from error


def prepare_environment(options: ServeOptions, *, haproxy: bool) -> None:
    """Set what Serve's own processes read at their start; before Ray starts.

    The default proxy takes a whole body in before anybody is asked: there the guard stands in the
    proxy, too. HAProxy streams, and the guard of the replica is the first to read.
    """
    if haproxy:
        os.environ["RAY_SERVE_ENABLE_HA_PROXY"] = "1"
        return
    http = options.http
    os.environ["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"] = _GUARD
    os.environ["MEDRAY_SERVE_GUARD"] = json.dumps(
        {
            "keys_file": http.keys_file,
            "keys_text": http.keys_text,
            "no_auth": http.no_auth,
            "query_key": http.query_key,
            "max_body_bytes": http.max_body_bytes,
        }
    )


@contextlib.contextmanager
def running(
    models: Mapping[str, Any],
    options: ServeOptions,
    recipe_of: RecipeOf,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    everywhere: bool = False,
) -> Iterator[str]:
    """Run the application on the connected Ray; its address is yielded once it answers.

    Args:
        models: of `described_models`.
        options: of the service.
        recipe_of: task name to recipe.
        host, port: of HTTP.
        everywhere: a proxy on every node, as on a cluster.

    Raises:
        ConfigError: the application does not start.
    """
    serve.start(
        http_options={"host": host, "port": port, "request_timeout_s": _REQUEST_TIMEOUT_S},
        proxy_location="EveryNode" if everywhere else "HeadOnly",
    )
    try:
        serve.run(application(models, options, recipe_of), name=APP, route_prefix="/")
    except RuntimeError as error:
        raise ConfigError(f"the service did not start: {str(error).splitlines()[0]}") from error
    try:
        shown = f"[{host}]" if ":" in host else host
        yield f"http://{shown}:{port}"
    finally:
        serve.delete(APP)
        if not everywhere:
            serve.shutdown()  # type: ignore[no-untyped-call]


def wait_for_end() -> None:
    """Wait until the process is interrupted."""
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()


def update(models: Mapping[str, Any], options: ServeOptions, recipe_of: RecipeOf) -> None:
    """Give a running application other thresholds, packages or sizes; no request is dropped."""
    serve.run(application(models, options, recipe_of), name=APP, route_prefix="/")
