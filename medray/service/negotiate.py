"""Which kind of answer a client wants, by its Accept header (RFC 9110, section 12.5.1)."""

from medray.service.problems import ProblemError

# In the order of preference among equals.
KINDS = {
    "json": ("application/json",),
    "png": ("image/png",),
    "nifti": ("application/gzip", "application/x-gzip"),
    "seg": ("application/dicom",),
}
MEDIA_TYPES = {kind: names[0] for kind, names in KINDS.items()}
_MAX_RANGES = 32


def negotiate(accept: str) -> str:
    """Return `json`, `png`, `nifti` or `seg`.

    Args:
        accept: the header; empty means anything.

    Raises:
        ProblemError: not_acceptable.
    """
    ranges = dict(_range(item) for item in accept.split(",")[:_MAX_RANGES] if item.strip())
    if not ranges:
        return "json"
    best, kind = 0.0, ""
    for name, types in KINDS.items():
        quality = max(_quality(ranges, media_type) for media_type in types)
        if quality > best:
            best, kind = quality, name
    if not kind:
        raise ProblemError("not_acceptable")
    return kind


def _range(item: str) -> tuple[str, float]:
    name, *parameters = (part.strip().lower() for part in item.split(";"))
    quality = 1.0
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        if key.strip() == "q":
            try:
                quality = min(1.0, max(0.0, float(value)))
            except ValueError:
                quality = 0.0
    return name, quality


def _quality(ranges: dict[str, float], media_type: str) -> float:
    """Return what the most specific range says of a media type."""
    family = f"{media_type.partition('/')[0]}/*"
    for name in (media_type, family, "*/*"):
        if name in ranges:
            # NaN is no quality.
            return ranges[name] if ranges[name] == ranges[name] else 0.0
    return 0.0
