"""What tests of ingest share: data roots, and the comparison of everything with the producer's own list."""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ciml.data_root import DataRoot
from ciml.events.cloudevents import finished_event
from ciml.events.records import Batch, Message, OffsetRange, Origin, Outcome, OutputFile, RawFile, RunFacts
from ciml.integrations.registry import read_event
from ciml.kafka import KafkaOptions
from ciml.manifest.log import Delta, ManifestLog, catch_up
from ciml.pipelines.ingest.committer import IngestConfig, IngestProcessor
from ciml.pipelines.ingest.replay import ReplayConfig
from ciml.pipelines.kafka.broker import is_mock
from ciml.pipelines.kafka.publish import VERSION
from ciml.runs.outputs import KeptOutput, OutputTemplates, read_output, read_templates
from ciml.runs.reader import verify_run
from ciml.runs.state import RawState
from ciml.runs.verify import Audit, Verification
from ciml.services.decide import ServiceProgress
from ciml.storage import Store
from ciml.transforms.fetch.policy import FetchPolicy
from ciml.transforms.guard import guarded_messages
from ciml.transforms.ingest.decode import decode
from ciml.transforms.ingest.run_stages import settle
from tests.messages import published
from tests.pipelines.ingest.scenario import Scenario, corpus_facts

MakeTopic = Callable[..., str]


def account(raw: Store) -> tuple[RawState, list[Delta]]:
    log, state = ManifestLog(raw), RawState()
    catch_up(log, state)
    return state, [delta for _, delta in log.since(0)]


def raw_rows(deltas: list[Delta]) -> dict[str, RawFile]:
    return {run["mention"]["run_id"]: RawFile.from_json(run["file"]) for delta in deltas for run in delta["runs"]}


def outputs_of(raw: Store, deltas: list[Delta]) -> dict[str, bytes | str | None]:
    """The output that each raw row names, or why it is missing; None where it names none."""
    found: dict[str, bytes | str | None] = {}
    for row in (row for delta in deltas for row in delta["runs"]):
        output = OutputFile.from_json(row["output"]) if "output" in row else None
        text = None if output is None else read_output(raw, output)
        found[row["mention"]["run_id"]] = text.data if isinstance(text, KeptOutput) else text
        assert output is None or output.missing or isinstance(read_templates(raw, output), OutputTemplates)
    return found


def need_real(broker: str) -> None:
    """Skips what the mock broker cannot do: transactions, topic ids, retention."""
    if is_mock(KafkaOptions(broker)):
        pytest.skip("the mock broker cannot do this")


def check(scenario: Scenario, raw: Store, runs_topic: str) -> dict[str, RawFile]:
    """Compares everything with the producer's list; returns the raw rows."""
    state, deltas = account(raw)
    assert state.counts == scenario.counts()
    assert state.deferred == {}
    ends: Counter[int] = Counter()
    for message in scenario.sent:
        assert message.offset in state.covered(scenario.topic, message.partition)
        ends[message.partition] = max(ends[message.partition], message.offset + 1)
    assert {p: list(ranges) for _, p, ranges in state.partitions()} == {p: [(0, end)] for p, end in ends.items()}
    # each (message, run) is settled exactly once, but for the deferred ones, which a later record closes
    positions = Counter(
        (*record["origin"][1:], record.get("mention", {}).get("run_id", ""))
        for delta in deltas
        for name in ("runs", "repeats", "corrections", "ignored", "dead_letters")
        for record in delta[name]
    )
    wanted = {
        (m.partition, m.offset, run if m.expected[1] != "broken_json" else "") for m in scenario.sent for run in m.runs
    }
    assert positions == Counter(wanted)
    rows = raw_rows(deltas)
    assert rows.keys() == scenario.runs
    assert {
        run["mention"]["run_id"] for d in deltas for run in d["runs"] if not run["trust"]["trusted"]
    } == scenario.untrusted
    assert [fault for run_id, file in rows.items() if (fault := verify_run(raw, run_id, file))] == []
    assert outputs_of(raw, deltas) == {run_id: scenario.outputs[run_id] for run_id in rows}
    messages = published(scenario.broker, runs_topic, "runs")
    values = [json.loads(message.value or b"") for message in messages]
    assert Counter(each["run_id"] for each in values) == Counter(rows.keys())
    assert {each["run_id"]: (each["path"], each["digest"]) for each in values} == {
        run_id: (file.path, file.digest) for run_id, file in rows.items()
    }
    versions = [int(dict(message.headers)[VERSION] or 0) for message in messages]
    assert versions == [each["raw_version"] for each in values]
    assert versions == sorted(versions) or is_mock(KafkaOptions(scenario.broker))  # which has four partitions
    assert [message.key for message in messages] == [each["run_id"].encode() for each in values]
    return rows


def config(scenario: Scenario, data: Path | str, runs_topic: str, **changes: Any) -> IngestConfig:
    fetch = FetchPolicy(file_roots=(str(scenario.logs),), delays_s=(0.5, 0.5, 4.0))
    kafka = KafkaOptions(scenario.broker)
    return IngestConfig(DataRoot.open(str(data)).raw, scenario.topic, runs_topic, kafka=kafka, fetch=fetch, **changes)


class Place:
    """A data root to which messages are committed as an ingest would, without a broker, and a folder of logs."""

    def __init__(self, folder: Path, data: DataRoot | None = None) -> None:
        self.data = data or DataRoot.open(folder / "data")
        self.raw = self.data.raw
        self.logs = folder / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)
        self.end = 0

    def facts(self, number: int, log: bool = True, **changes: Any) -> RunFacts:
        facts, _ = corpus_facts(number + 1)[number]
        if log:
            self.log_arrives(number)
        return facts.replace(log_url=(self.logs / f"{number}.gz").as_uri(), **changes)

    def log_arrives(self, *numbers: int) -> None:
        for number in numbers:
            shutil.copy(corpus_facts(number + 1)[number][1], self.logs / f"{number}.gz")

    def take(self, *said: tuple[bytes | None, Any], fetch: FetchPolicy | None = None, **how: Any) -> None:
        """Settle and commit messages, in one batch."""
        found = [Message(self.end + at, value, tuple(headers)) for at, (value, headers) in enumerate(said)]
        covers = OffsetRange("ci-events", "T", 0, self.end, self.end + len(found))
        decoding = partial(decode, read_event=read_event, **how)
        batch = guarded_messages("decode", decoding, Batch(covers, found))
        self.end += len(found)
        processor = IngestProcessor(IngestConfig(self.raw, kafka=KafkaOptions("none:1")))
        fetch = fetch or FetchPolicy(file_roots=(str(self.logs),))
        processor.commit(settle([batch], processor.config.trust, fetch, self.raw, outages=False))

    def take_runs(self, *runs: RunFacts) -> None:
        self.take(*map(finished_event, runs))

    def replay_config(self, **changes: Any) -> ReplayConfig:
        return replace(ReplayConfig(self.raw, fetch=FetchPolicy(file_roots=(str(self.logs),))), **changes)

    @property
    def counts(self) -> dict[tuple[str, str], int]:
        """What the accounting says; checked by an audit and against the raw objects."""
        state, deltas = account(self.raw)
        audit = Audit(Verification())
        for version, delta in enumerate(deltas, 1):
            audit.add_delta(version, delta)
        audit.compare(state)
        assert audit.result.findings == []
        assert [
            fault for run_id, file in raw_rows(deltas).items() if (fault := verify_run(self.raw, run_id, file))
        ] == []
        return dict(state.counts)

    @property
    def dead_letters(self) -> list[Outcome]:
        return [Outcome.from_json(record) for delta in account(self.raw)[1] for record in delta["dead_letters"]]


class LogsArrive:
    """A reporter that lets the late logs come once something waits for them."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario, self.seen_deferred, self.lags = scenario, False, [0]

    def __call__(self, progress: ServiceProgress, word: str) -> None:
        self.lags.append(progress.behind)
        if progress.waiting and not self.seen_deferred:
            self.seen_deferred = True
            self.scenario.log_arrives()


def produce(
    kafka: str | KafkaOptions, topic: str, messages: Iterable[tuple[bytes | None, Any]], partition: int = -1
) -> None:
    """Send messages, each a value and headers."""
    from confluent_kafka import Producer

    options = KafkaOptions(kafka) if isinstance(kafka, str) else kafka
    producer = Producer(options.common())
    for value, headers in messages:
        producer.produce(topic, value, headers=list(headers), partition=partition)
        producer.poll(0)
    assert producer.flush(30) == 0


def wait_for(done: Callable[[], bool], most_s: float = 60.0) -> None:
    deadline = time.monotonic() + most_s
    while not done():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)


def settled(offset: int, run: int = 0) -> Outcome:
    facts, _ = corpus_facts(run + 1)[run]
    file = RawFile(f"runs/{run}", f"{run:064x}", 1, 1)
    return Outcome("run", Origin("t", 0, offset), f"e{offset}", facts, file=file, detail="é \0")


def one_batch(offset: int, run: int = 0) -> Batch:
    return Batch(OffsetRange("t", "T", 0, offset, offset + 1), settled=[settled(offset, run)])
