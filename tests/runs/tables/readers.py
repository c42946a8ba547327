"""The rows of a table as each engine reads them: plain values in one order, so that engines can be compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

Rows = list[tuple[Any, ...]]


def plain(value: Any) -> Any:
    """Return a value as every engine can say it."""
    if value is None or (isinstance(value, float) and value != value) or type(value).__name__ == "NaTType":
        return None
    if hasattr(value, "to_pydatetime"):
        value = value.to_pydatetime()
    if isinstance(value, datetime):
        aware = value if value.tzinfo else value.replace(tzinfo=UTC)
        return int(aware.timestamp() * 1_000_000 + 0.5)
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, Mapping):
        return tuple(sorted(value.items()))
    if (isinstance(value, Sequence) and not isinstance(value, str)) or hasattr(value, "tolist"):
        return tuple(map(_pair, value))
    return round(value, 9) if isinstance(value, float) and math.isfinite(value) else value


def _pair(value: Any) -> Any:
    """Return an entry of a map, which some engines say as a structure of key and value, as a pair."""
    if isinstance(value, Mapping):
        return (value["key"], value["value"])
    return tuple(value) if isinstance(value, list | tuple) else plain(value.item() if hasattr(value, "item") else value)


def ordered(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Rows:
    """Return rows with their columns in the order of the names, sorted."""
    at = sorted(range(len(columns)), key=lambda each: columns[each])
    found = [tuple(plain(row[each]) for each in at) for row in rows]
    return sorted(found, key=repr)


def by_delta_rs(url: str, options: dict[str, str]) -> tuple[list[str], Rows]:
    from deltalake import DeltaTable

    table = DeltaTable(url, storage_options=options).to_pyarrow_table()
    return _arrow(table)


def _arrow(table: Any) -> tuple[list[str], Rows]:
    names = list(table.column_names)
    columns = [table.column(name).to_pylist() for name in names]
    return sorted(names), ordered(names, list(zip(*columns, strict=True)))


def by_pandas(url: str, options: dict[str, str]) -> tuple[list[str], Rows]:
    from deltalake import DeltaTable

    frame = DeltaTable(url, storage_options=options).to_pandas()
    return sorted(frame.columns), ordered(list(frame.columns), list(frame.itertuples(index=False, name=None)))


def by_polars(url: str, options: dict[str, str]) -> tuple[list[str], Rows]:
    import polars as pl

    # Features of data sets are lists of a fixed size in the files, which only pyarrow reads as the table's lists.
    frame = pl.read_delta(url, storage_options=options, use_pyarrow="datasets" in url)
    return sorted(frame.columns), ordered(frame.columns, frame.rows())


def by_duckdb(url: str, options: dict[str, str]) -> tuple[list[str], Rows]:
    import duckdb

    with duckdb.connect() as connection:
        load_delta(connection, options)
        found = connection.sql(f"FROM delta_scan('{url}')")
        return sorted(found.columns), ordered(found.columns, found.fetchall())


def load_delta(connection: Any, options: dict[str, str]) -> None:
    """Load DuckDB's extension for Delta, from its package on PyPI, and the secret for S3."""
    import duckdb
    import duckdb_extension_delta
    import duckdb_extension_httpfs

    for name, package in (("httpfs", duckdb_extension_httpfs), ("delta", duckdb_extension_delta)):
        place = Path(package.__path__[0], "extensions", f"v{duckdb.__version__}", f"{name}.duckdb_extension")
        connection.execute(f"LOAD '{place}'")
    if options:
        endpoint = options["aws_endpoint"].removeprefix("http://")
        keys = f"KEY_ID '{options['aws_access_key_id']}', SECRET '{options['aws_secret_access_key']}'"
        place_of = f"REGION '{options['aws_region']}', ENDPOINT '{endpoint}', USE_SSL false, URL_STYLE 'path'"
        connection.execute(f"CREATE SECRET (TYPE s3, {keys}, {place_of})")


#: By engine: returns the sorted names of the columns, and the rows.
ENGINES: dict[str, Callable[[str, dict[str, str]], tuple[list[str], Rows]]] = {
    "delta-rs": by_delta_rs,
    "pandas": by_pandas,
    "polars": by_polars,
    "duckdb": by_duckdb,
}
