"""Evidence of stored predictions: the run is read again, and the picture is stored beside its prediction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ciml.data_root import DataRoot
from ciml.errors import IntegrityError
from ciml.verdicts import evidence
from ciml.verdicts.evidence import Evidence, evidence_of
from tests.runs.scenes import UNTRUSTED, RawStore
from tests.transforms.profiles.tables import facts_of
from tests.verdicts.evidence.stored import FAILED, STARVED, made, prediction, push, store_runs

SAID = (
    "It was ended by SIGKILL (exit status -9) after 59 s; passing runs take 54 to 64 s.",
    "From second 20, steal was 41 %; passing runs have 0 %.",
)


def test_a_prediction_gives_sentences_and_a_picture_beside_it(tmp_path: Path) -> None:
    data, record = made(tmp_path)
    name = record["id"]
    found = evidence_of(data, record)
    assert found == Evidence(SAID, f"evidence/{name[:2]}/{name}.svg", "unit", 20, (), 59.0, 20)
    picture = (tmp_path / "data" / "predictions" / found.picture).read_text()
    assert picture.startswith("<svg ")
    assert ">Steal<" in picture
    assert evidence_of(data, record) == found  # again, over the picture that is there
    assert data.evidence.list() == [f"{name[:2]}/{name}.svg"]


def test_the_record_has_of_the_labels_how_the_command_ended_alone() -> None:
    assert "log_url" not in prediction(FAILED, "p")["run"]
    for labels, kept in (
        ({"exit_code": "-9", "secret": "x"}, {"exit_code": "-9"}),
        ({"signal": "SIGKILL", "secret": "x"}, {"signal": "SIGKILL"}),
        ({"a": "b"}, None),
    ):
        assert prediction(FAILED.replace(labels=labels), "p")["run"].get("labels") == kept


def test_a_record_without_the_path_of_its_run_is_looked_up(tmp_path: Path) -> None:
    data, record = made(tmp_path)
    del record["path"]
    assert evidence_of(data, record).observations == SAID
    with pytest.raises(IntegrityError, match="run zuul~unit-3~1 is in no manifest of"):
        evidence_of(data, {**record, "run": facts_of(number=3).to_json()})


@pytest.mark.parametrize("first", ["recorder", "system"])
def test_an_exit_status_that_only_a_recorder_reports_is_said_to_be_its(tmp_path: Path, first: str) -> None:
    data, _ = made(tmp_path)
    ours = facts_of(outcome="failure", number=50).replace(labels={"exit_code": "-9"})
    theirs = ours.replace(labels={}, auth="mqtt-user")
    raw = RawStore(data)
    if first == "recorder":
        raw.add([(ours, STARVED)], trust=UNTRUSTED)
        raw.add(reclaims=[(theirs, STARVED)])
    else:
        raw.add([(theirs, STARVED)])
        raw.add(others=[(ours, STARVED)], trust=UNTRUSTED)
    record = prediction(theirs, raw.write(theirs, STARVED).path)
    assert "labels" not in record["run"]
    assert evidence_of(data, record).observations == (
        "It was ended by SIGKILL (exit status -9, as its recorder reports) after 59 s; passing runs take 54 to 64 s.",
        SAID[1],
    )


def test_a_job_without_profile_and_a_model_without_profiles(tmp_path: Path) -> None:
    data, _ = made(tmp_path)
    other = FAILED.replace(build_name="other", labels={}, run_id="zuul~o~1", build_uuid="o")
    path = store_runs(data, [(other, STARVED)])[other.run_id]
    assert evidence_of(data, prediction(other, path)).observations == (
        "From second 20, steal was 41 %; passing runs of all jobs have 0 %.",
    )
    push(data, tmp_path / "second", None)
    without = evidence_of(data, prediction(other, path, version=2))
    assert without == Evidence(("Too few passing runs are known to compare it with.",), without.picture, length_s=59.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"run": None}, "cannot be read for its evidence"),
        ({"run": {"run_id": "x", "build_uuid": "x", "mood": "fine"}}, "cannot be read for its evidence"),
        ({"version": "one"}, "cannot be read for its evidence"),
        ({"path": "runs/job=unit/date=2026-01-01/x.parquet"}, "is in the manifest but does not exist"),
    ],
)
def test_a_record_or_a_run_that_is_broken_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    data, record = made(tmp_path)
    with pytest.raises(IntegrityError, match=message):
        evidence_of(data, {**record, **changes})


def test_an_id_from_outside_names_no_path(tmp_path: Path) -> None:
    data, record = made(tmp_path)
    for name in ("../../x", "a" * 31, "", "G" * 32):
        assert evidence_of(data, {**record, "id": name}).picture == f"evidence/{record['id'][:2]}/{record['id']}.svg"
    assert DataRoot.open(tmp_path).store.exists(f"data/predictions/evidence/{record['id'][:2]}/{record['id']}.svg")


def test_a_sentence_that_does_not_follow_is_not_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The first computation is made wrong on purpose; the second one drops its sentence."""
    data, record = made(tmp_path)
    right = evidence.observations

    def wrong(subject: Any) -> list[Any]:
        return [one._replace(text=one.text.replace("41 %", "14 %")) for one in right(subject)]

    monkeypatch.setattr(evidence, "observations", wrong)
    found, dropped = evidence_of(data, record), SAID[1].replace("41 %", "14 %")
    assert (found.observations, found.dropped) == (SAID[:1], (dropped,))
    assert f"does not follow from its run was dropped: {dropped}" in caplog.text


def test_altered_or_malformed_profiles_are_an_error(tmp_path: Path) -> None:
    data, record = made(tmp_path)
    data.models.replace("cause/1/assets/profiles.json", b"{}")
    with pytest.raises(IntegrityError, match=r"no passing profiles: .*assets/profiles\.json"):
        evidence_of(data, record)
