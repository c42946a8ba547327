"""A pushed model in this process: it is the pushed one, and a run that it fails for costs only itself."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciml.data_root import DataRoot
from ciml.errors import IntegrityError, RejectedInput
from ciml.events.records import RunFacts
from ciml.limits import MAX_REQUEST_BYTES
from ciml.serving.predict import answers, prepared
from ciml.serving.predict.answers import Answer, LocalModel
from ciml.serving.predict.prepared import Prepared
from ciml.serving.server.model import process
from ciml.transforms.examples.prepare import prepare_many
from tests.pipelines.predict.predicting import telemetry
from tests.pipelines.predict.test_hostile import huge
from tests.serving.models_fixture import DEFINITION, direct, push_models, save_model


def pushed(tmp_path: Path, **model: Any) -> tuple[DataRoot, Path]:
    """A data root with a pushed model ``m``, and the folder that it came from."""
    data, folder = DataRoot.open(tmp_path / "data"), save_model(tmp_path / "model", **model)
    push_models(data, folder)
    return data, folder


def reasons(found: list[Answer | RejectedInput]) -> dict[int, str]:
    return {row: one.reason for row, one in enumerate(found) if isinstance(one, RejectedInput)}


def test_it_answers_what_tensorflow_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Prepared.calls, "__defaults__", (7,))  # several calls
    data, folder = pushed(tmp_path)
    tables = [telemetry(number, 5 + number) for number in range(40)]
    found = LocalModel(data, "m").predict(tables)
    inputs, n_windows, _ = prepare_many(tables, DEFINITION)
    expected = direct(folder, inputs, n_windows)
    for one, row, count in zip(found, expected, n_windows, strict=True):
        assert isinstance(one, Answer)
        np.testing.assert_allclose(list(one.probabilities.values()), row, atol=1e-6)
        assert (list(one.probabilities), one.n_windows) == (list(DEFINITION.classes), count)
        assert one.class_name == DEFINITION.classes[int(row.argmax())]


@given(
    rows=st.integers(1, 60),
    row_bytes=st.integers(0, 9 << 20),
    most=st.integers(1, 40),
    rejected=st.sets(st.integers(0, 59)),
)
def test_calls_have_each_usable_run_once_and_stay_below_both_limits(
    rows: int, row_bytes: int, most: int, rejected: set[int]
) -> None:
    inputs = np.broadcast_to(np.zeros((), np.float32), (rows, 1, row_bytes // 4))  # takes no memory
    usable = [row for row in range(rows) if row not in rejected]
    reasons = {row: RejectedInput("empty") for row in sorted(rejected) if row < rows}
    calls = Prepared(inputs, np.ones(rows, np.int32), reasons).calls(most)
    assert [row for call in calls for row in call] == usable
    for call in calls:
        assert 1 <= len(call) <= most
        assert len(call) == 1 or len(call) * inputs[0].nbytes <= MAX_REQUEST_BYTES / 2
    for call in calls[:-1]:  # no call has room for one more
        assert len(call) == most or (len(call) + 1) * inputs[0].nbytes > MAX_REQUEST_BYTES / 2


def test_of_equal_probabilities_the_first_class_counts_and_one_that_is_no_number_is_an_error() -> None:
    assert answers.class_of(np.array([0.1, 0.4, 0.4, 0.1], np.float32), DEFINITION) == "b"
    for value in (np.nan, np.inf, -np.inf):
        answer = np.array([0.1, 0.4, value, 0.1], np.float32)
        with pytest.raises(RejectedInput, match="model_error"):
            answers.probabilities_of(answer, DEFINITION)


def test_a_whole_other_model_in_its_place_is_not_loaded(tmp_path: Path) -> None:
    data, _ = pushed(tmp_path)
    other = save_model(tmp_path / "other", seed=2)
    place = Path(data.models.url("m/1"))
    shutil.copy(other / "saved_model.pb", place / "saved_model.pb")
    shutil.copytree(other / "variables", place / "variables", dirs_exist_ok=True)
    with pytest.raises(IntegrityError, match="was altered since the model was recorded"):
        LocalModel(data, "m")


@pytest.mark.parametrize(("spoil", "detail"), [("strict", "assertion failed"), ("overflow", "not finite")])
def test_runs_that_the_model_fails_for_cost_only_themselves(tmp_path: Path, spoil: str, detail: str) -> None:
    data, _ = pushed(tmp_path, spoil=spoil)
    found = LocalModel(data, "m").predict([huge(n) if n in (3, 8) else telemetry(n) for n in range(10)])
    assert reasons(found) == {3: "model_error", 8: "model_error"}
    assert all(detail in str(found[row]) for row in (3, 8))


def test_an_interrupted_call_gives_its_answer_to_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in a notebook: the process is killed, and the model is loaded again."""
    data, _ = pushed(tmp_path)
    model = LocalModel(data, "m")
    first, second = telemetry(1, 20), telemetry(2, 30)
    expected = [model.predict([table])[0] for table in (first, second)]
    with monkeypatch.context() as patch:
        patch.setattr(process, "receive", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            model.predict([first])
    for table, answer in ((second, expected[1]), (first, expected[0])):
        (found,) = model.predict([table])
        assert isinstance(found, Answer)
        assert isinstance(answer, Answer)
        assert found.probabilities == pytest.approx(answer.probabilities, abs=1e-6)
    model.close()


def test_a_run_that_raises_costs_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, _ = pushed(tmp_path)

    def fails(tables: list[pa.Table], definition: Any, *facts: Any) -> Any:
        if any(table.num_rows == 34 for table in tables):
            raise ZeroDivisionError
        return prepare_many(tables, definition, *facts)

    monkeypatch.setattr(prepared, "prepare_many", fails)
    tables = [telemetry(number, 30 + number) for number in range(7)]
    tables[2] = tables[2].drop_columns([DEFINITION.columns[0]])
    tables[5] = tables[5].slice(0, 0)
    model = LocalModel(data, "m")
    assert reasons(model.predict(tables)) == {2: "missing_column", 4: "internal_error", 5: "empty"}
    with pytest.raises(ValueError, match=r"zip\(\) argument 2 is shorter"):
        model.predict(tables, [RunFacts("a", "", "")])  # not without answers for the others
