"""Large payloads of dead letters: each is an object, which exists before a delta names it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ciml.digest import canonical_json
from ciml.errors import IntegrityError
from ciml.events.payloads import INLINE_BYTES, message_of, offload_payloads, payload_of, read_payload
from ciml.events.records import Message
from ciml.storage import open_store
from tests.durable import Steps


def padded(size: int) -> dict[str, object]:
    """Return a payload whose JSON has this size."""
    payload = {"value": "", "timestamp_ms": 1}
    return {**payload, "value": "A" * (size - len(canonical_json(payload)))}


def test_large_payloads_are_objects_before_a_delta_names_them(tmp_path: Path) -> None:
    raw = open_store(str(tmp_path))
    inline, large, other = (padded(INLINE_BYTES + size) for size in (0, 1, 2))
    records = [{"run": number, "payload": payload} for number, payload in enumerate((inline, large, large, other))]
    delta = {"version": 1, "dead_letters": [*records, {"run": 9}], "deferred": records[1:2]}
    with Steps(str(tmp_path)).recording() as steps:
        stored = offload_payloads(raw, delta)
    assert steps.steps == ["create letters/*.json"] * 3  # for each list
    assert len(list((tmp_path / "letters").iterdir())) == 2
    payloads = [record.get("payload", {}) for record in (*stored["dead_letters"], *stored["deferred"])]
    assert [payload.get("size", 0) - INLINE_BYTES for payload in payloads if "object" in payload] == [1, 1, 2, 1]
    assert [read_payload(raw, payload) for payload in payloads] == [inline, large, large, other, {}, large]
    assert delta["dead_letters"][1] == {"run": 1, "payload": large}


def test_a_payload_whose_object_is_missing_or_damaged_is_reported(tmp_path: Path) -> None:
    raw = open_store(str(tmp_path))
    payload = payload_of(Message(1, b"x" * INLINE_BYTES))
    stored = offload_payloads(raw, {"dead_letters": [{"payload": payload}], "deferred": []})["dead_letters"][0][
        "payload"
    ]
    assert message_of(read_payload(raw, stored), 1).value == b"x" * INLINE_BYTES
    with pytest.raises(IntegrityError, match="read it with read_payload"):
        message_of(stored, 1)
    (tmp_path / stored["object"]).write_bytes(b"{}")
    with pytest.raises(IntegrityError, match="differs from its digest"):
        read_payload(raw, stored)
    (tmp_path / stored["object"]).unlink()
    with pytest.raises(IntegrityError, match="is missing but a dead letter needs it"):
        read_payload(raw, stored)
