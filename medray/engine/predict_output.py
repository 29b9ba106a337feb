"""What is written of one case: mask, result and picture, the mask read back before it counts."""

import io
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from medray import storage
from medray.datasets.conformity import Conformity
from medray.engine.convert_task import write_volume
from medray.engine.ledger import content_key
from medray.engine.package import NOTICE
from medray.engine.predict_planar import FoundBox, boxes_json
from medray.errors import DataError
from medray.learning import Prediction
from medray.pictures import boxes_picture, prediction_picture
from medray.volume import Image2D, Volume

# A format that is no file of a case: one table of all of them.
SUBMISSION = "submission"
# The original pancreas program's file: the same mask, not packed.
COMPAT, COMPAT_NAME = "compat", "prediction.nii"
MASK_NAME, RESULT_NAME, PICTURE_NAME = "prediction.nii.gz", "prediction.json", "preview.png"
SEG_NAME = "prediction.seg.dcm"
FILE_NAMES = {"json": RESULT_NAME, "nifti": MASK_NAME, "png": PICTURE_NAME, "seg": SEG_NAME}
# A mask without a voxel is an answer, and one that a reader must not miss.
_NOTHING_FOUND = "mask_empty"
# The series has no frame of reference, as anonymised ones do: other formats are written.
NO_SEG = "seg_no_geometry"
_SHOWN_SCORES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A case with what the model said of it.

    Attributes:
        key, series_uid: of the case.
        image: the volume; of several images the one that the prediction is of.
        prediction: of the volume, or of the image with the highest score.
        flags: what a reader of the result should know.
        status: `complete`, or `partial` where some of its images could not be used.
        sop_uid: of the image that the prediction is of; empty for a volume and outside DICOM.
        conformity: how much the case is like the training images; None where nobody looked.
        boxes: on all images of the case.
        images: what a challenge's table needs of each image.
        segment: what the mask marks, a word of `dicom.seg_terms`.
        headers: of the source's instances, where a segmentation is wanted.
        source_sha256: over the hashes of the source's files.
    """

    key: str
    series_uid: str
    image: Volume | Image2D
    prediction: Prediction
    flags: tuple[str, ...] = ()
    status: str = "complete"
    sop_uid: str = ""
    conformity: Conformity | None = None
    boxes: tuple[FoundBox, ...] = ()
    images: tuple[Mapping[str, Any], ...] = ()
    segment: str = ""
    headers: tuple[Any, ...] = ()
    source_sha256: str = ""

    @property
    def mask(self) -> Volume | None:
        """The predicted mask, where the image lies."""
        found = self.prediction
        if found.mask is None or not isinstance(self.image, Volume):
            return None
        affine = self.image.affine_lps if found.affine_lps is None else found.affine_lps
        return replace(self.image, array=found.mask, affine_lps=affine)

    @property
    def can_be_segmentation(self) -> bool:
        """Tell whether there are instances that a segmentation can refer to, and a word for it."""
        return bool(self.headers and self.segment)

    def with_flag(self, flag: str) -> "Answer":
        """Return the answer with one more flag."""
        return replace(self, flags=tuple(sorted({*self.flags, flag})))


def write_case(
    out: str, answer: Answer, facts: Mapping[str, Any], formats: Sequence[str]
) -> dict[str, Any]:
    """Write a case's folder and return its row of results.parquet.

    Args:
        out: of the run.
        answer: what is written.
        facts: content of model.json.
        formats: `nifti` (of masks), `json`, `png`.

    Raises:
        DataError: output_mismatch (nothing is left of the mask), no_geometry, sink_full,
            sink_denied.
    """
    mask = answer.mask
    if mask is not None and not np.any(mask.array):
        answer = answer.with_flag(_NOTHING_FOUND)
    outputs = []
    if "nifti" in formats and mask is not None:
        outputs.append(f"{answer.key}/{MASK_NAME}")
        write_volume(storage.join(out, outputs[-1]), mask, gz=True, proof=True)
    if "seg" in formats and answer.can_be_segmentation and mask is not None:
        try:
            data = _seg(answer, mask, facts)
        except DataError as error:
            if error.reason != "no_geometry":
                raise
            answer = answer.with_flag(NO_SEG)
        else:
            outputs.append(f"{answer.key}/{SEG_NAME}")
            storage.write_atomic(storage.join(out, outputs[-1]), data)
    if COMPAT in formats and mask is not None:
        outputs.append(f"{answer.key}/{COMPAT_NAME}")
        write_volume(storage.join(out, outputs[-1]), mask, gz=False, proof=True)
    result = case_result(answer, facts)
    if "png" in formats:
        outputs.append(f"{answer.key}/{PICTURE_NAME}")
        storage.write_atomic(storage.join(out, outputs[-1]), _picture(answer, result, facts))
    if "json" in formats:
        outputs.append(f"{answer.key}/{RESULT_NAME}")
        storage.write_json(storage.join(out, outputs[-1]), case_document([result], facts))
    return {
        **{name: result[name] for name in ("key", "series_uid", "status", "score", "label")},
        "volume_ml": result["volume_ml"],
        "conformity": (result["conformity"] or {}).get("score"),
        "flags": sorted({*result["flags"], *(result["conformity"] or {}).get("flags", ())}),
        "outputs": sorted(outputs),
        "weights_sha256": facts["weights_sha256"],
    }


def case_result(
    answer: Answer, facts: Mapping[str, Any], inference: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the result object of one case (docs/DESIGN section 6).

    Args:
        answer: of the case.
        facts: content of model.json.
        inference: parameters in place of the package's own.
    """
    found, names = answer.prediction, facts["labels"]
    chosen = {**facts["inference"], **(inference or {})}
    score = found.score
    if score is None and found.scores:
        score = found.scores[found.label]
    result = {
        "key": answer.key,
        "series_uid": answer.series_uid,
        "sop_uid": answer.sop_uid or None,
        "status": answer.status,
        "label": names[found.label] if found.label >= 0 else None,
        "score": score,
        "class_scores": dict(zip(names, found.scores, strict=True)) if found.scores else {},
        "boxes": boxes_json(answer.boxes, names),
        "volume_ml": found.volume_ml,
        "threshold": chosen.get("threshold"),
        "conformity": None if answer.conformity is None else answer.conformity.to_json(),
        "flags": list(answer.flags),
    }
    if "mask_threshold" in chosen:
        result["mask_threshold"] = chosen["mask_threshold"]
    return result


def case_document(
    results: Sequence[Mapping[str, Any]], facts: Mapping[str, Any], *, model: str = ""
) -> dict[str, Any]:
    """Return results with what says where they come from.

    Args:
        results: of `case_result`.
        facts: content of model.json.
        model: its name where it has one; else the task's.
    """
    return {
        "model": model or facts["task"],
        "version": facts["version"],
        "weights_sha256": facts["weights_sha256"],
        "notice": NOTICE,
        "results": [dict(result) for result in results],
    }


def answer_file(
    answer: Answer, result: Mapping[str, Any], facts: Mapping[str, Any], kind: str
) -> tuple[str, bytes] | None:
    """Return one file of an answer by name and bytes, proven like those of `write_case`.

    Args:
        answer: of the case.
        result: of `case_result`.
        facts: content of model.json.
        kind: `png`, `nifti` or `seg`.

    Returns:
        None where the answer has no such file.

    Raises:
        DataError: output_mismatch or no_geometry.
    """
    if kind == "png":
        return PICTURE_NAME, _picture(answer, result, facts)
    mask = answer.mask
    if mask is None or (kind == "seg" and not answer.can_be_segmentation):
        return None
    if kind == "seg":
        return SEG_NAME, _seg(answer, mask, facts)
    with tempfile.TemporaryDirectory(prefix="medray-") as folder:
        where = storage.join(folder, MASK_NAME)
        write_volume(where, mask, gz=True, proof=True)
        return MASK_NAME, storage.read_bytes(where)


def _seg(answer: Answer, mask: Volume, facts: Mapping[str, Any]) -> bytes:
    """Return a mask as a DICOM Segmentation of its source, read back and compared.

    Raises:
        DataError: output_mismatch; no_geometry where the source has no frame of reference.
    """
    import medray
    from medray.dicom.seg import SegFacts
    from medray.dicom.seg_proof import proven_seg
    from medray.dicom.seg_source import seg_source
    from medray.dicom.seg_terms import segment_term

    said = SegFacts(
        term=segment_term(answer.segment),
        algorithm=facts["task"],
        algorithm_version=facts["version"],
        software_version=medray.__version__,
        weights_sha256=facts["weights_sha256"],
        notice=NOTICE,
        # Not of a clock: the same work gives the same bytes.
        run_id=content_key(answer.source_sha256, facts["weights_sha256"], facts["inference"]),
        source_sha256=answer.source_sha256,
    )
    return proven_seg(mask.array, mask.affine_lps, seg_source(answer.headers), said)


def _picture(answer: Answer, result: Mapping[str, Any], facts: Mapping[str, Any]) -> bytes:
    """Return the telling slice with the mask's outline and what the model says."""
    from PIL import Image

    lines = []
    if result["label"] is not None:
        limit = result["threshold"]
        beside = "" if limit is None else f", threshold {limit:.3g}"
        lines.append(f"{result['label']}: score {result['score']:.3f}{beside}")
    legend = "" if answer.mask is None else f"predicted mask, {result['volume_ml']:.1f} ml"
    lines += [facts["task"], "For research use only."]
    image = answer.image
    if isinstance(image, Volume):
        legend = "" if answer.mask is None else f"predicted mask, {result['volume_ml']:.1f} ml"
        rgb = prediction_picture(image, answer.mask, legend, lines)
    else:
        rgb = _boxes_picture(image, answer.prediction, lines)
    out = io.BytesIO()
    Image.fromarray(rgb).save(out, format="PNG")
    return out.getvalue()


def _boxes_picture(image: Image2D, found: Prediction, lines: Sequence[str]) -> np.ndarray:
    boxes, legend = found.boxes_xyxy_px, ""
    if boxes is not None:
        scores = ", ".join(f"{score:.2f}" for score in found.box_scores[:_SHOWN_SCORES])
        legend = f"{len(boxes)} found" + (f": {scores}" if scores else "")
    return boxes_picture(image, np.zeros((0, 4)) if boxes is None else boxes, legend, lines)
