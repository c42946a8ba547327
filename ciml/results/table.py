"""Open a table of results by its content: CSV, Parquet, JSON lines, or an Arrow table in memory."""

from __future__ import annotations

import os
from io import BufferedReader
from typing import TYPE_CHECKING

from ciml.errors import CimlError
from ciml.events.listing_files import open_unpacked
from ciml.limits import MAX_RESULTS_BYTES
from ciml.results.arrow import ArrowTable
from ciml.results.columns import ResultsTable
from ciml.results.text import DelimitedTable, JsonLinesTable

if TYPE_CHECKING:
    import pyarrow as pa

_HEAD_BYTES = 4096
_BOM = b"\xef\xbb\xbf"
#: First bytes of files that are no table of ours, and what to do.
_OTHERS = {
    b"PK\x03\x04": "a zip file or an Excel workbook; save it as CSV",
    b"\xff\xfe": "text in UTF-16; save it in UTF-8",
    b"\xfe\xff": "text in UTF-16; save it in UTF-8",
    b"SQLite format 3": "an SQLite database; export the table as CSV",
    b"ARROW1": "an Arrow file; write Parquet",
}


def open_results(results: str | os.PathLike[str] | pa.Table) -> ResultsTable:
    """Open a table of results: CSV, Parquet or JSON lines, gzip or not, or an Arrow table in memory.

    Args:
      results: a local path, an ``s3://`` object, or the table.

    Raises:
      CimlError: it does not exist, is none of these formats, or exceeds a limit.
      EngineError: the storage does not answer.
    """
    if not isinstance(results, str | os.PathLike):
        return ArrowTable("the table", results)
    url = os.fspath(results)
    name = url.rpartition("/")[2]
    raw = open_unpacked(url, "table", "a file of CSV, Parquet or JSON lines", MAX_RESULTS_BYTES)
    file = BufferedReader(raw)  # type: ignore[type-var]
    size = file.seek(0, os.SEEK_END)
    if size > MAX_RESULTS_BYTES:
        raise CimlError(f"{name} has {size >> 20:,} MiB, at most {MAX_RESULTS_BYTES >> 20:,}; split it")
    file.seek(0)
    head = file.read(_HEAD_BYTES)
    text = head.removeprefix(_BOM).lstrip()
    other = next((what for begin, what in _OTHERS.items() if head.startswith(begin)), None)
    if other is not None:
        raise CimlError(f"{name} is {other}")
    if not text and size <= _HEAD_BYTES:
        raise CimlError(f"{name} is empty; give a table with a row a run")
    if head.startswith(b"PAR1"):
        return ArrowTable(name, file)
    if text.startswith(b"["):
        raise CimlError(
            f"{name} is a JSON array; write JSON lines, an object a run, as pandas does by to_json(lines=True)"
        )
    return JsonLinesTable(name, file) if text.startswith(b"{") else DelimitedTable(name, file)
