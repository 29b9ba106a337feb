"""Checks that every box of a label file passes before it becomes a box of a record."""

import math
from collections.abc import Iterable

from medray.errors import DataError

Box = tuple[float, float, float, float]
# No image is larger; a number beyond is a fault of the file, not a place outside the image.
_MAX_PX = 1e6


def finite_number(text: str | float | int | None) -> float:
    """Read a coordinate of a label file.

    Raises:
        DataError: `annotation_invalid` if it is no number, not finite or absurd.
    """
    try:
        value = float("" if text is None else text)
    except ValueError:
        raise DataError("annotation_invalid", "a coordinate is no number") from None
    if not math.isfinite(value) or abs(value) > _MAX_PX:
        raise DataError("annotation_invalid", "a coordinate is not finite or out of any range")
    return value


def check_boxes(boxes: Iterable[Box], *, width: float, height: float) -> None:
    """Refuse boxes without area or beyond their image; edges count as inside.

    Raises:
        DataError: `box_out_of_image`.
    """
    for x0, y0, x1, y1 in boxes:
        if x1 <= x0 or y1 <= y0:
            raise DataError("box_out_of_image", "a box has no area or is inverted")
        if x0 < 0 or y0 < 0 or x1 > width or y1 > height:
            raise DataError("box_out_of_image", "a box reaches beyond its image")
