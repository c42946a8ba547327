"""The last candidate predicts whatever the gate decided, and every answer carries that decision."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from ciml.data_root import DataRoot
from ciml.errors import CimlError, IntegrityError, UnknownModelError
from ciml.serving.predict.answers import Answer
from ciml.serving.registry import CandidateNotice
from ciml.training.candidate_model import CandidateModel
from ciml.transforms.examples.prepare import prepare_many
from tests.pipelines.predict.predicting import telemetry
from tests.serving.models_fixture import DEFINITION, direct, push_models, save_model
from tests.training.candidates import KEY, record


def test_a_rejected_candidate_answers_what_tensorflow_answers(tmp_path: Path) -> None:
    data = DataRoot.open(tmp_path / "data")
    push_models(data, save_model(tmp_path / "served", 1))
    folder = save_model(tmp_path / "candidate", 2)
    reasons = ("too few runs", "no better than the base rate")
    notice = record(data, folder, *reasons)
    model = CandidateModel(data, "m")
    assert (model.version, model.names_classes) == (None, False)
    assert model.candidate == CandidateNotice(notice.id, False, reasons)
    tables = [telemetry(number, 5 + number) for number in range(4)]
    inputs, n_windows, _ = prepare_many(tables, DEFINITION)
    for answer, expected in zip(model.predict(tables), direct(folder, inputs, n_windows), strict=True):
        assert isinstance(answer, Answer)
        np.testing.assert_allclose(list(answer.probabilities.values()), expected, atol=1e-6)
    model.close()


def test_without_a_decision_a_candidate_is_not_blessed(tmp_path: Path) -> None:
    data = DataRoot.open(tmp_path / "data")
    record(data, save_model(tmp_path / "candidate", 2))
    assert CandidateModel(data, "m").candidate.reasons == ("the gate has recorded no decision",)  # type: ignore[union-attr]
    with pytest.raises(UnknownModelError, match="no model 'other'"):
        CandidateModel(data, "other")


@pytest.mark.parametrize("name", ["assets/definition.json", "variables/variables.index", "saved_model.pb"])
def test_an_altered_file_is_noticed(tmp_path: Path, name: str) -> None:
    data = DataRoot.open(tmp_path / "data")
    folder = save_model(tmp_path / "candidate", 2)
    record(data, folder, "no")
    (folder / name).write_bytes((folder / name).read_bytes()[:-1] + b"!")
    with pytest.raises(IntegrityError, match=f"{name} was altered since the model was recorded"):
        CandidateModel(data, "m")


def test_the_files_are_searched_at_the_trainer_in_a_moved_data_root_and_at_the_version(tmp_path: Path) -> None:
    data = DataRoot.open(tmp_path / "data")
    folder = save_model(tmp_path / "candidate", 2)
    record(data, folder, "no")
    moved = Path(data.trainer("m").root, "work", KEY, "model")
    moved.parent.mkdir(parents=True)
    shutil.move(folder, moved)
    CandidateModel(data, "m").close()
    shutil.rmtree(moved)
    with pytest.raises(CimlError, match=rf"are not at {folder}. A trainer keeps its last five candidates"):
        CandidateModel(data, "m")
    pushed = save_model(tmp_path / "pushed", 3)
    push_models(data, pushed)
    shutil.rmtree(pushed)
    notice = CandidateModel(data, "m").candidate
    assert notice is not None
    assert notice.blessed
