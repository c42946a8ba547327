"""The rows from /proc, the log at a full disk and at its limit, and what follows failures of worker and producer."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from confluent_kafka import KafkaError, KafkaException

from ciml.kafka import KafkaOptions
from ciml.recorder import Settings
from ciml.recorder import record as record_module
from ciml.recorder import sampler as module
from ciml.recorder.sampler import GROUPS, Recorder, Sampler
from ciml.recorder.spool.delivery import Sender
from ciml.recorder.spool.seals import is_sealed, secrets_of
from tests.recorder.planted import plant, taken

#: Counters of /proc at one moment: all are ``base`` + ``step`` × their weight.
FILES = {
    "/proc/stat": "cpu {1} {2} {3} {4} {5} {6} {7} {8} 0 0\nintr {10} 1 1\nctxt {20}\nprocesses {30}\n"
    "procs_running 4\nprocs_blocked 2\n",
    "/proc/diskstats": "8 0 sda {4} 0 {6} 0 {8} 0 {10} 0\n8 1 sda1 {4} 0 {6} 0 {8} 0 {10} 0\n"
    "259 0 nvme0n1 {4} 0 {6} 0 {8} 0 {10} 0\n",
    "/proc/net/dev": "Inter-| Receive\n face |bytes\n lo: {9} 0 0 0 0 0 0 0 {9}\n"
    " eth0: {3} 0 0 0 0 0 0 0 {5}\neth0.7: {3} 0 0 0 0 0 0 0 {5}\n",
    "/proc/vmstat": "pswpin {1}\npswpout {2}\n",
    "/proc/meminfo": "MemTotal: 100 kB\nMemFree: 40 kB\nMemAvailable: 70 kB\nCached: 20 kB\nSReclaimable: 5 kB\n",
    "/proc/loadavg": "1.5 2.5 3.5 4/500 9\n",
}


def test_a_row_is_the_rate_since_the_last_one_in_the_units_of_dool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Partitions, virtual interfaces and the loopback do not count; interrupts are of the user's share."""
    clock = SimpleNamespace(boot_s=100.0)
    now = {"time": lambda: 1_800_000_000.5, "clock_gettime": lambda _: clock.boot_s, "CLOCK_BOOTTIME": 7}
    monkeypatch.setattr(module, "time", SimpleNamespace(**now))
    monkeypatch.setattr(module, "open", lambda path: (tmp_path / path[1:]).open(), raising=False)

    def write(factor: int) -> None:
        for name, text in FILES.items():
            path = tmp_path / name[1:]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text.format(*(factor * weight for weight in range(31))))

    sampler = Sampler()
    write(1000)
    sampler.sample()
    clock.boot_s += 4.0
    write(1400)
    row = [float(cell) for cell in sampler.sample().split(",")]
    step = 400 / 4.0  # of a counter of weight 1, a second
    expected = {
        "epoch": [1_800_000_000.5],
        "total cpu usage": [100 * (1 + 2 + 6 + 7) / 36, 100 * 3 / 36, 100 * 4 / 36, 100 * 5 / 36, 100 * 8 / 36],
        "load avg": [1.5, 2.5, 3.5],
        "memory usage": [35 * 1024, 40 * 1024, 20 * 1024, 70 * 1024],
        "dsk/total": [2 * 6 * step * 512, 2 * 10 * step * 512],
        "io/total": [2 * 4 * step, 2 * 8 * step],
        "net/total": [3 * step, 5 * step],
        "paging": [step * module._PAGE, 2 * step * module._PAGE],
        "system": [10 * step, 20 * step],
        "procs": [3, 2, 30 * step],
    }
    cells: dict[str, list[float]] = {}
    for group, names in GROUPS:
        cells[group], row = row[: len(names)], row[len(names) :]
    assert cells == {group: pytest.approx(values, abs=1e-3) for group, values in expected.items()}


def test_a_sample_is_appended_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A full disk takes a part of each sample; the first failure in a row is reported."""
    log = tmp_path / "log"
    recorder = Recorder(log, None)
    recorder.tick()
    whole = log.read_bytes()
    write = os.write

    def write_half(descriptor: int, data: bytes) -> int:
        is_log = os.readlink(f"/proc/self/fd/{descriptor}") == str(log)
        return write(descriptor, data[: len(data) // 2] if is_log else data)

    for _ in range(2):
        with monkeypatch.context() as full:
            full.setattr(os, "write", write_half)
            for _ in range(3):
                recorder.tick()
                assert log.read_bytes() == whole
        recorder.tick()
        assert log.read_bytes().startswith(whole)
        assert log.read_bytes().count(b"\n") == whole.count(b"\n") + 1
        whole = log.read_bytes()
    assert capfd.readouterr().err.count("cannot record a sample") == 2


def test_at_its_limit_recording_stops_and_so_does_dool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "MAX_RECORDER_LOG_BYTES", 1000)
    dool = tmp_path / "dool"
    dool.write_text("#!/bin/sh\nexec sleep 60\n")
    dool.chmod(0o700)
    log = tmp_path / "log"
    log.write_bytes(b"x" * 999 + b"\n")
    recorder = Recorder(log, str(dool))
    recorder.tick()
    (process,) = [child for child in psutil.Process().children() if "sleep" in child.name() or "dool" in child.name()]
    with log.open("ab") as file:
        file.write(b"1\n")
    for _ in range(3):
        recorder.tick()
    assert not process.is_running()
    recorder.end()
    assert log.stat().st_size == 1002
    assert capfd.readouterr().err.count("the limit; recording stops") == 1


@pytest.mark.parametrize(
    ("lifetimes_s", "is_alive"),
    [
        ([1] * 3, True),
        ([1] * 4, False),
        ([1, 1, 1, 61, 1, 1], True),
        ([1, 1, 1, 61, 1, 1, 1], False),
        ([60] * 4, False),
    ],
)
def test_a_worker_is_restarted_three_times_in_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lifetimes_s: list[int], is_alive: bool
) -> None:
    clock = SimpleNamespace(now_s=1000.0)
    pids: list[int] = []

    def fork(*_: Any) -> record_module._Worker:
        pids.append(1_000_000 + len(pids))
        return record_module._Worker(pids[-1], os.open(os.devnull, os.O_RDONLY))

    monkeypatch.setattr(record_module, "time", SimpleNamespace(monotonic=lambda: clock.now_s))
    monkeypatch.setattr(record_module, "_fork_worker", fork)
    plan = taken(plant(tmp_path / "planted", kafka="k:9")).plan
    sidecar = record_module._Sidecar(plan, Settings(tmp_path / "spool"), with_output=False)
    sidecar.start()
    for lifetime_s in lifetimes_s:
        clock.now_s += lifetime_s
        sidecar.handle_child_end(pids[-1], 0)
    assert len(pids) == len(lifetimes_s) + is_alive


def test_what_is_kept_is_sealed_with_the_credentials_of_its_destinations(tmp_path: Path) -> None:
    recording = taken(plant(tmp_path / "spool", kafka="k:9"))
    kafka = KafkaOptions("k:9", {"sasl.password": "pa55-w0rd"})
    note = record_module._keep(recording, Settings(tmp_path / "spool", kafka))
    assert is_sealed(recording, secrets_of(kafka, ""))
    assert "not sealed" not in note
    (recording.folder.path / "job-output.txt").write_text("planted\n")
    assert not is_sealed(recording, secrets_of(kafka, ""))
    assert "pa55" not in note


def test_a_producer_that_failed_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fatal error of librdkafka is final for its producer, and not for the recording."""
    calls: list[str] = []

    class Producer:
        def __init__(self) -> None:
            self.name = f"producer {sum(call.endswith('made') for call in calls)}"
            calls.append(f"{self.name} made")

        def produce(self, *_: Any, on_delivery: Callable[..., None], **__: Any) -> None:
            calls.append(f"{self.name} produces")
            if self.name == "producer 0":
                raise KafkaException(KafkaError(KafkaError._FATAL))
            on_delivery(None, None)

        def purge(self) -> None:
            calls.append(f"{self.name} purged")

        def poll(self, _: float) -> None:
            calls.append(f"{self.name} polled")

    monkeypatch.setattr("ciml.kafka.connect.make_client", lambda *_: Producer())
    sender = Sender(KafkaOptions("k:9"))
    done: list[str] = []
    assert [sender.send("samples", b"k", b"v", (), done.append) for _ in range(2)] == [False, True]
    assert done == [""]
    assert calls == [
        "producer 0 made", "producer 0 produces", "producer 0 purged", "producer 0 polled", "producer 1 made",
        "producer 1 produces",
    ]  # fmt: skip
