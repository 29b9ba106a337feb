"""Lookup tables of a data set: Modality LUT, VOI LUT and palette colour."""

import base64
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut

from medray.dicom.header import InstanceHeader
from medray.errors import DataError

_MAX_ENTRIES = 1 << 16
# Real objects carry one to four presentations.
_MAX_VOI_TABLES = 16
_DAMAGED = (AttributeError, KeyError, TypeError, ValueError, IndexError, struct.error)


@dataclass(frozen=True, slots=True, eq=False)
class LutTable:
    """One lookup table (PS3.3 C.11.1.1.1, C.11.2.1.1).

    Attributes:
        first: value that the first entry stands for.
        bits: bits of an entry.
        data: (entries,) uint16.
    """

    first: int
    bits: int
    data: np.ndarray

    def look_up(self, values: np.ndarray) -> np.ndarray:
        """Return the entry of each value; values beyond the ends get the end's entry."""
        index = np.clip(values.astype(np.int64) - self.first, 0, len(self.data) - 1)
        return np.asarray(self.data[index])


@dataclass(frozen=True, slots=True, eq=False)
class LutTables:
    """The lookup tables of an instance: instead of rescale, and instead of a window."""

    modality: LutTable | None = None
    voi: tuple[LutTable, ...] = ()


def read_tables(dataset: Dataset, header: InstanceHeader) -> LutTables:
    """Read ModalityLUTSequence and VOILUTSequence.

    Raises:
        DataError: `bad_tag_value` for a damaged table.
    """
    modality = dataset.get("ModalityLUTSequence")
    voi = dataset.get("VOILUTSequence")
    if not modality and not voi:
        return LutTables()
    big_endian = dataset.original_encoding[1] is False
    try:
        tables = [
            _table(item, header.signed, big_endian)
            for item in (*(modality or ())[:1], *(voi or ())[:_MAX_VOI_TABLES])
        ]
    except _DAMAGED:
        raise DataError("bad_tag_value", "a lookup table is damaged") from None
    if modality:
        return LutTables(modality=tables[0], voi=tuple(tables[1:]))
    return LutTables(voi=tuple(tables))


def _table(item: Dataset, signed: bool, big_endian: bool) -> LutTable:  # noqa: FBT001
    entries, first, bits = (int(value) for value in item.LUTDescriptor)
    entries = entries or _MAX_ENTRIES  # 0 stands for 65536, which US cannot hold
    if not 1 <= entries <= _MAX_ENTRIES or not 1 <= bits <= 16:
        raise ValueError("descriptor")
    data = _entries(item.LUTData, entries, big_endian)
    if len(data) < entries:
        raise ValueError("too short")
    return LutTable(_signed_first(first, signed), bits, data)


def _signed_first(first: int, signed: bool) -> int:  # noqa: FBT001
    """Read the first mapped value as SS where pixels are signed; its VR is ambiguous."""
    return first - (1 << 16) if signed and first > 0x7FFF else first


def _entries(raw: Any, entries: int, big_endian: bool) -> np.ndarray:  # noqa: FBT001
    """Return table entries that are given as numbers (US), as words, or as packed bytes (OW)."""
    if not isinstance(raw, bytes):
        many = raw if hasattr(raw, "__len__") else [raw]
        return np.asarray(many, np.uint16)[:entries]
    if len(raw) >= 2 * entries:
        return np.frombuffer(raw, ">u2" if big_endian else "<u2", entries).astype(np.uint16)
    return np.frombuffer(raw, np.uint8, entries).astype(np.uint16)


def tables_to_json(tables: LutTables) -> list[list[Any]]:
    """Return `[kind, first, bits, base64 of little-endian uint16]` of each table."""
    kinds = [("modality", tables.modality)] if tables.modality else []
    kinds += [("voi", table) for table in tables.voi]
    return [
        [
            kind,
            table.first,
            table.bits,
            base64.b64encode(table.data.astype("<u2").tobytes()).decode(),
        ]
        for kind, table in kinds
    ]


def tables_from_json(raw: list[list[Any]]) -> LutTables:
    """Return the tables that `tables_to_json` wrote."""
    found = [
        (kind, LutTable(int(first), int(bits), np.frombuffer(base64.b64decode(data), "<u2")))
        for kind, first, bits, data in raw
    ]
    modality = [table for kind, table in found if kind == "modality"]
    voi = tuple(table for kind, table in found if kind == "voi")
    return LutTables(modality=modality[0] if modality else None, voi=voi)


class Palette:
    """The three colour tables of a data set (PS3.3 C.7.6.3.1.5, C.7.9).

    Raises:
        DataError: `bad_tag_value`.
    """

    def __init__(self, dataset: Dataset, header: InstanceHeader) -> None:
        try:
            entries, first, bits = (int(x) for x in dataset.RedPaletteColorLookupTableDescriptor)
            entries = entries or _MAX_ENTRIES
            self.first = _signed_first(first, header.signed)
            if "SegmentedRedPaletteColorLookupTableData" in dataset:
                index = np.arange(self.first, self.first + entries, dtype=np.int32)
                table = apply_color_lut(index, dataset)[:, :3]
            else:
                big_endian = dataset.original_encoding[1] is False
                table = np.stack(
                    [
                        _entries(dataset[f"{name}PaletteColorLookupTableData"].value, entries,
                                 big_endian)
                        for name in ("Red", "Green", "Blue")
                    ],
                    axis=-1,
                )  # fmt: skip
        except _DAMAGED:
            raise DataError("bad_tag_value", "the palette is damaged or incomplete") from None
        # RGB leaves here with 8 bits. Some writers put 8 bit entries into 16 bit descriptors.
        wide = bits > 8 and int(table.max(initial=0)) > 0xFF
        self.table = (table >> 8 if wide else table).astype(np.uint8)

    def colour(self, values: np.ndarray) -> np.ndarray:
        """Look up RGB; values beyond the ends get the end's entry."""
        index = np.clip(values.astype(np.int64) - self.first, 0, len(self.table) - 1)
        return np.asarray(self.table[index])
