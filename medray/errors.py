"""Errors with a meaning to the user, and the closed list of reason codes.

`ConfigError` stops a run before it starts (exit 2), `GateError` stops it because the data cannot be
trained on (exit 3), `DataError` refuses one input and lets the run go on (exit 4 at its end).
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Reason:
    """What a reason code means and how a user mends it; the README's table is made from these."""

    stage: str
    meaning: str
    mend: str


REASONS: dict[str, Reason] = {
    # read
    "not_dicom": Reason(
        "read", "The file is not DICOM.", "Take it out of the sources, or fix its suffix."
    ),
    "empty_file": Reason("read", "The file has no bytes.", "Copy or export it again."),
    "truncated": Reason("read", "The file ends before its data does.", "Copy or export it again."),
    "too_large": Reason(
        "read",
        "The file or what it declares is larger than the limit.",
        "Raise the limit if the size is real, or give the workers more memory.",
    ),
    "bomb_suspected": Reason(
        "read", "Few bytes claim to unpack to very many.", "Do not open it; ask where it came from."
    ),
    "nesting_too_deep": Reason(
        "read",
        "Sequences are nested deeper than any real object.",
        "Export it again without private sequences.",
    ),
    "unsupported_transfer_syntax": Reason(
        "read",
        "No decoder for this encoding is built in.",
        "Convert it to Explicit VR Little Endian first.",
    ),
    "missing_tag": Reason(
        "read",
        "A tag that is needed is absent or empty.",
        "Export it again with a complete header.",
    ),
    "bad_tag_value": Reason(
        "read",
        "A header value is not finite, out of range or malformed.",
        "Correct the header at its source.",
    ),
    "duplicate_conflict": Reason(
        "read", "Two files share a UID and differ in their bytes.", "Keep the right one of the two."
    ),
    "unsafe_archive": Reason(
        "read",
        "The archive has members that may escape, repeat or explode.",
        "Unpack and check it by hand, and zip it anew.",
    ),
    "checksum_mismatch": Reason(
        "read",
        "The bytes differ from those that were recorded.",
        "Copy the file again; check the disk.",
    ),
    "unreadable": Reason(
        "read", "The file cannot be parsed.", "Export it again, or check it with another reader."
    ),
    # decode
    "no_pixels": Reason("decode", "The object has no pixel data.", "Leave it out; it is no image."),
    "unsupported_pixels": Reason(
        "decode",
        "The pixel layout is none that is supported.",
        "Convert it to 8 or 16 bit grey or RGB.",
    ),
    "decode_error": Reason(
        "decode", "The decoder refused the pixel data.", "Export the file again or uncompressed."
    ),
    "decoder_crashed": Reason(
        "decode",
        "The decoder's process died on this file.",
        "Do not trust the file; export it again.",
    ),
    "decode_timeout": Reason(
        "decode", "Decoding took longer than the limit.", "Export it again or uncompressed."
    ),
    "decode_memory": Reason(
        "decode",
        "Decoding asked for more memory than the limit.",
        "Give the decoder more memory if the size is real.",
    ),
    "pixel_length_mismatch": Reason(
        "decode",
        "There are fewer or more pixel bytes than the header says.",
        "Copy or export the file again.",
    ),
    "non_finite_pixels": Reason(
        "decode", "Pixels are NaN or infinite.", "Correct the image at its source."
    ),
    # volume
    "no_geometry": Reason(
        "volume",
        "Positions or orientations are missing.",
        "Export it with ImagePositionPatient and ImageOrientationPatient.",
    ),
    "too_few_slices": Reason(
        "volume", "A volume needs at least three slices.", "Fetch the whole series."
    ),
    "localizer": Reason(
        "volume", "The series is a scout view.", "Nothing; it is left out on purpose."
    ),
    "mixed_size": Reason(
        "volume",
        "Slices of one stack differ in matrix or pixel spacing.",
        "Split the series at its source.",
    ),
    "mixed_orientation": Reason(
        "volume", "Slices of one stack differ in orientation.", "Split the series at its source."
    ),
    "slice_increment_inconsistent": Reason(
        "volume", "Distances between slices vary.", "Resample or split the series at its source."
    ),
    "missing_slices": Reason(
        "volume", "A slice is missing between two others.", "Fetch the series again."
    ),
    "duplicate_positions": Reason(
        "volume", "Several slices lie at one position.", "Split the acquisitions at their source."
    ),
    "suv_not_computable": Reason(
        "volume",
        "A value that SUV needs is missing or not positive.",
        "Add weight, dose, times and half-life, or use Bq/ml.",
    ),
    "wrong_modality": Reason(
        "volume", "The task does not take this modality.", "Leave it out, or choose another task."
    ),
    # label
    "no_label": Reason("label", "The image has no label.", "Add one, or leave the image out."),
    "annotation_invalid": Reason(
        "label", "A label file or row cannot be read.", "Correct the label file."
    ),
    "annotation_unmatched": Reason(
        "label", "A label belongs to no image that is here.", "Fetch the image, or drop the label."
    ),
    "box_out_of_image": Reason(
        "label", "A box lies outside its image or has no area.", "Correct the box."
    ),
    "label_unknown": Reason(
        "label", "The label is none of the task's classes.", "Correct it, or map it to a class."
    ),
    "label_geometry_mismatch": Reason(
        "label",
        "A mask does not lie on its image.",
        "Export the mask on the image's grid, or with its own affine.",
    ),
    # gate
    "labels_constant": Reason(
        "gate", "All examples have one label.", "Check the label reader and the data."
    ),
    "class_missing": Reason(
        "gate", "A class is missing in a split.", "Add patients of it, or change the split's seed."
    ),
    "split_leak": Reason("gate", "A patient is in two splits.", "Split by patient."),
    "duplicate_image": Reason(
        "gate",
        "The same pixels are in two splits.",
        "Remove the copy, or give both one patient id.",
    ),
    "mask_empty": Reason(
        "gate", "Too many cases have an empty mask.", "Check the masks and their geometry."
    ),
    "box_whole_image": Reason(
        "gate",
        "Too many boxes cover the whole image.",
        "Check the boxes, or use the compat switch knowingly.",
    ),
    "image_constant": Reason(
        "gate", "An image has one value only.", "Check window, rescale and source."
    ),
    # store
    "source_unavailable": Reason(
        "store",
        "The source does not answer, or is gone.",
        "Check address, credentials and network, and run again.",
    ),
    "sink_full": Reason(
        "store",
        "The disk or quota of the output is full.",
        "Free space and run again; finished work is kept.",
    ),
    "sink_denied": Reason(
        "store", "Writing to the output is not allowed.", "Check permissions and credentials."
    ),
    # model
    "model_missing": Reason("model", "There is no model at this address.", "Check the address."),
    "model_hash_mismatch": Reason(
        "model", "The weights are not those that the model names.", "Fetch the model again."
    ),
    "weights_refused": Reason(
        "model",
        "The weight file is not safe or does not fit.",
        "Give safetensors, or a plain state dict of this network.",
    ),
    "train_non_finite": Reason(
        "model", "The loss became NaN or infinite.", "Lower the learning rate; check the data."
    ),
    "model_output_invalid": Reason(
        "model",
        "The network's output is NaN or has a wrong shape.",
        "Check the model and its input.",
    ),
    "output_mismatch": Reason(
        "model", "A written result differs from what was computed.", "Check the disk and run again."
    ),
    "out_of_distribution": Reason(
        "model", "The image is unlike the training data.", "Judge this result by hand."
    ),
}


class MedrayError(Exception):
    """Base of every error that medray raises for a user."""


class ConfigError(MedrayError):
    """Wrong usage or configuration: the caller must change something (exit 2)."""


class GateError(MedrayError):
    """The data must not be trained on (exit 3).

    Attributes:
        findings: one `(reason, sentence)` for each failed gate, offenders named by key.
    """

    def __init__(self, findings: tuple[tuple[str, str], ...]) -> None:
        super().__init__("; ".join(f"{reason}: {sentence}" for reason, sentence in findings))
        self.findings = findings

    def __reduce__(self) -> tuple[Any, ...]:
        return (GateError, (self.findings,))


class DataError(MedrayError):
    """One input is refused with a counted reason; the run goes on.

    The message is one sentence without header values: it is written to tables and logs.
    """

    def __init__(self, reason: str, detail: str) -> None:
        if reason not in REASONS:
            raise ValueError(f"reason must be one of REASONS, got {reason!r}")
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[Any, ...]:
        return (DataError, (self.reason, self.detail))
