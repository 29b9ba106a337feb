"""A report as one HTML file: no script, no network, nothing of a patient, the same bytes again."""

import base64
import html
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import UInt8

from medray.figures import Figure

NOTICE = "For research use only. Not a medical device."
# What a page may load: the styles and pictures within itself, nothing else.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'"
_DASH = "&ndash;"
_STYLE = """
:root { color-scheme: light dark; --ink: #1b2430; --soft: #5b6673; --page: #f5f7f9; --card: #fff;
  --line: #d9dfe6; --mark: #2f7ed8; --warn: #fff3d6; --warn-ink: #5f4300; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6ebf0; --soft: #9aa7b4; --page: #12171d;
  --card: #1a2129; --line: #313c48; --warn: #3a2f12; --warn-ink: #ffe2a0; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 28px 20px 48px; }
h1 { font-size: 1.65rem; line-height: 1.25; margin: 0 0 14px; }
h2 { font-size: 1.15rem; margin: 36px 0 12px; }
.notice { background: var(--warn); color: var(--warn-ink); border-radius: 8px;
  padding: 8px 14px; margin: 0 0 20px; font-weight: 600; }
.warnings { border: 1px solid currentColor; font-weight: 400; }
.warnings p { margin: 2px 0; }
.facts { display: flex; flex-wrap: wrap; background: var(--card); border: 1px solid var(--line);
  border-radius: 8px; padding: 6px 14px; margin: 0; column-gap: 36px; }
.facts div { padding: 6px 0; min-width: 0; }
.facts .wide { flex-basis: 100%; }
dt { color: var(--soft); font-size: .8rem; }
dd { margin: 0; font-weight: 600; overflow-wrap: anywhere; }
.wide dd { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: .85rem;
  font-weight: 400; }
.table { overflow-x: auto; background: var(--card); border: 1px solid var(--line);
  border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 7px 14px; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
thead th { color: var(--soft); font-size: .8rem; font-weight: 600; }
tbody th { font-weight: 600; }
tbody tr { border-top: 1px solid var(--line); }
td.value { font-weight: 700; color: var(--mark); }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 440px), 1fr));
  gap: 16px; }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: 12px 14px; min-width: 0; }
figure svg { display: block; width: 100%; height: auto; }
figure svg text {
  font-family: system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif !important; }
figcaption { font-size: .85rem; color: var(--soft); }
.figures figcaption strong { display: block; color: var(--ink); font-size: .95rem; }
.figures svg { margin-top: 6px; }
.pictures { display: grid; gap: 12px;
  grid-template-columns: repeat(auto-fill, minmax(170px, 1fr)); }
.pictures figure { padding: 6px; }
.pictures img { display: block; width: 100%; height: auto; border-radius: 4px; background: #000;
  image-rendering: auto; }
.pictures figcaption { padding: 4px 2px 0; overflow-wrap: anywhere; }
.notes { padding-left: 20px; }
footer { margin-top: 36px; color: var(--soft); font-size: .85rem; }
@media print { body { background: none; } figure, .table { break-inside: avoid; } }
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricRow:
    """One line of the metric table; what is None or not finite is shown as a dash.

    Attributes:
        name: as in `report.json`.
        value: of the model.
        ci95: the 95 % interval's ends.
        n: how many cases or patients the value is of.
        baseline: the same metric of a trivial answer.
    """

    name: str
    value: float | None
    ci95: tuple[float, float] | None = None
    n: int | None = None
    baseline: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A further table; floats are shown with four digits, other cells as they are."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """An image with a line of text: the case's key and score, never a patient's id."""

    rgb: UInt8[np.ndarray, "height width 3"]
    caption: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """A titled grid of pictures, such as the worst, random or best cases."""

    title: str
    pictures: Sequence[Picture]


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What a report shows, from top to bottom; parts that are empty are left out.

    Attributes:
        task: the task's name.
        title: what the page is, such as "Evaluation".
        split: which split was judged.
        model_version: of the model.
        weights_sha256: of its weights.
        facts: further short facts: numbers of cases and patients, threshold.
        warnings: what a reader must know before the numbers.
        metrics: the metric table.
        figures: drawn figures.
        pictures: grids of pictures.
        tables: further tables.
        notes: sentences below.
    """

    task: str
    title: str
    split: str = ""
    model_version: str = ""
    weights_sha256: str = ""
    facts: Mapping[str, object] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    metrics: Sequence[MetricRow] = ()
    figures: Sequence[Figure] = ()
    pictures: Sequence[Pictures] = ()
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()


def metric_rows(
    metrics: Mapping[str, Mapping[str, object]], baseline: Mapping[str, object]
) -> list[MetricRow]:
    """Return table rows from the `metrics` and `baseline` objects of a `report.json`."""
    rows = []
    for name, entry in metrics.items():
        ends, other = entry.get("ci95"), baseline.get(name)
        n = entry.get("n")
        rows.append(
            MetricRow(
                name=name,
                value=_number(entry.get("value")),
                ci95=_ends(ends) if isinstance(ends, Sequence) else None,
                n=n if isinstance(n, int) else None,
                baseline=_number(other.get("value") if isinstance(other, Mapping) else other),
            )
        )
    return rows


def render_page(page: Page) -> str:
    """Return the report as HTML; write it as UTF-8.

    Raises:
        ValueError: a picture is not (height, width, 3) uint8.
    """
    title = html.escape(f"{page.title}: {page.task}")
    body = "\n".join(
        part
        for part in (
            _header(page),
            _metric_table(page.metrics),
            _figures(page.figures),
            *(_table(table) for table in page.tables),
            *(_pictures(grid) for grid in page.pictures),
            _notes(page.notes),
        )
        if part
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="referrer" content="no-referrer">
<title>{title}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
{body}
<footer><p>{NOTICE} Made by medray.</p></footer>
</main>
</body>
</html>
"""


def _header(page: Page) -> str:
    known = {
        "Task": page.task,
        "Split": page.split,
        "Model version": page.model_version,
        **page.facts,
    }
    facts = [_fact(name, value) for name, value in known.items() if value not in ("", None)]
    if page.weights_sha256:
        facts.append(_fact("Weights SHA-256", page.weights_sha256, kind=' class="wide"'))
    return f"""<header>
<h1>{html.escape(page.title)}: {html.escape(page.task)}</h1>
<p class="notice">{NOTICE}</p>
{_warnings(page.warnings)}<dl class="facts">
{chr(10).join(facts)}
</dl>
</header>"""


def _warnings(warnings: Sequence[str]) -> str:
    if not warnings:
        return ""
    lines = "\n".join(f"<p>{html.escape(line)}</p>" for line in warnings)
    return f'<div class="notice warnings" role="note">\n{lines}\n</div>\n'


def _fact(name: str, value: object, *, kind: str = "") -> str:
    return f"<div{kind}><dt>{html.escape(name)}</dt><dd>{_cell(value)}</dd></div>"


def _metric_table(metrics: Sequence[MetricRow]) -> str:
    if not metrics:
        return ""
    rows = [
        f'<tr><th scope="row">{html.escape(row.name)}</th>'
        f'<td class="value">{_cell(row.value)}</td><td>{_interval(row.ci95)}</td>'
        f"<td>{_cell(row.n)}</td><td>{_cell(row.baseline)}</td></tr>"
        for row in metrics
    ]
    columns = ("metric", "value", "95 % interval", "n", "baseline")
    return _section("Metrics", _table_html(columns, rows))


def _table(table: Table) -> str:
    rows = []
    for cells in table.rows:
        first, *others = (_cell(cell) for cell in cells)
        rest = "".join(f"<td>{cell}</td>" for cell in others)
        rows.append(f'<tr><th scope="row">{first}</th>{rest}</tr>')
    return _section(table.title, _table_html(table.columns, rows))


def _table_html(columns: Sequence[str], rows: Sequence[str]) -> str:
    head = "".join(f'<th scope="col">{html.escape(column)}</th>' for column in columns)
    return (
        f'<div class="table"><table><thead><tr>{head}</tr></thead>\n<tbody>\n'
        + "\n".join(rows)
        + "\n</tbody></table></div>"
    )


def _figures(figures: Sequence[Figure]) -> str:
    if not figures:
        return ""
    drawn = []
    for number, figure in enumerate(figures):
        alt, title = html.escape(figure.alt), html.escape(figure.title)
        svg = _own_ids(figure.svg, f"f{number}-")
        svg = svg.replace("<svg", f'<svg role="img" aria-label="{title}. {alt}"', 1)
        caption = f"<figcaption><strong>{title}</strong>{alt}</figcaption>"
        drawn.append(f"<figure>{caption}\n{svg}\n</figure>")
    return _section("Figures", f'<div class="figures">\n{chr(10).join(drawn)}\n</div>')


def _own_ids(svg: str, prefix: str) -> str:
    """Return a figure whose ids, and links to them, no other figure of the page shares."""
    return re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{prefix}", svg)


def _pictures(grid: Pictures) -> str:
    if not grid.pictures:
        return ""
    shown = []
    for picture in grid.pictures:
        caption = html.escape(picture.caption)
        alt = html.escape(f"{grid.title}: {picture.caption}")
        shown.append(
            f'<figure><img src="{_png_uri(picture.rgb)}" alt="{alt}">'
            f"<figcaption>{caption}</figcaption></figure>"
        )
    return _section(grid.title, f'<div class="pictures">\n{chr(10).join(shown)}\n</div>')


def _png_uri(rgb: np.ndarray) -> str:
    from PIL import Image

    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3:
        raise ValueError(f"a picture is (height, width, 3) uint8, got {rgb.shape} {rgb.dtype}")
    out = io.BytesIO()
    Image.fromarray(rgb).save(out, format="PNG", optimize=False, compress_level=6)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode("ascii")


def _notes(notes: Sequence[str]) -> str:
    if not notes:
        return ""
    items = "\n".join(f"<li>{html.escape(note)}</li>" for note in notes)
    return _section("Notes", f'<ul class="notes">\n{items}\n</ul>')


def _section(title: str, content: str) -> str:
    return f"<section>\n<h2>{html.escape(title)}</h2>\n{content}\n</section>"


def _ends(ends: Sequence[object]) -> tuple[float, float] | None:
    known = [number for end in ends if (number := _number(end)) is not None]
    return (known[0], known[1]) if len(known) == 2 == len(ends) else None


def _number(value: object) -> float | None:
    """Return a finite number as float, anything else as None."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        return None
    return float(value) if np.isfinite(value) else None


def _interval(ci95: tuple[float, float] | None) -> str:
    ends = None if ci95 is None else _ends(ci95)
    return _DASH if ends is None else f"{_cell(ends[0])} to {_cell(ends[1])}"


def _cell(value: object) -> str:
    if value is None:
        return _DASH
    if isinstance(value, float | np.floating):
        number = float(value)
        if not np.isfinite(number):
            return _DASH
        return f"{number:.0f}" if abs(number) >= 1000 else f"{number:#.4g}".rstrip(".")
    return html.escape(str(value))
