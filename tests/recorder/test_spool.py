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

from ciml.errors import EngineError
from ciml.kafka import KafkaOptions
from ciml.limits import MAX_RECORDER_LOG_BYTES, MAX_RECORDING_FILE_BYTES, MAX_RECORDING_LOG_BYTES, MIB
from ciml.recorder import Settings
from ciml.recorder.spool.flush import send_leftovers
from ciml.recorder.spool.folder import open_private
from ciml.recorder.spool.recording import Destination, Recording
from ciml.recorder.spool.seals import POLICY_FACTS, is_sealed, plan_for_command, seal_recording, secrets_of
from ciml.transforms.fetch.policy import FetchPolicy
from ciml.trust import FACTS as FACTS_OF_TRUST
from tests.recorder.planted import GATE, T0_US, TELEMETRY, plant, planted_facts, taken
from tests.recorder.recorded import record, shell_until

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
    spool: Path, logs: Path, *options: str, until: str = "true", **more: Any
) -> subprocess.CompletedProcess[str]:
    """A run ``own``, with what is in the spool, which ends once a condition of the shell is true.

    Its first step opens the recordings and sends one log; what Kafka acknowledges takes more of them.
    """
    own = ("--log-dir", str(logs), "--job", "job", "--source", "zuul", "--run-id", "own", "--flush", "10s")
    return record(spool, *own, *options, command=shell_until(until), env={"CIML_DOOL": ""}, **more)


def test_the_policy_facts_are_those_of_the_trust_policy() -> None:
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
    assert record_beside(spool, logs, *options, *SECRET, until=f"[ ! -e {folder} ]").returncode == 0
    first = finished(kafka, own)["zuul~first~1"]
    assert {name: first[name] for name in GATE} == GATE
    assert first["labels"] == {"exit_code": "0"}
    assert list(spool.iterdir()) == []


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[" * 9999, b'{"salt": "zz", "mac": 1}', b'{"salt": "", "mac": "\\ud800"}']
)
def test_a_seal_that_is_none_counts_as_none(tmp_path: Path, content: bytes) -> None:
    folder = plant(tmp_path / "spool")
    (folder / "seal.json").write_bytes(content)
    assert not is_sealed(taken(folder), b"secret")


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


def bind_by_permissions() -> None:
    """In a child of root: permission bits hold for it as for every user."""
    if os.geteuid() == 0:
        for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
            assert ctypes.CDLL(None).prctl(24, capability, 0, 0, 0) == 0  # PR_CAPBSET_DROP: from the exec on


def test_a_recorder_reports_what_is_no_recording_and_sends_the_next_one_without_trusted_facts(
    tmp_path: Path, logs: Path
) -> None:
    """Where no credentials are needed, an earlier job could have sent it, but it is not known who did."""
    spool = tmp_path / "spool"
    folder = plant(spool, log_dir=str(logs))
    claimed = planted_facts("good", fork="no", owner="ada", subjects=["change:demo/7"])
    plant(spool, f"{T0_US + 1}-1", log_dir=str(logs), mention=claimed)
    folder.chmod(0)
    done = record_beside(spool, logs, preexec_fn=bind_by_permissions)
    folder.chmod(0o700)
    assert done.returncode == 0
    assert logs_of(logs) == ["zuul~good~1", "zuul~own~1"]
    assert list(spool.iterdir()) == [folder]
    assert f"left in the spool: {folder}: cannot be opened as a folder (Permission denied)" in done.stderr
    assert "the recorder" not in done.stderr
    line = json.loads((logs / "job/zuul~good~1/run.json").read_text())
    assert {name for name in POLICY_FACTS if line.get(name)} == set()
    assert line["labels"] == {"recording": "unsealed"}


def test_a_spool_that_others_may_use_is_refused_in_one_line(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    spool.mkdir()
    spool.chmod(0o755)
    line = f"{spool} is open to other users (mode 0755); check its content, then run: chmod 700 {spool}"
    done = record(spool, command=["sh", "-c", "exit 5"])
    assert (done.returncode, done.stderr) == (5, f"ciml record: not recording: {line}\n")
    assert list(spool.iterdir()) == []
    sent = record(spool, "--send", command=[])
    assert (sent.returncode, sent.stderr) == (2, f"ciml: {line}\n")


NO_LOG = (
    "ciml record: no place for the log, so ingest cannot fetch it and makes the run a dead letter; add "
    "--log-dir FOLDER|s3://PREFIX or set CIML_LOG_DIR\n"
)


def test_a_broker_without_a_place_for_the_log_is_said_at_the_start(tmp_path: Path, logs: Path) -> None:
    nowhere = ("--kafka", "127.0.0.1:1", "--flush", "100ms")
    first = record(tmp_path / "a", *nowhere, command=["sh", "-c", "echo begun >&2"])
    assert first.stderr.startswith(NO_LOG)
    assert first.stderr.index("begun") >= len(NO_LOG)
    assert NO_LOG not in record(tmp_path / "b", *nowhere, "--log-dir", str(logs), command=["true"]).stderr
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


@pytest.mark.parametrize("own", ["", "/own"])
@pytest.mark.parametrize(("credentials", "sealed"), [(True, True), (True, False), (False, False)])
def test_the_command_line_sets_what_no_seal_confirms(tmp_path: Path, own: str, credentials: bool, sealed: bool) -> None:
    secrets = {"sasl.password": "pa55-w0rd"} if credentials else {}
    settings = Settings(tmp_path, KafkaOptions("new:9092", secrets), 1.0)
    recording = taken(plant(tmp_path / "spool", kafka="old:9092", log_dir=own, events_topic="its"))
    if sealed:
        seal_recording(recording, secrets_of(settings.kafka, own))
    plan, _ = plan_for_command(recording, settings, Destination("s", "e", "/there", "https://there"))
    keeps_its_own = sealed or not credentials
    assert plan.kafka == "new:9092"
    assert (plan.samples_topic, plan.events_topic) == (("samples", "its") if keeps_its_own else ("s", "e"))
    assert plan.log_dir == (own if own and keeps_its_own else "/there")
    assert plan.log_url == ("" if own and keeps_its_own else "https://there")
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


def test_a_process_that_looks_into_a_recording_does_not_hinder_its_removal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = plant(tmp_path / "spool")
    recording = taken(folder)
    old_s = T0_US // 10**6 - 10**8
    os.utime(folder, (old_s, old_s))
    unlink = os.unlink

    def unlink_while_others_look(*names: Any, **options: Any) -> None:
        try:
            unlink(*names, **options)
        finally:
            with open_private(tmp_path / "spool") as spool:
                assert Recording.take(spool, folder.name) is None

    monkeypatch.setattr(os, "unlink", unlink_while_others_look)
    assert recording.remove() == ""
    assert not folder.exists()


@pytest.mark.parametrize("names", [(), ("lock",)])
def test_an_old_folder_without_a_file_of_a_recording_is_removed(tmp_path: Path, names: tuple[str, ...]) -> None:
    """A process was killed while it created or removed a recording."""
    (tmp_path / "spool").mkdir(mode=0o700)
    for folder, is_old in ((tmp_path / "spool/1-1", True), (tmp_path / "spool/2-2", False)):
        folder.mkdir()
        for name in names:
            (folder / name).touch()
        if is_old:
            os.utime(folder, (T0_US // 10**6 - 10**8,) * 2)
    send_leftovers(Settings(tmp_path / "spool"), Destination())
    assert os.listdir(tmp_path / "spool") == ["2-2"]


FILES_OF_A_RECORDING = (
    "dstat-csv_log.txt", "run.json", "end.json", "starts", "seal.json", "lock", "run.json.new", "end.json.new",
    "seal.json.new",
)  # fmt: skip
#: Something else in the place of a file of a recording.
IN_PLACE: dict[str, Callable[[Path], object]] = {
    "link": lambda path: path.symlink_to("../../outside"),
    "dangling link": lambda path: path.symlink_to("../../nowhere"),
    "second name": lambda path: path.hardlink_to(path.parents[2] / "outside"),
    "folder": lambda path: path.mkdir(),
    "fifo": os.mkfifo,
    "large": lambda path: path.write_bytes(b"") or os.truncate(path, limit_of(path) + 1),
}


def limit_of(path: Path) -> int:
    return MAX_RECORDING_LOG_BYTES if path.name.endswith(".txt") else MAX_RECORDING_FILE_BYTES


def in_place(kind: str, name: str) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        IN_PLACE[kind](folder / name)

    return spoil


def link_folder(folder: Path) -> None:
    folder.rename(folder.parents[1] / "elsewhere")
    folder.symlink_to(folder.parents[1] / "elsewhere")


def link_to_itself(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.symlink_to(folder)


def no_run(folder: Path) -> None:
    (folder / "run.json").unlink()
    os.utime(folder, (T0_US // 10**6 - 10**8,) * 2)


def with_run(mention: Any) -> Callable[[Path], object]:
    return lambda folder: (folder / "run.json").write_text(json.dumps({"mention": mention}))


def of_another_user(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    os.chown(path, NOBODY, NOBODY)


SPOILED: dict[str, Callable[[Path], object]] = {
    **{f"{kind} {name}": in_place(kind, name) for kind in IN_PLACE for name in FILES_OF_A_RECORDING},
    "link of a folder": link_folder,
    "link to itself": link_to_itself,
    "no run": no_run,
    "folder of another user": of_another_user,
    "log of another user": lambda folder: of_another_user(folder / "dstat-csv_log.txt"),
    "unknown file": lambda folder: (folder / "more").mkdir(),
    "broken run": lambda folder: (folder / "run.json").write_text('{"mention": {'),
    "deep run": lambda folder: (folder / "run.json").write_text("[" * 100_000),
    "run of other types": with_run({**planted_facts(), "start_us": 10**30, "labels": [1]}),
    "run before all time": with_run({**planted_facts(), "start_us": -1}),
    "run without a start": with_run({**planted_facts(), "start_us": None}),
    "run that leads upward": with_run({**planted_facts(), "run_id": "../../x"}),
}


@pytest.mark.parametrize("spoiled", SPOILED)
def test_what_is_no_recording_is_reported_and_left_as_it_is_and_the_next_one_is_sent(
    tmp_path: Path, spoiled: str, capfd: pytest.CaptureFixture[str]
) -> None:
    logs = tmp_path / "logs"
    (tmp_path / "outside").write_bytes(TELEMETRY)
    folder = plant(tmp_path / "spool", log_dir=str(logs))
    plant(tmp_path / "spool", f"{T0_US + 1}-1", log_dir=str(logs), mention=planted_facts("good"))
    SPOILED[spoiled](folder)
    there = None if spoiled == "link to itself" else sorted(os.listdir(folder))
    with pytest.raises(EngineError, match=r"^1 recordings not sent, kept in .*; 1 sent$"):
        send_leftovers(Settings(tmp_path / "spool"), Destination())
    assert str(folder) in capfd.readouterr().err
    assert list((tmp_path / "spool").iterdir()) == [folder]
    assert there is None or sorted(os.listdir(folder)) == there
    assert logs_of(logs) == ["zuul~good~1"]


def test_what_is_sent_and_cannot_be_removed_is_reported(tmp_path: Path) -> None:
    spool, logs = tmp_path / "spool", tmp_path / "logs"
    folder = plant(spool, log_dir=str(logs))
    folder.chmod(0o500)
    sent = record(spool, "--send", command=[], preexec_fn=bind_by_permissions)
    beside = record_beside(spool, logs, preexec_fn=bind_by_permissions)
    folder.chmod(0o700)
    assert logs_of(logs) == ["zuul~own~1", "zuul~planted~1"]
    assert list(spool.iterdir()) == [folder]
    stays = f"cannot remove {folder} (Permission denied)"
    assert f"(not sealed), but {stays}\n" in sent.stderr
    assert f"ciml: 1 recordings sent, but 1 of them cannot be removed from {spool}\n" in sent.stderr
    assert sent.returncode == 3
    assert beside.returncode == 0
    assert f"ciml record: zuul~planted~1 sent, but {stays}\n" in beside.stderr


def test_an_own_recording_that_cannot_be_removed_is_reported(tmp_path: Path) -> None:
    spool, logs = tmp_path / "spool", tmp_path / "logs"
    made = "mkdir $(echo SPOOL/*)/seal.json.new; sleep 1.2; exit 5".replace("SPOOL", str(spool))
    own = ("--log-dir", str(logs), "--job", "job", "--source", "zuul", "--run-id", "own")
    done = record(spool, *own, command=["sh", "-c", made], env={"CIML_DOOL": ""})
    (folder,) = spool.iterdir()
    assert logs_of(logs) == ["zuul~own~1"]
    assert done.returncode == 5
    assert done.stderr.endswith(f"ciml record: everything was sent, but cannot remove {folder} (Is a directory)\n")
