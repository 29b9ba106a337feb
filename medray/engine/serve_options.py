"""What a service is started with, and the Serve application that follows from it."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ray import serve

import medray
from medray.config import unknown_name
from medray.engine.serve_cases import CaseLimits, CaseReplica
from medray.engine.serve_ingress import IngressReplica, IngressSettings
from medray.engine.serve_jobs import JobReplica
from medray.engine.serve_model import ModelReplica
from medray.engine.serve_spec import RecipeOf, describe_model, network_name
from medray.errors import ConfigError

APP = "medray"
# How often a replica's load is told; Serve's 10 s and its mean over 30 s make a delay of 2 s one of
# half a minute. (The environment variables that are to replace this have no effect in Ray 2.60.)
_LOAD_TOLD_S, _LONGEST_LOOK_BACK_S = 1.0, 30.0
CASES, INGRESS, JOBS = "cases", "ingress", "jobs"
# A network that takes single images takes several at once; a volume fills a pass by itself.
_PLANAR_BATCH = 8
_INGRESS_ONGOING = 256
_MAX_THREADS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """How large a service is and what it lets in.

    Attributes:
        models: name to URI of a package.
        inference: name to thresholds in place of the package's own.
        min_replicas, max_replicas: of each network, and of the workers that decode.
        target_ongoing: requests a replica shall have in hand; more asks for another one.
        upscale_delay_s, downscale_delay_s: how long that must last.
        gpus: of a network's replica; below 1 several share one.
        num_threads: of a network's replica without GPU; 0: the cores, shared by the replicas that
            are always there.
        limits: of one request.
        max_waiting: requests that may wait for a worker; the next one gets 429.
        http: what the HTTP side is given.
    """

    models: Mapping[str, str]
    inference: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    min_replicas: int = 1
    max_replicas: int = 2
    target_ongoing: float = 2.0
    upscale_delay_s: float = 2.0
    downscale_delay_s: float = 60.0
    gpus: float = 0.0
    num_threads: int = 0
    limits: CaseLimits = field(default_factory=CaseLimits)
    max_waiting: int = 64
    http: IngressSettings = field(default_factory=IngressSettings)

    def __post_init__(self) -> None:
        if not 0 <= self.min_replicas <= self.max_replicas or self.max_replicas < 1:
            raise ConfigError("replicas must be 0 <= --min-replicas <= --max-replicas, at least 1")
        if self.gpus < 0 or (self.gpus > 1 and self.gpus != int(self.gpus)):
            raise ConfigError(
                f"--gpus must be a share up to 1 or a whole number, got {self.gpus:g}"
            )
        for name in self.inference:
            if name not in self.models:
                raise ConfigError(unknown_name("model", name, sorted(self.models)))


def described_models(options: ServeOptions, recipe_of: RecipeOf) -> dict[str, Any]:
    """Return what every replica is told of the models: the user_config.

    Raises:
        ConfigError: an inference parameter that a task does not know.
    """
    return {
        name: describe_model(uri, options.inference.get(name, {}), recipe_of)
        for name, uri in options.models.items()
    }


def logical_cpus(models: Mapping[str, Any], options: ServeOptions) -> int:
    """Return how many CPUs the application may ask for on a local Ray."""
    networks = sum(1 + len(model["upstream"]) for model in models.values() if "task" in model)
    return (networks + 1) * options.max_replicas + 2


def application(models: Mapping[str, Any], options: ServeOptions, recipe_of: RecipeOf) -> Any:
    """Return the Serve application: HTTP, workers that decode, one deployment a network."""
    networks = {
        name: _network(name, model, options, recipe_of)
        for name, model in _networks_of(models).items()
    }
    config = {"models": dict(models)}
    http = replace(options.http, scales_to_zero=options.min_replicas == 0)
    cases = (
        _deployment(CaseReplica, sorted(networks), asdict(options.limits))
        .options(
            name=CASES,
            user_config=config,
            autoscaling_config=_autoscaling(options, lowest=max(1, options.min_replicas)),
            ray_actor_options={"num_cpus": 1},
            max_ongoing_requests=4,
            max_queued_requests=options.max_waiting,
            **_LIFE,
        )
        .bind(recipe_of, networks, options.limits)
    )
    jobs = (
        _deployment(JobReplica, asdict(http))
        .options(name=JOBS, num_replicas=1, ray_actor_options={"num_cpus": 0}, **_LIFE)
        .bind(cases, http)
    )
    return (
        _deployment(serve.ingress()(IngressReplica), sorted(networks), asdict(http))
        .options(
            name=INGRESS,
            user_config=config,
            num_replicas=1,
            ray_actor_options={"num_cpus": 0},
            max_ongoing_requests=_INGRESS_ONGOING,
            **_LIFE,
        )
        .bind(recipe_of, cases, networks, jobs, http)
    )


def _deployment(replica: type, *made_of: Any) -> Any:
    """Return a Serve deployment, whose declared type is that of a decorator.

    Serve draws a new version at each `serve.run` and replaces all replicas; with a version of our
    own a change of the user_config alone reaches the replicas that are there.

    Args:
        replica: the class.
        made_of: what its replicas must be replaced for.
    """
    text = json.dumps([medray.__version__, replica.__name__, *made_of], sort_keys=True)
    version = hashlib.sha256(text.encode()).hexdigest()[:16]
    deployment: Any = serve.deployment(replica)
    return deployment.options(version=version, _internal=True)


_LIFE: dict[str, Any] = {
    "health_check_period_s": 2,
    "health_check_timeout_s": 30,
    "graceful_shutdown_timeout_s": 60,
    "graceful_shutdown_wait_loop_s": 0.5,
    # The new replica is there before the old one goes.
    "max_surge_percent": 100,
}


def _networks_of(models: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return each network's deployment name and what it is told to load."""
    found: dict[str, dict[str, Any]] = {}
    for name, model in models.items():
        if "task" not in model:
            continue
        for part, one in (("", model), *((up["part"], up) for up in model["upstream"])):
            kept = {key: one[key] for key in ("task", "uri", "weights_sha256")}
            found[network_name(name, part)] = {"models": [kept]}
    return found


def _network(name: str, config: dict[str, Any], options: ServeOptions, recipe_of: RecipeOf) -> Any:
    recipe = recipe_of(config["models"][0]["task"])
    threads = options.num_threads or _threads(options)
    batch = _PLANAR_BATCH if recipe.is_planar else 1
    return (
        _deployment(ModelReplica, options.gpus, threads)
        .options(
            name=name,
            user_config={**config, "max_batch_size": batch},
            autoscaling_config=_autoscaling(options, lowest=options.min_replicas),
            ray_actor_options={"num_cpus": 1, "num_gpus": options.gpus},
            max_ongoing_requests=2 * batch,
            **_LIFE,
        )
        .bind(recipe_of, "cuda" if options.gpus else "cpu", threads)
    )


def _threads(options: ServeOptions) -> int:
    """Return how many threads a network gets; small ones gain nothing from more than a few."""
    return max(1, min(_MAX_THREADS, (os.cpu_count() or 1) // max(1, options.min_replicas)))


def _autoscaling(options: ServeOptions, *, lowest: int) -> dict[str, Any]:
    return {
        "min_replicas": lowest,
        "initial_replicas": max(1, lowest),
        "max_replicas": options.max_replicas,
        "target_ongoing_requests": options.target_ongoing,
        "metrics_interval_s": _LOAD_TOLD_S,
        "look_back_period_s": min(
            _LONGEST_LOOK_BACK_S, max(2 * _LOAD_TOLD_S, options.upscale_delay_s)
        ),
        "upscale_delay_s": options.upscale_delay_s,
        "downscale_delay_s": options.downscale_delay_s,
    }


def plain(options: ServeOptions) -> dict[str, Any]:
    """Return the options as JSON-able values, for a config file."""
    return asdict(options)


def options_of(args: Mapping[str, Any]) -> ServeOptions:
    """Return the options that a config file holds.

    Raises:
        ConfigError: a name or value that is none of ours; Serve itself would drop it silently.
    """
    try:
        http = IngressSettings(**{**args.get("http", {})})
        http = replace(http, allow_uris=tuple(http.allow_uris))
        limits = CaseLimits(**args.get("limits", {}))
        return ServeOptions(**{**args, "http": http, "limits": limits})
    except TypeError as error:
        raise ConfigError(f"the config's args do not hold: {error}") from error
