"""A message of a CI system names many runs. Where all become dead letters, its payload is made and stored once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ciml.events import payloads
from ciml.events.payloads import message_of, read_payload, redact_bytes
from ciml.events.records import Batch, Message, OffsetRange
from ciml.integrations.registry import delivered, find_adapter, read_event
from ciml.manifest.log import ManifestLog
from ciml.pipelines.ingest.committer import Committer, seal, unseal
from ciml.storage import LocalStore
from ciml.transforms.fetch.fetch import fetch
from ciml.transforms.fetch.policy import FetchPolicy
from ciml.transforms.ingest.decode import decode

BUILDS = 300


def message(**log: str) -> Message:
    builds = [
        {
            "uuid": f"{number:032x}", "job_name": f"job-{number}", "result": "FAILURE", "voting": True,
            "start_time": 1795521600.0, "end_time": 1795525600.0, "log_url": None, "pad": "x" * 600, **log,
        }
        for number in range(BUILDS)
    ]  # fmt: skip
    body = {"action": "failure", "pipeline": "check", "buildset": {"uuid": "b" * 32, "builds": builds}}
    value, headers = delivered(find_adapter("zuul"), "zuul", json.dumps(body).encode(), {}, "mqtt-user")
    return Message(0, value, tuple(headers))


@pytest.mark.parametrize("log", [{}, {"log_url": "https://not-allowed.example.org/"}])
def test_the_payload_is_made_sealed_and_stored_once(
    log: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def redact(data: bytes, guess: bool = True) -> bytes:
        if data == sent.value:  # not a part of it
            made.append(len(data))
        return redact_bytes(data, guess)

    monkeypatch.setattr(payloads, "redact_bytes", redact)
    sent = message(**log)
    batch = decode(Batch(OffsetRange("t", "T", 0, 0, 1), [sent]), read_event=read_event)
    batch = fetch(batch, FetchPolicy(), 1)
    assert [outcome.kind for outcome in batch.settled] == ["dead_letter"] * BUILDS
    assert made == [len(sent.value or b"")]
    sealed = seal(batch)
    assert len(sealed) < 3 * len(sent.value or b"")
    again = unseal(sealed)
    assert again == batch
    assert len({id(outcome.payload) for outcome in again.settled}) == 1
    raw = LocalStore(tmp_path)
    Committer(raw).commit([again])
    stored = [record["payload"] for record in ManifestLog(raw).read(1)["dead_letters"]]
    assert len(stored) == BUILDS
    assert len(list(raw.list("letters"))) == 1
    assert message_of(read_payload(raw, stored[-1]), 0) == sent
