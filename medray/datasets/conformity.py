"""Whether an image is like those that a model was trained on; no training, no network.

The training's fingerprint travels in model.json; what is unusual is decided by how much the
training images differ among themselves (`medray.datasets.profile_reference`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medray.datasets.profile import PROFILE_VERSION, image_profile
from medray.datasets.profile_reference import Profile, deviations
from medray.datasets.record import Sample

FLAGS: dict[str, str] = {
    "modality_differs": "The file's modality is none of the training images'.",
    "colour_differs": "The image is in colour and the training images are grey, or the reverse.",
    "image_kind_unknown": "The file does not say its modality, so that was not compared.",
    "contrast_differs": (
        "Contrast agent: by the header or the brightness of soft tissue, the scan is unlike the "
        "training scans."
    ),
    "intensity_differs": (
        "The values are unlike the training images': other units, another rescale, an inversion "
        "or another kind of image."
    ),
    "anatomy_differs": (
        "Bright and dark lie elsewhere than in the training images: another body part, a flip or "
        "another crop."
    ),
    "noise_differs": "The image is far noisier or smoother than the training images.",
    "content_empty": "The image has one value only, or hardly any other.",
    "slice_thickness_differs": "The slices lie closer or farther than in the training images.",
    "spacing_differs": "The pixels in the plane are smaller or larger than the training images'.",
    "field_of_view_differs": "The image covers less or more than the training images do.",
}
"""Every flag with one sentence: what it means."""

# A score below this has at least one flag that was measured.
REFUSE_BELOW = 0.5
_FLAG_OF = {
    "levels": "intensity_differs",
    "shape": "intensity_differs",
    "soft": "contrast_differs",
    "layout": "anatomy_differs",
    "roughness": "noise_differs",
    "content": "content_empty",
    "slice_mm": "slice_thickness_differs",
    "pixel_mm": "spacing_differs",
    "extent_z_mm": "field_of_view_differs",
    "extent_y_mm": "field_of_view_differs",
    "extent_x_mm": "field_of_view_differs",
    "matrix_px": "field_of_view_differs",
    "aspect": "field_of_view_differs",
}
_STEEPNESS = 4
# What a header says against the training headers counts like twice the limit.
_HEADER_RATIO = 2.0
_RARE = 0.05
_UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Conformity:
    """How much an image is like the training images.

    Attributes:
        score: 1 is like them, 0.5 as far as only few of them are from the others, 0 is another
            kind of image; None where the model knows too little about its training images.
        flags: names of FLAGS, in their order.
    """

    score: float | None
    flags: tuple[str, ...] = ()

    @property
    def is_out_of_distribution(self) -> bool:
        """Tell whether `--policy refuse` refuses the image; an unknown one is not refused."""
        return self.score is not None and self.score < REFUSE_BELOW

    def to_json(self) -> dict[str, Any]:
        """Return `{score, flags}` as results have it."""
        return {"score": self.score, "flags": list(self.flags)}


def conformity(sample: Sample, fingerprint: Mapping[str, Any]) -> Conformity:
    """Compare a decoded sample with the training images.

    Args:
        sample: as `load_sample` gives it, before the task's `prepare`.
        fingerprint: of model.json; one of an older version has no reference, then the score is
            None and only an empty image is flagged.
    """
    return compare(image_profile(sample), fingerprint)


def pooled(items: Sequence[Conformity]) -> Conformity:
    """Return one verdict for the images of a case: the median score, flags of at least half."""
    scores = [item.score for item in items if item.score is not None]
    counts = {flag: sum(flag in item.flags for item in items) for flag in FLAGS}
    flags = tuple(flag for flag, number in counts.items() if number and 2 * number >= len(items))
    return Conformity(round(float(np.median(scores)), 6) if scores else None, flags)


def compare(profile: Profile, fingerprint: Mapping[str, Any]) -> Conformity:
    """Compare the numbers of an image with the training images; see `conformity`."""
    empty = ["content_empty"] if profile["is_constant"] else []
    known = fingerprint.get("conformity", {})
    kinds = known.get("kinds", {}) if known.get("version") == PROFILE_VERSION else {}
    candidates, flags = _candidates(profile["kind"], kinds)
    if not candidates:
        return Conformity(0.0 if empty else None, tuple(empty))
    each = [_ratios(profile, kinds[name]) for name in candidates]
    ratios = min(each, key=lambda found: max(found.values()))
    flags += empty + [_FLAG_OF[name] for name, ratio in ratios.items() if ratio > 1]
    worst = max(ratios.values())
    if {"modality_differs", "colour_differs", "content_empty"} & set(flags):
        worst = float("inf")
    if _is_contrast_rare(profile, [kinds[name]["contrast"] for name in candidates]):
        flags.append("contrast_differs")
        worst = max(worst, _HEADER_RATIO)
    score = round(1 / (1 + min(worst, 1e6) ** _STEEPNESS), 6)
    return Conformity(score, tuple(flag for flag in FLAGS if flag in flags))


def _ratios(profile: Profile, reference: Mapping[str, Any]) -> dict[str, float]:
    """Return by aspect how far an image is, over how far it may be."""
    found = deviations(profile, reference)
    return {name: value / reference["limits"][name] for name, value in found.items()}


def _candidates(kind: str, kinds: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Return which kinds of training images to compare with, and what differs already."""
    if kind in kinds:
        return [kind], []
    of_form = [name for name in kinds if name.endswith("/2d") == kind.endswith("/2d")]
    modality, colour = _parts(kind)
    trained = {_parts(name)[0] for name in of_form}
    flags = []
    if modality == _UNKNOWN:
        flags.append("image_kind_unknown")
        chosen = of_form
    elif modality in trained:
        chosen = [name for name in of_form if _parts(name)[0] == modality]
    else:
        chosen = [name for name in of_form if _parts(name)[0] == _UNKNOWN] or of_form
        flags += [] if _UNKNOWN in trained else ["modality_differs"]
    alike = [name for name in chosen if _parts(name)[1] == colour]
    flags += [] if alike else ["colour_differs"]
    return alike or chosen, flags


def _parts(kind: str) -> tuple[str, bool]:
    modality, *rest = kind.split("/")
    return modality, "rgb" in rest


def _is_contrast_rare(profile: Profile, counts: Sequence[Mapping[str, int]]) -> bool:
    """Tell whether a header's contrast state is one that hardly any training header has."""
    yes, no = (sum(count.get(name, 0) for count in counts) for name in ("yes", "no"))
    if profile["contrast"] == _UNKNOWN or not yes + no:
        return False
    return (yes if profile["contrast"] == "yes" else no) <= _RARE * (yes + no)
