"""Data sets with the context ``log``: the same features from a raw store, by Beam, in the stream and here."""

from __future__ import annotations

import json
import shutil
from datetime import date
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from ciml.data_root import DataRoot
from ciml.datasets.definition import LOG_FEATURES, ResolvedDefinition
from ciml.errors import CimlError, IntegrityError, RejectedInput
from ciml.events.records import Message
from ciml.manifest.log import ManifestLog
from ciml.pipelines.datasets.build import build_dataset
from ciml.pipelines.datasets.update import create_dataset, update_dataset
from ciml.pipelines.ingest.committer import render_runs
from ciml.runs.outputs import KeptOutput, expire_before
from ciml.serving.predict.answers import recorded_verdict
from ciml.serving.predict.predictor import Announcement, read_announcement
from ciml.serving.predict.prepared import prepare_runs
from ciml.training.data.snapshot import SnapshotRun
from ciml.training.evaluation.candidate import _predict_from_raw
from ciml.transforms.examples import context
from ciml.transforms.examples.prepare import prepare_many, withhold_telemetry
from ciml.transforms.logs import known
from ciml.transforms.logs.ranking import scan
from ciml.transforms.logs.run_outputs import LastRead, ReadOutput, StoredOutputs, outputs_of_stored, read_scanned
from ciml.verdict_rules import Group, VerdictRules
from tests.messages import check
from tests.pipelines.datasets.dataset_scenes import resolved_of
from tests.pipelines.datasets.test_context import RUNS, definition, rows
from tests.runs.scenes import RawStore
from tests.transforms.samples import corpus

PASSED = b"ValueError: expected by a test\n....... [100%]\n7 passed in 3.2s\n"
FAILED = {
    "code": PASSED + b"FAILED tests/test_io.py::test_read - KeyError: 'a'\n",
    "machine": PASSED + b"OSError: [Errno 28] No space left on device\n",
}


def output_of(cause: str | None) -> bytes:
    return PASSED if cause is None else FAILED[cause]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> DataRoot:
    """The corpus with outputs by cause, but for every seventh run."""
    runs, tables, _ = corpus(RUNS)
    outputs = {run.run_id: output_of(run.labels.get("cause")) for number, run in enumerate(runs) if number % 7}
    data = DataRoot.open(tmp_path_factory.mktemp("stored"))
    RawStore(data).add(list(zip(runs, tables, strict=True)), outputs=outputs)
    return data


@pytest.fixture
def data(stored: DataRoot, tmp_path: Path) -> DataRoot:
    return DataRoot.open(shutil.copytree(stored.url, tmp_path / "data"))


@pytest.fixture(scope="module")
def resolved(stored: DataRoot, tmp_path_factory: pytest.TempPathFactory) -> ResolvedDefinition:
    """The definition of a data set with the context ``log``."""
    target = DataRoot.open(tmp_path_factory.mktemp("sets"))
    return resolved_of(build_dataset(stored, target, definition(context="log")).state)


def announced(data: DataRoot) -> list[Announcement]:
    found = []
    for _, delta in ManifestLog(data.raw).since(0):
        for key, value, _ in render_runs(delta):
            check("runs", json.loads(value))
            found.append(read_announcement(Message(0, value, (), key)))
    return found


def test_every_way_to_an_example_has_the_same_features(data: DataRoot, tmp_path: Path) -> None:
    state = build_dataset(data, data, definition(context="log")).state
    resolved = resolved_of(state)
    assert resolved.features[-len(LOG_FEATURES) :] == LOG_FEATURES
    assert "ValueError" not in json.dumps(resolved.to_json())
    examples = rows(data, state)

    runs, tables, _ = corpus(RUNS)
    announcements = {run.run_id: run.output for run in announced(data)}
    for outputs in (
        StoredOutputs(data.raw, announcements),
        outputs_of_stored(data.raw, [run.run_id for run in runs]),
    ):
        inputs, _, rejected = prepare_many(tables, resolved, runs, output_of=outputs)
        predicted = {run.build_uuid: values.reshape(-1).tolist() for run, values in zip(runs, inputs, strict=True)}
        assert not rejected
        assert examples == {uuid: predicted[uuid] for uuid in examples}
    beam = DataRoot.open(tmp_path / "beam")
    assert rows(beam, build_dataset(data, beam, definition(context="log"), runner="fnapi").state) == examples

    reasons = {"code": "log:program", "machine": "log:resource"}
    for number, run in enumerate(runs):
        if run.build_uuid in examples:
            named, value = (reasons[run.labels["cause"]], 1.0) if number % 7 else ("log:unavailable", 10.0)
            expected = [value * (name == named) for name in LOG_FEATURES]
            assert examples[run.build_uuid][-len(LOG_FEATURES) :] == expected


def test_outputs_are_not_read_by_another_vocabulary(
    data: DataRoot, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    create_dataset(data, definition(context="log", span_runs=2 * RUNS // 3))
    dataset = data.dataset("cause")
    state = update_dataset(dataset).state
    monkeypatch.setattr(known, "VOCABULARY", "of the next version")
    context._known_outputs.clear()

    runs, tables, _ = corpus(RUNS)
    outputs = outputs_of_stored(data.raw, [run.run_id for run in runs])
    inputs, _, rejected = prepare_many(tables, resolved_of(state), runs, output_of=outputs)
    assert not rejected
    assert (inputs[:, 0, -len(LOG_FEATURES) :] == [0] * (len(LOG_FEATURES) - 1) + [10]).all()
    assert caplog.text.count("another version of ciml read its outputs by other words") == 1

    with pytest.raises(CimlError, match=r"'cause': another version of ciml .* refresh the model from it"):
        update_dataset(dataset, seal=True)
    assert dataset.state().spans.keys() == state.spans.keys()
    assert update_dataset(dataset).state.version == state.version  # nothing to seal is no error


HALF = {"code": 0.5, "machine": 0.5}
#: Of runs without telemetry, 30 had a score of 0.4 each.
RULES = VerdictRules(
    ("code", "machine"),
    0.9,
    {},
    {"": Group(30, HALF, {"": (0.01,) * 30})},
    without_telemetry=Group(30, HALF, {"": (0.4,) * 30}),
    keeps_likely=True,
)


def test_a_failed_run_without_telemetry_is_judged_by_its_output_and_outcome(
    stored: DataRoot, resolved: ResolvedDefinition
) -> None:
    runs, tables, _ = corpus(RUNS)
    output_of = outputs_of_stored(stored.raw, [run.run_id for run in runs])
    without = [table.slice(0, 0) for table in tables]
    prepared = prepare_runs(without, resolved, runs, output_of=output_of, rules=RULES)
    is_judged = [run.outcome in ("failure", "timeout") and number % 7 > 0 for number, run in enumerate(runs)]
    assert any(is_judged)
    assert prepared.without_telemetry == set(np.flatnonzero(is_judged))
    assert {rejected.reason for rejected in prepared.rejected.values()} == {"empty"}
    assert [row for row in range(len(runs)) if row not in prepared.rejected] == np.flatnonzero(is_judged).tolist()

    full, _, _ = prepare_many(tables, resolved, runs, output_of=output_of)
    withheld, n_windows = withhold_telemetry(full[is_judged], resolved)
    np.testing.assert_array_equal(prepared.inputs[is_judged], withheld)
    np.testing.assert_array_equal(prepared.n_windows[is_judged], n_windows)
    assert not withheld[:, :, : len(resolved.columns)].any()
    assert withheld[:, 0, -len(LOG_FEATURES) :].sum(axis=1).tolist() == [1.0] * sum(is_judged)

    row = is_judged.index(True)
    windows = prepared.inputs[row, : prepared.n_windows[row]]
    shares = {"code": 0.55, "machine": 0.45}
    record = recorded_verdict(runs[row], shares, RULES, windows, without_telemetry=True)["verdict"]
    assert (record["cause"], record["set"], record["without_telemetry"]) == ("code", ("code",), True)
    assert "without_telemetry" not in recorded_verdict(runs[row], shares, RULES, windows)["verdict"]
    earlier = RULES.replace(without_telemetry=None)
    assert len(prepare_runs(without, resolved, runs, output_of=output_of, rules=earlier).rejected) == len(runs)


def test_an_output_that_has_expired_is_unavailable(data: DataRoot) -> None:
    for run in announced(data):
        if run.output is not None:
            data.raw.delete(run.output.path)
    expire_before(data.raw, date(2099, 1, 1))
    state = build_dataset(data, data, definition(context="log")).state
    values = np.array(list(rows(data, state).values()))
    assert values[:, -len(LOG_FEATURES) :].sum(axis=0).tolist() == [0] * (len(LOG_FEATURES) - 1) + [10 * len(values)]


def test_a_champion_of_another_definition_is_evaluated_with_outputs(
    stored: DataRoot, resolved: ResolvedDefinition
) -> None:
    model = Mock(definition=resolved)
    model.predict.side_effect = lambda inputs, n_windows: np.zeros((len(inputs), 2), np.float32)
    with_output = [run.run_id for run in announced(stored) if run.output is not None][:5]
    runs = [SnapshotRun(run_id, "test", "test", 0, "", "", "") for run_id in with_output]
    _predict_from_raw(stored.raw, model, runs)
    ((inputs, _), _) = model.predict.call_args
    assert not inputs[:, :, -1].any()  # log:unavailable
    assert (inputs[:, :, -len(LOG_FEATURES) :].sum(axis=2) == 1).any(axis=1).all()


def test_a_damaged_output_does_not_stop_the_stream(data: DataRoot) -> None:
    run = next(run for run in announced(data) if run.output is not None)
    assert run.output is not None
    data.raw.delete(run.output.path)
    assert StoredOutputs(data.raw, {run.run_id: run.output}, skips_damaged=True)(run.run_id) is None
    with pytest.raises(IntegrityError, match="is in the manifest but does not exist"):
        StoredOutputs(data.raw, {run.run_id: run.output})(run.run_id)


def test_features_and_evidence_read_an_output_once(data: DataRoot) -> None:
    run = next(run for run in announced(data) if run.output is not None)
    assert run.output is not None
    scanned = StoredOutputs(data.raw, {run.run_id: run.output})(run.run_id)
    data.raw.delete(run.output.path)
    read = read_scanned(data.raw, run.output)
    assert isinstance(read, ReadOutput)
    assert read.scanned is scanned


def test_the_outputs_that_were_read_last_take_bounded_memory() -> None:
    last = LastRead(most=8)
    for name in "abc":
        last.add(name, ReadOutput(KeptOutput(name.encode() * 4, 1), scan(name.encode() * 4)))
    last.add("c", ReadOutput(KeptOutput(b"c" * 4, 1), scan(b"c" * 4)))
    assert [name for name in "abc" if last.get(name)] == ["b", "c"]
    last.add("large", ReadOutput(KeptOutput(b"d" * 9, 1), scan(b"d" * 9)))
    assert [name for name in ("b", "c", "large") if last.get(name)] == []


@pytest.mark.parametrize("output", [{"path": "runs/other"}, {"path": 3}, "text", {"unknown": 1}])
def test_an_announced_output_is_that_of_its_run(stored: DataRoot, output: object) -> None:
    key, value, _ = next(iter(render_runs(ManifestLog(stored.raw).read(1))))
    message = json.dumps({**json.loads(value), "output": output}).encode()
    with pytest.raises(RejectedInput, match="bad_announcement"):
        read_announcement(Message(0, message, (), key))
