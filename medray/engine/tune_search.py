"""Searches and schedulers of Ray Tune from plain words."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from medray.engine.tune_space import Space
from medray.learning import Choice, LogUniform

if TYPE_CHECKING:
    from medray.engine.tune import TuneRequest

_EPOCH = "epoch"
_REDUCTION = 3


def scheduler_of(name: str, num_epochs: int) -> TrialScheduler:
    """Return what ends trials early: `asha`, `median` or `none`.

    Population based training is not offered: it copies weights between trials by Ray Tune's own
    checkpoints, which trainings of Ray Train do not have.
    """
    grace = max(1, num_epochs // 4)
    if name == "asha":
        # A trial that comes to its end is never stopped there: it still writes its model.
        return ASHAScheduler(
            time_attr=_EPOCH,
            max_t=num_epochs + 1,
            grace_period=grace,
            reduction_factor=_REDUCTION,
        )
    if name == "median":
        return MedianStoppingRule(time_attr=_EPOCH, grace_period=grace, min_samples_required=3)
    return FIFOScheduler()  # type: ignore[no-untyped-call]


def searcher_of(request: "TuneRequest", known: Mapping[str, Mapping[str, Any]]) -> Searcher:
    """Return Optuna's TPE, told of the trials that are over.

    Args:
        request: space, objective and seed.
        known: records of trials.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    over = [record for record in known.values() if record["value"] is not None]
    names: dict[str, Any] = {"metric": request.objective.metric, "mode": request.objective.mode}
    distributions = _distributions(request.space)
    if not over:
        return OptunaSearch(space=distributions, seed=request.seed, **names)
    return OptunaSearch(
        space=distributions,
        # Another seed: else the first points of the sweep would be suggested once more.
        seed=request.seed + len(known),
        points_to_evaluate=[_encoded(request.space, record["params"]) for record in over],
        evaluated_rewards=[float(record["value"]) for record in over],
        **names,
    )


def _distributions(space: Space) -> dict[str, Any]:
    """Return Optuna's distributions; of a choice the index is searched, whatever its values are."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    found: dict[str, Any] = {}
    for name, domain in space.items():
        if isinstance(domain, Choice):
            found[name] = CategoricalDistribution(list(range(len(domain.values))))
        else:
            is_log = isinstance(domain, LogUniform)
            found[name] = FloatDistribution(domain.low, domain.high, log=is_log)
    return found


def _encoded(space: Space, params: Mapping[str, Any]) -> dict[str, Any]:
    plain = {name: tuple(v) if isinstance(v, list) else v for name, v in params.items()}
    return {
        name: domain.values.index(plain[name]) if isinstance(domain, Choice) else plain[name]
        for name, domain in space.items()
    }
