"""The trainer: a refresh becomes a served version, or says why not; whoever dies is made up for."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ciml.data_root import DataRoot
from ciml.errors import EngineError, IntegrityError
from ciml.metrics import Board
from ciml.services.trainer import registry_families
from ciml.serving import model_files
from ciml.serving.client import ModelClient
from ciml.serving.contract import check_candidate
from ciml.serving.ledger import history, hold, release, rollback
from ciml.serving.model_files import parse_config
from ciml.serving.registry import CANARY, STABLE, Decision, Registry, Signature
from ciml.serving.server.server import ModelServer, ServerOptions
from ciml.storage import open_store
from ciml.training import trainer as trainer_module
from ciml.training.evaluation.candidate import Champion
from ciml.training.evaluation.gate import GatePolicy
from ciml.training.experiment import Experiment
from ciml.training.export import load_exported
from ciml.training.refresh import Candidate, Skipped, TrainConfig
from ciml.training.trainer import run_once
from tests.ciml.lineage.recorded import names, states, stored
from tests.durable import Steps
from tests.scraping import collected
from tests.serving.models_fixture import save_model
from tests.training.conftest import QUICK, made  # noqa: F401  (the fixture)


class FakeSnapshot:
    dataset, digest = "d", "s"

    class resolved:  # noqa: N801
        digest = "r"


class Refreshing:
    """Stands in for training: a refresh gives the model of a seed, or nothing new for the same key."""

    def __init__(self, script: tuple[int, bool, str], saved: Callable[[int, str], Path]) -> None:
        self._script, self._saved = script, saved
        self.champions: list[int | None] = []
        self.lasts: list[str | None] = []

    def __call__(self, *_: Any, champion: Champion | None, last_key: str | None, **__: Any) -> Any:
        self.champions.append(champion.version if champion else None)
        self.lasts.append(last_key)
        seed, blessed, spoil = self._script
        key = f"key{seed}"
        if last_key == key:
            return Skipped("nothing new", FakeSnapshot())  # type: ignore[arg-type]
        folder = self._saved(seed, spoil)
        metrics = {"accuracy": 0.5, "gate": GatePolicy().to_json()}
        decision = Decision(blessed, ("better",) if blessed else ("worse",), metrics)

        class Made(Candidate):
            def facts(self) -> dict[str, Any]:
                return {"refresh": key}

        return Made(folder, FakeSnapshot(), Experiment(), {"evaluation": {}}, decision, {"train": 0.1})  # type: ignore[arg-type]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainConfig:
    """A trainer. One that died in a test is a process that has ended."""
    monkeypatch.setattr("ciml.serving.lease._has_ended", lambda lease: True)
    return TrainConfig(DataRoot.open(tmp_path / "data"), "d", "m")


Scripted = Callable[..., Refreshing]


@pytest.fixture(scope="module")
def checked() -> Callable[[str], object]:
    """The check of a candidate's folder, which is done once where the folder stays the same."""
    return cache(lambda folder: check_candidate(open_store(folder)))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, str], Path]:
    """Models by seed and fault, each saved once."""
    folder = tmp_path_factory.mktemp("saved")
    return cache(lambda seed, spoil: save_model(folder / f"{seed}{spoil}", seed, spoil=spoil))


@pytest.fixture
def scripted(
    monkeypatch: pytest.MonkeyPatch, saved: Callable[[int, str], Path], checked: Callable[[str], object]
) -> Scripted:
    monkeypatch.setattr("ciml.serving.contract.check_candidate", lambda folder: checked(folder.root))

    def make(seed: int, *, blessed: bool = True, spoil: str = "") -> Refreshing:
        refreshing = Refreshing((seed, blessed, spoil), saved)
        monkeypatch.setattr(trainer_module, "refresh", refreshing)
        return refreshing

    return make


def test_push_refuse_and_nothing_new(config: TrainConfig, scripted: Scripted) -> None:
    refreshing = scripted(1)
    first = run_once(config)
    assert (first.outcome, first.version, first.champion, first.reasons) == ("pushed", 1, None, ("better",))
    assert set(first.seconds) == {"train", "push"}
    again = run_once(config)
    assert (again.outcome, again.reasons, again.champion) == ("nothing_new", ("nothing new",), 1)
    refreshing = scripted(2, blessed=False)
    second = run_once(config, reason="60 new trusted runs")
    assert (second.outcome, second.version, second.champion, second.reasons) == ("rejected", None, 1, ("worse",))
    assert run_once(config).outcome == "nothing_new"  # a refused one is not tried again on the same runs
    lenient = replace(config, gate=GatePolicy(tolerance=0.5))
    assert [run_once(each).outcome for each in (lenient, config)] == ["rejected", "nothing_new"]  # by another policy
    assert refreshing.champions == [1, 1, 1, 1]
    assert refreshing.lasts == ["key1", "key2", None, "key2"]
    state = Registry(config.data, "m").state
    assert state.champion == 1
    assert [state.decisions[one].blessed for one in state.candidates] == [True, False]
    assert state.candidates[state.last_candidate].facts == {
        "refresh": "key2", "champion": 1, "reason": "60 new trusted runs"
    }  # fmt: skip
    one, two = state.candidates
    assert [entry.candidate for entry in history(Registry(config.data, "m"))] == [one, one, one, two, two]
    told = [(entry.action, entry.reasons) for entry in history(Registry(config.data, "m"))]
    assert told == [
        ("train", ("requested",)), ("bless", ("better",)), ("push", ()),
        ("train", ("60 new trusted runs",)), ("reject", ("worse",)),
    ]  # fmt: skip


def test_the_first_version_of_a_trainer_of_canaries_is_stable(config: TrainConfig, scripted: Scripted) -> None:
    for seed, labels in ((1, {STABLE: 1}), (2, {STABLE: 1, CANARY: 2})):
        scripted(seed)
        run_once(replace(config, label=CANARY))
        assert Registry(config.data, "m").state.labels == labels


def test_so_is_the_first_version_whose_push_was_interrupted(config: TrainConfig, scripted: Scripted) -> None:
    canaries = replace(config, label=CANARY)
    scripted(1)
    with Steps(config.data.url, 6).recording() as steps:
        run_once(canaries)
    assert steps.is_dead
    assert Registry(config.data, "m").state.pending() is not None
    assert run_once(canaries).reasons == ("blessed earlier; its push was interrupted",)
    assert Registry(config.data, "m").state.labels == {STABLE: 2}  # the first number is abandoned


def test_a_candidate_is_not_pushed_over_a_champion_that_it_was_not_compared_with(
    config: TrainConfig, scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in (1, 2):
        scripted(seed)
        run_once(config)
    refreshing = scripted(3)

    def refresh(*arguments: Any, **options: Any) -> Any:
        rollback(config.data, "m", signed=Signature("ann", "it is wrong"))
        return refreshing(*arguments, **options)

    monkeypatch.setattr(trainer_module, "refresh", refresh)
    result = run_once(config)
    assert (result.outcome, result.version) == ("rejected", None)
    assert result.reasons[0] == "model m: it was compared with version 2, and version 1 serves now; refresh again"
    assert Registry(config.data, "m").state.labels == {STABLE: 1}
    scripted(3)
    assert run_once(config).version == 3  # compared again


@pytest.mark.parametrize("spoil", ["nan", "signature", "python"])
def test_what_a_fooled_gate_blesses_is_still_not_pushed(config: TrainConfig, scripted: Scripted, spoil: str) -> None:
    scripted(1, spoil=spoil)
    result = run_once(replace(config, lineage=True))
    assert (result.outcome, result.version) == ("rejected", None)
    events = stored(config.data)
    assert states(events) == [("push.m", "START"), ("push.m", "FAIL")]
    assert result.reasons[0][-40:] in events[1]["run"]["facets"]["errorMessage"]["message"]
    assert {"nan": "not finite", "signature": "no signature", "python": "not allowed"}[spoil] in result.reasons[0]
    state = Registry(config.data, "m").state
    assert not state.decisions[state.last_candidate].blessed
    assert run_once(config).outcome == "nothing_new"


def test_a_held_model_is_refreshed_and_pushed_after_its_release(config: TrainConfig, scripted: Scripted) -> None:
    scripted(1)
    run_once(config)
    registry = Registry(config.data, "m")
    hold(registry, Signature("ann", "release week"))
    refreshing = scripted(2)
    held = run_once(config)
    assert (held.outcome, held.version, held.champion) == ("held", None, 1)
    assert held.reasons[0].startswith("model m is held by ann: release week")
    assert run_once(config).outcome == "nothing_new"  # the same candidate is not trained again
    assert refreshing.lasts == ["key1", "key2"]
    release(registry, Signature("ann", "the release is out"))
    released = run_once(config)
    assert (released.outcome, released.version) == ("pushed", 2)
    assert registry.state.champion == 2


#: Killed before the gate's decision is stored, a trainer trains again; later, it completes the push.
UNDECIDED = ["append registry/m: lease", "append registry/m: candidate", "append registry/m: verdict"]


def test_killed_between_training_and_push(config: TrainConfig, scripted: Scripted) -> None:
    def child(name: str) -> TrainConfig:
        return replace(config, data=DataRoot(config.data.store.child(name)))

    scripted(1)
    whole = child("whole")
    with Steps(whole.data.url).recording() as steps:
        run_once(whole)
    assert steps.steps[:3] == UNDECIDED
    assert steps.steps[-3:] == ["append registry/m: pushed", "replace models/models.config", "append registry/m: lease"]
    for index, step in enumerate(steps.steps):
        root, refreshing = child(str(index)), scripted(1)
        with Steps(root.data.url, index).recording():
            run_once(root)
        result = run_once(root)
        (served,) = parse_config(root.data.models.read("models.config").decode())
        assert served.versions == tuple(Registry(root.data, "m").state.pushed()), step
        if index >= len(steps.steps) - 2:
            assert result.outcome == "nothing_new"
            continue
        assert result.outcome == "pushed", step
        completed = result.reasons == ("blessed earlier; its push was interrupted",)
        assert completed == (index >= len(UNDECIDED)), step
        assert refreshing.lasts == [None] * (2 if 0 < index < len(UNDECIDED) else 1), step
        assert run_once(root).outcome == "nothing_new"


def test_a_store_that_fails_while_a_push_is_completed_is_reported_and_nothing_is_trained(
    config: TrainConfig, scripted: Scripted
) -> None:
    def interrupted(name: str) -> tuple[TrainConfig, Refreshing]:
        """A trainer died before its candidate was staged."""
        root, refreshing = replace(config, data=DataRoot(config.data.store.child(name))), scripted(1)
        with Steps(root.data.url, len(UNDECIDED)).recording():
            run_once(root)
        return root, refreshing

    def fail() -> None:
        raise EngineError("no answer")

    root, refreshing = interrupted("whole")
    with Steps(root.data.url).recording() as steps:
        assert run_once(root).outcome == "pushed"
    assert steps.steps[:2] == ["append registry/m: lease", "append registry/m: staged"]
    for index, step in enumerate(steps.steps[:-1]):  # a lease that is not ended is taken later
        root, refreshing = interrupted(str(index))
        with pytest.raises(EngineError, match="no answer"), Steps(root.data.url, index, fail).recording():
            run_once(root)
        assert refreshing.lasts == [None], step
        assert run_once(root).outcome == ("nothing_new" if step == steps.steps[-2] else "pushed"), step
        assert len(Registry(root.data, "m").state.pushed()) == 1


@pytest.fixture
def twice(config: TrainConfig, scripted: Scripted) -> Registry:
    """A model with two pushed versions."""
    for seed in (1, 2):
        scripted(seed)
        run_once(config)
    return Registry(config.data, "m")


def test_interrupted_push_is_judged_again_against_another_champion(
    config: TrainConfig, scripted: Scripted, twice: Registry
) -> None:
    refreshing = scripted(3)
    with Steps(config.data.url, 10).recording() as steps:
        run_once(config)
    assert steps.steps[-1] == "rename models/m/staging-3-* to models/m/3"
    rollback(config.data, "m")
    result = run_once(config)
    assert (refreshing.champions, refreshing.lasts) == ([2, 1], ["key2", None])
    assert (result.outcome, result.champion, result.version) == ("pushed", 1, 4)


def test_a_candidate_names_the_champion_that_it_was_compared_with(
    config: TrainConfig, scripted: Scripted, twice: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process rolls back while the candidate is trained."""
    refreshing = scripted(3, blessed=False)

    def refresh(*given: Any, **keys: Any) -> Any:
        candidate = refreshing(*given, **keys)
        rollback(config.data, "m")
        return candidate

    monkeypatch.setattr(trainer_module, "refresh", refresh)
    assert (run_once(config).champion, refreshing.champions) == (2, [2])
    state = twice.state
    assert (state.champion, state.candidates[state.last_candidate].facts["champion"]) == (1, 2)


@pytest.mark.parametrize("blessed", [True, False])
def test_a_candidate_beyond_a_limit_of_size_is_rejected_once(
    config: TrainConfig, scripted: Scripted, monkeypatch: pytest.MonkeyPatch, blessed: bool
) -> None:
    scripted(5, blessed=blessed)
    monkeypatch.setattr(model_files, "_FILE_BYTES", {"saved_model.pb": 10})
    result = run_once(config)
    assert result.outcome == "rejected"
    assert ("saved_model.pb is larger than 10 bytes" in result.reasons[0]) is blessed
    assert run_once(config).outcome == "nothing_new"


def test_altered_champion_is_no_measure(config: TrainConfig, scripted: Scripted) -> None:
    scripted(1)
    run_once(config)
    Path(config.data.url, "models", "m", "1", "assets", "definition.json").write_text("{}")
    scripted(2)
    with pytest.raises(IntegrityError, match="was altered"):
        run_once(config)


def test_metrics_are_the_registrys(config: TrainConfig, scripted: Scripted, twice: Registry) -> None:
    scripted(3, blessed=False)
    run_once(config)
    board = Board()
    board.put_observed(registry_families("m", twice.state))
    shown = collected(board)
    assert shown["ciml_training_candidates_total"] == {("m", "blessed"): 2, ("m", "refused"): 1}
    assert shown["ciml_model_pushes_total"] == {("m",): 2}
    assert shown["ciml_champion_version"] == {("m",): 2}
    assert shown["ciml_champion_push_timestamp_seconds"] == {("m",): twice.state.versions[2].time_us / 1e6}


@pytest.mark.whole
def test_real_refreshes_are_served(made: Path, tmp_path: Path) -> None:  # noqa: F811
    """From real runs to answers of the server: the trainer's model and the served one agree."""
    data = DataRoot.open(shutil.copytree(made, tmp_path / "data"))
    config = TrainConfig(data, "providers", "providers", QUICK, lineage=True)
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
    assert first.folder is not None
    exported = load_exported(first.folder)
    definition = exported.definition
    inputs = np.random.default_rng(0).gamma(2, 20, (5, definition.windows, len(definition.features))).astype("f4")
    n_windows = np.full(5, definition.windows, "i4")
    options = ServerOptions(data.models.url("models.config"), grpc_port=0, rest_port=0)
    with ModelServer(options) as server, ModelClient(f"127.0.0.1:{server.grpc_port}", "providers") as client:
        answer = client.predict(inputs, n_windows, version=1)
    np.testing.assert_allclose(answer.probabilities, exported.predict(inputs, n_windows), atol=1e-5)
