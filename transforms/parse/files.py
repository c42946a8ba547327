"""Log files that a person names, read and parsed as those that an ingest fetches."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa

from ciml.errors import RejectedInput
from ciml.limits import PART_BYTES
from ciml.transforms.fetch.errors import LogUnavailableError
from ciml.transforms.fetch.files import read_file
from ciml.transforms.fetch.policy import FetchPolicy
from ciml.transforms.guard import bisect
from ciml.transforms.parse.logs import Log, parse_logs
from ciml.transforms.parse.zones import check_zone


def parse_files(
    paths: Iterable[str | os.PathLike[str]],
    *,
    start_us: int | None = None,
    end_us: int | None = None,
    zone: str | None = None,
) -> Iterator[pa.Table | RejectedInput]:
    """Read and parse log files part by part, with the limits of an ingest. An unusable file affects only itself.

    Args:
      paths: plain or gzip files.
      start_us, end_us, zone: of all of them, where known; see `ciml.transforms.parse.logs.Log`.

    Yields:
      For each path, in order, its table as from `ciml.transforms.parse.logs.parse_logs`, or its rejection: with a
      reason of the parser, or ``log_not_found``, ``log_unavailable``, ``log_too_large``, ``corrupt_gzip``.

    Raises:
      CimlError: an unknown zone.
    """
    if zone is not None:
        check_zone(zone)
    read: list[Log | RejectedInput] = []
    size = 0
    for path in paths:
        data = _read(os.fspath(path))
        read.append(data if isinstance(data, RejectedInput) else Log(data, start_us, end_us, zone))
        size += 0 if isinstance(data, RejectedInput) else len(data)
        if size >= PART_BYTES:
            yield from _parsed(read)
            read, size = [], 0
    yield from _parsed(read)


def _read(path: str) -> bytes | RejectedInput:
    try:
        real = os.path.realpath(path)
        return read_file(FetchPolicy(file_roots=(os.path.dirname(real),)), real)
    except RejectedInput as rejected:
        return rejected
    except LogUnavailableError as error:
        return RejectedInput(error.reason, error.detail)
    except ValueError as error:  # a null character in the path
        return RejectedInput("log_not_found", str(error))


def _parsed(read: Sequence[Log | RejectedInput]) -> Iterator[pa.Table | RejectedInput]:
    logs = [each for each in read if isinstance(each, Log)]
    tables = (
        table
        for _, found in bisect("parse", logs, parse_logs)
        for table in ([found] if isinstance(found, RejectedInput) else found)
    )
    for each in read:
        yield next(tables) if isinstance(each, Log) else each
