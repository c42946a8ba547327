"""Recordings are created, sealed, sent and removed step by step: the machine dies, and the broker loses messages."""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ciml.errors import CimlError
from ciml.events import samples
from ciml.events.cloudevents import FINISHED, STARTED, decode_message
from ciml.events.records import Message, RunFacts
from ciml.events.samples import Samples, decode
from ciml.kafka import KafkaOptions
from ciml.limits import MAX_LABELS
from ciml.recorder import Settings
from ciml.recorder.spool import delivery as module
from ciml.recorder.spool import flush, seals
from ciml.recorder.spool import recording as recording_module
from ciml.recorder.spool.delivery import Delivery, Headers
from ciml.recorder.spool.flush import trim
from ciml.recorder.spool.folder import open_private
from ciml.recorder.spool.recording import End, Plan, Recording, Start, default_spool
from ciml.recorder.spool.seals import is_sealed, seal_recording
from tests.durable import Disk, Messages, Steps, each_step
from tests.recorder.planted import T0_US, TELEMETRY, plant, planted_facts, taken

SECRETS = b"sasl.password digest\n"


def plan_of(**facts: str) -> Plan:
    return Plan(RunFacts.from_json(planted_facts(**facts)), log_dir="/logs")


def take(folder: Path) -> Recording | None:
    """The recording in a folder; None if it is none."""
    try:
        return Recording.take(open_private(folder.parent), folder.name)
    except CimlError:
        return None


def test_order_of_the_steps_of_a_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is locked before it is a recording, and none from the first step of its removal on."""
    flock = fcntl.flock
    with Disk(tmp_path).recording() as disk:
        monkeypatch.setattr(fcntl, "flock", lambda *arguments: (disk.step("lock"), flock(*arguments)))
        recording = Recording.create(tmp_path / "spool", plan_of())
        folder = recording.folder.path
        assert [path.stat().st_mode & 0o777 for path in (folder, folder.parent)] == [0o700, 0o700]
        recording.write_end(End(T0_US, "SUCCESS", {}))
        seal_recording(recording, SECRETS)
        recording.remove()
    name = f"spool/{recording.folder.path.name}"
    assert disk.steps == [
        "create spool/", f"create {name}/", "lock",
        *(
            step
            for file in ("run.json", "end.json", "seal.json")
            for step in (f"sync {name}/{file}.new", f"rename {name}/{file}.new to {name}/{file}")
        ),
        *(f"delete {name}/{file}" for file in ("run.json", "end.json", "seal.json", "lock")),
        f"delete {name}/",
    ]  # fmt: skip


def test_a_recording_that_cannot_be_created_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locks: list[int] = []
    lock = recording_module._lock_new
    monkeypatch.setattr(recording_module, "_lock_new", lambda folder: locks.append(lock(folder)) or locks[0])
    monkeypatch.setattr(recording_module, "RUN", "no folder/run.json")
    with pytest.raises(OSError, match="No such file"):
        Recording.create(tmp_path / "spool", plan_of())
    assert list((tmp_path / "spool").iterdir()) == []
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(locks[0])


def test_a_recording_of_a_killed_recorder_ends_with_its_last_sample(tmp_path: Path) -> None:
    folder = plant(tmp_path / "spool")
    for name, time_s in (("dstat-csv_log.txt", 2000), (".", 3000)):
        os.utime(folder / name, (time_s, time_s))
    recording = taken(folder)
    assert recording.changed_us() == 2_000_000_000
    (folder / "dstat-csv_log.txt").unlink()
    os.utime(folder, (3000, 3000))
    assert recording.changed_us() == 3_000_000_000
    recording.release()


def test_starts_are_added_to_those_of_the_recording_and_there_is_always_one(tmp_path: Path) -> None:
    folder = plant(tmp_path / "spool")
    (folder / "starts").unlink()
    recording = taken(folder)
    assert recording.starts() == [Start(0, T0_US)]
    for later_us in (1, 2):
        recording.add_start(T0_US + later_us)
    assert recording.starts() == [Start(len(TELEMETRY), T0_US + later_us) for later_us in (1, 2)]
    recording.release()


def test_the_default_spool_is_a_folder_of_this_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CIML_SPOOL", str(tmp_path / "own"))
    assert default_spool() == tmp_path / "own"
    monkeypatch.delenv("CIML_SPOOL")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert default_spool() == tmp_path / "state/ciml/record"
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert default_spool() == Path(f"/tmp/ciml-record-{os.getuid()}")
    monkeypatch.delenv("XDG_STATE_HOME")
    assert default_spool() == tmp_path / "home/.local/state/ciml/record"


@pytest.mark.parametrize("keeps_names", [False, True])
def test_a_recording_whose_removal_dies_before_any_step_is_whole_or_none(tmp_path: Path, keeps_names: bool) -> None:
    """Without a part of its log it would be sent again, as another run with fewer samples."""
    end = End(T0_US + 4_000_000, "SUCCESS", {})
    for before in each_step(7, few=False):
        folder = plant(tmp_path / str(before) / "spool", log_dir="/logs")
        recording = taken(folder)
        os.sync()
        with Disk(tmp_path / str(before), before, keeps_names=keeps_names).recording() as disk:
            recording.remove()
        if disk.is_dead:
            recording.release()  # as the end of a process does
        left = take(folder)
        assert left is None or (left.read_log(0, 1 << 20), left.end()) == (TELEMETRY, end)


@pytest.mark.parametrize("file", ["run.json", "starts", "end.json", "dstat-csv_log.txt", "job-output.txt"])
def test_a_seal_covers_each_file(tmp_path: Path, file: str) -> None:
    folder = plant(tmp_path / "spool")
    (folder / "job-output.txt").write_text("printed\n")
    recording = taken(folder)
    seal_recording(recording, SECRETS)
    assert is_sealed(recording, SECRETS)
    assert not is_sealed(recording, SECRETS + b"x")
    with (folder / file).open("ab") as text:
        text.write(b" ")
    assert not is_sealed(recording, SECRETS)


def test_without_a_secret_no_seal_is_made_or_valid(tmp_path: Path) -> None:
    """Anyone could make it."""
    folder = plant(tmp_path / "spool")
    recording = taken(folder)
    seal_recording(recording, b"")
    assert not (folder / "seal.json").exists()
    salt = bytes(16)
    (folder / "seal.json").write_text(json.dumps({"salt": salt.hex(), "mac": seals._mac(recording, b"", salt)}))
    assert not is_sealed(recording, b"")


@pytest.mark.parametrize(("most", "left"), [(3, 3), (2, 2), (1, 1), (0, 0)])
def test_a_full_spool_loses_its_oldest_recordings_and_no_more_than_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], most: int, left: int
) -> None:
    names = [plant(tmp_path / "spool", f"{T0_US + number}-1").name for number in range(3)]
    (tmp_path / "spool" / "1-1").write_bytes(bytes(10_000))  # no recording, so it costs no recording its place
    spool = open_private(tmp_path / "spool")
    monkeypatch.setattr(flush, "MAX_SPOOL_BYTES", most * flush._size(spool, names[0]))
    assert trim(spool, ["1-1", *names]) == ["1-1", *names[3 - left :]]
    assert sorted(os.listdir(tmp_path / "spool")) == ["1-1", *names[3 - left :]]
    line = "the spool is full; deleted its oldest recording, run zuul~planted~1"
    assert capfd.readouterr().err.count(line) == 3 - left


_OWN_LOGS = {"kafka": "k:9", "log_dir": "/logs"}
_CREDENTIALS = {"sasl.password": "pa55-w0rd"}


@pytest.mark.parametrize(
    ("changes", "credentials", "is_sealed", "result"),
    [
        ({}, {}, False, "without facts"),
        ({"events_topic": "other"}, {}, False, "left"),
        ({"samples_topic": ""}, {}, False, "left"),
        ({"log_dir": "/elsewhere"}, {}, False, "left"),
        ({"log_url": "https://evil.example"}, {}, False, "left"),
        ({"kafka": "elsewhere:9"}, {}, False, "left"),
        ({"mention": planted_facts(source="jenkins")}, {}, False, "left"),
        ({"kafka": "elsewhere:9"}, _CREDENTIALS, True, "left"),
        ({}, _CREDENTIALS, False, "refused"),
        ({}, _CREDENTIALS, True, "unchanged"),
        ({"events_topic": "other"}, _CREDENTIALS, True, "unchanged"),
    ],
)
def test_a_recorder_sends_a_leftover_with_the_rights_that_it_had(
    tmp_path: Path, changes: dict[str, Any], credentials: dict[str, str], is_sealed: bool, result: str
) -> None:
    facts = planted_facts(fork="no", owner="ada", subjects=["change:demo/7"])
    recording = taken(plant(tmp_path / "spool", **{**_OWN_LOGS, "mention": facts, **changes}))
    settings = Settings(tmp_path / "spool", KafkaOptions("k:9", credentials))
    if is_sealed:
        seal_recording(recording, seals.secrets_of(settings.kafka, "/logs"))
    own = Plan(RunFacts.from_json(planted_facts("own")), **_OWN_LOGS)
    if result == "refused":
        with pytest.raises(CimlError, match="is not sealed with these credentials"):
            seals.plan_for_recorder(recording, own, settings)
        return
    plan = seals.plan_for_recorder(recording, own, settings)
    if result == "without facts":
        assert plan is not None
        assert seals.lacks_facts(plan)
        sent = plan.mention.to_json()
        assert not {*seals.POLICY_FACTS, "subjects"} & {name for name, value in sent.items() if value}
    else:
        assert plan == {"left": None, "unchanged": recording.plan}[result]


def test_a_planted_recording_names_no_output(tmp_path: Path) -> None:
    """Nothing that a recording of another job names may be fetched as the output of its run."""
    facts = planted_facts(log_url="https://elsewhere/", output_url="https://elsewhere/job-output.txt")
    plan = taken(plant(tmp_path / "spool", mention=facts)).plan
    assert (plan.mention.log_url, plan.mention.output_url) == ("", "")


def test_a_leftover_that_cannot_be_sent_holds_up_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [plant(tmp_path / "spool", f"{T0_US + number}-1") for number in range(3)]
    own = Recording.create(tmp_path / "spool", plan_of())

    class Delivery:
        def __init__(self, recording: Recording) -> None:
            self.recording = recording
            self.failure = "the broker does not answer" if recording.folder.path == folders[0] else ""

        def step(self) -> bool:
            return not self.failure

    monkeypatch.setattr(flush, "plan_for_recorder", lambda recording, *_: recording.plan)
    monkeypatch.setattr(flush, "_deliver", lambda recording, _: Delivery(recording))
    leftovers = flush.Leftovers(own, Settings(tmp_path / "spool"), None)
    leftovers.open()
    for _ in range(3):
        leftovers.step()
    assert [folder.exists() for folder in folders] == [True, False, False]
    assert take(folders[0]) is not None  # no process holds it


def test_a_spool_is_a_folder_of_this_user(tmp_path: Path) -> None:
    (tmp_path / "private").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "private")
    with pytest.raises(CimlError, match="link is a symbolic link; give the folder itself with --spool"):
        open_private(tmp_path / "link")
    if os.geteuid() == 0:
        os.chown(tmp_path / "private", 65534, 65534)
        with pytest.raises(CimlError, match=r"belongs to another user \(uid 65534\); give a folder of your own with"):
            open_private(tmp_path / "private")


@pytest.mark.parametrize(("mode", "is_private"), [(0o700, True), (0o750, False), (0o710, False), (0o701, False)])
def test_a_spool_is_closed_to_the_group_and_to_others(tmp_path: Path, mode: int, is_private: bool) -> None:
    (tmp_path / "spool").mkdir()
    (tmp_path / "spool").chmod(mode)
    with contextlib.nullcontext() if is_private else pytest.raises(CimlError, match="is open to other users"):
        open_private(tmp_path / "spool").close()


@pytest.mark.parametrize(("result", "is_known"), [("SUCCESS", True), ("ABORTED", True), ("GREAT", False), ("", False)])
def test_an_end_with_an_unknown_result_is_none(tmp_path: Path, result: str, is_known: bool) -> None:
    assert (taken(plant(tmp_path / "spool", result=result)).end() is not None) == is_known


@pytest.mark.parametrize("count", [2, 3, 4])
def test_a_recorder_reads_as_many_entries_as_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], count: int
) -> None:
    monkeypatch.setattr(recording_module, "MAX_SPOOL_ENTRIES", 3)
    for number in range(count):
        plant(tmp_path / "spool", f"{T0_US + number}-1")
    names, has_more = recording_module.list_spool(open_private(tmp_path / "spool"))
    assert (len(names), has_more) == (min(count, 3), count > 3)
    flush.Leftovers(taken(tmp_path / "spool" / f"{T0_US}-1"), Settings(tmp_path / "spool"), None).open()
    assert ("spool holds more than 3 entries; the others wait" in capfd.readouterr().err) == (count > 3)


ENDED = End(T0_US + 4_000_000, "FAILURE", {"exit_code": "3"})
LOG = "create job/zuul~planted~1/dstat-csv_log.txt.gz"
HEADER = TELEMETRY.partition(b"\n1")[0] + b"\n"


class Broker(Messages):
    """A broker in the place of a `Sender`'s; its messages are named by their topic and meaning."""

    def send(self, topic: str, key: bytes, value: bytes, headers: Headers, done: Callable[[str], None]) -> bool:
        if topic == "samples":
            content: Any = decode(value)
            kind = "end" if isinstance(content, samples.End) else "samples"
            return self.produce(f"{kind} of start {content.recorder_us - T0_US}", content, done)
        event = decode_message(Message(0, value, tuple(headers)))
        return self.produce({STARTED: "started", FINISHED: "finished"}[event.type], event, done)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now_s=100.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now_s))
    return clock


def recorded(tmp_path: Path, starts: int, samples: int, topic: str = "samples", **facts: Any) -> Recording:
    """A recording with ``samples`` samples of each start of its recorder, and their topic."""
    plan = {"kafka": "k:9", "samples_topic": topic, "log_dir": str(tmp_path / "logs")}
    folder = plant(tmp_path / "spool", **plan, mention=planted_facts(**facts))
    log = b""
    lines = []
    for start in range(starts):
        lines.append(json.dumps({"offset": len(log), "recorder_us": T0_US + start}))
        rows = (f"{T0_US // 1_000_000 + start * samples + number}.5,{number},2,3\n" for number in range(samples))
        log += HEADER + "".join(rows).encode()
    (folder / "dstat-csv_log.txt").write_bytes(log)
    (folder / "starts").write_text("\n".join(lines) + "\n")
    return taken(folder)


def deliver(recording: Recording, broker: Broker, clock: SimpleNamespace, most: int = 2000) -> Delivery:
    """Step until everything has arrived; the broker acknowledges between steps."""
    delivery = Delivery(recording, broker, ENDED)  # type: ignore[arg-type]
    for _ in range(most):
        with Steps(str(recording.folder.path.parents[1] / "logs")).recording() as steps:
            steps.steps = broker.steps
            is_over = delivery.step()
        if is_over:
            assert not broker.waiting, "a delivery is over before Kafka has everything"
            return delivery
        broker.acknowledge()
        clock.now_s += 5.0
    raise AssertionError(delivery.failure or "the delivery does not end")


def test_order_of_the_steps_of_a_delivery(tmp_path: Path, clock: SimpleNamespace) -> None:
    broker = Broker()
    deliver(recorded(tmp_path, 2, 3), broker, clock)
    assert broker.steps == [
        "started", "samples of start 0", "samples of start 1", "acknowledge started",
        "acknowledge samples of start 0", "acknowledge samples of start 1", "end of start 0", "end of start 1", LOG,
        "finished", "acknowledge end of start 0", "acknowledge end of start 1", "acknowledge finished",
    ]  # fmt: skip


def test_without_a_topic_of_samples_only_events_and_the_log_are_sent(tmp_path: Path, clock: SimpleNamespace) -> None:
    broker = Broker()
    deliver(recorded(tmp_path, 2, 3, topic=""), broker, clock)
    assert broker.steps == ["started", LOG, "finished", "acknowledge started", "acknowledge finished"]


@pytest.mark.parametrize("seed", range(12))
def test_the_end_is_announced_after_all_samples_whatever_the_broker_does(
    tmp_path: Path, clock: SimpleNamespace, seed: int
) -> None:
    """Messages are refused, lost and acknowledged in any order: each sample arrives, and no end is early."""
    draw = random.Random(seed)
    starts = 1 + seed % 3
    recording = recorded(tmp_path, starts, draw.choice([0, 3, 900, 4000]))
    broker = Broker(draw, refuses=0.1, loses=0.2, keeps=0.5)
    deliver(recording, broker, clock)
    contents = [content for _, content in broker.stored]
    rows = {
        (part.recorder_us, number)
        for part in contents
        if isinstance(part, Samples)
        for number in np.asarray(part.sequence).tolist()
    }
    ends = {end.recorder_us: end.samples for end in contents if isinstance(end, samples.End)}
    assert ends == {T0_US + start: sum(row[0] == T0_US + start for row in rows) for start in range(starts)}
    assert len(rows) == recording.log.read_bytes().count(b".5,")
    last_arrival = max(
        (place for place, step in enumerate(broker.steps) if step.startswith("acknowledge samples")), default=0
    )
    assert min(place for place, step in enumerate(broker.steps) if step.startswith("end of")) > last_arrival
    assert broker.steps.index(LOG) < broker.steps.index("finished")
    assert broker.steps[0] == "started"


def test_the_finished_event_has_the_log_and_the_labels_of_the_end(tmp_path: Path, clock: SimpleNamespace) -> None:
    """The labels of the end are kept where those of the run use up the limit."""
    recording = recorded(tmp_path, 1, 3, labels={f"label{number}": "x" for number in range(MAX_LABELS)})
    broker = Broker()
    deliver(recording, broker, clock)
    (run,) = dict(broker.stored)["finished"].run_facts
    assert run.labels["exit_code"] == "3"
    assert len(run.labels) == MAX_LABELS
    (log,) = (tmp_path / "logs").glob("*/*/*.gz")
    assert run.log_url.endswith(f"/zuul~planted~1/{log.name}")
    assert gzip.decompress(log.read_bytes()) == recording.log.read_bytes()


def test_without_a_broker_the_first_recording_of_a_run_is_listed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    plan = {"log_dir": str(tmp_path / "logs")}
    for number, result in ((1, "FAILURE"), (1, "FAILURE"), (2, "SUCCESS")):  # the first one is sent again
        folder = plant(tmp_path / f"spool{len(list(tmp_path.iterdir()))}", result=result, **plan)
        (folder / "dstat-csv_log.txt").write_bytes(TELEMETRY * number)
        recording = taken(folder)
        assert Delivery(recording, None, recording.end()).step()
        is_reported = "zuul~planted~1 was recorded before: the listing keeps the first" in capfd.readouterr().err
        assert is_reported == (number == 2)
    (path,) = (tmp_path / "logs").glob("*/*/run.json")
    line = json.loads(path.read_text())
    assert line["result"] == "FAILURE"
    assert gzip.decompress((tmp_path / "logs" / line["log_path"]).read_bytes()) == TELEMETRY


def test_a_failure_is_retried_after_five_seconds_and_not_before(tmp_path: Path, clock: SimpleNamespace) -> None:
    """The folder of the log cannot be written: the finished event waits for it."""
    recording = recorded(tmp_path, 1, 3)
    (tmp_path / "logs").write_text("a file, where a folder is to be")
    broker = Broker()
    delivery = Delivery(recording, broker, ENDED)  # type: ignore[arg-type]
    for _ in range(3):
        assert not delivery.step()
        broker.acknowledge()
    assert str(tmp_path / "logs") in delivery.failure
    (tmp_path / "logs").unlink()
    clock.now_s += 4.9
    assert not delivery.step()
    assert "finished" not in broker.steps
    clock.now_s += 0.2
    delivery.step()
    broker.acknowledge()
    assert delivery.step()
    assert broker.steps[-1] == "acknowledge finished"
