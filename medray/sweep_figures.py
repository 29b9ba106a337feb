"""Figures of a sweep: what a parameter does, what the trials learnt."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from medray.figures import COLOURS, GREY, INK, Figure, coloured, draw_figure, legend_above

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_NAMED = 6


def slice_figure(
    name: str,
    values: Sequence[Any],
    scores: Sequence[float],
    *,
    metric: str,
    chosen: Any,
    logarithmic: bool = False,
) -> Figure:
    """Draw every trial's score over one parameter, and the best score at each of its values.

    Args:
        name: of the parameter.
        values: of it, one a trial; those that are no numbers stand side by side in their order.
        scores: one a trial, finite.
        metric: what the scores are.
        chosen: the value that was chosen.
        logarithmic: whether positive numbers are drawn by their size.
    """
    numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    names = sorted({str(value) for value in values}) if not numeric else []
    places = np.array([float(v) if numeric else names.index(str(v)) for v in values])

    def draw(axes: "Axes") -> None:
        axes.plot(places, scores, "o", color=COLOURS[0], alpha=0.45, markersize=4)
        best = [max(s for p, s in zip(places, scores, strict=True) if p == one) for one in known]
        if len(known) < len(places):
            axes.plot(known, best, color=COLOURS[1], label="best at each value")
        at = float(chosen) if numeric else names.index(str(chosen))
        axes.axvline(at, color=INK, linestyle=":", linewidth=1.4, label=f"chosen {shown(chosen)}")
        if logarithmic:
            axes.set_xscale("log")
            # matplotlib writes powers as formulas, which an SVG shows as their source
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter(_few_minor)
        if names:
            axes.set_xticks(range(len(names)), names)
        axes.set(xlabel=name, ylabel=metric)
        legend_above(axes, columns=2)

    known = np.unique(places)
    alt = f"{metric} of {len(places)} trials over {name}; chosen {shown(chosen)}."
    return draw_figure(f"Parameter {name}", alt, draw)


def point_figure(
    name: str,
    values: Sequence[float],
    lines: Mapping[str, Sequence[float | None]],
    *,
    chosen: float,
    interval: tuple[str, Sequence[float | None]] | None = None,
) -> Figure:
    """Draw several metrics over one parameter, the others as chosen.

    Args:
        name: of the parameter.
        values: rising.
        lines: metric to one number a value; None where it is undefined.
        chosen: value of the parameter.
        interval: the metric of the lines that the choice was made by, and the interval's ends.
    """

    def draw(axes: "Axes") -> None:
        marker = "o" if len(values) < 30 else None
        for colour, (metric, numbers) in coloured(lines):
            plain = [np.nan if number is None else number for number in numbers]
            axes.plot(values, plain, color=colour, marker=marker, markersize=4, label=metric)
        if interval is not None and None not in interval[1]:
            low, high = (float(end or 0.0) for end in interval[1])
            label = f"95 % interval of {interval[0]}"
            axes.plot([chosen] * 2, [low, high], color=INK, linewidth=2.4, marker="_", label=label)
        label = f"chosen {shown(chosen)}"
        axes.axvline(chosen, color=GREY, linestyle=":", linewidth=1.4, label=label)
        axes.set(xlabel=name, ylabel="score")
        legend_above(axes, columns=2)

    alt = f"{', '.join(lines)} over {name}, the other parameters as chosen; {shown(chosen)} chosen."
    return draw_figure(f"Curves over {name}", alt, draw)


def trials_figure(
    curves: Mapping[str, Sequence[tuple[float, float]]], *, metric: str, best: str
) -> Figure:
    """Draw the validation metric of all trials over epochs, the best trial last and thick.

    Args:
        curves: trial to its (epoch, value) pairs.
        metric: what the values are.
        best: name of the best trial.
    """
    from matplotlib.ticker import MaxNLocator

    def draw(axes: "Axes") -> None:
        named = len(curves) <= _MOST_NAMED
        for colour, (trial, pairs) in coloured(curves):
            if trial != best and pairs:
                label = trial if named else None
                lines = axes.plot(*zip(*pairs, strict=True), color=colour, alpha=0.6, label=label)
                lines[0].set(linewidth=1, marker="o" if len(pairs) == 1 else "")
        if curves.get(best):
            pairs = curves[best]
            axes.plot(*zip(*pairs, strict=True), color=INK, linewidth=2.6, label=f"best: {best}")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="epoch", ylabel=f"validation {metric}")
        legend_above(axes, columns=2)

    alt = f"Validation {metric} of {len(curves)} trials over epochs; the best is {best}."
    return draw_figure("Learning curves", alt, draw)


def _few_minor(value: float, _: float) -> str:
    """Label 2 and 5 of each decade: one decade alone would have a single label."""
    return f"{value:g}" if f"{value:e}"[0] in "25" else ""


def shown(value: Any) -> str:
    """Return a parameter's value as people read it."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
