"""A poisoned sample costs its message, and a run whose windows raise costs its own windows; all others are as ever."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any

import pytest

import ciml.pipelines.live
from ciml.events.samples import End, Samples, encode
from ciml.kafka import KafkaOptions
from ciml.pipelines.live import KeepRun, LiveConfig
from ciml.services.driver import drive
from ciml.services.live import LiveService
from ciml.transforms.live.samples import RunState
from ciml.transforms.live.windows import LiveRun
from tests.pipelines.ingest.ingesting import MakeTopic, need_real
from tests.pipelines.keyed_state import Bag, Cell, One
from tests.pipelines.live.living import USUAL, Kept, assert_equals_batch, datasets, replayed, send
from tests.pipelines.live.test_run_state import POLICY, longest


def _fails(patch: pytest.MonkeyPatch, where: Any, name: str, is_poison: Any) -> None:
    inner = getattr(where, name)

    def fails(*arguments: Any, **named: Any) -> Any:
        if is_poison(*arguments):
            raise IndexError(f"{name} at https://u:hunter2@host/")
        return inner(*arguments, **named)

    patch.setattr(where, name, fails)


def check_dead_letter(dead_letter: dict[str, Any], stage: str, name: str) -> None:
    assert dead_letter["reason"] == "internal_error"
    assert dead_letter["detail"].startswith(f"{stage}: IndexError: {name} at ")
    assert dead_letter["detail"].endswith(" fails]")
    assert "hunter2" not in dead_letter["detail"]
    assert len(dead_letter["detail"]) < 1500


@pytest.mark.engines
@pytest.mark.timeout(180)
def test_live_windows_go_on_beside_poisoned_samples(
    kafka: str, topic: MakeTopic, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_real(kafka)
    config = LiveConfig(
        KafkaOptions(kafka), datasets(**USUAL), topic(1, "samples"), topic(1, "windows"), topic(1, "examples"),
        topic(1, "letters"),
    )  # fmt: skip
    messages: list[tuple[str, Samples | End | bytes]] = list(replayed(8, seed=5))
    run_ids = list(dict.fromkeys(run_id for run_id, _ in messages))
    torn, failing, *others = run_ids
    places = [at for at, (run_id, message) in enumerate(messages) if run_id == torn and isinstance(message, Samples)]
    bad = messages[places[1]][1]
    assert isinstance(bad, Samples)
    number = int(bad.sequence[0])
    messages.insert(3, (others[0], b'{"poison": 1}'))
    send(kafka, config.topic, messages)

    _fails(monkeypatch, ciml.pipelines.live, "decode", lambda value: value == b'{"poison": 1}')

    def is_torn(parts: Sequence[tuple[int, Samples | End]], *_: Any) -> bool:
        return any(each.run_id == torn and isinstance(each, Samples) and number in each.sequence for _, each in parts)

    _fails(monkeypatch, ciml.pipelines.live, "part_of", is_torn)
    _fails(monkeypatch, LiveRun, "take_due_panes", lambda run: run.run_id == failing)
    drive(LiveService(config, since_s=None), until="end")
    kept = Kept(config.kafka, config).look()
    kept.close()
    assert assert_equals_batch(kept, others, config.datasets) >= len(others)
    assert kept.examples[torn, "load"]["samples"] > 0  # but for the poisoned message
    assert (failing, "load") not in kept.examples
    by_origin = {
        dead_letter["origin"][2]: dead_letter for dead_letter in kept.dead_letters if "run_id" not in dead_letter
    }
    check_dead_letter(by_origin.pop(3), "samples", "decode")
    held = [at for at, (_, message) in enumerate(messages) if isinstance(message, Samples) and is_torn([(at, message)])]
    assert list(by_origin) == held  # perhaps sent twice
    for at, dead_letter in by_origin.items():
        check_dead_letter(dead_letter, "samples", "part_of")
        value = messages[at][1]
        assert isinstance(value, Samples)
        assert base64.b64decode(dead_letter["payload"]["value"]) == encode(value)
    (given_up,) = [dead_letter for dead_letter in kept.dead_letters if "run_id" in dead_letter]
    assert given_up["run_id"] == failing
    check_dead_letter(given_up, "live", "take_due_panes")


def test_a_run_that_is_given_up_is_reported_once_and_forgotten_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets_, now = datasets(**USUAL), [1000.0]
    run_id, parts, _ = longest(datasets_)
    keep = KeepRun(LiveConfig(KafkaOptions("host:1"), datasets_, policy=POLICY), lambda: now[0])
    older, head, wake = Bag(), One(), Cell()
    for each in parts[:70]:
        assert [topic for topic, _, _ in keep.process((run_id, each), older, head, wake)] != ["live-dead-letters"]
    assert older.held
    _fails(monkeypatch, LiveRun, "take_due_panes", lambda run: run.run_id == run_id)
    sent = [message for each in parts[70:] for message in keep.process((run_id, each), older, head, wake)]
    ((topic, key, dead_letter),) = sent
    assert (topic, key) == ("live-dead-letters", run_id.encode())
    check_dead_letter(json.loads(dead_letter), "live", "take_due_panes")
    assert older.held == []
    assert head.held
    state = RunState.of(head.held[0])
    assert (state.standing, state.newer) == ("failed", [])
    while wake.rings:
        now[0] = wake.rings.pop()
        assert list(keep.on_wake(older, head, wake)) == []
    assert (now[0], head.held) == (1000.0 + POLICY.remember_s, [])
    # in the place of a run that fell silent, too: nothing has to come for it to be given up
    other = Bag(), One(), Cell()
    monkeypatch.undo()
    for each in parts[:3]:
        list(keep.process((run_id, each), *other))
    _fails(monkeypatch, LiveRun, "take_due_panes", lambda run: run.run_id == run_id)
    now[0] = other[2].rings.pop()
    ((topic, _, dead_letter),) = keep.on_wake(*other)
    assert topic == "live-dead-letters"
    check_dead_letter(json.loads(dead_letter), "live", "take_due_panes")
