"""One message of each form on each topic, made by the encoders."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any

import numpy as np

from ciml.errors import RejectedInput
from ciml.events.cloudevents import QUEUED, finished_event, run_event
from ciml.events.records import Message, Origin, Outcome, RawFile, RunFacts
from ciml.events.samples import End, encode, encode_rows
from ciml.integrations.registry import delivered, find_adapter
from ciml.pipelines.ingest.committer import render_dead_letters, render_runs
from ciml.pipelines.kafka.publish import LOG, VERSION
from ciml.pipelines.predict import render_predictions
from ciml.serving.predict.answers import recorded_verdict
from ciml.serving.predict.log import prediction_id
from ciml.serving.registry import CandidateNotice
from ciml.transforms.live.messages import example_message, late_message, pane_message, rejected_message
from ciml.transforms.live.samples import Part
from ciml.transforms.live.windows import ExampleSoFar, LiveDataset, Pane
from ciml.verdict_rules import Group, VerdictRules
from tests.serving.models_fixture import DEFINITION

TIME = 1_795_518_000_000_000
FACTS = RunFacts(
    "zuul~r%2F1~2", "r/1", "unit", outcome="failure", result="FAILURE", source="zuul", project="nova", change="7",
    log_url="https://logs/x.gz", start_us=TIME, end_us=TIME + 5_000_000, labels={"exit_code": "1"}, fork="no",
    auth="hmac-sha256", subjects=("sha:abc",),
)  # fmt: skip
LIVE = LiveDataset("small", DEFINITION)
_ORIGIN, _DIGEST = Origin("ci-events", 0, 3), "a" * 64


@cache
def made() -> dict[str, list[Message]]:
    """Return messages by the usual name of their topic."""
    return {
        "ci-events": list(_events()),
        "samples": [_plain(value) for value in (_samples(), encode(End(FACTS.run_id, TIME, 2)))],
        "runs": _projected(render_runs({"version": 4, "runs": [_row("run")], "reclaims": [_row("reclaim")]})),
        "dead-letters": _projected(render_dead_letters(_dead_letters())),
        "predictions": [
            *_projected(render_predictions({"predictions": list(_predictions())}, "cause")),
            *_projected(render_predictions({"predictions": list(_by_candidate())}, "cause/candidate")),
        ],
        "windows": [_plain(pane_message(FACTS.run_id, _pane()))],
        "live-examples": [_plain(value) for value in _examples()],
        "live-dead-letters": [_plain(value) for value in _live_dead_letters()],
    }


def values(name: str) -> Iterator[dict[str, Any]]:
    """Yield values, or headers, of the messages that a schema describes: not those of binary mode and of deliveries."""
    topic = name.removesuffix("-headers")
    for message in made()[topic]:
        headers = {key: (value or b"").decode() for key, value in message.headers}
        if name != topic:
            yield headers
        elif topic != "ci-events" or not headers.keys() & {"ciml_adapter", "ce_type"}:
            yield json.loads(message.value or b"")


def _plain(value: bytes) -> Message:
    return Message(0, value)


def _projected(rendered: Iterable[tuple[bytes, bytes, Any]]) -> list[Message]:
    more = ((VERSION, b"4"), (LOG, b"0123456789abcdef"))
    return [Message(0, value, (*headers, *more), key) for key, value, headers in rendered]


def _events() -> Iterator[Message]:
    for mode in ("structured", "binary", "bare"):
        value, headers = finished_event(FACTS, mode=mode)  # type: ignore[arg-type]
        yield Message(0, value, tuple(headers))
        value, headers = run_event(
            QUEUED, FACTS, FACTS.replace(run_id="zuul~2~1", build_uuid="2"), mode=mode  # type: ignore[arg-type]
        )  # fmt: skip
        yield Message(0, value, tuple(headers))
    value, headers = delivered(
        find_adapter("github"), "github", b"no JSON", {"x-github-event": "push", "other": "x"}, "hmac-sha256", "d1"
    )  # fmt: skip
    yield Message(0, value, tuple(headers))


def _samples() -> bytes:
    rows = [(0, TIME, True, [1.5, float("nan")]), (1, TIME + 1_000_000, False, [2.0, 3.0])]
    return encode_rows(FACTS.run_id, TIME, TIME, ["total cpu usage:usr", "load avg:1m"], rows)


def _row(kind: Any) -> dict[str, Any]:
    return Outcome(kind, _ORIGIN, "zuul e", FACTS, file=RawFile("runs/x.parquet", _DIGEST, 2, 100)).to_json()


def _dead_letters() -> Mapping[str, Any]:
    known = Outcome("dead_letter", _ORIGIN, "zuul e", FACTS, "log_not_found", "no such file", first_seen_us=TIME)
    unknown = Outcome("dead_letter", Origin("ci-events", 0, 4), reason="broken_json", detail="line 1", payload={})
    closed = [list(_ORIGIN.to_json()), FACTS.run_id]
    records: list[dict[str, Any]] = [known.to_json(), unknown.to_json()]
    letters = [{**record, "origin": list(record["origin"])} for record in records]
    return {"version": 4, "time_us": TIME, "dead_letters": letters, "closed_letters": [closed]}


def _predictions() -> Iterator[dict[str, Any]]:
    shares = {"code": 0.75, "machine": 0.25}
    scores = {"": tuple(number / 100 for number in range(50))}
    rules = VerdictRules(("code", "machine"), 0.9, {}, {"": Group(50, {"code": 0.5, "machine": 0.5}, scores)})
    windows = np.zeros((1, 1), np.float32)
    for verdict in ({}, {**recorded_verdict(FACTS, shares, rules, windows), "path": "runs/x.parquet"}):
        yield {
            "id": prediction_id(FACTS.run_id, "cause", 3), "offset": 5, "run_id": FACTS.run_id, "build_name": "unit",
            "model": "cause", "version": 3, "definition": _DIGEST, "snapshot": _DIGEST, "label": "cause",
            "class": "code", "probabilities": shares, **verdict,
            "n_windows": 5, "prepare_ms": 1.5, "server_ms": 2.5, "batch": 1, "time_us": TIME, "latency_ms": 12.5,
        }  # fmt: skip


def _by_candidate() -> Iterator[dict[str, Any]]:
    notice = CandidateNotice("0123456789abcdef", False, ("too few runs",))
    for record in _predictions():
        identity = prediction_id(FACTS.run_id, "cause", notice.id)
        yield {**record, "id": identity, "version": None, "candidate": notice.to_json()}


def _pane() -> Pane:
    return Pane(LIVE, TIME - TIME % 86_400_000_000, 7, TIME, 3, "early", np.array([1.5, 2.0, 0.25], np.float32))


def _examples() -> Iterator[bytes]:
    values = np.ones((2, 3), np.float32)
    for standing, example in (
        ("running", ExampleSoFar(LIVE, 2, 0, values, "", None)),
        ("ended", ExampleSoFar(LIVE, 2, 1, values, _DIGEST, None)),
        ("silent", ExampleSoFar(LIVE, 2, 0, None, "", RejectedInput("empty", "no window"))),
        ("running", ExampleSoFar(LIVE, 2, 0, np.ones((1_000_000, 3), np.float32), "", None)),
    ):
        yield example_message(FACTS.run_id, example, standing)  # type: ignore[arg-type]


def _live_dead_letters() -> Iterator[bytes]:
    message = Message(3, b"no JSON", (("a", None), ("content-type", b"x")), b"key", 5)
    yield rejected_message(Origin("samples", 0, 3), message, RejectedInput("broken_json", "line 1"))
    numbers = np.array([4, 5])
    part = Part(
        np.array([TIME, TIME]), numbers, numbers + TIME, np.array([False, False]), np.ones((2, 1)), np.ones(1, bool),
        TIME, (), 0, 3, 9,
    )  # fmt: skip
    yield late_message("samples", FACTS.run_id, part, RejectedInput("run_ended", "it ended"))
