"""Live samples: messages of a recorder during a run; encoded, decoded, and as a telemetry table.

A message has two forms. `Samples` and `End` are those that ciml computes with, in arrays. `SamplesMessage` and
`EndMessage` are their JSON: they validate a message, and its published schema is derived from them.

docs/formats/samples.md describes the format. Treat everything in a message as hostile until it has passed `decode`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional, TypedDict, TypeVar

import msgspec
import orjson
from msgspec import Meta

from ciml.errors import RejectedInput
from ciml.events.fields import is_clean, kind_of, parse_numbers
from ciml.events.redaction import shown
from ciml.events.run_id import RunId
from ciml.limits import (
    EARLIEST_US,
    LATEST_US,
    MAX_COLUMN_NAME_CHARACTERS,
    MAX_RECORDER_SAMPLES,
    MAX_SAMPLES_BYTES,
    MAX_SAMPLES_COLUMNS,
)
from ciml.settings import validation_line
from ciml.telemetry import BOOT, OWN_COLUMNS, TIME

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

#: A sample of a message: its number, its time (epoch microseconds), its mark, and a value of each column.
Row = tuple[int, int, bool, Sequence[float]]

#: Why `decode` rejects a message: a closed set.
REASONS = frozenset(
    ["tombstone", "too_large", "broken_json", "not_samples", "missing_field", "bad_field", "bad_time", "bad_run_id"]
)
_REASONS_BY_FIELD = {"run_id": "bad_run_id", "recorder_us": "bad_time", "first_us": "bad_time"}


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples of one start of a run's recorder. (run id, recorder_us, sequence) is a sample's identity.

    Attributes:
      run_id: the encoded run id.
      recorder_us: when this start of the recorder began, epoch microseconds: a restarted recorder has another.
      first_us: the time of the run's first sample known to the recorder, epoch microseconds.
      columns: the full names of the F columns, ``group:name``.
      sequence: int64 [n], from 0 for each start of the recorder.
      time_us: int64 [n], each sample's own time, epoch microseconds.
      boot: bool [n], true for the first sample after a start, the averages since boot.
      values: float64 [n, F]; NaN is a missing value.
    """

    run_id: str
    recorder_us: int
    first_us: int
    columns: tuple[str, ...]
    sequence: np.ndarray
    time_us: np.ndarray
    boot: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class End:
    """The end of a run: this start of its recorder sent ``samples`` samples, numbered from 0."""

    run_id: str
    recorder_us: int
    samples: int


_EpochUs = Annotated[int, Meta(ge=EARLIEST_US, lt=LATEST_US)]
#: `Row` in a JSON message.
_JsonRow = tuple[
    Annotated[int, Meta(ge=0, lt=MAX_RECORDER_SAMPLES, description="Number, from 0 for each start.")],
    Annotated[_EpochUs, Meta(description="Its time, epoch microseconds.")],
    Annotated[bool, Meta(description="True for the first sample after a start: averages since boot.")],
    Annotated[Sequence[Optional[float]], Meta(description="A value of each column.")],
]


class _Message(TypedDict):
    run_id: Annotated[str, Meta(min_length=1, description="The encoded run id, source~id~attempt.")]
    recorder_us: Annotated[_EpochUs, Meta(description="Time of this start of the recorder, epoch microseconds.")]


class SamplesMessage(_Message):
    """Samples of a running job. Key: the run id."""

    first_us: Annotated[_EpochUs, Meta(description="Time of the run's first sample, epoch microseconds.")]
    columns: Annotated[
        Sequence[Annotated[str, Meta(min_length=1, max_length=MAX_COLUMN_NAME_CHARACTERS)]],
        Meta(min_length=1, max_length=MAX_SAMPLES_COLUMNS, description="Full names, group:name."),
    ]
    samples: Annotated[Sequence[_JsonRow], Meta(min_length=1)]


class EndMessage(_Message):
    """The end of a running job. Key: the run id."""

    end: Literal[True]
    samples: Annotated[
        int, Meta(ge=0, le=MAX_RECORDER_SAMPLES, description="Number of samples of this start of the recorder.")
    ]


M = TypeVar("M", SamplesMessage, EndMessage)


def encode(message: Samples | End) -> bytes:
    """Return a message's JSON.

    Raises:
      RejectedInput: `decode` would reject the message.
    """
    if isinstance(message, Samples):
        arrays = (message.sequence, message.time_us, message.boot, message.values)
        rows = list(zip(*(array.tolist() for array in arrays)))
        return encode_rows(message.run_id, message.recorder_us, message.first_us, message.columns, rows)
    return orjson.dumps(_checked({**asdict(message), "end": True}, EndMessage))


def encode_rows(run_id: str, recorder_us: int, first_us: int, columns: Sequence[str], rows: Sequence[Row]) -> bytes:
    """Return the JSON of a message of samples, without numpy: a recorder has none.

    Args:
      run_id: as in `Samples`, as are ``recorder_us``, ``first_us`` and ``columns``.
      rows: the samples; NaN is a missing value.

    Raises:
      RejectedInput: `decode` would reject the message.
    """
    if any(math.isinf(value) for _, _, _, values in rows for value in values):
        raise RejectedInput("bad_field", "samples: a value is infinite")
    message: SamplesMessage = {
        "run_id": run_id,
        "recorder_us": recorder_us,
        "first_us": first_us,
        "columns": columns,
        "samples": rows,
    }
    value = orjson.dumps(_checked_samples(message))  # orjson writes NaN as null
    if len(value) > MAX_SAMPLES_BYTES:
        raise RejectedInput("too_large", f"{len(value)} bytes, at most {MAX_SAMPLES_BYTES}")
    return value


def decode(value: bytes | None) -> Samples | End:
    """Decode the value of a Kafka message. Unknown fields are ignored.

    Raises:
      RejectedInput: with one of `REASONS`.
    """
    import numpy as np

    if not value:
        raise RejectedInput("tombstone", "the message has no value")
    fields = parse_numbers(value, MAX_SAMPLES_BYTES)
    if type(fields) is not dict:
        raise RejectedInput("not_samples", f"want an object, not {kind_of(fields)}")
    present = {name: item for name, item in fields.items() if item is not None}
    if "end" in present:
        end: EndMessage = _checked(present, EndMessage)
        return End(end["run_id"], end["recorder_us"], end["samples"])
    message = _checked_samples(present)
    sequence, time_us, boot, values = zip(*message["samples"])
    return Samples(
        message["run_id"],
        message["recorder_us"],
        message["first_us"],
        tuple(message["columns"]),
        np.array(sequence, np.int64),
        np.array(time_us, np.int64),
        np.array(boot, bool),
        np.array(values, np.float64),  # null becomes NaN
    )


def _checked(fields: Mapping[str, Any], kind: type[M]) -> M:
    """Return the known fields of a message. Raises `RejectedInput` for a field that is missing or invalid."""
    try:
        message = msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        detail = validation_line(error, kind)
        raise RejectedInput(_reason_of(detail), detail) from None
    RunId.decode(fields["run_id"])
    return message


def _reason_of(detail: str) -> str:
    """Return the reason for a line of a validation error: the path of the field, a colon, and the problem.

    The path of a sample's time is ``samples.7.1``. msgspec reports an error as text only.
    """
    path, _, problem = detail.partition(": ")
    if problem == "is missing":
        return "missing_field"
    is_out_of_range = problem.startswith(("expected int >=", "expected int <="))
    field, *indices = path.split(".")
    if field == "samples" and is_out_of_range and len(indices) == 2 and indices[1] == "1":
        return "bad_time"
    return _REASONS_BY_FIELD.get(field, "bad_field")


def _checked_samples(fields: Mapping[str, Any]) -> SamplesMessage:
    """Return the known fields of a message of samples. Raises as `_checked`."""
    message: SamplesMessage = _checked(fields, SamplesMessage)
    columns = message["columns"]
    for name in columns:
        if name in OWN_COLUMNS or not is_clean(name):
            raise RejectedInput("bad_field", f"columns: {shown(name)} is not a column name")
    if len(set(columns)) < len(columns):
        raise RejectedInput("bad_field", "columns: a name appears twice")
    if any(len(values) != len(columns) for _, _, _, values in message["samples"]):
        raise RejectedInput("bad_field", f"samples: want a list of {len(columns)} values for each, one a column")
    return message


def to_table(parts: Sequence[Samples]) -> pa.Table:
    """Return the samples of one run as a stored telemetry table: each once, in recording order.

    Args:
      parts: at least one, in any order. The first of several copies of a sample counts.

    Returns:
      ``time`` timestamp[us, UTC], ``boot`` bool, and a float64 column for each column of any part, those of earlier
      starts first; null where a sample has no value. Sorted by (recorder_us, sequence).
    """
    import numpy as np

    parts = sorted(parts, key=lambda part: part.recorder_us)
    names = tuple(dict.fromkeys(chain.from_iterable(part.columns for part in parts)))
    index_of = {name: index for index, name in enumerate(names)}
    sizes = [part.sequence.size for part in parts]
    values = np.full((sum(sizes), len(names)), np.nan)
    begin = 0
    for part, size in zip(parts, sizes):
        values[begin : begin + size, [index_of[name] for name in part.columns]] = part.values
        begin += size
    recorder = np.repeat(np.array([part.recorder_us for part in parts], np.int64), sizes)
    sequence = np.concatenate([part.sequence for part in parts])
    time_us = np.concatenate([part.time_us for part in parts])
    boot = np.concatenate([part.boot for part in parts])
    order = np.lexsort((sequence, recorder))  # stable: the first copy of a sample remains before the others
    is_first = np.ones(order.size, bool)
    is_first[1:] = (np.diff(sequence[order]) != 0) | (np.diff(recorder[order]) != 0)
    order = order[is_first]
    return telemetry_table(names, time_us[order], boot[order], values[order])


def telemetry_table(names: Sequence[str], time_us: np.ndarray, boot: np.ndarray, values: np.ndarray) -> pa.Table:
    """Return a telemetry table of time_us int64 [n], boot bool [n] and values float64 [n, F], whose NaN become null."""
    import numpy as np
    import pyarrow as pa

    columns = [
        pa.array(time_us, pa.int64()).cast(pa.timestamp("us", tz="UTC")),
        pa.array(boot, pa.bool_()),
        *(pa.array(np.ascontiguousarray(column), pa.float64(), from_pandas=True) for column in values.T),
    ]
    return pa.Table.from_arrays(columns, names=[TIME, BOOT, *names])
