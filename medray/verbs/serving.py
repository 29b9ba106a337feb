"""Verbs of the HTTP service: serve, key."""

import json
import os
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from medray.errors import ConfigError
from medray.verbs.options import Address, AsJson, Debug, Policy, Quiet

_UNITS = {"": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}

Models = Annotated[list[str], typer.Argument(metavar="NAME=MODEL...", help="Names and packages.")]
Host = Annotated[str, typer.Option("--host", help="Address to listen at.")]
Port = Annotated[int, typer.Option("--port", min=1, max=65535)]
Keys = Annotated[str, typer.Option("--keys", help="File with lines of `medray key`.")]
NoAuth = Annotated[bool, typer.Option("--no-auth", help="No keys; loopback only.")]
AllowUri = Annotated[
    list[str] | None, typer.Option("--allow-uri", help="Prefix that requests may name.")
]
MaxBody = Annotated[str, typer.Option("--max-body", help="Of one request.")]
MaxUnpacked = Annotated[str, typer.Option("--max-unpacked", help="What one request may unpack to.")]
JobsDir = Annotated[str, typer.Option("--jobs-dir", help="Where jobs are kept; none without.")]
Thresholds = Annotated[
    list[str] | None, typer.Option("--set", help="NAME.threshold=0.4 for a model.")
]
MinReplicas = Annotated[int, typer.Option("--min-replicas", help="0: scale to zero.")]
MaxReplicas = Annotated[int, typer.Option("--max-replicas", help="Of each network.")]
Gpus = Annotated[float, typer.Option("--gpus", help="Of a network; 0.5: two share one.")]
HaProxy = Annotated[
    bool, typer.Option("--haproxy", help="Serve's HAProxy, which streams large bodies.")
]
QueryKey = Annotated[
    bool, typer.Option("--compat-query-key", help="POST /predict?api-key=... is taken.")
]
WriteConfig = Annotated[
    str, typer.Option("--write-config", help="Write a file for `serve deploy` and end.")
]


def serve(
    models: Models,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    keys: Keys = "",
    no_auth: NoAuth = False,
    allow_uri: AllowUri = None,
    max_body: MaxBody = "1GiB",
    max_unpacked: MaxUnpacked = "8GiB",
    policy: Policy = "flag",
    jobs_dir: JobsDir = "",
    set_: Thresholds = None,
    min_replicas: MinReplicas = 1,
    max_replicas: MaxReplicas = 2,
    gpus: Gpus = 0.0,
    haproxy: HaProxy = False,
    compat_query_key: QueryKey = False,
    write_config: WriteConfig = "",
    address: Address = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Serve models over HTTP, with a page for people at /; Ctrl-C ends it.

    Example: medray serve pancreas=/data/train --keys keys.txt --jobs-dir /data/jobs
    """
    http = _http(keys, max_body, no_auth=no_auth, query_key=compat_query_key)
    http.update(allow_uris=tuple(allow_uri or ()), jobs_uri=_absolute(jobs_dir))
    limits = {"max_unpacked_bytes": parse_size(max_unpacked, "--max-unpacked"), "policy": policy}
    sizes = {"min_replicas": min_replicas, "max_replicas": max_replicas, "gpus": gpus}
    options = _options(models, set_ or [], {"http": http, "limits": limits, **sizes})
    if write_config:
        _write_config(options, write_config, host, port)
        return
    _run(options, (host, port), address=address, haproxy=haproxy, quiet=quiet, debug=debug)


def _http(keys: str, max_body: str, *, no_auth: bool, query_key: bool) -> dict[str, Any]:
    from medray.service.keys import ENVIRONMENT

    return {
        "keys_file": os.path.abspath(keys) if keys else "",  # noqa: PTH100 - replicas elsewhere
        "keys_text": "" if keys else os.environ.get(ENVIRONMENT, ""),
        "no_auth": no_auth,
        "query_key": query_key,
        "max_body_bytes": parse_size(max_body, "--max-body"),
    }


def _options(models: list[str], settings: list[str], args: dict[str, Any]) -> Any:
    from medray.engine.serve_options import options_of
    from medray.engine.serve_spec import parse_models

    inference: dict[str, dict[str, float]] = {}
    for item in settings:
        where, _, value = item.partition("=")
        name, _, parameter = where.partition(".")
        try:
            inference.setdefault(name, {})[parameter] = float(value)
        except ValueError:
            raise ConfigError(f"--set takes NAME.PARAMETER=NUMBER, got {item!r}") from None
    named = {name: _absolute(uri) for name, uri in parse_models(models).items()}
    return options_of({"models": named, "inference": inference, **args})


def _absolute(uri: str) -> str:
    """Return a URI that replicas understand, whatever folder they run in."""
    from medray import storage

    return storage.normalise(uri) if uri else ""


def _write_config(options: Any, where: str, host: str, port: int) -> None:
    import yaml  # type: ignore[import-untyped]

    from medray import storage
    from medray.engine.serve import check_exposure
    from medray.engine.serve_config import check_config, serve_config
    from medray.engine.serve_options import described_models
    from medray.tasks import get_recipe

    check_exposure(options, host)
    models = described_models(options, get_recipe)
    _say_broken(models)
    config = serve_config(models, options, host=host, port=port)
    check_config(config)
    text = yaml.safe_dump(config, sort_keys=False)
    storage.write_atomic(where, text.encode())
    typer.echo(f"wrote {where}; deploy it by: serve deploy {where}")


def _run(
    options: Any,
    listen: tuple[str, int],
    *,
    address: str | None,
    haproxy: bool,
    quiet: bool,
    debug: bool,
) -> None:
    from medray.engine import serve as service
    from medray.engine.cluster import ray_session
    from medray.engine.serve_options import described_models, logical_cpus
    from medray.tasks import get_recipe

    host, port = listen
    service.check_exposure(options, host)
    models = described_models(options, get_recipe)
    _say_broken(models)
    joined = bool(address or os.environ.get("RAY_ADDRESS"))
    if not joined:
        service.require_free_port(host, port)
        service.prepare_environment(options, haproxy=haproxy)
    with (
        ray_session(address, debug=debug, num_cpus=logical_cpus(models, options)),
        service.running(
            models, options, get_recipe, host=host, port=port, everywhere=joined
        ) as url,
    ):
        if not quiet:
            typer.echo(f"serving {', '.join(models)} at {url} (page: {url}/, Ctrl-C ends)")
        service.wait_for_end()
        if not quiet:
            typer.echo("ending: requests that have begun are finished")


def _say_broken(models: dict[str, Any]) -> None:
    """Say which models cannot be served; that no model can is an error.

    Raises:
        ConfigError: not one can be used.
    """
    broken = {name: model["broken"] for name, model in models.items() if "broken" in model}
    for name, (reason, detail) in broken.items():
        typer.echo(f"medray: {name} cannot be served: {reason}: {detail}", err=True)
    if len(broken) == len(models):
        raise ConfigError("no model can be served")


def parse_size(text: str, option: str) -> int:
    """Return bytes of a size such as `512MiB` or `1048576`.

    Raises:
        ConfigError: it is none.
    """
    lowered = text.strip().lower()
    digits = lowered.rstrip("bikmg")
    unit = lowered[len(digits) :].strip()
    if not digits.strip().isdigit() or unit not in _UNITS or int(digits) < 1:
        raise ConfigError(f"{option} takes bytes or a size such as 512MiB, got {text!r}")
    return int(digits) * _UNITS[unit]


def key(
    name: Annotated[
        str, typer.Option("--id", help="Who uses it; letters, digits, dots, hyphens.")
    ] = "",
    days: Annotated[
        int, typer.Option("--days", min=0, max=36500, help="Valid for; 0: without an end.")
    ] = 0,
    as_json: AsJson = False,
) -> None:
    """Make an API key, print it once, and the line for the key file.

    stdout has the key, then the line; the words around them go to stderr.

    Example: medray key --id ward-3 --days 365
    """
    from medray.service.keys import make_key

    made = make_key(datetime.now(UTC), key_id=name, days=days)
    if as_json:
        typer.echo(json.dumps({"id": made.id, "key": made.key, "line": made.line}, sort_keys=True))
        return
    typer.echo("the key, shown only now; clients send it as X-API-Key:", err=True)
    typer.echo(made.key)
    typer.echo("its line for --keys FILE or MEDRAY_API_KEYS:", err=True)
    typer.echo(made.line)
