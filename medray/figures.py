"""Figures of a report as SVG text: one function a figure, no global state, the same bytes again.

Ink is the page's own text colour (`currentColor`), so that a figure reads on light and dark. Text
stays text. Matplotlib is imported inside the functions and starts from its own defaults, whatever
the user's settings.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int64, Real

from medray.metrics.calibration import Reliability
from medray.metrics.overlap import ThresholdCurve
from medray.metrics.ranking import PrCurve, RocCurve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

# Of middle lightness: at least 3 : 1 against white and against the dark page.
COLOURS = ("#2f7ed8", "#d9662b", "#2f9e5f", "#a259c4", "#c9447a", "#8a7a2a")
GREY = "#808080"
# Stands for `currentColor`, which matplotlib does not know; no figure uses it otherwise.
INK = "#010203"
_SIZE_INCHES = (5.0, 3.9)
# Letters of class names that fit side by side below a confusion matrix.
_LABELS_ABREAST = 36
_SETTINGS: dict[Any, Any] = {
    "svg.hashsalt": "medray",
    "text.parse_math": False,  # names of classes and metrics are no formulas
    "svg.fonttype": "none",
    "font.size": 10.0,
    "axes.titlesize": 11.0,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GREY,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "legend.fontsize": 9.0,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A drawn figure.

    Attributes:
        svg: one `<svg>` element without prologue, links or scripts.
        title: heading of the figure.
        alt: what a person who cannot see it should know.
    """

    svg: str
    title: str
    alt: str


def roc_figure(
    curves: Mapping[str, RocCurve], *, point: tuple[float, float] | None = None
) -> Figure:
    """Draw ROC curves by name.

    Args:
        curves: name for the legend to curve.
        point: the operating point's (1 - specificity, sensitivity).
    """

    def draw(axes: "Axes") -> None:
        axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="chance")
        for colour, (name, curve) in coloured(curves):
            axes.plot(curve.false_positive_rate, curve.true_positive_rate, color=colour, label=name)
        if point is not None:
            axes.plot(*point, "o", color=INK, markersize=7, label="operating point")
        _unit_square(axes, "1 - specificity", "sensitivity")
        axes.legend(loc="lower right")

    marked = "" if point is None else f"; operating point at {point[0]:.3f}, {point[1]:.3f}"
    return draw_figure("ROC", f"ROC curves of {_names(curves)}{marked}.", draw)


def pr_figure(curves: Mapping[str, PrCurve], *, prevalence: float | None = None) -> Figure:
    """Draw precision over recall by name, and the prevalence, which is what chance gives."""

    def draw(axes: "Axes") -> None:
        if prevalence is not None:
            axes.axhline(prevalence, color=GREY, linestyle="--", linewidth=1, label="prevalence")
        for colour, (name, curve) in coloured(curves):
            # of several points with one recall the first holds the area, the others are spikes
            new = np.diff(curve.recall, prepend=-1.0) > 0
            recall = np.concatenate([[0.0], curve.recall[new]])
            precision = np.concatenate([curve.precision[:1], curve.precision[new]])
            axes.step(recall, precision, where="pre", color=colour, label=name)
        _unit_square(axes, "recall", "precision")
        axes.legend(loc="lower left")

    chance = "" if prevalence is None else f"; prevalence {prevalence:.3f}"
    return draw_figure("Precision and recall", f"Curves of {_names(curves)}{chance}.", draw)


def froc_figure(curves: Mapping[str, Real[np.ndarray, "rates"]], rates: Sequence[float]) -> Figure:
    """Draw sensitivity over false positives by name of the level (free-response ROC).

    Args:
        curves: level to its sensitivity at each rate.
        rates: false positives an image, or a scan.
    """

    def draw(axes: "Axes") -> None:
        for colour, (name, values) in coloured(curves):
            axes.plot(rates, values, color=colour, marker="o", markersize=4, label=name)
        axes.set_xscale("log", base=2)
        axes.set_xticks(list(rates), [f"{rate:g}" for rate in rates])
        axes.set(xlabel="false positives", ylabel="sensitivity", ylim=(-0.02, 1.02))
        axes.legend(loc="lower right")

    means = ", ".join(f"{name} {np.mean(values):.3f}" for name, values in curves.items())
    return draw_figure("FROC", f"Sensitivity over false positives; means: {means}.", draw)


def reliability_figure(curve: Reliability) -> Figure:
    """Draw the share of positives over the predicted probability, larger dots for more cases."""

    def draw(axes: "Axes") -> None:
        axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="calibrated")
        share = curve.num_cases / max(int(curve.num_cases.max()), 1)
        axes.plot(curve.mean_score, curve.share_positive, color=COLOURS[0], label="model")
        axes.scatter(curve.mean_score, curve.share_positive, s=20 + 60 * share, color=COLOURS[0])
        _unit_square(axes, "mean predicted probability", "share positive")
        axes.legend(loc="upper left")

    bins = f"{len(curve.num_cases)} bins of {int(curve.num_cases.sum())} cases"
    return draw_figure(
        "Reliability", f"Share of positives over predicted probability, {bins}.", draw
    )


def confusion_figure(
    matrix: Int64[np.ndarray, "truth found"], class_names: Sequence[str]
) -> Figure:
    """Draw a confusion matrix: counts, coloured by the share of the true class (row)."""
    counts = np.asarray(matrix)

    def draw(axes: "Axes") -> None:
        share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        # the page shines through: a colour bar's white would glare on a dark page
        rgba = np.empty((*counts.shape, 4))
        rgba[..., :3] = [int(COLOURS[0][n : n + 2], 16) / 255 for n in (1, 3, 5)]
        rgba[..., 3] = 0.08 + 0.62 * share
        for row, column in np.ndindex(*counts.shape):
            axes.fill(
                [column - 0.48, column + 0.48, column + 0.48, column - 0.48],
                [row - 0.48, row - 0.48, row + 0.48, row + 0.48],
                color=tuple(rgba[row, column]),
                linewidth=0,
            )
            text = f"{counts[row, column]}\n{share[row, column]:.0%}"
            axes.text(column, row, text, ha="center", va="center")
        ticks = range(len(class_names))
        axes.set_xticks(ticks, [_clipped(name) for name in class_names])
        axes.set_yticks(ticks, [_clipped(name) for name in class_names])
        if sum(len(_clipped(name)) for name in class_names) > _LABELS_ABREAST:
            axes.tick_params(axis="x", rotation=20)
        axes.set(xlabel="decision", ylabel="truth")
        axes.set(xlim=(-0.5, len(counts) - 0.5), ylim=(len(counts) - 0.5, -0.5))
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)

    rows = "; ".join(
        f"{name}: {', '.join(str(n) for n in row)}"
        for name, row in zip(class_names, counts, strict=True)
    )
    return draw_figure("Confusion matrix", f"Decisions for each true class: {rows}.", draw)


def threshold_figure(curve: ThresholdCurve, *, chosen: float) -> Figure:
    """Draw mean Dice and pooled precision, recall and F1 over the threshold, the chosen marked."""

    def draw(axes: "Axes") -> None:
        lines = {
            "Dice, mean of cases": curve.dice,
            "precision, pooled": curve.precision,
            "recall, pooled": curve.recall,
            "F1, pooled": curve.f1,
        }
        for colour, (name, values) in coloured(lines):
            axes.plot(curve.thresholds, values, color=colour, label=name)
        axes.axvline(chosen, color=INK, linestyle=":", linewidth=1.4, label=f"chosen {chosen:.3g}")
        _unit_square(axes, "threshold", "score")
        legend_above(axes, columns=2)

    at = int(np.argmin(np.abs(curve.thresholds - chosen)))
    alt = f"At the chosen threshold {chosen:.3g} the mean Dice is {curve.dice[at]:.3f}."
    return draw_figure("Threshold", alt, draw)


def dice_histogram_figure(dice: Real[np.ndarray, "cases"]) -> Figure:
    """Draw how many cases reach which Dice, with mean and median."""
    values = np.asarray(dice, dtype=np.float64)

    def draw(axes: "Axes") -> None:
        axes.hist(values, bins=20, range=(0, 1), color=COLOURS[0], alpha=0.75, rwidth=0.92)
        for number, (name, value) in enumerate(_centres(values).items()):
            style = ("-", ":")[number]
            axes.axvline(value, color=INK, linestyle=style, label=f"{name} {value:.3f}")
        axes.set(xlabel="Dice of a case", ylabel="cases", xlim=(0, 1))
        _whole_ticks(axes.yaxis)
        if values.size:
            axes.legend(loc="upper left")

    centres = ", ".join(f"{name} {value:.3f}" for name, value in _centres(values).items())
    return draw_figure("Dice of each case", f"Histogram of {values.size} cases; {centres}.", draw)


def volume_figure(
    found_ml: Real[np.ndarray, "cases"], truth_ml: Real[np.ndarray, "cases"]
) -> Figure:
    """Draw found over true volumes with the line of equality."""
    found, truth = np.asarray(found_ml, np.float64), np.asarray(truth_ml, np.float64)
    top = 1.05 * max(float(np.max([found, truth], initial=0.0)), 1e-3)

    def draw(axes: "Axes") -> None:
        axes.plot([0, top], [0, top], color=GREY, linestyle="--", linewidth=1, label="equal")
        axes.scatter(truth, found, s=22, color=COLOURS[0], alpha=0.8, linewidths=0)
        axes.set(xlabel="true volume (ml)", ylabel="found volume (ml)")
        axes.set(xlim=(0, top), ylim=(0, top), aspect="equal")
        axes.legend(loc="upper left")

    return draw_figure("Volumes", f"Found over true volume of {found.size} cases.", draw)


def bland_altman_figure(
    found_ml: Real[np.ndarray, "cases"], truth_ml: Real[np.ndarray, "cases"]
) -> Figure:
    """Draw the difference over the mean of two volumes, with bias and limits of agreement.

    Limits are bias +- 1.96 standard deviations (Bland and Altman, Lancet 1986).
    """
    found, truth = np.asarray(found_ml, np.float64), np.asarray(truth_ml, np.float64)
    gaps = found - truth
    bias = float(gaps.mean()) if gaps.size else 0.0
    reach = 1.96 * float(gaps.std(ddof=1)) if gaps.size > 1 else 0.0

    def draw(axes: "Axes") -> None:
        axes.axhline(0, color=GREY, linewidth=0.8)
        axes.axhline(bias, color=INK, label=f"bias {bias:+.1f} ml")
        axes.axhline(bias - reach, color=INK, linestyle=":")
        axes.axhline(bias + reach, color=INK, linestyle=":", label="limits of agreement")
        axes.scatter((found + truth) / 2, gaps, s=22, color=COLOURS[0], alpha=0.8, linewidths=0)
        axes.set(xlabel="mean of found and true volume (ml)", ylabel="found - true (ml)")
        axes.margins(y=0.1)
        legend_above(axes, columns=2)

    limits = f"limits of agreement {bias - reach:.1f} to {bias + reach:.1f} ml"
    return draw_figure("Volume differences", f"Bias {bias:.1f} ml, {limits}.", draw)


def training_figure(rows: Sequence[Mapping[str, Any]], name: str) -> Figure:
    """Draw one named value over epochs, a line a split.

    Args:
        rows: of `metrics.jsonl`: `epoch`, `split`, `name`, `value`; several of one epoch and split
            are averaged, values that are missing or not finite are left out.
        name: which one.
    """
    series: dict[str, dict[float, list[float]]] = {}
    for row in rows:
        value = row["value"] if row["name"] == name else None
        if value is not None and np.isfinite(value):
            series.setdefault(row["split"], {}).setdefault(row["epoch"], []).append(value)

    def draw(axes: "Axes") -> None:
        for colour, (split, epochs) in coloured(dict(sorted(series.items()))):
            known = sorted(epochs)
            means = [float(np.mean(epochs[epoch])) for epoch in known]
            marker = "o" if len(known) < 30 else None
            axes.plot(known, means, color=colour, marker=marker, markersize=4, label=split)
        axes.set(xlabel="epoch", ylabel=name)
        _whole_ticks(axes.xaxis)
        if series:
            axes.legend()

    lasts = [
        f"{split} ends at {np.mean(epochs[max(epochs)]):.4g}"
        for split, epochs in sorted(series.items())
    ]
    return draw_figure(f"Training: {name}", f"{name} over epochs; {', '.join(lasts)}.", draw)


def draw_figure(title: str, alt: str, draw: "Callable[[Axes], None]") -> Figure:
    """Return what a function draws into fresh axes."""
    import io

    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Canvas

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_SETTINGS)
        canvas = Canvas(figsize=_SIZE_INCHES, layout="constrained")
        FigureCanvasSVG(canvas)
        canvas.patch.set_alpha(0)
        draw(canvas.add_subplot())
        out = io.StringIO()
        canvas.savefig(out, format="svg", metadata={"Date": None})
    return Figure(svg=_page_svg(out.getvalue()), title=title, alt=alt)


def _page_svg(svg: str) -> str:
    """Return matplotlib's SVG as an element of a page: no prologue, no metadata, the page's ink."""
    element = svg[svg.index("<svg") :].rstrip()
    element = re.sub(r"\s*<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    element = re.sub(r' (?:width|height)="[\d.]+pt"', "", element, count=2)
    return element.replace(INK, "currentColor")


def _unit_square(axes: "Axes", xlabel: str, ylabel: str) -> None:
    axes.set(xlabel=xlabel, ylabel=ylabel, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))


def legend_above(axes: "Axes", *, columns: int) -> None:
    """Put the legend above the axes, where it hides no line."""
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=columns)


def _whole_ticks(axis: "Axis") -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True))


def coloured(named: Mapping[str, Any]) -> list[tuple[str, tuple[str, Any]]]:
    """Return a colour for each named item."""
    return [(COLOURS[n % len(COLOURS)], item) for n, item in enumerate(named.items())]


def _centres(values: np.ndarray) -> dict[str, float]:
    if not values.size:
        return {}
    return {"mean": float(values.mean()), "median": float(np.median(values))}


def _names(named: Mapping[str, Any]) -> str:
    return ", ".join(named)


def _clipped(name: str) -> str:
    return name if len(name) <= 18 else name[:17] + "…"
