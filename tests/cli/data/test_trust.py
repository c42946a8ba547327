"""``ciml trust`` and the attempts in ``ciml runs show``: what a policy would change, and why a run is trusted."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from ciml.data_root import DataRoot
from ciml.events.records import Batch, FactUpdate, OffsetRange, Origin, Outcome, RunFacts
from ciml.pipelines.ingest.committer import Committer
from ciml.training.exclusions import Exclusion, add
from ciml.training.quarantine import AUTHOR
from ciml.trust import TrustPolicy, evaluate
from tests.cli.calling import ciml
from tests.pipelines.datasets.dataset_scenes import telemetry
from tests.runs.scenes import RawStore
from tests.transforms.samples import make_facts

POLICY = """
[[rule]]
name = "forks"
trusted = false
fork = ["yes"]

[[rule]]
name = "reviewed"
trusted = true
source = ["zuul"]
review = ["approved"]
"""


def trust(data: Path, *words: str, code: int = 0) -> Result:
    return ciml("trust", *words, "--data-path", data, code=code)


def run(number: int, **facts: Any) -> RunFacts:
    return make_facts(number, **{"auth": "mqtt-user", "subjects": (f"change:{number}",), **facts})


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two gated runs, one in review that was approved later, and one of a fork whose origin came later."""
    root = DataRoot.open(tmp_path / "data")
    raw, committing, policy = RawStore(root), Committer(root.raw), TrustPolicy.load()
    said: list[RunFacts | FactUpdate] = [
        run(1, pipeline="gate"),
        run(2, pipeline="gate", build_name="lint", attempt_of="b/lint", start_us=1_795_521_600_000_000),
        run(3, pipeline="check"),
        FactUpdate("zuul", "change:3", {"review": "approved"}, "mqtt-user", 1),
        FactUpdate("zuul", "change:1", {"fork": "yes"}, "mqtt-user", 1),
        run(4, pipeline="gate", build_name="lint", attempt_of="b/lint", outcome="failure").replace(run_id="zuul~4~2"),
        run(5, source="ci", attempt_of="b/lint").replace(run_id="ci~5~1"),
    ]
    for offset, each in enumerate(said):
        origin = Origin("t", 0, offset)
        if isinstance(each, RunFacts):
            file = raw.write(each, telemetry(int(each.build_uuid)))
            outcome = Outcome("run", origin, f"zuul {offset}", each, trust=evaluate(policy, each), file=file)
        else:
            outcome = Outcome("update", origin, f"zuul {offset}", updates=(each,))
        covers = OffsetRange("t", "T", 0, offset, offset + 1)
        committing.commit([Batch(covers, settled=[outcome])], partial(evaluate, policy))
    (tmp_path / "policy.toml").write_text(POLICY)
    return tmp_path / "data"


def test_check_counts_what_a_policy_would_change(data: Path) -> None:
    policy = str(data.parent / "policy.toml")
    found = json.loads(trust(data, "check", policy, "--json").output)
    gated, reviewed = {"trusted": True, "rule": "gated"}, {"trusted": True, "rule": "reviewed"}
    assert (found["runs"], found["trusted"], found["trusted_after"], found["changed"]) == (5, 4, 1, 3)
    assert {(each["from"]["rule"], each["to"]["rule"]): each["runs"] for each in found["rules"]} == {
        ("gated", "forks"): 1, ("gated", "no rule"): 2,
    }  # fmt: skip
    assert all(each["from"] == gated for each in found["rules"])
    assert reviewed not in [each["from"] for each in found["rules"]]  # of run 3, by the update: no change
    assert {(each["source"], each["build_name"], each["trusted"], each["runs"]) for each in found["places"]} == {
        ("zuul", "unit-tests", False, 1), ("zuul", "lint", False, 2),
    }  # fmt: skip
    text = trust(data, "check", policy, "--runs").output
    assert "zuul~1~1  unit-tests  trusted (gated) -> not trusted (forks)" in text
    assert "4 of 5 runs are trusted; the policy would trust 1 and change 3" in text
    lines = [json.loads(line) for line in trust(data, "check", policy, "--runs", "--json").output.splitlines()]
    assert sorted(line["run_id"] for line in lines[:-1]) == ["zuul~1~1", "zuul~2~1", "zuul~4~2"]
    assert lines[-1]["changed"] == 3


def test_check_of_the_same_policy_changes_nothing(data: Path) -> None:
    (data.parent / "same.toml").write_text('[[rule]]\nname = "all"\ntrusted = true\nsource = ["zuul"]\n')
    assert "change 0" in trust(data, "check", str(data.parent / "same.toml")).output


def test_explain_shows_where_facts_come_from_and_which_rule_decides(data: Path) -> None:
    found = json.loads(trust(data, "explain", "zuul~3~1", "--json").output)
    assert found["facts"]["review"] == {"own": "", "joined": "approved"}
    assert found["facts"]["auth"] == {"own": "mqtt-user", "joined": "mqtt-user"}
    assert [(each["by"], each["trusted"], each["rule"], each["version"]) for each in found["decisions"]] == [
        ("ingestion", False, "no rule", 3), ("update", True, "reviewed", 4),
    ]  # fmt: skip
    assert (found["now"]["trusted"], found["now"]["rule"]) == (True, "reviewed")
    rules = {rule["rule"]: rule for rule in found["rules"]}
    assert [name for name, rule in rules.items() if rule["decides"]] == ["reviewed"]
    assert rules["gated"]["mismatches"] == [{"fact": "pipeline", "value": "check", "globs": ["gate", "promote"]}]
    assert [each["fact"] for each in rules["listing"]["mismatches"]] == ["source", "event"]
    policy = str(data.parent / "policy.toml")
    text = " ".join(trust(data, "explain", "zuul~1~1", "--trust-policy", policy).output.split())
    assert "ingestion: trusted (gated), version 1" in text
    assert "now: not trusted (forks)" in text
    assert "it decides: the first that matches" in text
    assert "an update" in text


def test_explain_of_an_unknown_run(data: Path) -> None:
    assert "no run 'zuul~9~1' in " in trust(data, "explain", "zuul~9~1", code=2).stderr


def test_a_run_is_shown_with_the_attempts_of_its_job(data: Path) -> None:
    show = partial(ciml, "runs", "show", "--data-path", data)
    found = json.loads(show("zuul~4~2", "--json").output)
    assert [(each["run_id"], each["attempt"], each["outcome"], each["kind"]) for each in found["attempts"]] == [
        ("zuul~2~1", 1, "success", "run"), ("zuul~4~2", 2, "failure", "run"),
    ]  # fmt: skip
    text = show("zuul~4~2").output
    assert "attempt    1 zuul~2~1 success, started 2026-11-24T12:00:00Z\n" in text
    assert "attempt    2 zuul~4~2 failure (this run)\n" in text
    assert "attempts" not in json.loads(show("zuul~3~1", "--json").output)
    assert "trusted by an update: reviewed" in show("zuul~3~1").output


def test_check_and_apply_show_the_effect_on_snapshots_and_models(tmp_path: Path) -> None:
    shutil.copytree(Path(__file__).parents[2] / "golden" / "data_root" / "data", tmp_path / "data")
    policy = str(tmp_path / "policy.toml")
    Path(policy).write_text('[[rule]]\nname = "closed"\ntrusted = false\n')
    effect = json.loads(trust(tmp_path / "data", "check", policy, "--json").output)
    assert {(row["dataset"], row["change"], row["to"]) for row in effect["snapshots"]} == {
        ("provider", "leaves", "closed")
    }
    learned = sum(row["runs"] for row in effect["snapshots"] if row["role"] != "test")
    (model,) = effect["models"]
    assert (model["model"], model["version"], model["labels"], model["runs"]) == ("provider", 1, ["stable"], learned)
    line = f"model provider version 1 (stable) learned from {learned} runs that leave"
    assert line in trust(tmp_path / "data", "check", policy).output
    text = trust(tmp_path / "data", "apply", policy, "--reason", "a leak", "--author", "ann").output
    assert line in text
    assert "Next training snapshots" in text
    assert "stay the same" in trust(tmp_path / "data", "check", policy).output  # it is in force


def test_quarantined_runs_are_listed_and_released(data: Path) -> None:
    quarantine = partial(trust, data, "quarantine")
    assert "no run is in quarantine" in quarantine("list").output
    exclusion = Exclusion("quarantine: unusual usr", "zuul~1~1")
    add(DataRoot.open(data).exclusions, [exclusion], author=AUTHOR, now_us=1_795_521_600_000_000)
    assert quarantine("list").output == "zuul~1~1  2026-11-24 12:00  quarantine: unusual usr\n"
    (held,) = json.loads(quarantine("list", "--json").output)
    assert (held["run_id"], held["author"]) == ("zuul~1~1", AUTHOR)
    released = quarantine("release", "zuul~1~1", "--reason", "a new test", "--author", "ann").output
    assert released == "released zuul~1~1: quarantine: unusual usr\n"
    again = quarantine("release", "zuul~1~1", "--reason", "again", "--author", "ann", code=2)
    assert "ciml trust quarantine list" in again.stderr


def test_a_policy_is_applied_to_a_data_root_and_listed(data: Path) -> None:
    assert "no policy" in trust(data, "history").output
    policy = str(data.parent / "policy.toml")
    told = trust(data, "apply", policy, "--reason", "forks came", "--author", "ann").output
    assert "ann: forks came: policy" in told
    assert "(forks, reviewed)" in told
    assert "in force already" in trust(data, "apply", policy, "--reason", "again", "--author", "bob").output
    found = json.loads(trust(data, "explain", "zuul~1~1", "--json").output)
    assert (found["now"]["trusted"], found["now"]["rule"]) == (False, "forks")
    trust(data, "apply", "--reset", "--reason", "back", "--author", "bob")
    assert "gated" in json.loads(trust(data, "explain", "zuul~1~1", "--json").output)["now"]["rule"]
    listed = json.loads(trust(data, "history", "--json").output)
    assert [(each["number"], each["author"], bool(each["policy"])) for each in listed] == [
        (1, "ann", True),
        (2, "bob", False),
    ]
    assert listed[0]["document"]["rule"][0]["name"] == "forks"
    assert "the policy of each process" in trust(data, "history").output
    Path(policy).write_text("quarantine = true\n[caps]\nsource = 0.8\nauthor = 0.33\n" + POLICY)
    trust(data, "apply", policy, "--reason", "one author in three", "--author", "ann")
    assert "(forks, reviewed, cap author 0.33, cap source 0.8, quarantine)" in trust(data, "history").output


@pytest.mark.parametrize("arguments", [(), ("--reset", "policy.toml")])
def test_apply_needs_a_policy_or_a_reset(
    data: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.chdir(data.parent)
    assert "give a POLICY, or --reset" in trust(data, "apply", *arguments, "--reason", "why", code=2).stderr
