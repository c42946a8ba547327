"""Lines of listings of historical runs, and their decoding.

A line is an input like any message: it may be hostile, and it has an origin (topic ``listing:<digest>``, partition 0,
its number from 0). `ciml.events.listing_files` reads the files.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from ciml.errors import RejectedInput
from ciml.events.fields import kind_of
from ciml.events.json_input import parse_json
from ciml.events.records import Message, Origin, Outcome, RunFacts
from ciml.events.run_facts import check_source_name, listed_run, run_identity
from ciml.limits import MAX_LISTING_LINE_BYTES

TOPIC = "listing:"
_HEADERS = {"source": "listing-source", "runs_of": "listing-runs-of", "logs": "listing-logs"}


@dataclass(frozen=True, slots=True)
class Reading:
    """The reading options of a listing. Each dead letter stores them, so that its line can be tried again.

    Attributes:
      source: the name of the listing in the trust policy.
      runs_of: the source in the run ids: the one of the runs' own events, or another.
      logs: the folder (a full path) or ``s3://`` prefix below which every ``log_path`` lies.
    """

    source: str = "backfill"
    runs_of: str = "backfill"
    logs: str = ""

    def __post_init__(self) -> None:
        for name in (self.source, self.runs_of):
            check_source_name(name)

    def headers(self) -> tuple[tuple[str, bytes], ...]:
        """Return the headers of a listing's message."""
        return tuple((header, str(getattr(self, name)).encode()) for name, header in _HEADERS.items())

    @classmethod
    def of(cls, headers: Iterable[tuple[str, bytes | None]]) -> Reading:
        """Return the inverse of `headers`."""
        found = {name: (value or b"").decode() for name, value in headers}
        return cls(**{name: found[header] for name, header in _HEADERS.items() if header in found})


class Line(NamedTuple):
    """A line: its number from 0, and its bytes. For a line above the size limit, its size and hex sha256 instead."""

    number: int
    data: bytes
    size: int = 0
    sha256: str = ""

    def message(self, reading: Reading) -> Message:
        """Return the line as a message, whose payload suffices to try it again."""
        return Message(self.number, self.data, reading.headers())


class ListedRun(NamedTuple):
    """A decoded line: the run's facts, the log's address, and a fault or None. With a fault, only the id is known."""

    facts: RunFacts
    address: str
    fault: RejectedInput | None


def decode_line(data: bytes, reading: Reading) -> ListedRun:
    """Decode the run in a line.

    Raises:
      RejectedInput: with one of `ciml.events.cloudevents.REASONS`, where the run cannot be identified.
    """
    line = parse_json(data)
    if type(line) is not dict:
        raise RejectedInput("bad_field", f"line: want an object, not {kind_of(line)}")
    identity = run_identity(line, reading.runs_of, name="build_uuid")
    try:
        facts, address = listed_run(line, identity, reading.source, reading.logs)
        if not address:
            raise RejectedInput("missing_field", "log_path")
    except RejectedInput as rejected:
        return ListedRun(RunFacts(identity.encode(), identity.native_id, source=reading.source), "", rejected)
    return ListedRun(facts, address, None)


def too_long(origin: Origin, line: Line) -> Outcome:
    """Return the dead letter of a line above `MAX_LISTING_LINE_BYTES`: it holds only the size and digest."""
    payload = {"size": line.size, "sha256": line.sha256, "timestamp_ms": 0}
    detail = f"{line.size} bytes, at most {MAX_LISTING_LINE_BYTES}"
    return Outcome("dead_letter", origin, reason="too_large", detail=detail, payload=payload)


def is_listing(topic: str) -> bool:
    """Return whether an origin's topic is a listing. No Kafka topic can have such a name."""
    return topic.startswith(TOPIC)
