"""``ciml verdict`` as a user types it."""

from __future__ import annotations

import contextlib
import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import ciml
from ciml.data_root import DataRoot
from ciml.manifest.log import ManifestLog
from ciml.serving.predict.log import prediction_id
from ciml.serving.push import NotBlessedError
from ciml.serving.push import push as push_model
from ciml.serving.registry import Decision, Registry
from ciml.storage import open_store
from ciml.verdict_rules import LearnedRanges
from tests.cli import calling
from tests.serving.models_fixture import DEFINITION, save_model
from tests.transforms.profiles.tables import STEAL, USR, facts_of
from tests.verdicts.evidence.stored import (
    FAILED,
    RULES,
    STARVED,
    commit,
    made,
    prediction,
    push,
    store_runs,
)
from tests.verdicts.evidence.subjects import profiles

run = partial(calling.ciml, "verdict")


def replace(data: DataRoot, *records: dict[str, Any]) -> None:
    """Store these predictions, and no others."""
    for file in Path(data.predictions.url()).rglob("*.json"):
        file.unlink()
    commit(data, records)


def said(tmp_path: Path, **changes: Any) -> dict[str, str]:
    """Store another prediction of the failed run; return the printed lines by their titles."""
    data, record = made(tmp_path)
    replace(data, prediction(FAILED, record["path"], **changes))
    lines = run(FAILED.run_id, "--data-path", str(tmp_path / "data")).output.splitlines()
    return {line[:12].strip(): line[13:] for line in lines}


def test_it_prints_the_verdict_its_evidence_and_the_picture(tmp_path: Path) -> None:
    data, record = made(tmp_path)
    done = run(FAILED.run_id, "--data-path", str(tmp_path / "data"))
    picture = data.predictions.url(f"evidence/{record['id'][:2]}/{record['id']}.svg")
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
    lines = said(tmp_path, code=code)
    assert (lines["verdict"], lines["retry"], lines["possible"]) == (verdict, retry, possible)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (1.0, "code over 99%, machine under 1%"),
        (0.004, "machine over 99%, code under 1%"),
        (0.99, "code 99%, machine 1%"),
    ],
)
def test_no_probability_is_certain(tmp_path: Path, code: float, said: str) -> None:
    data = DataRoot.open(tmp_path / "data")
    push(data, tmp_path / "candidate", profiles(60))
    commit(data, [prediction(FAILED, store_runs(data, [(FAILED, STARVED)])[FAILED.run_id], code=code)])
    assert f"probability  {said}\n" in run(FAILED.run_id, "--data-path", str(tmp_path / "data")).output


def test_a_run_unlike_the_learned_ones_is_unknown_and_it_says_by_what(tmp_path: Path) -> None:
    rules = RULES.replace(ranges=LearnedRanges(60, ("1m_mean",), (0.5,), (4.5,), 0.1))
    lines = said(tmp_path, rules=rules, value=9.75)
    assert lines["verdict"] == "unknown: no cause alone is certain enough"
    assert lines["possible"] == (
        "code and machine: it is unlike the runs that the model learned, by 1m_mean: 9.75, theirs are 0.5 to 4.5"
    )


def test_a_verdict_without_telemetry_says_so(tmp_path: Path) -> None:
    lines = said(tmp_path, without_telemetry=True)
    assert lines["telemetry"] == "none: the verdict follows from the run's outcome and output alone"
    assert "telemetry" not in said(tmp_path / "with")


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
    data, record = made(tmp_path)
    push(data, tmp_path / "second", profiles(60))
    of_model = [prediction(FAILED, record["path"], version, code=0.9) for version in (1, 2)]
    replace(data, *of_model, prediction(FAILED, record["path"], model="m"))
    words = ["--data-path", str(tmp_path / "data"), "--json"]
    assert json.loads(run(FAILED.run_id, "--model", "cause", *words).output)["version"] == 2
    assert "was never pushed" in run(FAILED.run_id, "--model", "m", *words, code=2).stderr


def test_the_prediction_of_a_candidate_is_shown_only_if_it_is_asked_for(tmp_path: Path) -> None:
    data, record = made(tmp_path)
    words = [FAILED.run_id, "--data-path", str(tmp_path / "data"), "--json"]
    with contextlib.suppress(NotBlessedError):
        push_model(data, "cause", open_store(loadable(tmp_path / "model")), Decision(False, ("too few runs",)))
    _, notice = Registry(data, "cause").last_candidate()
    by_candidate, earlier = (
        {
            **prediction(FAILED, record["path"], code=0.9),
            "id": prediction_id(FAILED.run_id, "cause", name),
            "version": None,
            "candidate": {**notice.to_json(), "id": name},
        }
        for name in (notice.id, "f" * 16)
    )
    replace(data, record, by_candidate, earlier)
    assert json.loads(run(*words).output)["version"] == 1
    found = json.loads(run(*words, "--candidate").output)
    assert (found["version"], found["candidate"]) == (None, notice.to_json())
    assert "stored" not in found  # it was not computed now
    assert found["verdict"] == json.loads(json.dumps(by_candidate["verdict"]))
    assert found["evidence"]["observations"][1] == "From second 20, steal was 41 %; passing runs have 0 %."
    replace(data, earlier)
    assert json.loads(run(*words, "--candidate").output)["stored"] is False


def test_without_a_verdict_it_says_why(tmp_path: Path) -> None:
    data, _ = made(tmp_path)
    replace(data, prediction(facts_of(number=5), "p"))
    for words, why in (
        (["zuul~no~1"], "no run 'zuul~no~1' in"),
        ([FAILED.run_id, "--model", "other"], "no model 'other'"),
    ):
        assert why in run(*words, "--data-path", str(tmp_path / "data"), code=2).stderr


def test_a_damaged_run_keeps_its_verdict(tmp_path: Path) -> None:
    made(tmp_path)
    (stored,) = (tmp_path / "data" / "raw").rglob("*.parquet")
    stored.write_bytes(stored.read_bytes()[:-20] + bytes(20))
    done = run(FAILED.run_id, "--data-path", str(tmp_path / "data"), code=4)
    assert "verdict      machine" in done.output
    assert "restore a backup" in done.output
    assert "picture" not in done.output


def loadable(folder: Path) -> Path:
    """A model of causes that can be loaded, with its rules and the passing runs of the job."""
    definition = DEFINITION.replace(
        definition=DEFINITION.definition.replace(class_label="cause"),
        columns=(STEAL, USR, "load avg:1m"),
        features=("stl", "usr", "1m"),
        classes=("code", "machine"),
    )
    save_model(folder, 3, definition=definition)
    (folder / "assets" / "verdicts.json").write_text(json.dumps(RULES.to_json()))
    (folder / "assets" / "profiles.json").write_text(json.dumps(profiles(60).to_json()))
    return folder


@pytest.mark.parametrize("candidate", [False, True])
def test_a_run_without_a_prediction_is_predicted_in_this_process(tmp_path: Path, candidate: bool) -> None:
    data = DataRoot.open(tmp_path / "data")
    passed = facts_of(number=5)
    store_runs(data, [(FAILED, STARVED), (passed, STARVED)])
    words = [*(["--candidate"] if candidate else []), "--data-path", str(tmp_path / "data")]
    none = f"no {'candidate' if candidate else 'served model'} in .* gives verdicts: they"
    assert re.search(none, run(FAILED.run_id, *words, code=2).stderr)
    reasons = ("too few runs", "no gain")
    if candidate:
        folder = open_store(loadable(tmp_path / "model"))
        with contextlib.suppress(NotBlessedError):
            push_model(data, "cause", folder, Decision(False, reasons))
    else:
        push_model(data, "cause", open_store(loadable(tmp_path / "model")), Decision(True), check=False)
    done = run(FAILED.run_id, *words)
    lines = [line[13:] for line in done.output.splitlines()]
    titles = [line[:12].strip() for line in done.output.splitlines()]
    shown = dict(zip(titles, lines, strict=True))
    assert shown["verdict"].partition(":")[0] in ("code", "machine", "unknown")
    assert shown["evidence"] == "It was ended by SIGKILL (exit status -9) after 59 s; passing runs take 54 to 64 s."
    assert "From second 20, steal was 41 %; passing runs have 0 %." in lines
    assert shown["computed"] == "now, from the stored run; no prediction of it is stored, and none was published"
    assert ("picture" in titles) == (not candidate)
    assert ("rejected by the gate, not served" in shown["model"]) == candidate
    assert [line for line in lines if line in reasons] == (list(reasons) if candidate else [])
    answer = json.loads(run(FAILED.run_id, *words, "--json").output)
    with ciml.open(tmp_path / "data") as opened:
        expected = opened.model("cause", candidate=candidate).predict(FAILED.run_id).verdict
    assert expected is not None
    assert answer["verdict"] == json.loads(json.dumps(expected.to_json()))
    assert (answer["stored"], answer["version"]) == (False, None if candidate else 1)
    assert (answer["candidate"] or {}).get("reasons") == (list(reasons) if candidate else None)
    assert ManifestLog(data.predictions).end() == 0
    on_passed = run(passed.run_id, *words, code=2)
    assert "has the outcome success; verdicts are given on failed runs" in on_passed.stderr
