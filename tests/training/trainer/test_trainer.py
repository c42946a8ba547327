"""The trainer: a refresh becomes a served version, or says why not; whoever dies is made up for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ciml
from ciml.data_root import DataRoot
from ciml.errors import EngineError, IntegrityError
from ciml.metrics import Board
from ciml.pipelines.mlflow import export_to_mlflow
from ciml.services.trainer import registry_families
from ciml.serving.client import ModelClient
from ciml.serving.model_files import parse_config
from ciml.serving.push import rollback
from ciml.serving.registry import Decision, Registry
from ciml.serving.server.model.loaded_model import load_model
from ciml.serving.server.server import ModelServer, ServerOptions
from ciml.storage import open_store
from ciml.training import trainer as trainer_module
from ciml.training.evaluation.candidate import Champion
from ciml.training.experiment import Experiment
from ciml.training.refresh import Candidate, Skipped, TrainConfig
from ciml.training.trainer import run_once
from tests.ciml.lineage.recorded import names, states, stored
from tests.durable import Steps
from tests.pipelines.exports.exporting import mlflow_at
from tests.scraping import collected
from tests.serving.models_fixture import save_model
from tests.training.conftest import made  # noqa: F401  (the fixture)


class FakeSnapshot:
    dataset, digest = "d", "s"

    class resolved:  # noqa: N801
        digest = "r"


class Refreshing:
    """Stands in for training: each refresh gives the next model of a script, or nothing new for the same key."""

    def __init__(self, folder: Path, script: list[tuple[int, bool, str]]) -> None:
        self._folder, self._script = folder, script
        self.champions: list[int | None] = []
        self.lasts: list[str | None] = []

    def __call__(self, *_: Any, champion: Champion | None, last_key: str | None, **__: Any) -> Any:
        self.champions.append(champion.version if champion else None)
        self.lasts.append(last_key)
        seed, blessed, spoil = self._script[0]
        key = f"key{seed}"
        if last_key == key:
            return Skipped("nothing new", FakeSnapshot())  # type: ignore[arg-type]
        folder = self._folder / f"m{seed}-{len(self.lasts)}"
        save_model(folder, seed, spoil=spoil)
        decision = Decision(blessed, ("better",) if blessed else ("worse",), {"accuracy": 0.5})

        class Made(Candidate):
            def facts(self) -> dict[str, Any]:
                return {"refresh": key}

        return Made(folder, FakeSnapshot(), Experiment(), {"evaluation": {}}, decision, {"train": 0.1})  # type: ignore[arg-type]


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    return TrainConfig(DataRoot.open(tmp_path / "data"), "d", "m")


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Refreshing]:
    def make(*script: tuple[int, bool, str]) -> Refreshing:
        refreshing = Refreshing(tmp_path / "work", list(script))
        monkeypatch.setattr(trainer_module, "refresh", refreshing)
        return refreshing

    return make


def test_push_refuse_and_nothing_new(config: TrainConfig, scripted: Callable[..., Refreshing]) -> None:
    refreshing = scripted((1, True, ""))
    first = run_once(config)
    assert (first.outcome, first.version, first.champion, first.reasons) == ("pushed", 1, None, ("better",))
    assert set(first.seconds) == {"train", "push"}
    again = run_once(config)
    assert (again.outcome, again.reasons, again.champion) == ("nothing_new", ("nothing new",), 1)
    refreshing = scripted((2, False, ""))
    second = run_once(config)
    assert (second.outcome, second.version, second.champion, second.reasons) == ("rejected", None, 1, ("worse",))
    assert run_once(config).outcome == "nothing_new"  # a refused one is not tried again on the same runs
    assert refreshing.champions == [1, 1]
    assert refreshing.lasts == ["key1", "key2"]
    state = Registry(config.data, "m").state
    assert state.champion == 1
    assert [state.decisions[one].blessed for one in state.candidates] == [True, False]
    assert state.candidates[state.last_candidate].facts == {"refresh": "key2", "champion": 1}


@pytest.mark.parametrize("spoil", ["nan", "signature", "python"])
def test_what_a_fooled_gate_blesses_is_still_not_pushed(
    config: TrainConfig, scripted: Callable[..., Refreshing], spoil: str
) -> None:
    scripted((1, True, spoil))
    result = run_once(replace(config, lineage=True))
    assert (result.outcome, result.version) == ("rejected", None)
    events = stored(config.data)
    assert states(events) == [("push.m", "START"), ("push.m", "FAIL")]
    assert result.reasons[0][-40:] in events[1]["run"]["facets"]["errorMessage"]["message"]
    assert {"nan": "not finite", "signature": "no signature", "python": "not allowed"}[spoil] in result.reasons[0]
    state = Registry(config.data, "m").state
    assert not state.decisions[state.last_candidate].blessed
    assert run_once(config).outcome == "nothing_new"


#: Killed before the gate's decision is stored, a trainer trains again; later, it completes the push.
UNDECIDED = ["append registry/m: candidate", "append registry/m: verdict"]


def test_killed_between_training_and_push(config: TrainConfig, scripted: Callable[..., Refreshing]) -> None:
    scripted((1, True, ""))
    whole = replace(config, data=DataRoot(config.data.store.child("whole")))
    with Steps(whole.data.url).recording() as steps:
        run_once(whole)
    assert steps.steps[:2] == UNDECIDED
    assert steps.steps[-2:] == ["append registry/m: pushed", "replace models/models.config"]
    for index, step in enumerate(steps.steps):
        root = replace(config, data=DataRoot(config.data.store.child(str(index))))
        refreshing = scripted((1, True, ""))
        with Steps(root.data.url, index).recording():
            run_once(root)
        result = run_once(root)
        (served,) = parse_config(root.data.models.read("models.config").decode())
        assert served.versions == tuple(Registry(root.data, "m").state.pushed()), step
        if step == steps.steps[-1]:
            assert result.outcome == "nothing_new"
            continue
        assert result.outcome == "pushed", step
        if step in UNDECIDED:
            assert refreshing.lasts == [None, None]
        else:
            assert result.reasons == ("blessed earlier; its push was interrupted",), step
            assert len(refreshing.lasts) == 1
        assert run_once(root).outcome == "nothing_new"


def test_a_store_that_fails_while_a_push_is_completed_is_reported_and_nothing_is_trained(
    config: TrainConfig, scripted: Callable[..., Refreshing]
) -> None:
    def interrupted(name: str) -> tuple[TrainConfig, Refreshing]:
        """A trainer died before its candidate was staged."""
        root = replace(config, data=DataRoot(config.data.store.child(name)))
        refreshing = scripted((1, True, ""))
        with Steps(root.data.url, len(UNDECIDED)).recording():
            run_once(root)
        return root, refreshing

    def fail() -> None:
        raise EngineError("no answer")

    root, refreshing = interrupted("whole")
    with Steps(root.data.url).recording() as steps:
        assert run_once(root).outcome == "pushed"
    assert steps.steps[0] == "append registry/m: staged"
    for index, step in enumerate(steps.steps):
        root, refreshing = interrupted(str(index))
        with pytest.raises(EngineError, match="no answer"), Steps(root.data.url, index, fail).recording():
            run_once(root)
        assert refreshing.lasts == [None], step
        assert run_once(root).outcome == ("nothing_new" if step == steps.steps[-1] else "pushed"), step
        assert len(Registry(root.data, "m").state.pushed()) == 1


def test_interrupted_push_is_judged_again_against_another_champion(
    config: TrainConfig, scripted: Callable[..., Refreshing]
) -> None:
    for seed in (1, 2):
        scripted((seed, True, ""))
        run_once(config)
    refreshing = scripted((3, True, ""))
    with Steps(config.data.url, 9).recording() as steps:
        run_once(config)
    assert steps.steps[-1] == "rename models/m/staging-3-* to models/m/3"
    rollback(config.data, "m")
    result = run_once(config)
    assert refreshing.champions == [2, 1]
    assert refreshing.lasts == ["key2", None]
    assert (result.outcome, result.champion, result.version) == ("pushed", 1, 4)


def test_a_candidate_names_the_champion_that_it_was_compared_with(
    config: TrainConfig, scripted: Callable[..., Refreshing], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process rolls back while the candidate is trained."""
    for seed in (1, 2):
        scripted((seed, True, ""))
        run_once(config)
    refreshing = scripted((3, False, ""))

    def refresh(*given: Any, **keys: Any) -> Any:
        candidate = refreshing(*given, **keys)
        rollback(config.data, "m")
        return candidate

    monkeypatch.setattr(trainer_module, "refresh", refresh)
    assert (run_once(config).champion, refreshing.champions) == (2, [2])
    state = Registry(config.data, "m").state
    assert (state.champion, state.candidates[state.last_candidate].facts["champion"]) == (1, 2)


def test_altered_champion_is_no_measure(config: TrainConfig, scripted: Callable[..., Refreshing]) -> None:
    scripted((1, True, ""))
    run_once(config)
    Path(config.data.url, "models", "m", "1", "assets", "definition.json").write_text("{}")
    scripted((2, True, ""))
    with pytest.raises(IntegrityError, match="was altered"):
        run_once(config)


def test_metrics_are_the_registrys(config: TrainConfig, scripted: Callable[..., Refreshing]) -> None:
    board = Board()
    for seed, blessed in ((1, True), (2, False), (3, True)):
        scripted((seed, blessed, ""))
        run_once(config)
    registry = Registry(config.data, "m")
    candidate = registry.record_candidate(
        open_store(save_model(Path(config.data.url) / "more", 4)), {"rejected": {"otherwise": 5, "excluded": 2}}
    )
    registry.record_decision(candidate.id, Decision(False, ("worse",), {}))
    board.put_observed(registry_families("m", registry.state))
    shown = collected(board)
    assert shown["ciml_training_candidates_total"] == {("m", "blessed"): 2, ("m", "refused"): 2}
    assert shown["ciml_model_pushes_total"] == {("m",): 2}
    assert shown["ciml_champion_version"] == {("m",): 2}
    assert shown["ciml_champion_push_timestamp_seconds"] == {("m",): registry.state.versions[2].time_us / 1e6}
    assert shown["ciml_training_samples_rejected_total"] == {("m", "otherwise"): 5, ("m", "excluded"): 2}


@pytest.mark.whole
def test_real_refreshes_are_served(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """From real runs to answers of the server and of MLflow: the trainer's model and the served ones agree."""
    import shutil

    import mlflow

    from ciml.training.export import load_exported

    shutil.copytree(made, tmp_path / "data")
    data = DataRoot.open(tmp_path / "data")
    config = TrainConfig(data, "providers", "providers", Experiment(epochs=40), lineage=True)
    steps: list[str] = []
    first = run_once(config, progress=lambda step, *_: steps.append(step))
    assert (first.outcome, first.version) == ("pushed", 1), first.reasons
    assert steps[-1] == "push"
    events = stored(data)
    assert states(events) == [
        (f"{step}.providers", state) for step in ("snapshot", "train", "push") for state in ("START", "COMPLETE")
    ]
    made_of = {event["job"]["name"].partition(".")[0]: event for event in events if event["eventType"] == "COMPLETE"}
    assert names(made_of["push"]["inputs"]) == names(made_of["train"]["outputs"])
    assert names(made_of["snapshot"]["outputs"])[0] in names(made_of["train"]["inputs"])
    assert names(made_of["push"]["outputs"]) == [(data.models.child("providers").url(), "1")]
    second = run_once(replace(config, experiment=Experiment(epochs=41)))
    assert second.outcome in ("pushed", "rejected")
    assert second.metrics["comparison"]["runs"] > 0
    assert second.champion == 1
    assert run_once(replace(config, experiment=Experiment(epochs=41))).outcome == "nothing_new"
    assert first.folder is not None
    exported = load_exported(first.folder)
    definition = exported.definition
    inputs = np.random.default_rng(0).gamma(2, 20, (5, definition.windows, len(definition.features))).astype("f4")
    n_windows = np.full(5, definition.windows, "i4")
    options = ServerOptions(data.models.url("models.config"), grpc_port=0, rest_port=0)
    with ModelServer(options) as server, ModelClient(f"127.0.0.1:{server.grpc_port}", "providers") as client:
        answer = client.predict(inputs, n_windows, version=1)
    np.testing.assert_allclose(answer.probabilities, exported.predict(inputs, n_windows), atol=1e-5)
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    assert export_to_mlflow(data, uri).new_versions == len(Registry(data, "providers").state.pushed())
    with mlflow_at(uri):
        there = mlflow.pyfunc.load_model("models:/providers/1")
    answers = there.predict({"inputs": inputs, "n_windows": n_windows})["probabilities"]
    np.testing.assert_array_equal(answers, answer.probabilities)
    dataset = ciml.open(data.url).dataset("providers")  # as docs/mlflow.md has it
    X, y = dataset.to_numpy("test")
    answers = there.predict({"inputs": X, "n_windows": dataset.n_windows("test")})["probabilities"]
    assert int((answers.argmax(axis=1) == y).sum()) == first.metrics["evaluation"]["accuracy"]["right"]
    model = load_model(data.models.child("providers").child("1"))
    assert set(model.signatures) == {"serving_default", "examples"}
    model.close()
