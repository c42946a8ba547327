"""What an earlier job left in the spool gains none of the next job's rights, and costs itself alone."""

from __future__ import annotations

import ctypes
import gzip
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ciml.kafka import KafkaOptions
from ciml.limits import MAX_RECORDER_LOG_BYTES, MAX_RECORDING_LOG_BYTES, MAX_SPOOL_BYTES, MAX_SPOOL_ENTRIES, MIB
from ciml.recorder import Settings
from ciml.recorder.spool.folder import open_private
from ciml.recorder.spool.recording import Destination, Recording
from ciml.recorder.spool.seals import POLICY_FACTS, is_sealed, plan_for_command, seal_recording, secrets_of
from ciml.transforms.fetch.policy import FetchPolicy
from ciml.trust import FACTS as FACTS_OF_TRUST
from tests.recorder.planted import GATE, T0_US, TELEMETRY, plant, planted_facts
from tests.recorder.recorded import record

NOBODY = 65534
SECRET = ("-X", "sasl.password=pa55-w0rd")  # unused without SASL, and known to its owner alone


def logs_of(logs: Path) -> list[str]:
    """The runs whose logs were put."""
    return sorted(path.parent.name for path in logs.glob("*/*/*.gz"))


def finished(broker: str, topic: str) -> dict[str, dict[str, Any]]:
    """The finished runs that a topic names, as the events have them."""
    from tests.recorder.test_delivery import events

    return {each.run_facts[0].run_id: each.run_facts[0].to_json() for each in events(broker, topic)
            if each.run_facts[0].phase == "finished"}  # fmt: skip


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    return tmp_path / "logs"


def record_beside(
    spool: Path, logs: Path, *options: str, sleep: str = "1.5", **more: Any
) -> subprocess.CompletedProcess[str]:
    """A run ``own``, with what is in the spool. A second's step sends one log, or what Kafka acknowledged before."""
    own = ("--log-dir", str(logs), "--job", "job", "--source", "zuul", "--run-id", "own", "--flush", "10s")
    return record(spool, *own, *options, command=["sleep", sleep], env={"CIML_DOOL": ""}, **more)


@pytest.mark.engines
def test_a_planted_recording_is_not_sent_with_the_credentials_of_the_next_job(
    kafka: str, topic: Callable[..., str], tmp_path: Path, logs: Path
) -> None:
    samples, own, other = topic(name="samples"), topic(name="events"), topic(name="other")
    spool = tmp_path / "spool"
    places = {"kafka": kafka, "samples_topic": samples, "log_dir": str(logs)}
    planted = [
        plant(spool, f"{T0_US}-1", **places, events_topic=own),
        plant(spool, f"{T0_US}-2", **places, events_topic=other, mention=planted_facts("elsewhere")),
    ]
    done = record_beside(spool, logs, "--kafka", kafka, *SECRET, "--samples-topic", samples, "--topic", own, sleep="5")
    assert done.returncode == 0
    assert set(finished(kafka, own)) == {"zuul~own~1"}
    assert finished(kafka, other) == {}
    assert logs_of(logs) == ["zuul~own~1"]
    assert sorted(spool.iterdir()) == planted
    assert f"{planted[0]} is not sealed with these credentials; use ciml record --send" in done.stderr


@pytest.mark.engines
def test_a_recording_without_a_seal_has_no_trusted_fact(
    kafka: str, topic: Callable[..., str], tmp_path: Path, logs: Path
) -> None:
    """Where no credentials are needed, an earlier job could have sent it, but it is not known who did."""
    samples, own = topic(name="samples"), topic(name="events")
    spool = tmp_path / "spool"
    places = {"kafka": kafka, "samples_topic": samples, "log_dir": str(logs)}
    claimed = planted_facts(fork="no", owner="ada", subjects=["change:demo/7"])
    plant(spool, f"{T0_US}-1", **places, events_topic=own, mention=claimed)
    done = record_beside(spool, logs, "--kafka", kafka, "--samples-topic", samples, "--topic", own, sleep="6")
    assert done.returncode == 0
    runs = finished(kafka, own)
    assert set(runs) == {"zuul~own~1", "zuul~planted~1"}
    assert {name: runs["zuul~planted~1"].get(name, "") for name in GATE} == dict.fromkeys(GATE, "")
    assert runs["zuul~planted~1"]["labels"] == {"recording": "unsealed"}
    assert list(spool.iterdir()) == []
    assert set(POLICY_FACTS) == set(FACTS_OF_TRUST) - {"source"}


def keep(spool: Path, logs: Path, *options: str) -> Path:
    """A run ``first`` of the pipeline gate, whose log cannot be put: it stays in the spool."""
    logs.write_text("a file, where a folder is to be")
    own = ("--log-dir", str(logs), "--job", "job", "--source", "zuul", "--run-id", "first", "--flush", "100ms")
    facts = [word for name, value in GATE.items() for word in ("--label", f"{name}={value}")]
    done = record(spool, *own, *facts, *options, command=["sleep", "1.2"], env={"CIML_DOOL": ""})
    assert "not everything was sent" in done.stderr
    logs.unlink()
    (folder,) = spool.iterdir()
    return folder


@pytest.mark.engines
def test_a_sealed_recording_is_sent_as_it_is_by_a_recorder_with_the_same_credentials(
    kafka: str, topic: Callable[..., str], tmp_path: Path, logs: Path
) -> None:
    samples, own, spool = topic(name="samples"), topic(name="events"), tmp_path / "spool"
    options = ("--kafka", kafka, "--samples-topic", samples, "--topic", own)
    folder = keep(spool, logs, *options, *SECRET)
    assert not any(b"pa55" in path.read_bytes() for path in folder.iterdir())
    done = record_beside(spool, logs, *options, "-X", "sasl.password=another")
    assert "is not sealed with these credentials" in done.stderr
    assert set(finished(kafka, own)) == {"zuul~own~1"}
    assert record_beside(spool, logs, *options, *SECRET, sleep="6").returncode == 0
    first = finished(kafka, own)["zuul~first~1"]
    assert {name: first[name] for name in GATE} == GATE
    assert first["labels"] == {"exit_code": "0"}
    assert list(spool.iterdir()) == []


def sealed(spool: Path, secrets: bytes) -> bool:
    """Whether the only recording there is sealed with these secrets."""
    with open_private(spool) as opened:
        (name,) = opened.names(1)
        recording = Recording.take(opened, name)
        assert recording is not None
        found = is_sealed(recording, secrets)
        recording.release()
        return found


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[" * 9999, b'{"salt": "zz", "mac": 1}', b'{"salt": "", "mac": "\\ud800"}']
)
def test_a_seal_that_is_none_counts_as_none(tmp_path: Path, content: bytes) -> None:
    (plant(tmp_path / "spool") / "seal.json").write_bytes(content)
    assert not sealed(tmp_path / "spool", b"secret")


S3_SECRETS = tuple(
    f"AWS_{name}" for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN", "CONTAINER_AUTHORIZATION_TOKEN")
)
S3_SECRET_FILES = tuple(
    f"AWS_{name}_FILE" for name in ("SHARED_CREDENTIALS", "WEB_IDENTITY_TOKEN", "CONTAINER_AUTHORIZATION_TOKEN")
)


def test_secrets_are_what_only_the_owner_of_the_credentials_knows(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("1")

    def secrets(log_dir: str = "logs", env: dict[str, str] | None = None, **properties: str) -> bytes:
        named = {name.replace("_", "."): value for name, value in properties.items()}
        return secrets_of(KafkaOptions("h:1", named), log_dir, env or {})

    public = {"security_protocol": "SSL", "ssl_ca_pem": "x", "sasl_username": "me", "linger_ms": "5"}
    s3 = {"AWS_SECRET_ACCESS_KEY": "x", "AWS_REGION": "y"}
    assert secrets_of(None, "logs", s3) == secrets(**public) == secrets(env=s3) == b""
    found = [
        secrets(sasl_password="1"), secrets(sasl_password="2"), secrets(ssl_key_password="1"),
        secrets(ssl_key_location=str(key)), secrets("s3://b/c", s3), secrets("s3://b/c", s3, sasl_password="1"),
    ]  # fmt: skip
    found += [secrets("s3://b/c", {name: "1"}) for name in S3_SECRETS]
    found += [secrets("s3://b/c", {name: str(key)}) for name in S3_SECRET_FILES]
    key.write_text("2")
    found += [secrets(ssl_key_location=str(key)), *(secrets("s3://b/c", {name: str(key)}) for name in S3_SECRET_FILES)]
    assert b"" not in found
    assert len(set(found)) == len(found)


@pytest.mark.engines
def test_the_command_line_sets_the_destination_of_an_unsealed_recording(
    kafka: str, topic: Callable[..., str], tmp_path: Path, logs: Path
) -> None:
    samples, own, other, spool = topic(name="samples"), topic(name="events"), topic(name="other"), tmp_path / "spool"
    plant(spool, kafka=kafka, samples_topic=other, events_topic=other, log_dir=str(tmp_path / "its"))
    done = record(
        spool, "--send", "--kafka", kafka, *SECRET, "--samples-topic", samples, "--topic", own, "--log-dir", str(logs),
        command=[],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert set(finished(kafka, own)) == {"zuul~planted~1"}
    assert finished(kafka, other) == {}
    assert logs_of(logs) == ["zuul~planted~1"]
    assert not (tmp_path / "its").exists()


def outside(tmp_path: Path) -> Path:
    """A file of this user that is none of the spool's."""
    path = tmp_path / "outside"
    path.write_bytes(TELEMETRY + b"# it is a secret\n")
    return path


def link_log(folder: Path, tmp_path: Path) -> None:
    (folder / "dstat-csv_log.txt").unlink()
    (folder / "dstat-csv_log.txt").symlink_to(outside(tmp_path))


def hard_link_log(folder: Path, tmp_path: Path) -> None:
    (folder / "dstat-csv_log.txt").unlink()
    (folder / "dstat-csv_log.txt").hardlink_to(outside(tmp_path))


def link_run(folder: Path, tmp_path: Path) -> None:
    (folder / "run.json").rename(tmp_path / "run.json")
    (folder / "run.json").symlink_to(tmp_path / "run.json")


def link_folder(folder: Path, tmp_path: Path) -> None:
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")


def link_to_itself(folder: Path, tmp_path: Path) -> None:
    shutil.rmtree(folder)
    folder.symlink_to(folder)


def fifo_log(folder: Path, tmp_path: Path) -> None:
    (folder / "dstat-csv_log.txt").unlink()
    os.mkfifo(folder / "dstat-csv_log.txt")


def folder_log(folder: Path, tmp_path: Path) -> None:
    (folder / "dstat-csv_log.txt").unlink()
    (folder / "dstat-csv_log.txt").mkdir()


def fifo_lock(folder: Path, tmp_path: Path) -> None:
    os.mkfifo(folder / "lock")


def huge_log(folder: Path, tmp_path: Path) -> None:
    os.truncate(folder / "dstat-csv_log.txt", MAX_RECORDING_LOG_BYTES + 1)


def file_for_folder(folder: Path, tmp_path: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("a file")


def broken_json(folder: Path, tmp_path: Path) -> None:
    (folder / "run.json").write_text('{"mention": {')


def deep_json(folder: Path, tmp_path: Path) -> None:
    (folder / "run.json").write_text("[" * 100_000)


def other_types(folder: Path, tmp_path: Path) -> None:
    (folder / "run.json").write_text(json.dumps({"mention": {**planted_facts(), "start_us": 10**30, "labels": [1]}}))


def upward_run(folder: Path, tmp_path: Path) -> None:
    content = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**content, "mention": {**planted_facts(), "run_id": "../../x"}}))


def more_files(folder: Path, tmp_path: Path) -> None:
    (folder / "more").mkdir()


def without_run(folder: Path, tmp_path: Path) -> None:
    (folder / "run.json").unlink()
    os.utime(folder, (T0_US // 10**6 - 10**8,) * 2)


SPOILT = (
    link_log, hard_link_log, link_run, link_folder, link_to_itself, fifo_log, folder_log, fifo_lock, huge_log,
    file_for_folder, broken_json, deep_json, other_types, upward_run, more_files, without_run,
)  # fmt: skip


@pytest.mark.parametrize("spoilt", [SPOILT[at : at + 3] for at in range(0, len(SPOILT), 3)])
def test_what_is_no_recording_is_reported_and_left_and_recording_goes_on(
    tmp_path: Path, logs: Path, spoilt: tuple[Callable[[Path, Path], None], ...]
) -> None:
    """As many kinds at once as are reported by name: each was read, and kept no later one from being sent."""
    spool, folders = tmp_path / "spool", []
    for number, spoil in enumerate(spoilt):
        folders.append(plant(spool, f"{T0_US + number}-1", log_dir=str(logs), mention=planted_facts(spoil.__name__)))
        (tmp_path / spoil.__name__).mkdir()
        spoil(folders[-1], tmp_path / spoil.__name__)
    plant(spool, f"{T0_US + len(spoilt)}-1", log_dir=str(logs), mention=planted_facts("good"))
    done = record_beside(spool, logs)
    assert done.returncode == 0
    assert logs_of(logs) == ["zuul~good~1", "zuul~own~1"]
    assert not any(b"secret" in gzip.decompress(path.read_bytes()) for path in logs.glob("*/*/*.gz"))
    assert sorted(spool.iterdir()) == folders
    reported = [line for line in done.stderr.splitlines() if line.startswith("ciml record: left in the spool: ")]
    assert [folder.name for folder in folders if not any(str(folder) in line for line in reported)] == []


@pytest.mark.parametrize("place", ["folder", "log"])
def test_what_belongs_to_another_user_is_left(tmp_path: Path, logs: Path, place: str) -> None:
    if os.geteuid() != 0:
        return  # only root can make a file another's; test_an_unreadable_folder… is then a real user's
    spool = tmp_path / "spool"
    folder = plant(spool, log_dir=str(logs))
    os.chown(folder if place == "folder" else folder / "dstat-csv_log.txt", NOBODY, NOBODY)
    done = record_beside(spool, logs)
    assert logs_of(logs) == ["zuul~own~1"]
    assert "ciml record: left in the spool: " in done.stderr


def bind_by_permissions() -> None:
    """In a child of root: permission bits hold for it as for every user."""
    if os.geteuid() == 0:
        for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
            assert ctypes.CDLL(None).prctl(24, capability, 0, 0, 0) == 0  # PR_CAPBSET_DROP: from the exec on


def test_an_unreadable_folder_stops_no_recording(tmp_path: Path, logs: Path) -> None:
    spool = tmp_path / "spool"
    folder = plant(spool, log_dir=str(logs))
    plant(spool, f"{T0_US + 1}-1", log_dir=str(logs), mention=planted_facts("good"))
    folder.chmod(0)
    done = record_beside(spool, logs, preexec_fn=bind_by_permissions)
    folder.chmod(0o700)
    assert done.returncode == 0
    assert logs_of(logs) == ["zuul~good~1", "zuul~own~1"]
    assert f"left in the spool: {folder}: cannot be opened as a folder (Permission denied)" in done.stderr
    assert "the recorder" not in done.stderr


def test_a_spool_that_others_may_use_is_refused_in_one_line(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    spool.mkdir()
    spool.chmod(0o755)
    (tmp_path / "link").symlink_to(tmp_path / "private")
    (tmp_path / "private").mkdir(mode=0o700)
    (tmp_path / "theirs").mkdir(mode=0o700)
    wanted = {
        spool: f"{spool} is open to other users (mode 0755); check its content, then run: chmod 700 {spool}",
        tmp_path / "link": f"{tmp_path / 'link'} is a symbolic link; give the folder itself with --spool",
    }
    if os.geteuid() == 0:
        theirs = tmp_path / "theirs"
        os.chown(theirs, NOBODY, NOBODY)
        wanted[theirs] = f"{theirs} belongs to another user (uid {NOBODY}); give a folder of your own with --spool"
    for path, line in wanted.items():
        done = record(path, command=["sh", "-c", "exit 5"])
        assert (done.returncode, done.stderr) == (5, f"ciml record: not recording: {line}\n")
        assert list(path.iterdir()) == []
        sent = record(path, "--send", command=[])
        assert (sent.returncode, sent.stderr) == (2, f"ciml: {line}\n")


def test_a_spool_is_made_for_its_user_alone(tmp_path: Path) -> None:
    spool = tmp_path / "a" / "spool"
    record(spool, command=["true"])
    (folder,) = spool.iterdir()
    assert [path.stat().st_mode & 0o777 for path in (spool, folder)] == [0o700, 0o700]


def test_more_entries_than_the_limit_stop_no_recording(tmp_path: Path, logs: Path) -> None:
    spool = tmp_path / "spool"
    spool.mkdir(mode=0o700)
    for number in range(MAX_SPOOL_ENTRIES + 10):
        (spool / f"junk-{number}").mkdir()
    done = record_beside(spool, logs)
    assert done.returncode == 0
    assert f"{spool} holds more than {MAX_SPOOL_ENTRIES} entries; the others wait" in done.stderr
    assert len([line for line in done.stderr.splitlines() if "spool" in line]) <= 4
    assert logs_of(logs) == ["zuul~own~1"]


def test_a_full_spool_gives_up_its_oldest_recordings(tmp_path: Path, logs: Path) -> None:
    spool = tmp_path / "spool"
    count = MAX_SPOOL_BYTES // MAX_RECORDING_LOG_BYTES + 1
    folders = [plant(spool, f"{T0_US + number}-1", kafka="elsewhere:9092") for number in range(count)]
    for folder in folders:
        os.truncate(folder / "dstat-csv_log.txt", MAX_RECORDING_LOG_BYTES)
    huge = plant(spool, f"{T0_US - 1}-1", kafka="elsewhere:9092")
    os.truncate(huge / "dstat-csv_log.txt", MAX_SPOOL_BYTES * 4)  # no recording, so it costs no recording its place
    done = record_beside(spool, logs)
    assert "the spool is full; deleted its oldest recording, run zuul~planted~1" in done.stderr
    gone = {folder.name for folder in (huge, *folders) if not folder.exists()}
    assert gone == {folder.name for folder in folders[:2]}


NO_LOG = (
    "ciml record: no place for the log, so ingest cannot fetch it and makes the run a dead letter; add "
    "--log-dir FOLDER|s3://PREFIX or set CIML_LOG_DIR\n"
)


def test_a_broker_without_a_place_for_the_log_is_said_at_the_start(tmp_path: Path, logs: Path) -> None:
    nowhere = ("--kafka", "127.0.0.1:1", "--flush", "100ms")
    first = record(tmp_path / "a", *nowhere, command=["sh", "-c", "echo begun >&2"])
    assert first.stderr.startswith(NO_LOG)
    assert first.stderr.index("begun") >= len(NO_LOG)
    for number, options in enumerate((["--log-dir", str(logs)], ["-q"])):
        assert NO_LOG not in record(tmp_path / str(number), *nowhere, *options, command=["true"]).stderr
    assert NO_LOG not in record(tmp_path / "no-broker", command=["true"]).stderr


def test_a_recording_without_a_destination_is_sent_to_that_of_the_command_line(tmp_path: Path, logs: Path) -> None:
    spool = tmp_path / "spool"
    own = ("--job", "unit", "--run-id", "7", "--source", "zuul")
    done = record(spool, *own, command=["sleep", "1.2"], env={"CIML_DOOL": ""})
    (folder,) = spool.iterdir()
    assert (
        f"not everything was sent (no destination: neither --kafka nor --log-dir): kept in {folder}; send it by "
        "ciml record --send --log-dir FOLDER, or --kafka HOST:PORT\n"
    ) in done.stderr
    refused = record(spool, "--send", command=[])
    assert refused.returncode == 3
    assert "zuul~7~1 not sent: no destination; give --kafka HOST:PORT or --log-dir FOLDER\n" in refused.stderr
    sent = record(spool, "--send", "--log-dir", str(logs), command=[])
    assert (sent.returncode, "1 recordings sent" in sent.stderr) == (0, True)
    assert list(spool.iterdir()) == []
    line = json.loads((logs / "unit/zuul~7~1/run.json").read_text())
    assert (line["build_name"], line["labels"]["recording"]) == ("unit", "unsealed")
    assert len(gzip.decompress((logs / line["log_path"]).read_bytes()).splitlines()) > 2


@pytest.mark.parametrize("sealed", [True, False])
def test_only_a_missing_place_of_the_log_is_that_of_the_command_line(tmp_path: Path, sealed: bool) -> None:
    places = Destination(log_dir="/there", log_url="https://there")
    secrets = ["sasl.password=pa55-w0rd"] if sealed else []
    broker = KafkaOptions.of("new:9092", [tuple(each.split("=")) for each in secrets], None)
    settings = Settings(tmp_path, broker, 1.0)
    for name, own in (("1", ""), ("2", "/own")):
        plant(tmp_path / "spool", f"{T0_US}-{name}", kafka="old:9092", log_dir=own, samples_topic="s")
        with open_private(tmp_path / "spool") as spool:
            recording = Recording.take(spool, f"{T0_US}-{name}")
        assert recording is not None
        seal_recording(recording, secrets_of(broker, own))
        plan, _ = plan_for_command(recording, settings, places)
        assert (plan.kafka, plan.samples_topic, plan.log_dir) == ("new:9092", "s", own or "/there")
        assert plan.log_url == ("" if own else "https://there")
        assert (plan.mention.pipeline == "gate") == sealed
        recording.release()


def test_ingest_accepts_every_recording() -> None:
    assert FetchPolicy().max_bytes >= MAX_RECORDER_LOG_BYTES + MIB


def test_a_recording_that_vanishes_is_none(tmp_path: Path) -> None:
    folder = plant(tmp_path / "spool")
    with open_private(tmp_path / "spool") as spool:
        (folder / "run.json").unlink()  # as a process that removes it does
        assert Recording.take(spool, folder.name) is None
        shutil.rmtree(folder)
        assert Recording.take(spool, folder.name) is None
