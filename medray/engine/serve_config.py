"""Serve's config file: written from our options, and checked as strictly as Serve should.

Serve drops keys that it does not know without a word: a typing error becomes a default.
"""

from collections.abc import Mapping
from typing import Any

from ray.serve.config import AutoscalingConfig
from ray.serve.schema import (
    DeploymentSchema,
    HTTPOptionsSchema,
    RayActorOptionsSchema,
    ServeApplicationSchema,
    ServeDeploySchema,
)

from medray.engine.serve_options import APP, CASES, INGRESS, ServeOptions, options_of, plain
from medray.errors import ConfigError

IMPORT_PATH = "medray.serving:build"


def serve_config(
    models: Mapping[str, Any], options: ServeOptions, *, host: str, port: int
) -> dict[str, Any]:
    """Return the content of a file for `serve deploy`.

    Thresholds stand in the user_config, where a change reaches the replicas that are there; a
    change of `args` replaces them one by one.

    Args:
        models: of `described_models`.
        options: of the service.
        host, port: of HTTP on every node.
    """
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": host, "port": port},
        "logging_config": {"encoding": "JSON", "log_level": "INFO"},
        "applications": [
            {
                "name": APP,
                "route_prefix": "/",
                "import_path": IMPORT_PATH,
                "args": {**plain(options), "inference": {}},
                "deployments": [
                    {"name": name, "user_config": {"models": dict(models)}}
                    for name in (INGRESS, CASES)
                ],
            }
        ],
    }


def check_config(config: Mapping[str, Any]) -> None:
    """Refuse a config that Serve would take and misunderstand.

    Raises:
        ConfigError: unknown keys, or values that Serve or our options refuse.
    """
    unknown = _unknown_keys(config)
    if unknown:
        raise ConfigError(f"Serve would drop these keys silently: {', '.join(unknown)}")
    try:
        ServeDeploySchema.model_validate(dict(config))
    except ValueError as error:
        raise ConfigError(f"Serve refuses the config: {str(error).splitlines()[0]}") from error
    for app in config["applications"]:
        if app["import_path"] == IMPORT_PATH:
            options_of(app.get("args", {}))


def _unknown_keys(config: Mapping[str, Any]) -> list[str]:
    found: list[str] = []

    def check(schema: Any, data: Any, where: str) -> None:
        if isinstance(data, Mapping):
            found.extend(f"{where}.{key}" for key in data if key not in schema.model_fields)

    check(ServeDeploySchema, config, "config")
    check(HTTPOptionsSchema, config.get("http_options"), "http_options")
    for app in config.get("applications") or []:
        check(ServeApplicationSchema, app, str(app.get("name")))
        for one in app.get("deployments") or []:
            where = f"{app.get('name')}.{one.get('name')}"
            check(DeploymentSchema, one, where)
            check(AutoscalingConfig, one.get("autoscaling_config"), f"{where}.autoscaling_config")
            check(RayActorOptionsSchema, one.get("ray_actor_options"), f"{where}.ray_actor_options")
    return found
