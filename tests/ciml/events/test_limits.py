"""An event, a line, a header or a message of samples at a limit is accepted; one beyond it is rejected."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from ciml import limits
from ciml.errors import RejectedInput
from ciml.events.cloudevents import STRUCTURED, decode_message
from ciml.events.fields import iso_time, parse_json
from ciml.events.listing import Reading, decode_line
from ciml.events.records import Message
from ciml.events.run_id import RunId
from ciml.events.samples import End, decode, encode, encode_rows
from tests.ciml.events.test_cloudevents import RUN, bare
from tests.ciml.events.test_listing import encoded
from tests.ciml.events.test_samples import ONE, START_US, USR
from tests.ciml.events.test_samples import RUN as RUN_ID

SHORT = {"job": "j", "result": "SUCCESS", "end_time": 1795521600}
FIRST, LAST = limits.EARLIEST_US, limits.LATEST_US - 1


def reason_of(read: Callable[..., Any], *arguments: Any) -> str:
    """Return the reason of a rejection; "" without one."""
    try:
        read(*arguments)
    except RejectedInput as rejected:
        return rejected.reason
    return ""


def event(message: Message) -> str:
    """Return the reason why an event or a run in it is rejected; "" if none is."""

    def read() -> None:
        for _, fault in decode_message(message, {"*": "ci"}).rejections:
            raise fault

    return reason_of(read)


def run(**fields: Any) -> str:
    return event(bare({**RUN, **fields}))


def runs(count: int) -> str:
    return event(bare({"runs": [{**SHORT, "id": str(number)} for number in range(count)]}))


def of_size(size: int) -> str:
    message = bare(RUN)
    return event(message._replace(value=(message.value or b"").ljust(size)))


def headers(count: int) -> str:
    return event(bare(RUN)._replace(headers=(*STRUCTURED, *[("h", b"")] * (count - 1))))


def named(count: int, name: str = "n") -> dict[str, Any]:
    return {f"{name}{number}": number for number in range(count)}


def line(**fields: Any) -> str:
    fault = decode_line(encoded(**fields), Reading()).fault
    return fault.reason if fault else ""


def period(start_us: int, end_us: int) -> str:
    return run(start_time=iso_time(start_us), end_time=iso_time(end_us))


def samples(*columns: str, number: int = 0, time_us: int = START_US) -> str:
    """Return the reason why a message of one sample is rejected: the same when it is written and when it is read."""
    row = (number, time_us, False, [1.0] * len(columns))
    fields = {"run_id": RUN_ID, "recorder_us": START_US, "first_us": START_US, "columns": columns, "samples": [row]}
    reason = reason_of(decode, json.dumps(fields).encode())
    assert reason_of(encode_rows, RUN_ID, START_US, START_US, columns, [row]) == reason
    return reason


def samples_of_size(size: int) -> str:
    """Return the reason why a message of exactly this size is not written."""
    names = [f"{number:03}" for number in range(1000)]
    row = (0, START_US, True, [0.1] * 1000)
    spare = size - len(encode_rows(RUN_ID, START_US, START_US, names, [row]))
    longer = [name + "x" * (spare // 1000 + (number < spare % 1000)) for number, name in enumerate(names)]
    return reason_of(encode_rows, RUN_ID, START_US, START_US, longer, [row])


#: By what is limited: the limit, the reason beyond it, and the reason why an input of a size is rejected.
LIMITS: dict[str, tuple[int, str, Callable[[int], str]]] = {
    "runs of an event": (limits.MAX_EVENT_RUNS, "too_many_runs", runs),
    "a message": (limits.MAX_MESSAGE_BYTES, "too_large", of_size),
    "headers": (limits.MAX_MESSAGE_HEADERS, "too_large", headers),
    "nesting": (limits.MAX_JSON_DEPTH, "broken_json", lambda n: reason_of(parse_json, b"[" * n + b"]" * n)),
    "digits": (limits.MAX_JSON_DIGITS, "broken_json", lambda n: reason_of(parse_json, b"9" * n)),
    "an event's id": (limits.MAX_ID_CHARACTERS, "bad_field", lambda n: event(bare(RUN, id="x" * n))),
    "an event's source": (limits.MAX_ID_CHARACTERS, "bad_field", lambda n: event(bare(RUN, source="s" * n))),
    "a text": (limits.MAX_TEXT_CHARACTERS, "bad_field", lambda n: run(project="p" * n)),
    "an address": (limits.MAX_URL_CHARACTERS, "bad_field", lambda n: run(log_url="https://h/".ljust(n, "a"))),
    "a path in a line": (limits.MAX_URL_CHARACTERS, "bad_field", lambda n: line(log_path="a" * n)),
    "a job": (limits.MAX_JOB_PATH_CHARACTERS, "bad_field", lambda n: run(job="j" * n)),
    "an encoded job": (limits.MAX_JOB_PATH_CHARACTERS, "bad_field", lambda n: run(job="j" * (n - 6) + "é")),
    "labels": (limits.MAX_LABELS, "bad_field", lambda n: run(labels=named(n))),
    "labels and fields": (limits.MAX_LABELS, "bad_field", lambda n: line(labels=named(40), **named(n - 41, "f"))),
    "a label's name": (limits.MAX_LABEL_NAME_CHARACTERS, "bad_field", lambda n: run(labels={"n" * n: 1})),
    "a label": (limits.MAX_TEXT_CHARACTERS, "bad_field", lambda n: run(labels={"n": "x" * n})),
    "subjects": (limits.MAX_SUBJECTS, "bad_field", lambda n: run(subjects=[f"s:{number}" for number in range(n)])),
    "a run id": (180, "bad_run_id", lambda n: reason_of(RunId, "zuul", "é" + "a" * (n - len("zuul~%C3%A9~1")))),
    "the last time": (LAST, "bad_time", lambda n: period(START_US, n)),
    "the first time": (-FIRST, "bad_time", lambda n: period(-n, START_US)),
    "a start before its end": (START_US, "bad_time", lambda n: period(n, START_US)),
    "samples that are read": (
        limits.MAX_SAMPLES_BYTES,
        "too_large",
        lambda n: reason_of(lambda: decode(encode(ONE).ljust(n))),
    ),
    "samples that are written": (limits.MAX_SAMPLES_BYTES, "too_large", samples_of_size),
    "columns": (limits.MAX_SAMPLES_COLUMNS, "bad_field", lambda n: samples(*named(n))),
    "a column's name": (limits.MAX_COLUMN_NAME_CHARACTERS, "bad_field", lambda n: samples("c" * n)),
    "the last number": (limits.MAX_RECORDER_SAMPLES - 1, "bad_field", lambda n: samples(USR, number=n)),
    "a sample's time": (LAST, "bad_time", lambda n: samples(USR, time_us=n)),
    "the number of samples": (
        limits.MAX_RECORDER_SAMPLES,
        "bad_field",
        lambda n: reason_of(lambda: decode(encode(End(RUN_ID, START_US, n)))),
    ),
}


@pytest.mark.parametrize("limited", LIMITS)
def test_an_input_at_a_limit_is_accepted_and_one_beyond_it_is_rejected(limited: str) -> None:
    most, reason, rejection = LIMITS[limited]
    assert (rejection(most), rejection(most + 1)) == ("", reason)
