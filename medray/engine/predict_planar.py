"""A case of single images through a model: each by itself, what is found put together."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from medray.datasets.conformity import Conformity, conformity
from medray.datasets.loading import load_sample
from medray.datasets.record import ImageSource, Record, Sample
from medray.engine.case import Steps
from medray.engine.interpreter import Interpreter
from medray.engine.prepare_task import CountingReader
from medray.engine.upstream import Upstream, predict_steps
from medray.errors import DataError
from medray.learning import Prediction
from medray.volume import Image2D

# Enough to keep the cores busy, few enough for slices of any size in memory.
_AT_ONCE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundBox:
    """A box with the image that it lies on.

    Attributes:
        box_xyxy_px: (4,) in pixels of that image.
        box_xyxy_mm: the same from the image's upper left corner, None without a pixel size.
        label: class index.
    """

    box_xyxy_px: tuple[float, ...]
    box_xyxy_mm: tuple[float, ...] | None
    score: float
    label: int
    sop_uid: str


@dataclass(slots=True, kw_only=True)
class PlanarAnswer:
    """What was found on all images of a case.

    Attributes:
        best: the prediction of the image with the highest score; the case's label and scores.
        image: that image, for the picture.
        sop_uid: of that image.
        boxes: of all images, best first.
        images: score, side and boxes of each image: what a challenge's table is made of.
        conformities: of the images that were read.
        refused: reason to number of images that could not be used.
        first_error: of these.
    """

    best: Prediction | None = None
    image: Image2D | None = None
    sop_uid: str = ""
    boxes: list[FoundBox] = field(default_factory=list)
    images: list[dict[str, Any]] = field(default_factory=list)
    conformities: list[Conformity] = field(default_factory=list)
    refused: dict[str, int] = field(default_factory=dict)
    first_error: DataError | None = None

    def refuse(self, error: DataError) -> None:
        """Count an image that cannot be used."""
        self.refused[error.reason] = self.refused.get(error.reason, 0) + 1
        self.first_error = self.first_error or error

    def take(self, image: Image2D, prediction: Prediction, sop_uid: str) -> None:
        """Add what was found on one image."""
        own = _boxes(image, prediction, sop_uid)
        self.boxes += own
        self.images.append(
            {
                "key": sop_uid,
                "laterality": str(image.meta.get("laterality", "")),
                "score": _score(prediction),
                "boxes_xyxy_px": [list(box.box_xyxy_px) for box in own],
                "box_scores": [box.score for box in own],
            }
        )
        if self.best is None or _score(prediction) > _score(self.best):
            self.best, self.image, self.sop_uid = prediction, image, sop_uid


def planar_steps(
    interpreter: Interpreter,
    source: ImageSource,
    sop_uids: Sequence[str],
    reader: CountingReader,
    chain: Sequence[Upstream] = (),
) -> Steps[PlanarAnswer]:
    """Say what a model makes of all images of a source.

    An image that cannot be used is counted; the others go on.

    Raises:
        DataError: of the first image, where none can be used.
    """
    answer = PlanarAnswer()
    group: list[tuple[Sample, str]] = []
    for sample, sop_uid in _samples(source, sop_uids, reader):
        if isinstance(sample, DataError):
            answer.refuse(sample)
            continue
        answer.conformities.append(conformity(sample, interpreter.facts["fingerprint"]))
        group.append((sample, sop_uid))
        if len(group) == _AT_ONCE:
            yield from _group_steps(interpreter, group, chain, answer)
            group = []
    if group:
        yield from _group_steps(interpreter, group, chain, answer)
    if answer.best is None:
        raise answer.first_error or DataError("no_pixels", "the case holds no image")
    answer.boxes.sort(key=lambda box: (-box.score, box.sop_uid, box.box_xyxy_px))
    return answer


def _group_steps(
    interpreter: Interpreter,
    group: Sequence[tuple[Sample, str]],
    chain: Sequence[Upstream],
    answer: PlanarAnswer,
) -> Steps[None]:
    """Predict a few images; where one of them is refused, each by itself."""
    try:
        found = yield from predict_steps(interpreter, [sample for sample, _ in group], chain)
    except DataError as error:
        if len(group) == 1:
            answer.refuse(error)
            return
        for one in group:
            yield from _group_steps(interpreter, [one], chain, answer)
        return
    for (sample, sop_uid), prediction in zip(group, found, strict=True):
        assert isinstance(sample.image, Image2D)
        answer.take(sample.image, prediction, sop_uid)


def _samples(
    source: ImageSource, sop_uids: Sequence[str], reader: CountingReader
) -> Iterator[tuple[Sample | DataError, str]]:
    """Yield each image of a source, or why it cannot be read."""
    form = "image_file" if source.form == "image_file" else "instance"
    names = [*sop_uids, *[""] * (len(source.files) - len(sop_uids))]
    for file, sop_uid in zip(source.files, names, strict=True):
        one = replace(source, form=form, files=(file,))
        try:
            sample = load_sample(Record(name="", patient_id="", image=one), reader)
            # A slice amid others may be empty.
            if len(source.files) == 1 and np.ptp(sample.image.array) == 0:
                raise DataError("image_constant", "the image has one value only")
            yield sample, sop_uid
        except DataError as error:
            yield error, sop_uid


def _boxes(image: Image2D, prediction: Prediction, sop_uid: str) -> list[FoundBox]:
    if prediction.boxes_xyxy_px is None:
        return []
    found = []
    of_each = zip(
        prediction.boxes_xyxy_px, prediction.box_scores, prediction.box_labels, strict=True
    )
    for box, score, label in of_each:
        pixels = np.asarray(box, dtype=np.float64)
        size = image.spacing_yx_mm
        mm = None if size is None else tuple((pixels * np.tile(size[::-1], 2)).tolist())
        found.append(
            FoundBox(
                box_xyxy_px=tuple(pixels.tolist()),
                box_xyxy_mm=mm,
                score=float(score),
                label=int(label),
                sop_uid=sop_uid,
            )
        )
    return found


def _score(prediction: Prediction) -> float:
    if prediction.score is not None:
        return prediction.score
    return max(prediction.scores, default=0.0)


def boxes_json(boxes: Sequence[FoundBox], names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the boxes as the result object has them."""
    return [
        {
            "box_xyxy_px": list(box.box_xyxy_px),
            "box_xyxy_mm": None if box.box_xyxy_mm is None else list(box.box_xyxy_mm),
            "label": names[box.label] if names else str(box.label),
            "score": box.score,
            "sop_uid": box.sop_uid,
        }
        for box in boxes
    ]
