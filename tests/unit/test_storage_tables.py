"""Parquet and JSON: atomic, deterministic, refused where foreign."""

import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medray import storage
from medray.errors import DataError

SCHEMA = pa.schema([("key", pa.string()), ("value", pa.float32()), ("rows", pa.list_(pa.int32()))])
ROWS = [{"key": f"{n:03d}", "value": n / 3, "rows": [n, n + 1]} for n in range(1000)]


def test_parquet_round_trip_and_same_bytes(tmp_path):
    table = pa.Table.from_pylist(ROWS, schema=SCHEMA)
    first = storage.write_parquet(str(tmp_path / "a.parquet"), table)
    chunked = pa.concat_tables([table.slice(0, 10), table.slice(10)])
    second = storage.write_parquet(str(tmp_path / "b.parquet"), chunked, schema=SCHEMA)
    assert first == second
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert storage.read_parquet(str(tmp_path / "a.parquet"), schema=SCHEMA) == table
    assert storage.read_parquet(str(tmp_path / "a.parquet"), columns=["key"]).num_columns == 1
    column = pq.ParquetFile(tmp_path / "a.parquet").metadata.row_group(0).column(0)
    assert column.compression == "ZSTD"


def test_empty_table_keeps_its_schema(tmp_path):
    storage.write_parquet(str(tmp_path / "a"), pa.Table.from_pylist([], schema=SCHEMA))
    assert storage.read_parquet(str(tmp_path / "a")).schema == SCHEMA


def test_given_schema_orders_casts_and_refuses(tmp_path):
    table = pa.table({"rows": [[1]], "value": [1.5], "key": ["a"], "more": [1]})
    storage.write_parquet(str(tmp_path / "a"), table, schema=SCHEMA)
    assert storage.read_parquet(str(tmp_path / "a")).schema == SCHEMA
    with pytest.raises((ValueError, KeyError)):
        storage.write_parquet(str(tmp_path / "b"), pa.table({"key": ["a"]}), schema=SCHEMA)
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("content", [b"", b"PAR1", b"x" * 1000])
def test_what_is_no_parquet_is_unreadable(tmp_path, content):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(DataError, match="unreadable"):
        storage.read_parquet(str(tmp_path / "a"))


def test_foreign_schema_is_unreadable(tmp_path):
    pq.write_table(pa.table({"key": [1]}), tmp_path / "a")
    for arguments in ({"schema": SCHEMA}, {"columns": ["nothing"]}):
        with pytest.raises(DataError, match="unreadable"):
            storage.read_parquet(str(tmp_path / "a"), **arguments)


class _Marker(pa.ExtensionType):
    loaded = 0

    def __init__(self):
        super().__init__(pa.int32(), "medray.test.marker")

    def __arrow_ext_serialize__(self):
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type, serialized):
        cls.loaded += 1
        return cls()


def test_extension_types_of_foreign_tables_run_nothing(tmp_path):
    pa.register_extension_type(_Marker())
    try:
        values = pa.ExtensionArray.from_storage(_Marker(), pa.array([1], pa.int32()))
        pq.write_table(pa.table({"key": values}), tmp_path / "a")
        _Marker.loaded = 0
        with pytest.raises(DataError, match=r"unreadable: .*extension type"):
            storage.read_parquet(str(tmp_path / "a"))
    finally:
        pa.unregister_extension_type("medray.test.marker")


def test_json_is_canonical(tmp_path):
    path = tmp_path / "a.json"
    storage.write_json(str(path), {"b": [1, 2.5, None], "a": "ä"})
    assert path.read_text() == '{\n "a": "ä",\n "b": [\n  1,\n  2.5,\n  null\n ]\n}\n'
    assert storage.read_json(str(path)) == {"a": "ä", "b": [1, 2.5, None]}
    assert json.loads(path.read_text()) == storage.read_json(str(path))


def test_json_has_no_nan(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        storage.write_json(str(tmp_path / "a"), float("nan"))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "text", ["", "{", "NaN", "[Infinity]", "1e999", "[" * 100_000, "\udcff", '{"a": -Infinity}']
)
def test_what_is_no_json_is_unreadable(tmp_path, text):
    (tmp_path / "a").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match="unreadable: the JSON file cannot be read"):
        storage.read_json(str(tmp_path / "a"))
