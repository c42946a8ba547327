"""A calibrated model of causes, from real runs to a verdict: the same from Python, the command and the stream."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute as pc
import pytest
from click.testing import CliRunner, Result

import ciml
from ciml.cli.main import cli
from ciml.data_root import DataRoot
from ciml.datasets.definition import DatasetDefinition
from ciml.errors import CimlError, IntegrityError
from ciml.events.outcomes import CAUSES, FAILED
from ciml.events.records import RunFacts
from ciml.manifest.log import ManifestLog
from ciml.pipelines.datasets.update import create_dataset, update_dataset
from ciml.pipelines.ingest.committer import render_runs
from ciml.serving.contract import check_candidate
from ciml.serving.decimals import shortest_decimals
from ciml.serving.predict.predictor import PredictPolicy
from ciml.serving.push import push
from ciml.serving.registry import Decision
from ciml.serving.server.server import ModelServer, ServerOptions
from ciml.storage import open_store
from ciml.training.calibration.calibrate import calibrate_on_dev
from ciml.training.data.examples import read_snapshot_examples
from ciml.training.data.snapshot import Snapshot
from ciml.training.evaluation.candidate import changes_of_test_runs
from ciml.training.evaluation.metrics import accuracy
from ciml.training.export import load_exported
from ciml.training.refresh import Candidate, TrainConfig, refresh
from ciml.transforms.examples.prepare import run_means
from ciml.verdict_rules import PROFILES, VERDICTS, Verdict, VerdictRules, make_verdict, read_rules
from tests.corpus import STABLE
from tests.pipelines.predict.predicting import batch, server_predictor
from tests.runs.scenes import RawStore
from tests.training.conftest import QUICK
from tests.transforms.samples import corpus

DEFINITION = DatasetDefinition(
    name="cause",
    class_label="cause",
    context=("outcome", "profile"),
    features_regex="^(usr|stl|1m|wai)$",
    sample_interval="5s",
    aggregation_functions=("mean", "max", "last"),
    tdt_split=(5, 3, 2),
    span_runs=500,
)
EXPERIMENT = QUICK.replace(name="cause", calibration="auto", coverage=0.8)


class Made(NamedTuple):
    """A data root with real runs, a refreshed model of causes that was pushed and is served, and the logs by run id."""

    data: DataRoot
    done: Candidate
    runs: dict[str, RunFacts]
    logs: dict[str, Path]
    address: str


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    data = DataRoot.open(tmp_path_factory.mktemp("calibrated") / "data")
    corpus_runs, tables, logs = corpus(STABLE)
    runs = [run.replace(source="zuul", event="", pipeline="gate") for run in corpus_runs]
    RawStore(data).add(list(zip(runs, tables, strict=True)))
    create_dataset(data, DEFINITION)
    update_dataset(data.dataset("cause"), seal=True)
    done = refresh(TrainConfig(data, "cause", "cause", EXPERIMENT))
    assert isinstance(done, Candidate)
    assert check_candidate(open_store(done.folder)) == done.snapshot.resolved
    push(data, "cause", open_store(done.folder), Decision(True))
    by_id = {run.run_id: run for run in runs}
    options = ServerOptions(data.models.url("models.config"), grpc_port=0, rest_port=0, poll_s=0.1)
    with ModelServer(options) as server:
        yield Made(data, done, by_id, dict(zip(by_id, logs, strict=True)), f"127.0.0.1:{server.grpc_port}")


@pytest.mark.whole
def test_a_model_of_causes_that_would_give_no_verdicts_is_not_trained(world: Made) -> None:
    with pytest.raises(CimlError, match='gives no verdicts; set calibration = "auto"'):
        refresh(TrainConfig(world.data, "cause", "other", EXPERIMENT.replace(calibration=None, coverage=0.9)))


def test_a_refresh_calibrates_on_dev_runs_and_reports_what_held_on_test_runs(world: Made) -> None:
    metrics, snapshot = world.done.metrics, world.done.snapshot
    assert list(world.done.timings)[3:6] == ["train", "calibrate", "export"]
    assert metrics["disagreement"] <= 1e-6  # between the exported graph and numpy's calibration of the model in memory
    train, dev, test = (sum(snapshot.counts()[role].values()) for role in ("train", "dev", "test"))
    assert min(dev, test) > 10
    assert metrics["evaluation"]["trained_on"] == train
    calibration, verdicts = metrics["calibration"], metrics["verdicts"]
    assert (calibration["method"], calibration["runs"], calibration["fitted_to"]) == ("temperature", dev, dev)
    assert calibration["log_loss"]["after"] <= calibration["log_loss"]["before"]
    assert calibration["before"]["log_loss"] > 0
    assert (verdicts["runs"], verdicts["coverage"]["stated"]) == (test, 0.8)
    assert sum(verdicts["set_sizes"].values()) == test
    for baseline in metrics["baselines"].values():
        assert baseline["comparison"]["runs"] == test
    rules, store = rules_of(world), world.data.dataset("cause").store
    runs, examples = read_snapshot_examples(store, snapshot, "test")
    answers = shortest_decimals(load_exported(world.done.folder).predict(examples.inputs, examples.n_windows)).tolist()
    means = run_means(examples.inputs, examples.n_windows)
    sets = [
        make_verdict(run.build_name, dict(zip(CAUSES, each, strict=True)), rules, known).set
        for run, each, known in zip(runs, answers, means, strict=True)
    ]
    covered = [CAUSES[run.label] in likely for run, likely in zip(runs, sets, strict=True)]
    changes = changes_of_test_runs(world.data.dataset("cause"), snapshot)
    assert verdicts["coverage"].items() >= accuracy(covered, changes).items()
    assert verdicts["coverage"]["right"] == sum(covered)  # whether it holds, more splits show: test_real_runs.py
    assert rules.calibration == {key: each for key, each in calibration.items() if key != "before"}
    assert rules.groups[""].runs == dev
    _, known = read_snapshot_examples(store, snapshot, "train", "dev")
    learned = run_means(known.inputs, known.n_windows)
    assert rules.ranges is not None
    assert rules.ranges.runs == len(known) == train + dev
    assert (rules.ranges.low, rules.ranges.high) == (tuple(learned.min(axis=0)), tuple(learned.max(axis=0)))
    assert verdicts["outside"]["right"] == sum(rules.ranges.outside(known) is not None for known in means)
    profiles = json.loads((world.done.folder / "assets" / PROFILES).read_bytes())
    assert profiles == snapshot.resolved.profiles


def test_no_answer_and_no_label_of_a_test_run_changes_the_calibration(world: Made) -> None:
    snapshot, store = world.done.snapshot, world.data.dataset("cause").store
    dev = list(snapshot.runs("dev"))
    probabilities = np.random.default_rng(0).dirichlet([1, 1], len(dev)).astype(np.float32)
    honest = calibrate_on_dev(store, snapshot, EXPERIMENT, probabilities)
    spans = [
        span.replace(runs=tuple(run.replace(label=1 - run.label) if run.role == "test" else run for run in span.runs))
        for span in snapshot.spans
    ]
    flipped = snapshot.replace(spans=tuple(spans))
    assert flipped.digest != snapshot.digest
    assert calibrate_on_dev(store, flipped, EXPERIMENT, probabilities).asset() == honest.asset()


def test_a_planted_leak_of_test_runs_into_the_calibration_is_refused(
    world: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot, runs_of = world.done.snapshot, Snapshot.runs
    leaked = [*runs_of(snapshot, "dev", "test")]
    monkeypatch.setattr(
        Snapshot, "runs", lambda self, *roles: iter(leaked) if roles == ("dev",) else runs_of(self, *roles)
    )
    probabilities = np.full((len(leaked), 2), 0.5, np.float32)
    with pytest.raises(IntegrityError, match=r"of the same change as .*, which the model learned or is tested on"):
        calibrate_on_dev(world.data.dataset("cause").store, snapshot, EXPERIMENT, probabilities)


def rules_of(world: Made) -> VerdictRules:
    features = world.done.snapshot.resolved.features
    return read_rules((world.done.folder / "assets" / VERDICTS).read_bytes(), CAUSES, features, "x")


def streamed(world: Made, values: list[bytes], rows: int = 50) -> list[dict[str, Any]]:
    predictor = server_predictor(world.data, world.address, PredictPolicy("cause", rows=rows))
    done = predictor.predict(batch(values))
    predictor.close()
    assert done.unpredictable == []
    return done.predictions


def announced(world: Made) -> list[bytes]:
    return [value for _, delta in ManifestLog(world.data.raw).since(0) for _, value, _ in render_runs(delta)]


def test_the_stream_a_file_and_a_stored_run_get_the_same_probabilities_and_verdict(world: Made) -> None:
    stream, one_by_one = streamed(world, announced(world)), streamed(world, announced(world), rows=1)
    assert len(stream) == len(world.runs) > 200
    model = ciml.open(world.data.url).model("cause")
    by_id = model.predict([one["run_id"] for one in stream])
    verdicts = 0
    for one, alone, again in zip(stream, one_by_one, by_id, strict=True):
        run = world.runs[one["run_id"]]
        by_file = model.predict(world.logs[run.run_id], job=run.build_name, outcome=run.outcome, labels=run.labels)
        shares = np.array(list(one["probabilities"].values()), np.float32)
        for other_shares in (again.probabilities, alone["probabilities"]):  # calls of other sizes
            np.testing.assert_allclose(shares, list(other_shares.values()), rtol=0, atol=np.finfo(np.float32).eps)
        assert alone["probabilities"] == by_file.probabilities  # calls of one run each: the same bits
        assert abs(shares.sum(dtype=np.float64) - 1) < 2e-7
        if run.outcome not in FAILED:
            assert "run" not in one
            assert "verdict" not in one
            assert by_file.verdict is None
            continue
        verdicts += 1
        verdict = Verdict.from_json(one["verdict"])
        assert verdict.probabilities == one["probabilities"]
        assert {name: one["run"].get(name) for name in ("build_name", "outcome", "change")} == {
            "build_name": run.build_name, "outcome": run.outcome, "change": run.change or None
        }  # fmt: skip
        for other in (again.verdict, by_file.verdict):
            assert other is not None
            for name in ("cause", "set", "retry", "group"):
                assert getattr(other, name) == getattr(verdict, name)
    assert verdicts > 70
    assert len({one["verdict"]["cause"] for one in stream if "verdict" in one}) == 3  # code, machine, unknown


def test_the_command_prints_the_verdict_with_its_base_rate(world: Made) -> None:
    run = next(run for run in world.runs.values() if run.outcome == "failure")

    def predict(*words: str) -> Result:
        command = ["predict", str(world.logs[run.run_id]), "--model", "cause", "--data-path", world.data.url, *words]
        return CliRunner().invoke(cli, command, terminal_width=200)

    given = ("--job", run.build_name, "--outcome", "failure", "--exit-code", run.labels["exit_code"])
    found = json.loads(predict(*given, "--json").output)
    verdict = make_verdict(run.build_name, found["probabilities"], rules_of(world))
    assert found["verdict"] == json.loads(json.dumps(verdict.to_json()))
    assert "outside" not in found["verdict"]
    assert found["probabilities"] == ciml.open(world.data.url).model("cause").predict(run.run_id).probabilities
    share = rules_of(world).groups[""].base_rate[found["class"]]
    table = " ".join(predict(*given).output.split())
    for text in ("verdict", "base rate", "retry", found["verdict"]["retry"], f"{found['class']} {share:.2f} of"):
        assert text in table
    passed = predict("--job", run.build_name, "--outcome", "success", "--json")
    assert "verdict" not in json.loads(passed.output)
    bare = predict()
    assert bare.exit_code == 2
    assert "model cause compares a run with those of its job: give job and outcome" in " ".join(bare.output.split())


def test_the_reason_of_an_unusable_log_is_not_hidden_by_missing_facts_of_the_run(world: Made, tmp_path: Path) -> None:
    run = next(run for run in world.runs.values() if run.outcome == "failure")
    broken = tmp_path / "broken.csv"
    broken.write_text("no telemetry\n")
    arguments = ["--model", "cause", "--data-path", world.data.url]
    alone = CliRunner().invoke(cli, ["predict", str(broken), *arguments, "--json"], standalone_mode=False)
    assert (alone.return_value, json.loads(alone.output)["reason"]) == (2, "not_telemetry")
    both = CliRunner().invoke(cli, ["predict", str(broken), str(world.logs[run.run_id]), *arguments])
    words = " ".join(both.output.split())
    assert "give job and outcome" in words
    assert "broken.csv is unusable: not_telemetry" in words


def test_a_run_unlike_the_learned_ones_is_unknown_in_the_stream_a_file_and_by_id(world: Made, tmp_path: Path) -> None:
    """A machine of another kind: the same run with a hundred times the load."""
    data = DataRoot.open(shutil.copytree(world.data.url, tmp_path / "data"))
    known = next(run for run in world.runs.values() if run.outcome == "failure")
    run, table = known.replace(run_id="zuul~busy~1", build_uuid="busy"), ciml.parse_log(world.logs[known.run_id])
    (load,) = (name for name in table.column_names if name.endswith(":1m"))
    busy = table.set_column(
        table.column_names.index(load), load, pc.multiply(table.column(load), 100.0).cast(table.column(load).type)
    )
    RawStore(data).add([(run, busy)])
    there = world._replace(data=data)
    (stream,) = streamed(there, announced(there)[-1:])
    model = ciml.open(data.url).model("cause")
    verdicts = [
        Verdict.from_json(stream["verdict"]),
        model.predict(run.run_id).verdict,
        model.predict(busy, job=run.build_name, outcome=run.outcome, labels=run.labels).verdict,
    ]
    for verdict in verdicts:
        assert verdict is not None
        assert (verdict.cause, verdict.set, verdict.retry) == ("unknown", CAUSES, "unsure")
        assert verdict.probability > 0.95  # of a model that extrapolates
        assert verdict.outside is not None
        assert verdict.outside.feature.startswith("1m")
        assert verdict.outside.value > 2 * verdict.outside.high
    assert len({verdict.outside for verdict in verdicts if verdict}) == 1


def test_a_candidate_with_broken_rules_is_not_pushed(world: Made, tmp_path: Path) -> None:
    shutil.copytree(world.done.folder, tmp_path / "model")
    (tmp_path / "model" / "assets" / VERDICTS).write_bytes(b"{}")
    with pytest.raises(IntegrityError, match=r"verdicts\.json has no rules of verdicts"):
        check_candidate(open_store(tmp_path / "model"))
