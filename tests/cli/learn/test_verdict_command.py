"""``ciml verdict`` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ciml.cli.main import cli
from ciml.verdict_rules import LearnedRanges
from tests.transforms.profiles.tables import facts_of
from tests.verdicts.evidence.stored import FAILED, RULES, commit, made, prediction, push, store_runs
from tests.verdicts.evidence.subjects import profiles, subject_of


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["verdict", *arguments], standalone_mode=False)


def failed(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["verdict", *arguments])


def test_it_prints_the_verdict_its_evidence_and_the_picture(tmp_path: Path) -> None:
    data, record = made(tmp_path)
    done = run(FAILED.run_id, "--data-path", str(tmp_path / "data"))
    picture = data.predictions.url(f"evidence/{record['id'][:2]}/{record['id']}.svg")
    assert done.return_value == 0
    assert done.output.splitlines() == [
        "run          zuul~unit-99~1",
        "job          unit (failure)",
        "verdict      machine: the same code would pass elsewhere, or at another time",
        "retry        yes, if the verdict is right",
        "probability  machine 95%, code 5%",
        "base rate    code 60%, machine 40%, of 19 failed runs of all jobs whose cause is known",
        "possible     machine; the true cause is among the possible ones in 90% of runs",
        "model        cause, version 1",
        "evidence     It was ended by SIGKILL (exit status -9) after 59 s; passing runs take 54 to 64 s.",
        "             From second 20, steal was 41 %; passing runs have 0 %.",
        f"picture      {picture}",
    ]
    assert Path(picture).read_text().startswith("<svg ")


@pytest.mark.parametrize(
    ("code", "verdict", "retry", "possible"),
    [
        (
            0.95, "code: the same code would fail again", "no, if the verdict is right",
            "code; the true cause is among the possible ones in 90% of runs",
        ),
        (
            0.6, "unknown: no cause alone is certain enough", "unsure: it depends on the cause",
            "none: it is unlike the runs that calibrated the model",
        ),
    ],
)  # fmt: skip
def test_each_verdict_says_what_it_means(tmp_path: Path, code: float, verdict: str, retry: str, possible: str) -> None:
    data, record = made(tmp_path)
    for file in Path(data.predictions.url()).rglob("*.json"):
        file.unlink()
    commit(data, [prediction(FAILED, record["path"], 1, code=code)])
    lines = run(FAILED.run_id, "--data-path", str(tmp_path / "data")).output.splitlines()
    said = {line[:12].strip(): line[13:] for line in lines}
    assert (said["verdict"], said["retry"], said["possible"]) == (verdict, retry, possible)


def test_a_run_unlike_the_learned_ones_is_unknown_and_it_says_by_what(tmp_path: Path) -> None:
    data, record = made(tmp_path)
    for file in Path(data.predictions.url()).rglob("*.json"):
        file.unlink()
    rules = RULES.replace(ranges=LearnedRanges(60, ("1m_mean",), (0.5,), (4.5,), 0.1))
    commit(data, [prediction(FAILED, record["path"], rules=rules, value=9.75)])
    lines = run(FAILED.run_id, "--data-path", str(tmp_path / "data")).output.splitlines()
    said = {line[:12].strip(): line[13:] for line in lines}
    assert said["verdict"] == "unknown: no cause alone is certain enough"
    assert said["possible"] == (
        "code and machine: it is unlike the runs that the model learned, by 1m_mean: 9.75, theirs are 0.5 to 4.5"
    )


def test_json_has_the_record_and_the_evidence(tmp_path: Path) -> None:
    _, record = made(tmp_path)
    found = json.loads(run(FAILED.run_id, "--json", "--data-path", str(tmp_path / "data")).output)
    assert found["verdict"] == json.loads(json.dumps(record["verdict"]))
    assert (found["run_id"], found["model"], found["version"]) == (FAILED.run_id, "cause", 1)
    assert found["evidence"]["observations"][1] == "From second 20, steal was 41 %; passing runs have 0 %."
    assert found["evidence"]["compared_with"] == {"job": "unit", "runs": 20}
    assert found["evidence"]["picture"].endswith(f"{record['id']}.svg")
    assert found["evidence"]["fault"] == ""


def test_the_last_verdict_of_the_run_or_of_a_model_is_shown(tmp_path: Path) -> None:
    data, _ = made(tmp_path / "first")
    path = store_runs(data, [(facts_of(outcome="failure", number=1), subject_of().table)])["zuul~unit-1~1"]
    push(data, tmp_path / "second", profiles(60))
    facts = facts_of(outcome="failure", number=1)
    for file in (tmp_path / "first" / "data" / "predictions").rglob("*.json"):
        file.unlink()
    commit(
        data, [prediction(facts, path, 1, code=0.95), prediction(facts, path, 2), prediction(facts, path, 1, model="m")]
    )
    words = ["--data-path", str(tmp_path / "first" / "data"), "--json"]
    assert json.loads(run(facts.run_id, "--model", "cause", *words).output)["version"] == 2
    assert failed(facts.run_id, "--model", "m", *words).exit_code == 2  # such a model was never pushed


def test_without_a_verdict_it_says_why(tmp_path: Path) -> None:
    data, _ = made(tmp_path)
    words = ["--data-path", str(tmp_path / "data")]
    none = failed("zuul~no~1", *words)
    assert (none.exit_code, "no prediction of run 'zuul~no~1'" in none.output) == (2, True)
    other = failed(FAILED.run_id, "--model", "other", *words)
    assert (other.exit_code, "no prediction of model 'other' of run" in other.output) == (2, True)
    for file in Path(data.predictions.url()).rglob("*.json"):
        file.unlink()
    commit(data, [prediction(facts_of(number=5), "p")])
    passed = failed("zuul~unit-5~1", *words)
    assert (passed.exit_code, "verdicts are given on failed runs" in passed.output) == (2, True)


def test_a_damaged_run_keeps_its_verdict(tmp_path: Path) -> None:
    made(tmp_path)
    (stored,) = (tmp_path / "data" / "raw").rglob("*.parquet")
    stored.write_bytes(stored.read_bytes()[:-20] + bytes(20))
    done = run(FAILED.run_id, "--data-path", str(tmp_path / "data"))
    assert done.return_value == 4
    assert "verdict      machine" in done.output
    assert "restore a backup" in done.output
    assert "picture" not in done.output
