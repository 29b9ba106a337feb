"""What a segment is, in SNOMED CT: a small table behind words that a recipe may use."""

from dataclasses import dataclass, replace

from medray.errors import ConfigError

_ORGAN = ("91723000", "Anatomical Structure")
_ALTERED = ("49755003", "Morphologically Abnormal Structure")
# word: code and meaning of the property type, both as in DICOM's context groups (PS3.16).
_ORGANS = {
    "adrenal_gland": ("23451007", "Adrenal gland"),
    "breast": ("76752008", "Breast"),
    "kidney": ("64033007", "Kidney"),
    "liver": ("10200004", "Liver"),
    "lung": ("39607008", "Lung"),
    "pancreas": ("15776009", "Pancreas"),
    "spleen": ("78961009", "Spleen"),
}
_FINDINGS = {
    "lesion": ("52988006", "Lesion"),
    "mass": ("4147007", "Mass"),
    "neoplasm": ("108369006", "Neoplasm"),
    "nodule": ("27925004", "Nodule"),
}
SCHEME = "SCT"


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentTerm:
    """The codes of one segment (PS3.3 C.8.20.2); each a pair of SNOMED CT code and meaning.

    Attributes:
        label: name that a viewer shows.
        category: of the property (CID 7150).
        kind: the property type: an organ, or what is found in one.
        region: organ in which a finding lies; None where the segment is an organ itself, or
            where the organ is not known.
    """

    label: str
    category: tuple[str, str]
    kind: tuple[str, str]
    region: tuple[str, str] | None = None


def segment_term(word: str, *, region: str = "") -> SegmentTerm:
    """Return the codes of a word of the table.

    Args:
        word: an organ (`pancreas`, `lung`, ...) or a finding (`lesion`, `nodule`, ...).
        region: organ in which the finding lies, "" where it is not known.

    Raises:
        ConfigError: a word is not in the table, or an organ is to lie in another one.
    """
    if region and region not in _ORGANS:
        raise ConfigError(f"unknown region {region!r}; known: {', '.join(sorted(_ORGANS))}")
    if word in _ORGANS:
        if region:
            raise ConfigError(f"{word!r} is an organ; only a finding lies in a region")
        code = _ORGANS[word]
        return SegmentTerm(label=code[1], category=_ORGAN, kind=code)
    if word not in _FINDINGS:
        known = ", ".join(sorted({*_ORGANS, *_FINDINGS}))
        raise ConfigError(f"unknown segment {word!r}; known: {known}")
    code = _FINDINGS[word]
    term = SegmentTerm(label=code[1], category=_ALTERED, kind=code)
    if not region:
        return term
    return replace(term, label=f"{code[1]} ({_ORGANS[region][1]})", region=_ORGANS[region])
