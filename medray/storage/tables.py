"""Parquet and JSON: atomic, and the same bytes for the same content."""

import json
import math
from typing import TYPE_CHECKING, Any

from medray.errors import DataError
from medray.storage.commit import write_atomic
from medray.storage.reading import read_bytes
from medray.storage.store import WriteReceipt

if TYPE_CHECKING:
    import pyarrow as pa

_ROW_GROUP_ROWS = 1 << 16
# Tables and JSON files of ours hold rows about images, never pixels.
_MAX_TABLE_BYTES = 4 << 30
_MAX_JSON_BYTES = 1 << 30
# Arrow's threads cost more than a small table, and may abort a process that ends while they start.
_THREADS_FROM_BYTES = 16 << 20


def write_parquet(
    uri: str, table: "pa.Table", *, schema: "pa.Schema | None" = None
) -> WriteReceipt:
    """Write a table with zstd; the same rows give the same bytes.

    Args:
        uri: where to.
        table: the rows, in the order in which they shall stand.
        schema: columns and types to cast to; others are refused.

    Raises:
        DataError: sink_full or sink_denied.
        ValueError: the table does not fit the schema.
    """
    import pyarrow.parquet as pq

    fitted = (table if schema is None else table.select(schema.names).cast(schema)).combine_chunks()

    def write(file: Any) -> None:
        pq.write_table(
            fitted, file, compression="zstd", row_group_size=_ROW_GROUP_ROWS, version="2.6"
        )

    return write_atomic(uri, write)


def read_parquet(
    uri: str, *, columns: list[str] | None = None, schema: "pa.Schema | None" = None
) -> "pa.Table":
    """Read a table; extension types, which may run code of their own, are refused.

    Args:
        uri: where from.
        columns: the columns to read; all if None.
        schema: columns and types that the result has.

    Raises:
        DataError: unreadable where it is no such table, or what `read_bytes` raises.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    raw = read_bytes(uri, max_bytes=_MAX_TABLE_BYTES)
    try:
        with pq.ParquetFile(pa.BufferReader(raw), arrow_extensions_enabled=False) as file:
            _refuse_extensions(file.schema_arrow)
            table = file.read(
                columns=columns if schema is None else schema.names,
                use_threads=len(raw) > _THREADS_FROM_BYTES,
            )
        if schema is not None:
            table = table.select(schema.names).cast(schema)
    except (pa.ArrowException, KeyError, ValueError, OSError) as error:
        raise DataError(
            "unreadable", f"the Parquet table cannot be read ({type(error).__name__})"
        ) from error
    missing = (
        [] if columns is None else [name for name in columns if name not in table.column_names]
    )
    if missing:
        raise DataError("unreadable", f"the Parquet table has no column {missing[0]}")
    return table


def write_json(uri: str, value: Any) -> WriteReceipt:
    """Write canonical JSON: sorted keys, one space of indent, a newline at the end.

    Raises:
        DataError: sink_full or sink_denied.
        ValueError: the value holds NaN or an infinity, which JSON has not.
    """
    text = json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    return write_atomic(uri, f"{text}\n".encode())


def read_json(uri: str) -> Any:
    """Read a JSON file.

    Raises:
        DataError: unreadable where it is none, or what `read_bytes` raises.
    """
    raw = read_bytes(uri, max_bytes=_MAX_JSON_BYTES)
    try:
        return json.loads(raw, parse_constant=_refuse_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise DataError("unreadable", "the JSON file cannot be read") from error


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number is out of range")
    return value


def _refuse_extensions(schema: "pa.Schema") -> None:
    import pyarrow as pa

    for name in schema.names:
        if isinstance(schema.field(name).type, pa.BaseExtensionType):
            raise DataError("unreadable", "the Parquet table has a column of an extension type")
