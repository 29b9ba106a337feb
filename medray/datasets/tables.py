"""CSV tables of labels: required columns, bounded size, faults by row."""

import csv
import io
from collections.abc import Sequence

from medray.datasets.record import FileRef, SourceTree
from medray.errors import ConfigError

_MAX_BYTES = 256 << 20


def read_table(
    tree: SourceTree, file: FileRef, columns: Sequence[str]
) -> list[dict[str, str] | None]:
    """Read a CSV table; a row with too few or too many fields is None.

    Raises:
        ConfigError: if it is no table with these columns; then it is not the layout's.
    """
    name = file.uri.rpartition("/")[2]
    if file.bytes > _MAX_BYTES:
        raise ConfigError(f"{name} is larger than 256 MiB and no label table")
    try:
        text = tree.read_bytes(file.uri).decode("utf-8-sig")
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        header = [column.strip() for column in reader.fieldnames or []]
        reader.fieldnames = header
        missing = [column for column in columns if column not in header]
        if missing:
            raise ConfigError(f"{name} lacks the columns {', '.join(missing)}")
        return [_row(raw) for raw in reader]
    except (UnicodeDecodeError, csv.Error):
        raise ConfigError(f"{name} is no UTF-8 CSV table") from None


def _row(raw: dict[str, str]) -> dict[str, str] | None:
    # csv puts surplus fields under None, and None into missing ones.
    if None in raw or None in raw.values():
        return None
    return {name: value.strip() for name, value in raw.items()}


def has_columns(tree: SourceTree, file: FileRef, columns: Sequence[str]) -> bool:
    """Tell whether the first line of a CSV file names all these columns."""
    if file.bytes > _MAX_BYTES:
        return False
    first = tree.read_bytes(file.uri).split(b"\n", 1)[0].decode("utf-8-sig", "replace")
    header = {name.strip().strip('"') for name in first.split(",")}
    return set(columns) <= header
