"""From a record to a decoded sample: images, masks on their image's grid, boxes in its pixels."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Protocol

import numpy as np

from medray.datasets.box_checks import check_boxes
from medray.datasets.mask_on_image import mask_on_image
from medray.datasets.pancreas_align import align_label
from medray.datasets.record import FileRef, ImageSource, Record, Sample
from medray.datasets.single_image import decoded_image
from medray.dicom.decoder import DecodedInstance
from medray.dicom.pet import suv_factor
from medray.dicom.volume import assemble_volume
from medray.errors import DataError
from medray.formats.images import read_image
from medray.formats.volumes import read_volume
from medray.volume import Image2D, Volume

_UNREADABLE = frozenset(
    {
        "unreadable",
        "empty_file",
        "truncated",
        "unsupported_pixels",
        "non_finite_pixels",
        "bad_tag_value",
    }
)


class SampleIO(Protocol):
    """What loading needs from outside: bytes of files and a decoder of foreign pixels."""

    def read(self, file: FileRef) -> bytes:
        """Return the whole file, or raise a DataError."""

    def decode_many(self, blobs: Iterable[bytes]) -> Iterator[DecodedInstance | DataError]:
        """Decode DICOM files in order; `PixelDecoder.decode_many`."""


def load_sample(record: Record, io: SampleIO) -> Sample:
    """Read and decode everything that one record names.

    Raises:
        DataError: the first reason why this example cannot be used.
    """
    image, facts = load_image(record.image, io)
    extra = {name: _extra(source, io) for name, source in sorted(record.extra_images.items())}
    meta = {**facts, **record.meta}
    mask = None
    if record.mask is not None:
        if not isinstance(image, Volume):
            raise DataError("label_geometry_mismatch", "a mask needs a volume to lie on")
        mask, how = _mask(record.mask, image, io)
        meta["mask_alignment"] = how
    boxes = _boxes(record, image)
    return Sample(
        image=image,
        extra_images=extra,
        label=record.label,
        boxes_xyxy_px=boxes,
        box_labels=None if boxes is None else np.array(record.box_labels, dtype=np.int64),
        mask=mask,
        meta=meta,
    )


def load_image(source: ImageSource, io: SampleIO) -> tuple[Volume | Image2D, dict[str, object]]:
    """Read one image and the header facts that a transform may use.

    Raises:
        DataError: a read, decode or volume reason.
    """
    if source.form == "series":
        volume, decoded = _series(source, io)
        return volume, _series_facts(decoded)
    if source.form == "instance":
        image = decoded_image(_one(source, io))
        return image, dict(image.meta)
    if source.form == "volume_file":
        return _volume_file(source, io), {"modality": ""}
    if source.form == "image_file":
        image = read_image(io.read(source.files[0]))
        return image, dict(image.meta)
    raise ValueError(f"unknown form of image source {source.form!r}")


def _series(source: ImageSource, io: SampleIO) -> tuple[Volume, list[DecodedInstance]]:
    items = []
    for item in io.decode_many(io.read(file) for file in source.files):
        if isinstance(item, DataError):
            raise item
        items.append(item)
    return assemble_volume(items), items


def _one(source: ImageSource, io: SampleIO) -> DecodedInstance:
    for item in io.decode_many(iter([io.read(source.files[0])])):
        if isinstance(item, DataError):
            raise item
        return item
    raise DataError("decode_error", "the decoder gave nothing back")


def _volume_file(source: ImageSource, io: SampleIO) -> Volume:
    file = source.files[0]
    volume = read_volume(io.read(file), file.uri.rpartition("/")[2])
    if volume.array.dtype.kind == "f" and not np.isfinite(volume.array).all():
        raise DataError("non_finite_pixels", "the volume holds NaN or infinite values")
    return volume


def _series_facts(decoded: list[DecodedInstance]) -> dict[str, object]:
    header = decoded[0].header
    plane = header.planes[0]
    return {
        "modality": header.modality,
        "contrast": header.contrast,
        "rescale_slope": plane.slope,
        "rescale_intercept": plane.intercept,
    }


def _extra(source: ImageSource, io: SampleIO) -> Volume:
    """Read a further channel; PET comes as SUVbw."""
    if source.form != "series":
        return _volume_file(source, io)
    volume, decoded = _series(source, io)
    if decoded[0].header.modality != "PT":
        return volume
    factor = suv_factor([item.header.pet for item in decoded])
    return replace(volume, array=volume.array.astype(np.float32) * np.float32(factor))


def _mask(source: ImageSource, image: Volume, io: SampleIO) -> tuple[Volume, str]:
    mask = _mask_file(source, io)
    if source.align == "pancreas_ct":
        array, how = align_label(mask.array, image.array)
        return image.with_array(array), how
    return mask_on_image(mask, image), "physical"


def _mask_file(source: ImageSource, io: SampleIO) -> Volume:
    """Read a mask; one that is no volume is a label that cannot be read."""
    try:
        return _volume_file(source, io)
    except DataError as error:
        if error.reason in _UNREADABLE:
            raise DataError(
                "annotation_invalid", f"the mask cannot be read: {error.detail}"
            ) from None
        raise


def _boxes(record: Record, image: Volume | Image2D) -> np.ndarray | None:
    """Return boxes in pixels of the decoded image, checked once more against its real size."""
    if record.boxes_xyxy_px is None:
        return None
    boxes = np.array(record.boxes_xyxy_px, dtype=np.float64).reshape(-1, 4)
    height, width = image.array.shape[:2] if isinstance(image, Image2D) else image.array.shape[1:]
    if record.meta.get("boxes_unit") == "share":
        boxes = boxes * np.array([width, height, width, height])
    check_boxes(((a, b, c, d) for a, b, c, d in boxes.tolist()), width=width, height=height)
    return boxes


def plain_meta(meta: Mapping[str, object]) -> dict[str, object]:
    """Return the facts that are plain JSON values, for an example's metadata."""
    kinds = (str, int, float, bool, tuple, list)
    return {
        name: value for name, value in meta.items() if isinstance(value, kinds) or value is None
    }
