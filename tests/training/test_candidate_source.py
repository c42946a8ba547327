"""The last candidate predicts announced runs; the next one replaces it, and what keeps it from predicting is named."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from ciml.data_root import DataRoot
from ciml.serving.client import FailedCallError, NotServedError
from ciml.serving.predict.log import prediction_id
from ciml.serving.predict.predictor import Predictor, PredictPolicy
from ciml.serving.registry import Decision, Registry
from ciml.training import candidate_source
from ciml.training.candidate_source import Candidates, LoadedCandidate
from ciml.transforms.examples.prepare import prepare
from tests.pipelines.predict.predicting import World, batch, telemetry
from tests.serving.models_fixture import DEFINITION, direct, save_model
from tests.training.candidates import expected, fitted, neighbours, record, record_kept
from tests.training.estimators.user_models import Shares

USER = "tests.training.estimators.user_models"
RUNS = [f"zuul~{number}~1" for number in range(9)]


class Place(World):
    """A data root with raw runs and no model server."""

    def __init__(self, data: DataRoot) -> None:
        self.data = data
        self.tables = {}
        self.announced = [self.put(run_id, telemetry(seed, 20 + 7 * seed)) for seed, run_id in enumerate(RUNS)]

    def predict(self, source: Candidates) -> list[dict[str, Any]]:
        done = Predictor(self.data, source, PredictPolicy("m", rows=4)).predict(batch(self.announced))
        assert done.unpredictable == []
        return done.predictions

    def inputs(self) -> tuple[np.ndarray, np.ndarray]:
        prepared = [prepare(self.tables[run_id], DEFINITION) for run_id in RUNS]
        return np.stack([inputs for inputs, _ in prepared]), np.array([n_windows for _, n_windows in prepared], "i4")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(DataRoot.open(tmp_path / "data"))


def shares_of(records: list[dict[str, Any]]) -> np.ndarray:
    return np.array([list(record["probabilities"].values()) for record in records], np.float32)


def test_announced_runs_get_the_own_probabilities_of_an_estimator_that_cannot_be_served(
    place: Place, tmp_path: Path
) -> None:
    estimator = neighbours()
    notice = record_kept(place.data, tmp_path / "kept", estimator, "no conversion", "too few runs")
    source = Candidates(place.data, "m")
    records = place.predict(source)
    np.testing.assert_array_equal(shares_of(records), expected(estimator, place.inputs()[0]))
    for run_id, one in zip(RUNS, records, strict=True):
        assert (one["run_id"], one["model"], one["version"]) == (run_id, "m", None)
        assert one["candidate"] == {"id": notice.id, "blessed": False, "reasons": ["no conversion", "too few runs"]}
        assert one["id"] == prediction_id(run_id, "m", notice.id)
        assert one["server_ms"] > 0
    assert source.ready() == f"candidate {notice.id}, rejected by the gate, not served"


def test_the_next_candidate_predicts_without_a_restart_and_has_other_ids(place: Place, tmp_path: Path) -> None:
    first, second = neighbours(1), neighbours(2)
    record_kept(place.data, tmp_path / "first", first, "no")
    source = Candidates(place.data, "m")
    before = place.predict(source)
    notice = record_kept(place.data, tmp_path / "second", second, "no")
    after = place.predict(source)
    np.testing.assert_array_equal(shares_of(after), expected(second, place.inputs()[0]))
    assert {one["candidate"]["id"] for one in after} == {notice.id}
    assert not {one["id"] for one in before} & {one["id"] for one in after}


def test_a_candidate_that_is_replaced_during_a_batch_predicts_none_of_its_runs(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = neighbours(2)
    record_kept(place.data, tmp_path / "first", neighbours(1), "no")
    source = Candidates(place.data, "m")
    predict = LoadedCandidate.predict
    calls = []

    def replaced(self: LoadedCandidate, *arguments: Any) -> Any:
        calls.append(self.key)
        if len(calls) == 2:  # the first call of the batch was answered
            record_kept(place.data, tmp_path / "second", second, "no")
            source.current()
        return predict(self, *arguments)

    monkeypatch.setattr(LoadedCandidate, "predict", replaced)
    records = place.predict(source)
    np.testing.assert_array_equal(shares_of(records), expected(second, place.inputs()[0]))
    assert len(set(calls)) == 2
    assert calls[0] == calls[1] != calls[2]


def test_the_gates_decision_of_now_is_recorded(place: Place, tmp_path: Path) -> None:
    notice = record_kept(place.data, tmp_path / "kept", neighbours(), "no")
    source = Candidates(place.data, "m")
    source.current()
    Registry(place.data, "m").record_decision(notice.id, Decision(True, ("better",)))
    assert source.current().fields["candidate"] == {"id": notice.id, "blessed": True, "reasons": ["better"]}


def test_what_keeps_a_candidate_from_predicting_is_named_with_the_remedy(place: Place, tmp_path: Path) -> None:
    source = Candidates(place.data, "m")
    estimator = fitted(Shares())
    for ask in (source.ready, source.current):
        with pytest.raises(NotServedError, match="model m has no candidate: train one by ciml refresh"):
            ask()
    notice = record_kept(place.data, tmp_path / "kept", estimator, "no")
    for ask in (source.ready, source.current):
        with pytest.raises(NotServedError) as raised:
            ask()
        where = f"model m, candidate {notice.id}"
        assert str(raised.value) == (
            f"{where} has classes of {USER}, which is not allowed; allow it: --allow-module {USER}"
        )
    allowed = Candidates(place.data, "m", [USER])
    np.testing.assert_array_equal(shares_of(place.predict(allowed)), expected(estimator, place.inputs()[0]))
    shutil.rmtree(tmp_path / "kept")
    place.predict(allowed)  # it is loaded
    other = Candidates(place.data, "m", [USER])
    for ask in (other.ready, other.current):
        with pytest.raises(NotServedError, match=r"its own machine; predict there, or train again by ciml refresh"):
            ask()


def test_a_damaged_candidate_is_not_read_again_and_again_and_the_next_one_predicts(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record_kept(place.data, tmp_path / "kept", neighbours(1), "no")
    with (tmp_path / "kept/assets/estimator.skops").open("ab") as file:
        file.write(b"!")
    loads = []
    load = candidate_source.load_candidate
    monkeypatch.setattr(candidate_source, "load_candidate", lambda *all_: (loads.append(0), load(*all_))[1])
    now_s = 100.0
    source = Candidates(place.data, "m", clock=lambda: now_s)
    for _ in range(3):
        with pytest.raises(NotServedError, match=r"cannot be loaded: .*estimator\.skops was altered"):
            source.current()
    assert len(loads) == 1
    now_s += 31.0
    with pytest.raises(NotServedError, match="was altered"):
        source.current()
    assert len(loads) == 2
    second = neighbours(2)
    record_kept(place.data, tmp_path / "second", second, "no")
    np.testing.assert_array_equal(shares_of(place.predict(source)), expected(second, place.inputs()[0]))


def test_an_exported_candidate_predicts_and_is_loaded_again_if_its_process_was_killed(
    place: Place, tmp_path: Path
) -> None:
    folder = save_model(tmp_path / "candidate", 2)
    record(place.data, folder, "no")
    source = Candidates(place.data, "m")
    first = place.predict(source)
    np.testing.assert_allclose(shares_of(first), direct(folder, *place.inputs()), atol=1e-6)
    model = source.current()
    assert isinstance(model, LoadedCandidate)
    model._model._loaded.process.end()  # type: ignore[attr-defined]
    np.testing.assert_array_equal(shares_of(place.predict(source)), shares_of(first))
    source.close()


class Fussy(KNeighborsClassifier):
    """Fails for runs whose first value is above 1,000."""

    def predict_proba(self, values: np.ndarray) -> np.ndarray:
        if (values[:, 0] > 1000).any():
            raise ArithmeticError("too large")
        answers: np.ndarray = super().predict_proba(values)
        return answers


def test_a_run_for_which_the_estimator_fails_affects_only_itself(place: Place, tmp_path: Path) -> None:
    record_kept(place.data, tmp_path / "kept", fitted(Fussy(3)), "no")
    source = Candidates(place.data, "m", [__name__])
    table = telemetry(99)
    column = table.column_names.index(DEFINITION.columns[0])
    huge = table.set_column(column, DEFINITION.columns[0], [np.full(len(table), 5000.0)])
    values = [*place.announced, place.put("zuul~huge~1", huge)]
    done = Predictor(place.data, source, PredictPolicy("m")).predict(batch(values))
    assert [one["run_id"] for one in done.predictions] == RUNS
    (rejected,) = done.unpredictable
    assert (rejected["run_id"], rejected["reason"], rejected["version"]) == ("zuul~huge~1", "model_error", None)
    assert rejected["detail"] == "ArithmeticError: too large"
    assert rejected["candidate"]["blessed"] is False
    with pytest.raises(FailedCallError, match="ArithmeticError: too large"):
        source.current().predict(np.full((1, 5, 3), 5000.0, "f4"), np.ones(1, "i4"))
