"""A purge: after it, no served version has learned from the runs, or it is said what is missing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ciml.cli.main import cli
from ciml.data_root import DataRoot
from ciml.errors import CimlError, EngineError, IntegrityError, UnknownModelError
from ciml.pipelines.datasets.build import remove_dataset
from ciml.pipelines.datasets.update import create_dataset, update_dataset
from ciml.serving.ledger import history
from ciml.serving.model_files import parse_config
from ciml.serving.registries import RegistryVerifier
from ciml.serving.registry import Decision, Registry, RegistryState, Signature
from ciml.training import purge as purge_module
from ciml.training import trainer as trainer_module
from ciml.training.evaluation.gate import GatePolicy
from ciml.training.exclusions import Exclusion, Exclusions, add, read_state
from ciml.training.experiment import Experiment
from ciml.training.learned import AffectedVersion, parts_of_run, versions_that_learned
from ciml.training.purge import Purged, purge
from ciml.training.refresh import Skipped, TrainConfig
from ciml.training.trainer import TrainResult, run_once
from tests.durable import Steps
from tests.runs.conftest import anywhere
from tests.training.conftest import GOLDEN
from tests.training.trainer.test_excluded_models import runs

__all__ = ["anywhere"]
ANN = Signature("ann", "forged results")


def forged(data: DataRoot) -> Exclusion:
    return Exclusion("forged results", runs(data, "train")[0])


def test_the_versions_that_learned_are_withdrawn_and_nothing_serves(golden: DataRoot) -> None:
    (purged,) = purge(golden, forged(golden), ANN, None)
    assert purged == Purged("provider", (1,), None, None, ("nothing serves: it was not trained again",))
    state = Registry(golden, "provider").state
    assert (state.labels, state.served(), state.versions[1].withdrawn) == ({}, [], True)
    (stored,) = read_state(golden.exclusions).active()
    assert (stored.exclusion, stored.author) == (forged(golden), "ann")
    last = list(history(Registry(golden, "provider")))[-1]
    assert (last.action, last.author, last.reasons, last.withdrawn) == ("withdraw", "ann", ("forged results",), (1,))
    assert purge(golden, Exclusion("other", job="elsewhere"), ANN, None) == []


def test_a_purge_that_was_interrupted_is_completed_by_the_same_call(golden: DataRoot) -> None:
    trained: list[str] = []

    def retrain(model: str, dataset: str) -> TrainResult:
        trained.append(f"{model} of {dataset}")
        if len(trained) == 1:
            raise EngineError("the store does not answer")
        return TrainResult("rejected", ("12 held-out runs, at least 20 are needed",))

    with pytest.raises(EngineError):
        purge(golden, forged(golden), ANN, retrain)
    assert Registry(golden, "provider").state.served() == []
    (purged,) = purge(golden, forged(golden), ANN, retrain)
    assert trained == ["provider of provider"] * 2
    assert (purged.withdrawn, purged.champion) == ((), None)
    assert purged.missing == ("nothing serves: 12 held-out runs, at least 20 are needed",)
    assert read_state(golden.exclusions).version == 1


def test_killed_before_each_step(anywhere: DataRoot) -> None:
    """A server drops what is withdrawn from the commit on, and the same call completes the purge."""
    index = 0
    is_dead = True
    while is_dead:
        root = DataRoot(anywhere.store.child(str(index)))
        for path in sorted(path for path in GOLDEN.rglob("*") if path.is_file()):
            root.store.create(str(path.relative_to(GOLDEN)), path.read_bytes())
        (run_id,) = runs(DataRoot.open(GOLDEN), "train")[:1]
        with Steps(root.url, index).recording() as steps:
            purge(root, Exclusion("forged results", run_id), ANN, None)
        is_dead = steps.is_dead
        (entry,) = parse_config(root.models.read("models.config").decode()) or (None,)
        served = entry and RegistryVerifier(root.registry.root).current(entry)
        assert (served is None) == Registry(root, "provider").state.versions[1].withdrawn, steps.steps
        purge(root, Exclusion("forged results", run_id), ANN, None)
        assert Registry(root, "provider").state.served() == []
        assert parse_config(root.models.read("models.config").decode()) == ()
        assert read_state(root.exclusions).version == 1
        index += 1
    assert index > 3
    assert steps.steps == [
        "append exclusions: exclude",
        "append registry/provider: labels",
        "replace models/models.config",
    ]


def test_runs_are_excluded_before_versions_are_searched(golden: DataRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    """So a trainer in progress has pushed its version before the search, or sees the exclusion after its push."""

    def search(data: DataRoot, exclusions: Exclusions, models: object) -> list[AffectedVersion]:
        assert [stored.exclusion for stored in read_state(data.exclusions).active()] == [*exclusions.exclusions]
        return []

    monkeypatch.setattr(purge_module, "versions_that_learned", search)
    assert purge(golden, forged(golden), ANN, None) == []


def test_a_version_that_a_trainer_pushes_meanwhile_is_withdrawn(golden: DataRoot) -> None:
    """Its trainer may be killed before it looks for new exclusions."""
    exclusion = forged(golden)
    candidate = Registry(golden, "provider").state.versions[1].candidate

    def retrain(model: str, dataset: str) -> TrainResult:
        facts = {"candidate": candidate, "model_version": 2, "pusher": "p"}
        Registry(golden, model).commit(lambda state: {"kind": "staged", **facts})
        Registry(golden, model).commit(lambda state: {"kind": "pushed", "model_version": 2, "labels": {"stable": 2}})
        return TrainResult("rejected", ("it is worse",))

    (purged,) = purge(golden, exclusion, ANN, retrain)
    assert (purged.withdrawn, purged.champion) == ((1, 2), None)
    assert purged.missing == ("nothing serves: it is worse",)


@pytest.mark.parametrize("keys", [{"span_runs": 1000}, {"slicer": ":15", "span_runs": 5, "raw_version": 1}])
def test_the_runs_of_a_data_set_that_was_built_again_are_known(golden: DataRoot, keys: dict[str, Any]) -> None:
    dataset = golden.dataset("provider")
    definition = dataset.state().definition
    assert definition is not None
    remove_dataset(dataset)
    create_dataset(golden, definition.replace(**keys))
    update_dataset(golden.dataset("provider"), seal=True)
    (version,) = versions_that_learned(golden, Exclusions((Exclusion("all", since_us=1),)))
    assert (version.runs, version.fault) == (tuple(runs(golden, "train", "dev")), "")


def test_a_model_that_cannot_be_purged_stops_no_other(golden: DataRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    def withdraw(registry: Registry, *_: object) -> None:
        raise IntegrityError("models/provider/1 is missing")

    monkeypatch.setattr(purge_module, "withdraw", withdraw)
    (purged,) = purge(golden, forged(golden), ANN, None)
    assert (purged.champion, purged.missing) == (None, ("cannot be purged: models/provider/1 is missing",))


def test_a_model_that_does_not_exist_is_named_and_nothing_is_excluded(golden: DataRoot) -> None:
    with pytest.raises(UnknownModelError, match=r"no model 'provide' in .*; choose from provider"):
        purge(golden, forged(golden), ANN, None, models=["provider", "provide"])
    assert read_state(golden.exclusions).version == 0
    assert Registry(golden, "provider").state.champion == 1


def test_a_model_that_cannot_be_trained_again_is_named(golden: DataRoot) -> None:
    def retrain(model: str, dataset: str) -> TrainResult:
        raise CimlError("no training runs")

    (purged,) = purge(golden, forged(golden), ANN, retrain)
    assert purged.missing[0] == "was not trained again: no training runs"


def test_a_version_whose_runs_are_not_known_is_left_to_a_person(golden: DataRoot) -> None:
    exclusion = forged(golden)
    shutil.rmtree(Path(golden.url, "trainer"))
    (purged,) = purge(golden, exclusion, ANN, None)
    assert (purged.withdrawn, purged.champion) == ((), None)
    (missing,) = purged.missing
    assert missing.startswith("cannot determine whether version 1 learned from these runs: no snapshot")
    assert missing.endswith("ciml models withdraw provider 1")
    assert Registry(golden, "provider").state.champion == 1


def test_who_learned_and_why(golden: DataRoot) -> None:
    (found,) = versions_that_learned(golden, Exclusions((forged(golden),)))
    assert (found.model, found.version, found.labels, len(found.runs)) == ("provider", 1, ("stable",), 1)
    (part,) = parts_of_run(golden, runs(golden, "test")[0])
    assert (part.model, part.version, part.role, part.withdrawn) == ("provider", 1, "test", False)
    assert list(parts_of_run(golden, "zuul~nothing~1")) == []


def test_a_trainer_withdraws_its_own_version_if_runs_were_excluded_meanwhile(
    golden: DataRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry(golden, "provider")
    facts = registry.state.candidates[registry.state.versions[1].candidate].facts
    trained = SimpleNamespace(
        decision=Decision(True), facts=lambda: facts, folder=registry.folder(1).root, metrics={}, timings={}
    )
    monkeypatch.setattr(trainer_module, "push_candidate", lambda *_, **__: SimpleNamespace(version=1))
    monkeypatch.setattr(trainer_module, "refresh", lambda *_, **__: trained)
    config = TrainConfig(golden, "provider", "provider")
    assert run_once(config).outcome == "pushed"
    add(golden.exclusions, [forged(golden)])
    result = run_once(config)
    assert (result.outcome, result.version, registry.state.served()) == ("rejected", None, [])
    reason = "version 1 learned 1 run that was excluded while it was trained, and is withdrawn; refresh again"
    assert result.reasons == (reason,)


def excluded(data: DataRoot) -> None:
    add(data.exclusions, [forged(data)])


def unknown(data: DataRoot) -> None:
    add(data.exclusions, [Exclusion("other", job="elsewhere")])
    shutil.rmtree(Path(data.url, "trainer"))


@pytest.mark.parametrize("happens", [excluded, unknown])
def test_a_pending_candidate_is_pushed_only_while_its_runs_are_known_and_not_excluded(
    golden: DataRoot, monkeypatch: pytest.MonkeyPatch, happens: Callable[[DataRoot], None]
) -> None:
    state = Registry(golden, "provider").state
    candidate = state.candidates[state.versions[1].candidate]
    pending = replace(candidate, facts={**candidate.facts, "champion": 1})
    monkeypatch.setattr(RegistryState, "pending", lambda state: pending)
    monkeypatch.setattr(trainer_module, "push_candidate", lambda *_, **__: SimpleNamespace(version=1))
    monkeypatch.setattr(trainer_module, "refresh", lambda *_, **__: Skipped("the same", SimpleNamespace()))  # type: ignore[arg-type]
    config = TrainConfig(golden, "provider", "provider")
    assert run_once(config).outcome == "pushed"
    happens(golden)
    assert run_once(config).outcome == "nothing_new"


@pytest.mark.whole
def test_a_purge_ends_with_a_version_that_never_saw_the_runs(data: DataRoot) -> None:
    gate = GatePolicy(min_test_runs=5, tolerance=1.0, baseline_tolerance=1.0, above_base_rate=-1.0)
    config = TrainConfig(data, "providers", "m", Experiment(estimator="LogisticRegression"), gate=gate)
    assert run_once(config).version == 1
    (learned,) = versions_that_learned(data, Exclusions((Exclusion("all", source="zuul"),)))
    poisoned = Exclusion("forged results", learned.runs[0])
    (purged,) = purge(data, poisoned, ANN, lambda model, dataset: run_once(config))
    assert (purged.withdrawn, purged.champion, purged.missing) == ((1,), 2, ())
    assert purged.lines()[-1] == "m: version 2 serves, and never learned from these runs"
    (only,) = versions_that_learned(data, Exclusions((poisoned,)))
    assert (only.version, only.withdrawn) == (1, True)
    assert [part.version for part in parts_of_run(data, learned.runs[0])] == [1]


def ciml(data: DataRoot, *words: str) -> Result:
    return CliRunner().invoke(cli, [*words, "--data-path", data.url])


def test_the_commands(golden: DataRoot) -> None:
    run_id = runs(golden, "train")[0]
    assert "provider" in ciml(golden, "models", "who-learned", "--run", run_id).output
    (part,) = json.loads(ciml(golden, "why-trained", run_id, "--json").output)
    assert (part["version"], part["role"]) == (1, "train")
    assert "train" in ciml(golden, "why-trained", run_id).output
    assert "ciml trust explain" in ciml(golden, "why-trained", "zuul~nothing~1").output
    words = ("purge", "--run", run_id, "--reason", "forged", "--author", "ann", "--no-retrain")
    done = CliRunner().invoke(cli, [*words, "--data-path", golden.url], standalone_mode=False)
    assert done.return_value == 5
    assert done.output.splitlines() == [
        "provider: versions withdrawn: 1",
        "provider: nothing serves: it was not trained again",
    ]
    assert "withdrawn" in ciml(golden, "models", "who-learned", "--run", run_id).output
    assert "no version learned" in ciml(golden, "models", "who-learned", "--job", "elsewhere").output
    other = ("purge", "--job", "elsewhere", "--reason", "forged", "--author", "ann")
    assert "are excluded from now on" in ciml(golden, *other).output


def test_a_purge_trains_with_the_given_requirements_and_modules(
    golden: DataRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs: list[TrainConfig] = []

    def run_once(config: TrainConfig, **_: object) -> TrainResult:
        configs.append(config)
        return TrainResult("rejected", ("it is worse",))

    monkeypatch.setattr(trainer_module, "run_once", run_once)
    words = ("purge", "--run", runs(golden, "train")[0], "--reason", "forged", "--author", "ann")
    options = ("--accept-baseline", "duration", "--min-test-runs", "7", "--allow-module", "mine")
    done = CliRunner().invoke(cli, [*words, *options, "--data-path", golden.url], standalone_mode=False)
    assert done.return_value == 5
    (config,) = configs
    assert (config.gate.accept_baselines, config.gate.min_test_runs) == (("duration",), 7)
    assert config.allow_modules == ("mine",)
