"""PASCAL VOC XML as LabelImg writes it, from files nobody vouches for."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from xml.etree.ElementTree import Element, ParseError, TreeBuilder

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import XMLParser

from medray.datasets.box_checks import Box, finite_number
from medray.errors import DataError

MAX_XML_BYTES = 1 << 20
_MAX_DEPTH = 20
# A slice with more is none that a person annotated; it also bounds time and memory.
_MAX_ELEMENTS = 5_000
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True, slots=True)
class VocAnnotation:
    """What one XML file says.

    Attributes:
        width, height: matrix that was annotated, 0 where the file does not say.
        boxes_xyxy_px: in pixels of that matrix, not yet checked against an image.
        names: class name of each box as written, possibly empty.
    """

    width: int
    height: int
    boxes_xyxy_px: tuple[Box, ...]
    names: tuple[str, ...]


class _BoundedBuilder:
    """Builds the element tree and stops at a depth or count that no annotation has."""

    def __init__(self) -> None:
        self._builder = TreeBuilder()
        self._depth = 0
        self._count = 0

    def start(self, tag: str, attributes: Mapping[str, str]) -> Element:
        self._depth += 1
        self._count += 1
        if self._depth > _MAX_DEPTH or self._count > _MAX_ELEMENTS:
            raise DataError(
                "annotation_invalid", "the XML is nested too deep or has too many elements"
            )
        return self._builder.start(tag, dict(attributes))

    def end(self, tag: str) -> Element:
        self._depth -= 1
        return self._builder.end(tag)

    def data(self, text: str) -> None:
        self._builder.data(text)

    def close(self) -> Element:
        return self._builder.close()


def parse_voc(data: bytes) -> VocAnnotation:
    """Read boxes and names; children of `bndbox` may come in any order.

    Raises:
        DataError: `annotation_invalid` for anything but a well-formed, bounded, plain VOC file.
    """
    if len(data) > MAX_XML_BYTES:
        raise DataError("annotation_invalid", "the XML is larger than one MiB")
    root = _parse(data)
    if root.tag != "annotation":
        raise DataError("annotation_invalid", "the XML is no VOC annotation")
    boxes, names = [], []
    for item in root.findall("object"):
        boxes.append(_box(item))
        names.append((item.findtext("name") or "").strip())
    return VocAnnotation(_size(root, "width"), _size(root, "height"), tuple(boxes), tuple(names))


def _parse(data: bytes) -> Element:
    parser: Any = XMLParser(target=_BoundedBuilder(), forbid_dtd=True)
    try:
        parser.feed(data)
        root = parser.close()
    except (ParseError, DefusedXmlException, ValueError, LookupError):
        raise DataError(
            "annotation_invalid", "the XML is malformed or uses a DTD or entities"
        ) from None
    if not isinstance(root, Element):
        raise DataError("annotation_invalid", "the XML has no element")
    return root


def _box(item: Element) -> Box:
    holder = item.find("bndbox")
    if holder is None:
        raise DataError("annotation_invalid", "an object has no bndbox")
    if any(len(holder.findall(name)) != 1 for name in _CORNERS):
        raise DataError("annotation_invalid", "a bndbox lacks or repeats a coordinate")
    x0, y0, x1, y1 = (finite_number(holder.findtext(name)) for name in _CORNERS)
    return x0, y0, x1, y1


def _size(root: Element, name: str) -> int:
    text = root.findtext(f"size/{name}")
    return int(finite_number(text)) if text and text.strip() else 0
