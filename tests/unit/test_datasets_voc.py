import time
import tracemalloc

import pytest

from medray.datasets.box_checks import check_boxes, finite_number
from medray.datasets.voc import parse_voc
from medray.errors import DataError

GOOD = b"""<annotation><size><width>512</width><height>400</height><depth>1</depth></size>
<object><name> a </name>
<bndbox><ymax>40</ymax><xmin>10</xmin><xmax>30</xmax><ymin>20</ymin></bndbox>
</object><object><name/><bndbox><xmin>1.5</xmin><ymin>2</ymin><xmax>3</xmax><ymax>4</ymax></bndbox>
</object></annotation>"""


def test_children_of_bndbox_may_come_in_any_order():
    found = parse_voc(GOOD)
    assert found.boxes_xyxy_px == ((10, 20, 30, 40), (1.5, 2, 3, 4))
    assert found.names == ("a", "")
    assert (found.width, found.height) == (512, 400)


def test_no_size_and_no_object():
    found = parse_voc(b"<annotation/>")
    assert (found.width, found.height, found.boxes_xyxy_px) == (0, 0, ())


LAUGHS = (
    b'<!DOCTYPE l [<!ENTITY a "ha">'
    + b"".join(b'<!ENTITY %c "&%c;&%c;&%c;">' % (n + 1, n, n, n) for n in range(97, 110))
    + b"]><annotation>&n;</annotation>"
)
BOX = (
    b"<annotation><object><bndbox><xmin>%s</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax>"
    b"</bndbox></object></annotation>"
)
HOSTILE = {
    "billion laughs": LAUGHS,
    "quadratic blow-up": b'<!DOCTYPE q [<!ENTITY a "'
    + b"a" * 60_000
    + b'">]><annotation>'
    + b"&a;" * 200
    + b"</annotation>",
    "external entity": b'<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><a>&e;</a>',
    "external dtd": b'<!DOCTYPE annotation SYSTEM "http://127.0.0.1/x.dtd"><annotation/>',
    "parameter entity": b'<!DOCTYPE x [<!ENTITY % p SYSTEM "file:///etc/hosts"> %p;]><a/>',
    "deep nesting": b"<annotation>" + b"<a>" * 300_000 + b"</a>" * 10,
    "many elements": b"<annotation>" + b"<a/>" * 250_000 + b"</annotation>",
    "too large": b"<annotation>" + b" " * (1 << 20) + b"</annotation>",
    "unknown encoding": b'<?xml version="1.0" encoding="x-evil"?><annotation/>',
    "no end": b"<annotation><object>",
    "not xml": b"\x00\x01\x02PK",
    "nothing": b"",
    "other root": b"<svg/>",
    "infinite number": BOX % b"1e400",
    "not a number": BOX % b"nan",
    "huge number": BOX % (b"9" * 500_000),
    "words": BOX % b"left",
    "absurd number": BOX % b"1e7",
    "no box": b"<annotation><object><name>A</name></object></annotation>",
    "repeated corner": BOX % b"1</xmin><xmin>2",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_xml_is_refused_fast(name):
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        with pytest.raises(DataError, match="annotation_invalid"):
            parse_voc(HOSTILE[name])
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < 0.05
    tracemalloc.start()
    with pytest.raises(DataError):
        parse_voc(HOSTILE[name])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10 << 20


@pytest.mark.parametrize(
    "box", [(5, 5, 5, 9), (9, 1, 5, 9), (-1, 0, 5, 5), (0, 0, 11, 5), (0, 0, 5, 8)]
)
def test_boxes_outside_or_without_area(box):
    with pytest.raises(DataError, match="box_out_of_image"):
        check_boxes([box], width=10, height=7)


def test_boxes_on_the_edge_are_inside():
    check_boxes([(0, 0, 10, 7)], width=10, height=7)


@pytest.mark.parametrize("text", [None, "", "x", "inf", "-nan", "1e9"])
def test_coordinates_are_finite_numbers(text):
    with pytest.raises(DataError, match="annotation_invalid"):
        finite_number(text)
