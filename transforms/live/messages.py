"""The messages of live windows as JSON: windows, examples so far, and dead letters of samples.

docs/formats/live.md describes the topics `windows`, `live-examples` and `live-dead-letters`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from ciml.errors import RejectedInput
from ciml.events.fields import iso_time
from ciml.events.payloads import payload_of
from ciml.events.records import Message, Origin
from ciml.messages import LateSamples, LiveExample, RejectedSamples, Standing, Window
from ciml.transforms.live.samples import Part
from ciml.transforms.live.windows import ExampleSoFar, Pane

MAX_EXAMPLE_BYTES = 4 << 20


def pane_message(run_id: str, pane: Pane) -> bytes:
    """Encode a pane of a window. Equal panes have equal bytes."""
    window: Window = {
        "run_id": run_id,
        "dataset": pane.dataset.name,
        "version": pane.dataset.resolved.definition.version,
        "definition": pane.dataset.digest,
        "day": iso_time(pane.day_us)[:10],
        "number": pane.number,
        "start": iso_time(pane.start_us),
        "samples": pane.samples,
        "revision": pane.samples,
        "pane": pane.kind,
        "values": pane.values,
    }
    return _dumps(window)


def example_message(run_id: str, example: ExampleSoFar, standing: Standing) -> bytes:
    """Encode a run's example so far; without its values if the message would exceed `MAX_EXAMPLE_BYTES`."""
    fields: LiveExample = {
        "run_id": run_id,
        "dataset": example.dataset.name,
        "version": example.dataset.resolved.definition.version,
        "definition": example.dataset.digest,
        "standing": standing,
        "ended": standing == "ended",
        "samples": example.samples,
        "revision": example.samples,
        "missing": example.missing,
        "n_windows": 0,
    }
    if example.values is None:
        if example.rejected is not None:
            fields["excluded"] = {"reason": example.rejected.reason, "detail": example.rejected.detail}
        return _dumps(fields)
    fields["n_windows"] = len(example.values)
    fields["features"] = example.dataset.resolved.features
    if standing != "running":
        fields["digest"] = example.digest
    value = _dumps({**fields, "values": example.values})
    return value if len(value) <= MAX_EXAMPLE_BYTES else _dumps({**fields, "values": None})


def rejected_message(origin: Origin, message: Message, rejected: RejectedInput) -> bytes:
    """Encode the dead letter of an undecodable message, with the message itself, so that it can be replayed."""
    dead_letter: RejectedSamples = {
        "reason": rejected.reason,
        "detail": rejected.detail,
        "origin": origin.to_json(),
        "payload": payload_of(message),
    }
    return orjson.dumps(dead_letter)


def late_message(topic: str, run_id: str, part: Part, rejected: RejectedInput) -> bytes:
    """Encode the dead letter of late samples, with their run and their range of offsets in the topic."""
    numbers: dict[str, list[int]] = {}
    for recorder, sequence in zip(part.recorder.tolist(), part.sequence.tolist(), strict=True):
        numbers.setdefault(str(recorder), []).append(sequence)
    dead_letter: LateSamples = {
        "reason": rejected.reason,
        "detail": rejected.detail,
        "origin": [topic, part.partition, part.first],
        "last_offset": part.last,
        "run_id": run_id,
        "samples": part.size,
        "sequences": numbers,
    }
    return orjson.dumps(dead_letter)


def _dumps(fields: Mapping[str, Any]) -> bytes:
    return orjson.dumps(fields, option=orjson.OPT_SERIALIZE_NUMPY)
