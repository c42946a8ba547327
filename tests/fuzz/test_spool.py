"""Whatever an earlier job leaves in the spool, it brings in nothing from outside and stops no recording."""

from __future__ import annotations

import gzip
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from ciml.errors import EngineError, RejectedInput
from ciml.events import samples
from ciml.events.cloudevents import decode_message
from ciml.events.records import Message, RunFacts
from ciml.kafka import KafkaOptions
from ciml.recorder import Settings
from ciml.recorder.spool.delivery import Sender
from ciml.recorder.spool.flush import Leftovers, send_leftovers
from ciml.recorder.spool.recording import Destination, Plan, Recording
from ciml.recorder.spool.seals import POLICY_FACTS, UNSEALED
from tests.fuzz.frame import fuzz
from tests.fuzz.strategies.spool import MARK, Make, spools
from tests.recorder.planted import T0_US, TELEMETRY, planted_facts

BROKER = "127.0.0.1:9"
#: ``LOGS`` stands for the folder of the logs.
TO_LOGS = st.just({"log_dir": "LOGS"})
ANYWHERE = st.fixed_dictionaries({}, optional={
    "log_dir": st.sampled_from(["LOGS", "LOGS/../other", "gopher://x", "\0"]), "log_url": st.sampled_from(["", "https://evil"]),
    "events_topic": st.sampled_from(["ci-events", "other"]), "kafka": st.sampled_from(["", BROKER, "evil:9092"]),
})  # fmt: skip
TO_BROKER = ANYWHERE.map(lambda places: {"log_dir": "LOGS", "kafka": BROKER, **places})


class Collecting(Sender):
    """A broker that has all at once."""

    def __init__(self) -> None:
        super().__init__(KafkaOptions(BROKER))
        self.messages: list[tuple[str, Message]] = []

    def send(
        self, topic: str, key: bytes, value: bytes, headers: Sequence[tuple[str, bytes]] | None,
        done: Callable[[str], None],
    ) -> bool:  # fmt: skip
        self.messages.append((topic, Message(len(self.messages), value, tuple(headers or ()), key)))
        done("")
        return True


@contextmanager
def world(fill: Make) -> Iterator[tuple[Path, Path, Path]]:
    """(a folder, the filled spool in it, the folder of the logs)."""
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        spool = base / "spool"
        spool.mkdir(mode=0o700)
        (base / "outside").write_bytes(TELEMETRY + MARK)
        fill(base, spool)
        for run in spool.glob("*/run.json"):
            if run.is_file() and not run.is_symlink() and run.stat().st_nlink == 1:
                run.write_bytes(run.read_bytes().replace(b"LOGS", str(base / "logs").encode()))
        for folder in spool.iterdir():  # none is one that another recorder is making now
            os.utime(folder, (T0_US // 1_000_000 - 10**9,) * 2, follow_symlinks=False)
        yield base, spool, base / "logs"


def plan(logs: Path, kafka: str = "") -> Plan:
    return Plan(RunFacts.from_json(planted_facts("own", start_us=T0_US + 10**9)), kafka, log_dir=str(logs))


def send_all(spool: Path, own: Plan, settings: Settings, sender: Sender | None) -> None:
    """What a recorder does beside its own recording, which stays as it is."""
    recording = Recording.create(spool, own)
    leftovers = Leftovers(recording, settings, sender)
    leftovers.open()
    for _ in range(40):
        leftovers.step()
    assert recording.folder.read("run.json", 1 << 20)
    assert sorted(recording.folder.names(9)) == ["lock", "run.json"]
    recording.remove()


def check_logs(base: Path, logs: Path, before: set[str]) -> None:
    """Nothing was written but logs, and none has what is outside of the spool."""
    assert {path.name for path in base.iterdir()} - before <= {logs.name}
    for path in logs.rglob("*.gz"):
        assert MARK not in gzip.decompress(path.read_bytes())
    assert (base / "outside").read_bytes() == TELEMETRY + MARK


def names(base: Path) -> set[str]:
    return {path.name for path in base.iterdir()}


@fuzz
@given(spools(ANYWHERE | TO_LOGS))
def test_a_recorder_puts_only_logs_of_the_spool_and_only_where_its_own_goes(fill: Make) -> None:
    with world(fill) as (base, spool, logs):
        before = names(base)
        send_all(spool, plan(logs), Settings(spool), None)
        check_logs(base, logs, before)
        for listed in logs.rglob("run.json"):
            assert not any(f'"{fact}"'.encode() in listed.read_bytes() for fact in ("pipeline", "project", "branch"))


@fuzz
@given(spools(TO_BROKER))
def test_a_recorder_sends_no_fact_of_an_unsealed_recording(fill: Make) -> None:
    with world(fill) as (base, spool, logs):
        before, sender = names(base), Collecting()
        send_all(spool, plan(logs, BROKER), Settings(spool, KafkaOptions(BROKER)), sender)
        check_logs(base, logs, before)
        for topic, message in sender.messages:
            assert topic in ("ci-events", "samples")
            assert MARK.split(b",")[1] not in message.value
            if topic == "samples":
                samples.decode(message.value)
                continue
            try:
                event = decode_message(message)
            except RejectedInput:
                continue  # an end that no event can have: ingest says so
            for run in event.run_facts:
                assert [getattr(run, fact) for fact in POLICY_FACTS] == [""] * len(POLICY_FACTS)
                assert UNSEALED.items() <= run.labels.items()


@fuzz
@given(spools(TO_BROKER))
def test_a_recorder_with_credentials_sends_nothing_that_they_did_not_seal(fill: Make) -> None:
    with world(fill) as (base, spool, logs):
        before, sender = names(base), Collecting()
        options = KafkaOptions(BROKER, {"sasl.password": "pa55"})
        send_all(spool, plan(logs, BROKER), Settings(spool, options), sender)
        assert sender.messages == []
        assert names(base) == before


@fuzz
@given(spools(TO_LOGS))
def test_what_cannot_be_sent_is_counted_and_stays(fill: Make) -> None:
    with world(fill) as (base, spool, logs):
        before, there = names(base), len(os.listdir(spool))
        said = ""
        try:
            send_leftovers(Settings(spool, flush_s=0.05), Destination())
        except EngineError as error:
            said = str(error)
        stay = len(os.listdir(spool))
        assert said.startswith(f"{stay} recordings not sent, kept in {spool}" if stay else "")
        check_logs(base, logs, before)
        assert len({path.parent for path in logs.rglob("*.gz")}) <= there
