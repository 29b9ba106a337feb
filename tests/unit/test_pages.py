"""Report pages: valid, closed to the network, escaped, the same bytes again, with alternatives."""

import base64
import io
import subprocess
import sys
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from medray import figures, pages
from medray.metrics import calibration, overlap, ranking

RNG = np.random.default_rng(0)
EVIL = "<script>alert('$x_1$')</script>&\"$"
VOID = {"meta", "img", "br", "link", "hr"}


class Outline(HTMLParser):
    """Notes elements, attributes and text, and whether each element is closed in turn."""

    def __init__(self):
        super().__init__()
        self.open, self.elements, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def named(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def read(page: str) -> Outline:
    outline = Outline()
    outline.feed(page)
    outline.close()
    assert outline.open == []
    return outline


def every_figure(name: str = "lesion") -> list[figures.Figure]:
    positive = RNG.random(60) < 0.4
    scores = np.clip(0.4 * positive + 0.6 * np.random.default_rng(1).random(60), 0, 1)
    truth = np.zeros((4, 4), bool)
    truth[:2] = True
    histogram = overlap.probability_histogram(np.linspace(1, 0, 16).reshape(4, 4), truth)
    rows = [
        {"step": e, "epoch": e, "split": split, "name": name, "value": value}
        for e, value in enumerate([1.0, 0.5, None, float("nan"), 0.3])
        for split in ("train", "val")
    ]
    found, true = np.array([10.0, 22.0, 29.0]), np.array([11.0, 20.0, 30.0])
    return [
        figures.roc_figure({name: ranking.roc_curve(scores, positive)}, point=(0.2, 0.9)),
        figures.pr_figure({name: ranking.pr_curve(scores, positive)}, prevalence=0.4),
        figures.reliability_figure(calibration.reliability(scores, positive)),
        figures.confusion_figure(np.array([[5, 1], [2, 7]]), ("none", name)),
        figures.threshold_figure(overlap.threshold_curve(histogram[None]), chosen=0.5),
        figures.dice_histogram_figure(np.array([0.2, 0.8, 0.9])),
        figures.volume_figure(found, true),
        figures.bland_altman_figure(found, true),
        figures.training_figure(rows, name),
    ]


@pytest.fixture(scope="module")
def drawn() -> list[figures.Figure]:
    return every_figure()


def some_page(drawn, text: str = "plain") -> pages.Page:
    rgb = np.arange(8 * 6 * 3, dtype=np.uint8).reshape(8, 6, 3)
    return pages.Page(
        task="lung_classification", title=text, split=text, model_version=text,
        weights_sha256="ab" * 32, facts={"Patients": 12, text: text, "Threshold": 0.25},
        warnings=[f"{text}: gates were off"],
        metrics=[
            pages.MetricRow(name="dice", value=0.81234, ci95=(0.75, 0.9), n=12, baseline=0.5),
            pages.MetricRow(name=text, value=float("nan"), ci95=(float("nan"), 1.0)),
        ],
        figures=drawn,
        pictures=[pages.Pictures(title=text, pictures=[pages.Picture(rgb=rgb, caption=text)])],
        tables=[pages.Table(title=text, columns=("a", text), rows=[(text, 1234.5), ("b", None)])],
        notes=[text],
    )  # fmt: skip


def test_a_page_shows_what_it_is_given(drawn):
    outline = read(pages.render_page(some_page(drawn)))
    text = " ".join(outline.text)
    for expected in (
        "lung_classification",
        "ab" * 32,
        "0.8123",
        "0.7500 to 0.9000",
        "0.5000",
        "plain: gates were off",
    ):
        assert expected in text
    assert pages.NOTICE == "For research use only. Not a medical device."
    assert text.count(pages.NOTICE) == 2
    assert "nan" not in text.split()
    for figure in drawn:
        assert figure.title in text


def test_pictures_and_figures_have_words_for_those_who_cannot_see(drawn):
    outline = read(pages.render_page(some_page(drawn)))
    assert all(image["alt"] for image in outline.named("img"))
    drawings = outline.named("svg")
    assert len(drawings) == len(drawn) == 9
    assert all(one["role"] == "img" and len(one["aria-label"]) > 20 for one in drawings)
    assert outline.named("html") == [{"lang": "en"}]
    assert {cell["scope"] for cell in outline.named("th")} == {"col", "row"}


def test_a_page_needs_no_script_and_no_network(drawn):
    page = pages.render_page(some_page(drawn))
    outline = read(page)
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in outline.elements}
    for _, attributes in outline.elements:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href", "srcset", "action"):
                assert value.startswith(("#", "data:image/png;base64,"))
    assert "@import" not in page
    assert page.count("url(") == page.count("url(#")
    assert "default-src 'none'" in page


def test_every_text_is_escaped():
    """Text from names is shown as it is, neither as HTML nor as a formula."""
    page = pages.render_page(some_page(every_figure(EVIL), EVIL))
    assert "<script" not in page
    outline = read(page)
    assert "".join(outline.text).count(EVIL) >= 8
    assert outline.named("img")[0]["alt"] == f"{EVIL}: {EVIL}"


def test_ids_are_the_figures_own(drawn):
    outline = read(pages.render_page(some_page([*drawn, *drawn])))
    ids = [attributes["id"] for _, attributes in outline.elements if "id" in attributes]
    assert len(ids) == len(set(ids)) > 100
    for _, attributes in outline.elements:
        link = attributes.get("xlink:href", "#")
        assert link == "#" or link[1:] in ids


def test_figures_are_svg_in_the_pages_ink(drawn):
    for figure in drawn:
        root = ElementTree.fromstring(figure.svg)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert "currentColor" in figure.svg
        for unwanted in ("metadata", "#010203", "#000000", "#ffffff", "<?xml", "matplotlib.org"):
            assert unwanted not in figure.svg
        assert figure.alt.endswith(".")


def test_the_same_page_is_the_same_bytes_whatever_the_users_settings(drawn):
    import matplotlib as mpl

    rng_state = RNG.bit_generator.state
    first = pages.render_page(some_page(every_figure()))
    with mpl.rc_context({"font.size": 30, "svg.hashsalt": None, "lines.linewidth": 9}):
        RNG.bit_generator.state = rng_state
        assert pages.render_page(some_page(every_figure())) == first
        assert mpl.rcParams["font.size"] == 30


def test_pictures_are_kept_pixel_by_pixel():
    page = some_page([])
    uri = read(pages.render_page(page)).named("img")[0]["src"]
    png = base64.b64decode(uri.removeprefix("data:image/png;base64,"))
    assert (np.asarray(Image.open(io.BytesIO(png))) == page.pictures[0].pictures[0].rgb).all()


def test_empty_parts_are_left_out():
    page = pages.render_page(pages.Page(task="t", title="Evaluation"))
    assert "<h2>" not in page
    assert "<table" not in page
    assert "Split" not in page


def test_figures_of_little_data():
    nothing = np.zeros(0)
    assert "0 cases" in figures.dice_histogram_figure(nothing).alt
    assert figures.volume_figure(nothing, nothing).svg
    assert figures.bland_altman_figure(np.ones(1), np.ones(1)).alt.startswith("Bias 0.0 ml")
    assert figures.training_figure([], "loss").svg


def test_alternatives_tell_the_numbers():
    found, true = np.array([12.0, 18.0]), np.array([10.0, 20.0])
    spread = 1.96 * np.std([2, -2], ddof=1)
    alt = figures.bland_altman_figure(found, true).alt
    assert alt == f"Bias 0.0 ml, limits of agreement {-spread:.1f} to {spread:.1f} ml."
    rows = [
        {"epoch": 1, "split": "val", "name": "loss", "value": 4.0},
        {"epoch": 2, "split": "val", "name": "loss", "value": 1.0},
        {"epoch": 2, "split": "val", "name": "loss", "value": 2.0},
        {"epoch": 2, "split": "val", "name": "dice", "value": 9.0},
    ]
    assert figures.training_figure(rows, "loss").alt == "loss over epochs; val ends at 1.5."


def test_metric_rows_of_a_report():
    report = {
        "dice": {"value": 0.8, "ci95": [0.7, 0.9], "n": 10},
        "auroc": {"value": None, "ci95": [None, None], "n": 10},
        "hd95_mm": {"value": 5},
    }
    rows = pages.metric_rows(report, {"dice": 0.1, "hd95_mm": {"value": 50.0}})
    assert rows[0] == pages.MetricRow(name="dice", value=0.8, ci95=(0.7, 0.9), n=10, baseline=0.1)
    assert rows[1] == pages.MetricRow(name="auroc", value=None, n=10)
    assert rows[2] == pages.MetricRow(name="hd95_mm", value=5.0, baseline=50.0)


def test_a_picture_of_another_kind_raises():
    for rgb in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)):
        grid = pages.Pictures(title="x", pictures=[pages.Picture(rgb=rgb, caption="k")])
        with pytest.raises(ValueError, match=r"\(height, width, 3\) uint8"):
            pages.render_page(pages.Page(task="t", title="x", pictures=[grid]))


def test_neither_torch_nor_matplotlib_comes_with_the_import():
    code = (
        "import sys, medray.pages, medray.metrics.surface, medray.metrics.bootstrap;"
        "print([m for m in ('torch', 'matplotlib', 'scipy', 'ray') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
