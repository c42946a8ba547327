"""``ciml ingest`` and ``ciml runs``: options, what is shown, exit codes; a loss is recorded only by accept-loss."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from ciml.cli.options import Duration
from ciml.data_root import DataRoot
from ciml.events.records import LISTS
from ciml.kafka import KafkaOptions
from ciml.pipelines.ingest.committer import Committer, IngestProcessor
from ciml.services.options import IngestOptions
from ciml.storage import open_store
from tests.cli.calling import ciml
from tests.pipelines.ingest.ingesting import need_real, one_batch
from tests.pipelines.ingest.scenario import send
from tests.pipelines.kafka.kafka_topics import covered, delete_records, send_starts


@pytest.mark.parametrize(
    ("text", "seconds"), [("1s", 1.0), ("500ms", 0.5), ("5min", 300.0), ("5m", 300.0), ("2h", 7200.0), ("1.5", 1.5)]
)
def test_times(text: str, seconds: float) -> None:
    assert Duration().convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["", "s", "-1s", "1w", "1 s x", "nan", "1e3"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(click.BadParameter, match="invalid time"):
        Duration().convert(text, None, None)


def test_options_become_a_configuration(tmp_path: Path) -> None:
    properties = ("security.protocol=SSL", "sasl.password=a=b")
    made = IngestOptions(
        data_path=str(tmp_path), kafka="host:1", kafka_options=properties, topic="t", runs_topic="", jobs=("a*",),
        sources=("https://zuul.example/x?a=b=zuul",), hosts=("logs.example.org",),
        roots=(str(tmp_path), "s3://bucket/logs"), delays=(1.0, 2.0),
    ).open()  # fmt: skip
    assert made.raw == DataRoot.open(tmp_path).raw
    assert (made.topic, made.runs_topic, made.selection) == ("t", "", ("a*",))
    assert made.names == (("https://zuul.example/x?a=b", "zuul"),)
    assert made.kafka.extra == {"security.protocol": "SSL", "sasl.password": "a=b"}
    assert made.fetch.hosts == ("logs.example.org",)
    assert (made.fetch.file_roots, made.fetch.s3_prefixes) == ((str(tmp_path),), ("s3://bucket/logs",))
    assert made.fetch.delays_s == (1.0, 2.0)
    assert [output.topic for output in IngestProcessor(made).outputs()] == ["", ""]
    made = IngestOptions(data_path=str(tmp_path), kafka="host:1").open()
    assert (made.fetch.hosts, made.fetch.file_roots, made.fetch.s3_prefixes, made.selection) == ((), (), (), ("*",))
    assert len(made.fetch.delays_s) == 5


@pytest.mark.parametrize(
    "more", [["--once", "--until-idle", "1s"], ["-X", "nothing"], ["--source", "x"], ["--until-idle", "soon"]]
)
def test_wrong_use_is_reported(tmp_path: Path, more: list[str]) -> None:
    arguments = ["--data-path", tmp_path, "--kafka", "127.0.0.1:1", "--engine", "micro-batches", *more]
    assert more[0] in ciml("ingest", *arguments, code=2).output


@pytest.mark.parametrize(
    ("name", "new"), [("start", "start ingest"), ("stop", "stop"), ("resume", "resume"), ("status", "status")]
)
def test_commands_that_moved_name_the_new_one(name: str, new: str) -> None:
    assert f"use ciml service {new}" in ciml("ingest", name, "--name", "one", code=2).output


def committed(data: Path) -> None:
    raw = Committer(open_store(data / "raw"))
    raw.commit([one_batch(0)])
    raw.commit([one_batch(1, 1), one_batch(2, 1)])


def test_runs_shows_the_accounting(tmp_path: Path) -> None:
    committed(tmp_path)
    data = ("--data-path", tmp_path)
    reported = json.loads(ciml("runs", *data, "--json", "--last", "1").output)
    assert (reported["version"], reported["runs"]) == (2, 2)
    assert reported["totals"] == dict.fromkeys(LISTS, 0) | {"run": 2, "repeat": 1}
    assert reported["reasons"] == {"repeat": {"run": 1}, "run": {"": 2}}
    assert reported["covered"] == {"t[0]": [[0, 3]]}
    assert [run["version"] for run in reported["latest"]] == [2]
    assert ciml("runs", *data, "--count").output == "2\n"
    text = ciml("runs", *data).output
    assert "repeats" in text
    assert "Latest runs" in text


def test_runs_of_nothing(tmp_path: Path) -> None:
    DataRoot.open(tmp_path).experiments.create("x", b"")
    for more, shown in (([], "Nothing has been committed yet.\n"), (["--count"], "0\n")):
        assert ciml("runs", "--data-path", tmp_path, *more).output == shown


@pytest.mark.engines
def test_once_from_the_command_line_and_a_verified_store(kafka: str, topic: Callable[..., str], tmp_path: Path) -> None:
    scenario = send(kafka, topic(1, "events"), 1, tmp_path / "logs", runs=20)
    data = ("--data-path", tmp_path / "data")
    words = ("ingest", *data, "--kafka", kafka, "--engine", "micro-batches", "--runs-topic", topic(1, "runs"))
    line = f"ciml: Kafka at {kafka} has no topic no-such; create it, or give another --topic\n"
    assert ciml(*words, "--topic", "no-such", code=3).stderr == line
    more = ("--topic", scenario.topic, "--once", "--allow-root", scenario.logs, "--retry-after", "10ms")
    assert "0 messages to go" in ciml(*words, *more).stderr
    assert json.loads(ciml("runs", *data, "--json").stdout)["runs"] == len(scenario.runs)
    assert f"Verified {len(scenario.runs)} raw objects" in ciml("runs", *data, "--verify").stdout


@pytest.mark.engines
def test_a_loss_is_reported_and_then_accepted(kafka: str, topic: Callable[..., str], tmp_path: Path) -> None:
    need_real(kafka)
    name, raw = topic(2, "events"), open_store(tmp_path / "data" / "raw")
    send_starts(kafka, name, 1, 20)
    delete_records(KafkaOptions(kafka), name, 1, 12)
    arguments = ["ingest", "accept-loss", "--data-path", str(tmp_path / "data"), "--kafka", kafka, "--topic", name]

    assert ciml(*arguments, "--dry-run").stdout == f"{name}[1]: 12 offsets, 0 to 12: lost\n"
    assert covered(raw, name) == {}
    assert ciml(*arguments).stdout == f"{name}[1]: 12 offsets, 0 to 12: accepted as lost\n"
    assert covered(raw, name) == {1: [(0, 12)]}
    assert ciml(*arguments).stdout == f"{name}: nothing is lost\n"
