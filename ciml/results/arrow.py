"""Tables of Arrow: in memory, or in a Parquet file; a few hundred rows at a time become cells."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC
from typing import IO, TYPE_CHECKING, Any

from ciml.errors import CimlError
from ciml.limits import MAX_RESULTS_BYTES, MAX_RESULTS_CELL_CHARACTERS, MAX_RESULTS_ROWS
from ciml.results.columns import Row, checked_columns

if TYPE_CHECKING:
    import pyarrow as pa

_BATCH_ROWS = 512


class ArrowTable:
    """The rows of an Arrow table, or of a Parquet file.

    Lists, structs and bytes are no cells: a run's field is a text, a number, a time, true or false.

    Args:
      name: for messages.
      source: a `pyarrow.Table`, or a binary, seekable file of Parquet.

    Raises:
      CimlError: it is not Parquet, or exceeds a limit.
    """

    def __init__(self, name: str, source: pa.Table | IO[bytes]) -> None:
        import pyarrow as pa

        self.name, self._source = name, source
        self.form = "Arrow table" if isinstance(source, pa.Table) else "Parquet"
        try:
            schema = source.schema if isinstance(source, pa.Table) else _open(source).schema_arrow
        except (pa.ArrowException, OSError) as error:
            raise CimlError(f"{name} is broken Parquet: {error!s:.200}") from None
        self._schema = pa.schema([field for field in schema if not _is_nested(field.type)])
        self.columns = checked_columns(name, self._schema.names)
        if isinstance(source, pa.Table):
            rows, size = source.num_rows, 0
        else:
            metadata = _open(source).metadata
            rows = metadata.num_rows
            size = sum(metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups))
        if rows > MAX_RESULTS_ROWS or size > MAX_RESULTS_BYTES:
            raise CimlError(
                f"{name} has {rows:,} rows and {size >> 20:,} MiB unpacked, at most {MAX_RESULTS_ROWS:,} and "
                f"{MAX_RESULTS_BYTES >> 20:,}; split it, or write a listing for ciml backfill"
            )

    def rows(self) -> Iterator[Row]:
        """Yield the rows; a row with a cell beyond the limit has a fault."""
        import pyarrow as pa

        number = 0
        try:
            for batch in self._batches():
                columns = [_cells(batch.column(name)) for name in self.columns]
                for cells in zip(*columns, strict=True):
                    number += 1
                    too_long = any(isinstance(cell, str) and len(cell) > MAX_RESULTS_CELL_CHARACTERS for cell in cells)
                    fault = f"a cell has more than {MAX_RESULTS_CELL_CHARACTERS:,} characters" if too_long else ""
                    yield Row(number, {} if fault else dict(zip(self.columns, cells, strict=True)), fault)
        except (pa.ArrowException, OSError) as error:
            raise CimlError(f"{self.name} is broken Parquet: {error!s:.200}") from None

    def _batches(self) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        if isinstance(self._source, pa.Table):
            yield from self._source.select(self.columns).to_batches(max_chunksize=_BATCH_ROWS)
            return
        # As dictionaries, texts that repeat are held once: else a small file could become any number of bytes.
        texts = [name for name, kind in zip(self.columns, self._schema.types, strict=True) if _is_text(kind)]
        yield from _open(self._source, texts).iter_batches(_BATCH_ROWS, columns=list(self.columns), use_threads=False)


def _open(file: IO[bytes], dictionaries: list[str] | None = None) -> Any:
    import pyarrow.parquet as pq

    file.seek(0)
    return pq.ParquetFile(file, read_dictionary=dictionaries)


def _is_text(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_nested(kind: pa.DataType) -> bool:
    import pyarrow as pa

    types = pa.types
    if types.is_dictionary(kind):
        return _is_nested(kind.value_type)
    return bool(
        types.is_nested(kind)
        or types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_binary_view(kind)
        or types.is_fixed_size_binary(kind)
        or types.is_duration(kind)
        or types.is_interval(kind)
        or isinstance(kind, pa.BaseExtensionType)
    )


def _cells(column: pa.Array) -> list[Any]:
    """Return Python values; times with a zone as aware ones of UTC."""
    import pyarrow as pa

    kind = column.type
    if pa.types.is_dictionary(kind):
        values = _cells(column.dictionary)
        return [None if index is None else values[index] for index in column.indices.to_pylist()]
    if pa.types.is_timestamp(kind):
        # Nanoseconds would import pandas.
        naive = column.cast(pa.timestamp("us", kind.tz), safe=False).cast(pa.int64()).cast(pa.timestamp("us"))
        zone = UTC if kind.tz is not None else None
        return [None if moment is None else moment.replace(tzinfo=zone) for moment in naive.to_pylist()]
    return list(column.to_pylist())
