"""``ciml runs``: listing, verifying and compacting from the command line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from ciml.data_root import DataRoot
from ciml.verdicts.signatures.stored import BOOKMARK
from tests.cli.calling import ciml
from tests.runs.compacting import FIRST, run
from tests.runs.scenes import UNTRUSTED, RawStore


def runs(data: Path, *words: str, code: int = 0) -> Result:
    return ciml("runs", *words, "--data-path", data, code=code)


@pytest.fixture
def stored(tmp_path: Path) -> RawStore:
    raw = RawStore(DataRoot.open(tmp_path))
    raw.add([run(1), run(2, outcome="failure")])
    raw.add([run(3, 1, build_name="tempest-full")], trust=UNTRUSTED)
    raw.add(corrections=[run(1, outcome="timeout")[0]])
    return raw


def listed(result: Result) -> list[str]:
    return [json.loads(line)["run_id"] for line in result.output.splitlines()]


def test_runs_are_listed_the_latest_first(tmp_path: Path, stored: RawStore) -> None:
    lines = [json.loads(line) for line in runs(tmp_path, "list", "--json").output.splitlines()]
    assert [(line["run_id"], line["outcome"], line["trusted"], line["version"]) for line in lines] == [
        ("zuul~3~1", "success", False, 2),
        ("zuul~2~1", "failure", True, 1),
        ("zuul~1~1", "timeout", True, 1),  # as it was corrected
    ]
    assert lines[1]["path"].startswith(f"runs/{FIRST}/zuul~2~1.")
    assert lines[1]["rows"] == 4
    for options, ids in {
        ("--job", "tempest-*"): ["zuul~3~1"],
        ("--job", "x", "--job", "unit-*"): ["zuul~2~1", "zuul~1~1"],
        ("--outcome", "timeout", "--outcome", "failure"): ["zuul~2~1", "zuul~1~1"],
        ("--date", "1970-01-02"): ["zuul~3~1"],
        ("--date", "1970-01", "--trusted"): ["zuul~2~1", "zuul~1~1"],
        ("--untrusted",): ["zuul~3~1"],
        ("--last", "2"): ["zuul~3~1", "zuul~2~1"],
        ("--job", "nothing"): [],
    }.items():
        assert listed(runs(tmp_path, "list", "--json", *options)) == ids
    assert "zuul~2~1" in runs(tmp_path, "list").output


def test_one_run_is_shown(tmp_path: Path, stored: RawStore) -> None:
    value: dict[str, Any] = json.loads(runs(tmp_path, "show", "zuul~1~1", "--json").output)
    assert (value["outcome"], value["pack"], value["rows"], value["fault"]) == ("timeout", None, 4, "")
    assert value["columns"] == ["time", "boot", "total cpu usage:usr", "load avg:1m"]
    assert [(each["version"], each["kind"]) for each in value["records"]] == [(1, "run"), (3, "correction")]
    runs(tmp_path, "compact")
    text = runs(tmp_path, "show", "zuul~1~1").output
    assert f"pack       packs/{FIRST}/" in text
    assert "as it was committed" in text
    assert "corrections" in text
    assert "no run 'zuul~9~1' in " in runs(tmp_path, "show", "zuul~9~1", code=2).stderr
    assert "no run " in runs(tmp_path, "show", "\udcff", code=2).stderr


def test_compacted_and_verified(tmp_path: Path, stored: RawStore) -> None:
    done = json.loads(runs(tmp_path, "compact", "--json", "--grace", "0s").output)
    assert DataRoot.open(tmp_path).failures.exists(BOOKMARK)  # signatures quote texts before these are removed
    assert (done["packing"]["runs"], done["packing"]["alone"], done["swept"]["objects"]) == (2, 1, 2)
    again = runs(tmp_path, "compact", "--grace", "0s")
    assert "0 runs packed into 0 packs" in again.output
    verified = runs(tmp_path, "verify", "--grace", "0s")
    assert verified.output.splitlines()[-1] == (
        "4 records of 3 runs in 3 versions; 2 runs in 1 packs and 1 objects read: all as committed."
    )
    value = json.loads(runs(tmp_path, "verify", "--json", "--sample", "2").output)
    assert (value["number"], value["read"], value["runs"]) == (0, 2, 3)
    assert "2 of 3 raw objects read" in runs(tmp_path, "verify", "--sample", "2").output
    assert "Verified 3 raw objects" in runs(tmp_path, "--verify").output


def test_findings_are_reported_and_exit_with_4(tmp_path: Path, stored: RawStore) -> None:
    paths = stored.store.list("runs")
    stored.store.delete(paths[0])
    verified = runs(tmp_path, "verify", code=4)
    assert f"BROKEN {stored.store.url(paths[0])} is in the manifest but does not exist" in verified.output
    assert "1 findings." in verified.output
    assert runs(tmp_path, "--verify", code=4).output.count("BROKEN") == 1
    assert json.loads(runs(tmp_path, "verify", "--json", code=4).output)["number"] == 1
    for options in ([], ["--json"]):
        number = 10 + len(options)
        stored.add([run(number)])
        stored.store.delete(stored.write(*run(number)).path)
        assert "does not exist" in runs(tmp_path, "compact", *options, code=4).output
    runs(tmp_path, "show", "zuul~10~1", code=4)


@pytest.mark.parametrize(
    ("options", "removed"),
    [((), 1), (("--fetch-policy", "FILE"), 0), (("--fetch-policy", "FILE", "--keep-outputs", "1d"), 1)],
    ids=["30 days", "a file", "an option"],
)
def test_texts_of_outputs_are_kept_as_the_fetch_policy_says(
    tmp_path: Path, options: tuple[str, ...], removed: int
) -> None:
    raw = RawStore(DataRoot.open(tmp_path))
    facts, telemetry = run(1)
    raw.add([(facts, telemetry)], outputs={facts.run_id: b"printed"})
    for path in raw.store.list("outputs"):
        os.utime(tmp_path / "raw" / path, (0, 0))
    policy = tmp_path / "fetch.toml"
    policy.write_text('hosts = ["logs.example.org"]\n[logs]\nkeep = "40000d"\n')  # until 2079
    words = [str(policy) if option == "FILE" else option for option in options]
    assert json.loads(runs(tmp_path, "compact", "--json", *words).output)["swept"]["outputs"] == removed
