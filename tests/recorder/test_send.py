"""``ciml record --send``: each waiting recording is sent, and no credential goes where only a recording says so."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ciml.errors import CimlError
from ciml.kafka import KafkaOptions
from ciml.recorder import Settings, WhoseBroker
from ciml.recorder.spool.recording import Destination
from ciml.recorder.spool.seals import plan_for_command, seal_recording
from tests.recorder.planted import T0_US, plant, taken
from tests.recorder.recorded import environment, record, recorder, wait_for

SASL = {
    "security.protocol": "SASL_PLAINTEXT",
    "sasl.mechanism": "PLAIN",
    "sasl.username": "me",
    "sasl.password": "pa55",
}


@contextmanager
def listening() -> Iterator[tuple[str, list[bytes]]]:
    """The address of a listener, and the first bytes of each connection. It answers nothing."""
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def listen() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.settimeout(30)
                    heard.append(connection.recv(4096))

        thread = threading.Thread(target=listen)
        thread.start()
        try:
            yield f"127.0.0.1:{server.getsockname()[1]}", heard
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize("form", ["options", "file", "variable"])
def test_no_property_goes_to_a_broker_that_only_a_recording_names(tmp_path: Path, form: str) -> None:
    spool, config = tmp_path / "spool", tmp_path / "kafka.properties"
    config.write_text("".join(f"{name}={value}\n" for name, value in SASL.items()))
    options = [word for name, value in SASL.items() for word in ("-X", f"{name}={value}")] if form == "options" else []
    options += ["--kafka-config", str(config)] if form == "file" else []
    env = {"CIML_KAFKA_CONFIG": str(config)} if form == "variable" else {}
    with listening() as (address, heard):
        plant(spool, kafka=address)
        done = record(spool, "--send", *options, "--flush", "300ms", command=[], env=env)
        assert (done.returncode, heard) == (3, [])
        assert f"no Kafka property that --kafka does not confirm; add --kafka {address}\n" in done.stderr
        confirmed = recorder(spool, "--send", *options, "--kafka", address, "--flush", "10min")
        with subprocess.Popen(confirmed, stderr=subprocess.DEVNULL, env=environment(**env)) as process:
            wait_for(lambda: heard)
            process.kill()


def test_a_broker_that_does_not_answer_can_be_replaced_by_none(tmp_path: Path) -> None:
    spool, logs = tmp_path / "spool", tmp_path / "logs"
    for number in range(2):
        plant(spool, f"{T0_US}-{number}", kafka=f"127.0.0.1:{number + 1}", log_dir=str(logs))
    done = record(spool, "--send", "--flush", "300ms", command=[])
    assert (done.returncode, done.stderr.count("; --kafka HOST:PORT names another broker\n")) == (3, 2), done.stderr
    assert [f"127.0.0.1:{number}" in done.stderr for number in (1, 2)] == [True, True]
    done = record(spool, "--send", "--kafka", "", command=[])
    assert (done.returncode, list(spool.iterdir())) == (0, []), done.stderr
    (line,) = (json.loads(path.read_text()) for path in logs.glob("*/*/run.json"))
    assert (line["build_uuid"], (logs / line["log_path"]).is_file()) == ("planted", True)


@pytest.mark.parametrize(
    ("leftovers", "kafka", "wanted"),
    [
        ("recorded", None, r"credentials, which are not stored; give them again: --kafka 'h:1; rm \*' with -X or"),
        ("unconfirmed", None, r"add --kafka 'h:1; rm \*'$"),
        ("given", KafkaOptions("n:1", SASL), "not sealed with these credentials; confirm it by --log-dir '/its own'$"),
    ],
)  # fmt: skip
def test_a_message_has_the_options_that_are_missing(
    tmp_path: Path, leftovers: WhoseBroker, kafka: KafkaOptions | None, wanted: str
) -> None:
    recording = taken(plant(tmp_path / "spool", kafka="h:1; rm *", log_dir="/its own"))
    seal_recording(recording, b"secrets of its recorder")
    with pytest.raises(CimlError, match=wanted):
        plan_for_command(recording, Settings(tmp_path, kafka, leftovers=leftovers), Destination())
    recording.release()


def test_the_broker_of_ciml_up_is_only_for_recordings_without_one(tmp_path: Path) -> None:
    local = Settings(tmp_path, KafkaOptions("local:1"), leftovers="recorded")
    for own, wanted in (("far:1", "far:1"), ("", "local:1"), ("local:1", "local:1")):
        folder = plant(tmp_path / "spool", kafka=own, log_dir="/logs")
        recording = taken(folder)
        plan, kafka = plan_for_command(recording, local, Destination())
        assert (plan.kafka, kafka) == (wanted, KafkaOptions(wanted))
        recording.release()
        folder.rename(tmp_path / f"done {own}")
