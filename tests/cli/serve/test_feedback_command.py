"""``ciml feedback``: trying messages, listing what became of them, muting projects."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest

from ciml.data_root import DataRoot
from ciml.events.records import Message, OffsetRange
from ciml.pipelines.feedback import Judge, feedback_replica
from ciml.verdicts.feedback.config import load_feedback
from tests.cli.calling import ciml
from tests.verdicts.evidence import stored
from tests.verdicts.evidence.subjects import profiles
from tests.verdicts.feedback.reviews import NOW_S, prediction
from tests.verdicts.feedback.worlds import take

CONFIG = """
settle_s = 0
active_models = ["*"]
min_passing_runs = 0
muted_projects = ["muted/*"]

[[system]]
kind = "gerrit"
name = "review"
sources = ["zuul"]
url = "https://review.example.org"
user = "ciml"
secret_file = "missing"
"""


feedback = partial(ciml, "feedback")


@pytest.fixture
def config(tmp_path: Path) -> str:
    (tmp_path / "feedback.toml").write_text(CONFIG)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "file").touch()  # a data root that exists
    return str(tmp_path / "feedback.toml")


@pytest.fixture
def try_lines(config: str, tmp_path: Path) -> Callable[..., str]:
    """Return a function that tries predictions, or what other arguments name; it returns what is printed."""

    def tried(lines: list[dict[str, Any]], *more: str) -> str:
        (tmp_path / "p.jsonl").write_bytes(b"\n".join(map(orjson.dumps, lines)) + b"\n\n")
        source = [] if not lines else [str(tmp_path / "p.jsonl")]
        return feedback("try", *source, "--config", config, "--data-path", str(tmp_path / "data"), *more).output

    return tried


def put(data: Path, config: str, *records: dict[str, Any]) -> None:
    """Take predictions as the service does."""
    messages = [Message(number, orjson.dumps(one)) for number, one in enumerate(records)]
    covers = OffsetRange("predictions", "", 0, 0, len(records))
    take(feedback_replica(DataRoot.open(data)), covers, messages, Judge(load_feedback(config)), int(NOW_S * 1e6))


def test_try_prints_messages_and_reasons_for_silence(try_lines: Callable[..., str]) -> None:
    lines = [
        prediction(1), prediction(2, build_name="lint"), prediction(3, outcome="success"),
        prediction(4, project="muted/one"),
    ]  # fmt: skip
    assert try_lines(lines).startswith(
        "zuul~3~1: silent: not_failed\n"
        "zuul~4~1: silent: muted_project\n"
        "zuul~1~1, zuul~2~1: a message of review on 'org/project', change '12':\n"
        "\n"
        "2 jobs failed: 2 probably because of the machine.\n"
    )
    found = [json.loads(line).get("reason") for line in try_lines(lines, "--json").splitlines()]
    assert found == ["not_failed", "muted_project", None]


def test_try_of_a_stored_run_shows_its_evidence_and_links_its_picture(
    tmp_path: Path, config: str, try_lines: Callable[..., str]
) -> None:
    facts = stored.FAILED.replace(source="zuul", project="org/project", patchset="3")
    elsewhere = facts.replace(run_id="zuul~e~1", build_uuid="e", provider="elsewhere")
    data = DataRoot.open(tmp_path / "data")
    stored.push(data, tmp_path / "candidate", profiles(60))
    paths = stored.store_runs(data, [(each, stored.STARVED) for each in (facts, elsewhere)])
    record, other = (stored.prediction(each, paths[each.run_id]) for each in (facts, elsewhere))
    stored.commit(data, [record, other])
    Path(config).write_text('base_url = "https://ci.example.org/p"\n' + CONFIG)
    shown = try_lines([], "--run", facts.run_id)
    picture = f"evidence/{record['id'][:2]}/{record['id']}.svg"
    assert shown.count("\n- ") == 3
    assert "\n- From second 20, steal was 41 %; passing runs have 0 %.\n" in shown
    assert f"- Picture of its telemetry: https://ci.example.org/p/{picture}\n" in shown
    assert (tmp_path / "data" / "predictions" / picture).read_bytes().startswith(b"<svg")
    Path(config).write_text(CONFIG.replace("min_passing_runs = 0", ""))
    why = "not_comparable (0 passing runs of this job on such machines; 5 are needed)"
    assert try_lines([], "--run", elsewhere.run_id) == f"{elsewhere.run_id}: silent: {why}\n"


def test_try_shows_the_message_that_a_model_in_shadow_would_send(config: str, try_lines: Callable[..., str]) -> None:
    Path(config).write_text(CONFIG.replace('active_models = ["*"]', ""))
    assert try_lines([prediction(1)]).startswith(
        "zuul~1~1: silent: shadow (0 of at least 20 verdicts machine are settled)\n"
        "\nThis message is recorded and not sent:\n\n“unit” failed, probably because of the machine.\n"
    )
    (found,) = [json.loads(line) for line in try_lines([prediction(1)], "--json").splitlines()]
    assert (found["reason"], found["change"]) == ("shadow", "12")
    assert "No rerun or reviewer has checked such a verdict yet." in found["message"]


def test_what_cannot_be_tried_or_muted_is_named(config: str, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"a": 1}\n[1]\n')
    data = ("--data-path", str(tmp_path / "data"))
    for words, message in (
        (("try", str(tmp_path / "p.jsonl"), "--config", config), r"p.jsonl, line 2: expected a JSON object"),
        (("try", "--run", "zuul~9~1", "--config", config), r"there is no prediction of run 'zuul~9~1'"),
        (("mute", "a\u202eb"), "PROJECT"),
    ):
        assert message in feedback(*words, *data, code=2).output


def test_report_shows_the_precision_of_served_and_shadow_models(tmp_path: Path, config: str) -> None:
    data = str(tmp_path / "data")
    report = ("report", "--config", config, "--data-path", data)
    assert feedback(*report).output == "no verdicts yet; ciml service start feedback records them\n"
    Path(config).write_text(CONFIG.replace('"*"', '"cause"'))
    shadow = {**prediction(3, change="14"), "model": "next"}
    put(tmp_path / "data", config, prediction(1), prediction(2, change="13"), shadow)
    now_us = int(time.time() * 1e6)
    settled = [
        {"id": f"{number:032x}", "cause": cause, "by": "reruns", "trusted": True}
        for number, cause in ((1, "machine"), (2, "code"))
    ]
    feedback_replica(DataRoot.open(data)).append(lambda state: {"time_us": now_us, "settled": settled})
    rows = [json.loads(line) for line in feedback(*report, "--json").output.splitlines()]
    named = {(row["model"], row["project"], row["cause"]): row for row in rows}
    row = named["cause", "org/project", "machine"]
    assert (row["mode"], row["settled"], row["open"], row["precision"]["value"]) == ("active", 2, 0, 0.5)
    assert (row["base_rate"]["value"], row["reruns"]["right"], row["duration"]["runs"]) == (0.5, 1, 0)
    row = named["next", "", "machine"]
    assert (row["mode"], row["settled"], row["open"]) == ("shadow", 0, 1)
    text = feedback(*report).output
    assert "next, org/project, machine: shadow: 0 of at least 20 verdicts machine are settled\n" in text
    assert "intervals of 95 %; runs of one change count once\n" in text


def test_list_shows_what_waits(config: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    assert feedback("list", "--data-path", str(data)).output == "no messages\n"
    put(data, config, prediction(1), prediction(2, change="13", build_name="\x1b[31mred"))
    found = [json.loads(line) for line in feedback("list", "--data-path", str(data), "--json").output.splitlines()]
    assert [(one["change"], one["state"], one["causes"]) for one in found] == [
        ("12", "waiting", ["machine"]), ("13", "waiting", ["machine"]),
    ]  # fmt: skip
    (last,) = feedback("list", "--data-path", str(data), "--json", "--last", "1").output.splitlines()
    assert json.loads(last)["change"] == "13"
    assert len(feedback("list", "--data-path", str(data), "--json", "--last", "0").output.splitlines()) == 2
    table = feedback("list", "--data-path", str(data)).output
    assert "waiting" in table
    assert "\x1b[31mred" not in table


def test_a_project_is_muted_at_once_and_unmuted(config: str, tmp_path: Path) -> None:
    data = str(tmp_path / "data")
    assert feedback("mute", "org/*", "--data-path", data).output == "muted: 'org/*' (0 of 0 projects with a verdict)\n"
    put(tmp_path / "data", config, prediction(1))
    with feedback_replica(DataRoot.open(data)).state() as state:
        assert dict(state.verdicts) == {"muted_project": 1}
    assert feedback("list", "--data-path", data).output == "muted projects: 'org/*'\nno messages\n"
    assert feedback("unmute", "org/*", "--data-path", data).output == "no longer muted: 'org/*'\n"
    assert feedback("unmute", "org/*", "--data-path", data).output == "'org/*' is not muted\n"
    assert feedback("list", "--data-path", data).output == "no messages\n"
    more = [prediction(number, project=project) for number, project in ((2, "org/other"), (3, "infra/ciml"))]
    put(tmp_path / "data", config, prediction(1), *more)  # the first is covered
    for glob, number in (("org/*", 2), ("*", 3), ("all", 3), ("org/other", 1)):
        expected = f"muted: {glob!r} ({number} of 3 projects with a verdict)\n"
        assert feedback("mute", glob, "--data-path", data).output == expected
