"""The table of dead letters: a row each, open or closed, without payload and without secrets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from ciml.manifest.log import ManifestLog
from ciml.pipelines.tables.made_parts import Due
from ciml.raw.dead_letters import DeadLetter, closed_keys, dead_letters_of, described, latest_dead_letters
from ciml.raw.known_ids import DeadLetterKey
from ciml.tables.parts import Part
from ciml.transforms.raw.arrow_arrays import flags, numbers, texts, times

_TIME = pa.timestamp("us", tz="UTC")
_TEXTS = ("run_id", "build_name", "reason", "detail", "event_key", "log_url")


def make_dead_letters(log: ManifestLog, version: int, due: Due) -> Iterator[tuple[Part, pa.Table]]:
    """Yield the parts to make and their rows, the newest part first; rows are in the order of the manifest."""
    missing, closed = set(due.missing), _closed(log, version, due.since) if due.since else set()
    dead_letters = latest_dead_letters(log, version)
    each = next(dead_letters, None)
    for part in reversed(due.parts):
        if not missing and not closed:
            return
        found: list[DeadLetter] = []
        make = part in missing
        while each is not None and each.version >= part.first:
            if each.key in closed and each.version <= due.since:
                make = True
                closed.discard(each.key)  # an earlier one of this key was closed before
            found.append(each)
            each = next(dead_letters, None)
        missing.discard(part)
        if make:
            yield part, dead_letter_table(found[::-1])


def _closed(log: ManifestLog, version: int, since: int) -> set[DeadLetterKey]:
    """Return the dead letters up to a version that later deltas closed."""
    closed: set[DeadLetterKey] = set()
    opened: set[DeadLetterKey] = set()
    for number, delta in log.since(since):
        if number > version:
            break
        closed.update(key for key in closed_keys(delta) if key not in opened)
        opened.update(each.key for each in dead_letters_of(number, delta))
    return closed


def dead_letter_table(dead_letters: Sequence[DeadLetter]) -> pa.Table:
    """Return a row for each dead letter, in order.

    Returns:
      ``run_id`` and ``build_name``, "" where the message could not be decoded; ``reason``, ``detail``; ``event_key``,
      ``log_url``; ``topic``, ``partition`` and ``offset`` of its message; ``first_seen`` and ``time`` of its commit
      (timestamp[us, UTC]); ``version`` of the raw manifest; ``open``; ``closed_version`` (null if open) and ``became``:
      the outcomes of its event on closing, with commas between them.
    """
    values = [described(each.outcome.to_json()) for each in dead_letters]
    origins = [each.outcome.origin for each in dead_letters]
    columns = {
        **{name: texts([value.get(name, "") for value in values]) for name in _TEXTS},
        "topic": texts([origin.topic for origin in origins]),
        "partition": numbers(np.array([origin.partition for origin in origins], np.int32)),
        "offset": numbers(np.array([origin.offset for origin in origins], np.int64)),
        "first_seen": times([value.get("first_seen_us") for value in values], _TIME),
        "time": times([each.time_us for each in dead_letters], _TIME),
        "version": numbers(np.array([each.version for each in dead_letters], np.int64)),
        "open": flags([not each.closed for each in dead_letters]),
        "closed_version": times([each.closed or None for each in dead_letters], pa.int64()),
        "became": texts([", ".join(each.became) for each in dead_letters]),
    }
    return pa.Table.from_arrays(list(columns.values()), names=list(columns))
