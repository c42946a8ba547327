"""``ciml dead-letters``: what it lists, counts, shows and closes, and how it says what stays open."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import Result

from ciml.cli.output import age_text
from ciml.data_root import DataRoot
from ciml.events.listing import open_listing
from ciml.events.records import Batch, OffsetRange, Origin, Outcome
from ciml.pipelines.backfill.backfill import backfill
from ciml.pipelines.ingest.committer import committer
from tests.cli.calling import ciml
from tests.messages import published
from tests.pipelines.backfill.backfilling import Listed, listed
from tests.pipelines.ingest.ingesting import MakeTopic, account
from tests.pipelines.ingest.scenario import send
from tests.project.test_startup import loaded_by


@pytest.fixture
def made(tmp_path: Path) -> Listed:
    """A data root with ten letters of a listing."""
    made = listed(tmp_path / "logs", runs=60)
    backfill(made.config(tmp_path / "data"), open_listing(str(made.path)))
    return made


def letters(tmp_path: Path, *words: str, code: int = 0) -> Result:
    return ciml("dead-letters", *words, "--data-path", tmp_path / "data", code=code, env={"COLUMNS": "80"})


def test_dead_letters_are_listed_and_filtered(made: Listed, tmp_path: Path) -> None:
    text = letters(tmp_path, "list").output
    lines = text.splitlines()
    assert len(lines) == 10
    digest = open_listing(str(made.path)).topic.removeprefix("listing:")
    number = next(number for number, line in enumerate(made.lines) if b'"gone"' in line)
    (gone,) = [line for line in lines if "log_not_found" in line]
    assert gone.split()[2:5] == ["log_not_found", f"listing:{digest[:8]}:0:{number}", "zuul~gone~1"]
    assert gone.endswith("no such file")
    *few, last = letters(tmp_path, "list", "--last", "2").output.splitlines()
    assert [line.split()[2:] for line in few] == [line.split()[2:] for line in lines[-2:]]  # the age may be another
    assert last == "8 older ones are not shown; show them by --last 10 or --json."
    found = [json.loads(line) for line in letters(tmp_path, "list", "--reason", "bad_*", "--json").output.splitlines()]
    assert [each["reason"] for each in found] == ["bad_field"] * 3
    assert {each["open"] for each in found} == {True}
    assert all("payload" not in each for each in found)
    assert letters(tmp_path, "list", "--until", "1d").output == "No open dead letters.\n"
    assert len(letters(tmp_path, "list", "--since", "1d").output.splitlines()) == 10
    assert letters(tmp_path, "list", "--topic", "ci-*").output == "No open dead letters.\n"


def test_dead_letters_are_counted(made: Listed, tmp_path: Path) -> None:
    expected = {reason: n for (kind, reason), n in made.expected.items() if kind == "dead_letter"}
    reported = json.loads(letters(tmp_path, "count", "--json").output)
    assert (reported["letters"], {each["reason"]: each["letters"] for each in reported["by"]}) == (10, expected)
    lines = letters(tmp_path, "count").output.splitlines()
    assert lines[0].split() == ["3", "bad_field"]
    assert lines[-1] == "        10 open dead letters"
    jobs = json.loads(letters(tmp_path, "count", "--by-job", "--reason", "log_*", "--json").output)
    assert jobs == {"letters": 1, "by": [{"reason": "log_not_found", "job": jobs["by"][0]["job"], "letters": 1}]}
    assert jobs["by"][0]["job"] in {json.loads(line)["build_name"] for line in made.lines if b"gone" in line}


def test_a_dead_letter_is_shown_with_its_message(made: Listed, tmp_path: Path) -> None:
    number = next(number for number, line in enumerate(made.lines) if b'"gone"' in line)
    topic = open_listing(str(made.path)).topic
    for name in (topic, topic[:16]):
        reported = json.loads(letters(tmp_path, "show", f"{name}:0:{number}").output)
        assert json.loads(reported["message"]["value"]) == json.loads(made.lines[number])
        assert reported["message"]["headers"][0] == ["listing-source", "backfill"]
        assert reported["reason"] == "log_not_found"
    lacks = "no open dead letter of"
    for wrong, message in (
        (f"{topic}:0:9999", lacks),
        (f"{topic}:1:{number}", lacks),
        ("x", "give TOPIC:PARTITION:OFFSET"),
    ):
        assert message in letters(tmp_path, "show", wrong, code=2).stderr


@pytest.mark.parametrize("topic", ["all", "a*[b]?"])
def test_a_dead_letter_is_shown_whatever_the_name_of_its_topic(topic: str, tmp_path: Path) -> None:
    raw = DataRoot.open(tmp_path / "data").raw
    for number, name in enumerate(("other", "ab", topic)):
        outcome = Outcome("dead_letter", Origin(name, 0, 7), f"e{number}", reason="bad_json")
        committer(raw).commit([Batch(OffsetRange(name, "", 0, 7, 8), settled=[outcome])])
    assert json.loads(letters(tmp_path, "show", f"{topic}:0:7").output)["origin"] == [topic, 0, 7]


def test_dead_letters_are_replayed(made: Listed, tmp_path: Path) -> None:
    dry = letters(tmp_path, "replay", "--dry-run", "--reason", "log_*").output
    assert dry.splitlines() == ["         1 log_not_found", "         1 dead letters would be replayed"]
    still = letters(tmp_path, "replay", "--reason", "log_*", code=5)
    assert still.output.splitlines() == [
        "1 dead letters replayed: 0 closed",
        "         1 stay open: address_not_allowed (the file is not below an allowed root)",
        "           allow it by --allow-root or --allow-host; for a listing by --logs",
    ]
    shutil.copy(next(made.folder.rglob("*.csv.gz")), made.folder / "none")
    done = letters(tmp_path, "replay", "--run", "*~gone~*", "--logs", str(made.folder))
    assert done.output == "1 dead letters replayed: 1 closed (1 runs)\n"
    assert account(DataRoot.open(tmp_path / "data").raw)[0].totals()["dead_letter"] == 9
    line = letters(tmp_path, "list", "--all", "--reason", "log_*").output
    assert line.split()[-4:] == ["run", "no", "such", "file"]
    reported = json.loads(letters(tmp_path, "replay", "--json", "--limit", "2", code=5).output)
    assert (reported["tried"], reported["closed"], reported["whole"]) == (2, 0, True)
    assert sum(reported["still_open"].values()) == 2
    assert json.loads(letters(tmp_path, "replay", "--dry-run", "--json").output)["letters"] == 9
    shutil.copy(made.folder / "none", made.folder / "cut.gz")
    reported = json.loads(letters(tmp_path, "replay", "--json", "--logs", str(made.folder), code=5).output)
    assert (reported["closed"], sum(reported["still_open"].values())) == (1, 8)


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "raw").touch()
    policy = tmp_path / "fetch.toml"
    policy.write_text('hosts = ["l.org"]\n[[credentials]]\nhost = "l.org"\ntoken_file = "none"\n')
    for words, message in (
        (["replay", "--logs", "none"], "--logs none: no such folder"),
        (["replay", "--source", "x"], "want NAME=VALUE"),
        (["list", "--since", "soon"], "invalid time 'soon'"),
        (["replay", "--fetch-policy", str(policy)], "none"),
    ):
        assert message in ciml("dead-letters", *words, "--data-path", tmp_path, code=2).stderr


def test_nothing_is_no_error(tmp_path: Path) -> None:
    DataRoot.open(tmp_path / "data").experiments.create("x", b"")
    for words, shown in (
        (["list"], "No open dead letters.\n"),
        (["list", "--all"], "No dead letters.\n"),
        (["count"], "         0 open dead letters\n"),
        (["replay"], "0 dead letters replayed: 0 closed\n"),
    ):
        assert letters(tmp_path, *words).output == shown


def test_it_is_light(made: Listed, tmp_path: Path) -> None:
    data = ["--data-path", str(tmp_path / "data")]
    lines = [["dead-letters", *words, *data] for words in (["list"], ["replay", "--logs", str(made.folder)])]
    calls = "; ".join(f"cli.main({line!r}, standalone_mode=False)" for line in lines)
    assert loaded_by(f"from ciml.cli.main import cli; {calls}") <= {"pandas"}  # which pyarrow imports


@pytest.mark.engines
def test_ingest_publishes_dead_letters_on_a_topic(kafka: str, topic: MakeTopic, tmp_path: Path) -> None:
    scenario = send(kafka, topic(1, "events"), 1, tmp_path / "logs", runs=20)
    name = topic(1, "dead-letters")
    words = [
        "ingest", "--data-path", str(tmp_path / "data"), "--kafka", kafka, "--engine", "micro-batches", "--topic",
        scenario.topic, "--runs-topic", "", "--dead-letters-topic", name, "--once", "--allow-root", str(scenario.logs),
        "--retry-after", "10ms",
    ]  # fmt: skip
    ciml(*words)
    messages = [json.loads(message.value or b"") for message in published(kafka, name, "dead-letters")]
    listed = [json.loads(line) for line in letters(tmp_path, "list", "--json").output.splitlines()]
    assert listed
    assert {each["state"] for each in messages} == {"open"}
    assert sorted((each["origin"], each["run_id"], each["reason"]) for each in messages) == sorted(
        (each["origin"], each["run_id"], each["reason"]) for each in listed
    )


def test_ages() -> None:
    assert [age_text(s) for s in (-1, 0, 119, 120, 7199, 7200, 172_799, 172_800)] == [
        "0 s", "0 s", "119 s", "2 min", "119 min", "2 h", "47 h", "2 d",
    ]  # fmt: skip
