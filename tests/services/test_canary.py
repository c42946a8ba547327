"""A canary beside the stable version: compared on trusted labelled runs, then promoted or withdrawn by the rule."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from ciml.cli.main import cli
from ciml.data_root import DataRoot
from ciml.events.outcomes import CAUSE
from ciml.manifest.log import ManifestLog
from ciml.services import canary as module
from ciml.services import trainer as trainer_module
from ciml.services.canary import CanaryReport, CanaryRule, KnownRun, compare_canary, known_runs, settle_canary, settled
from ciml.services.trainer import TrainerService, Triggers, served_accuracy
from ciml.serving.ledger import history, hold, promote
from ciml.serving.push import HeldError, push
from ciml.serving.registry import CANARY, SHADOW, STABLE, Decision, Registry, Signature
from ciml.training.exclusions import Exclusion, add
from ciml.training.refresh import TrainConfig
from ciml.training.trainer import TrainResult
from ciml.trust import TrustPolicy
from tests.runs.compacting import run
from tests.runs.scenes import RawStore
from tests.services.supervising import run_planned
from tests.serving.models_fixture import DEFINITION, stand_in

EVERYTHING = '[[rule]]\nname = "all"\ntrusted = true\nsource = ["*"]\n'
ALL = TrustPolicy.parse(EVERYTHING)


@pytest.fixture
def data(tmp_path: Path) -> DataRoot:
    """A model with a stable version 1 and a canary, version 2. The files are no models: nothing here loads one."""
    data = DataRoot.open(tmp_path / "data")
    for number, label in ((1, STABLE), (2, CANARY)):
        candidate = stand_in(tmp_path / f"candidate-{number}", number)
        push(data, "m", candidate, Decision(True), label=label, check=False)
    return data


def predict(
    data: DataRoot,
    answers: Iterable[tuple[int, str, str]],
    first: int = 0,
    shadow: Iterable[str] = (),
    change: Callable[[int], str] = lambda number: "",
) -> list[str]:
    """Store a run of a provider for each answer, and the prediction of a version; return the ids of the runs.

    Of a run with an answer of the ``shadow``, version 2 predicts that too. A run number has a ``change``.
    """
    predictions: list[dict[str, Any]] = []
    runs = []
    for number, (version, answer, provider) in enumerate(answers, first):
        facts, table = run(number, provider=provider, change=change(number))
        runs.append((facts, table))
        shares = {name: 0.7 if name == answer else 0.1 for name in DEFINITION.classes}
        predictions.append(
            {
                "id": f"{number:032x}", "run_id": facts.run_id, "model": "m", "version": version, "label": "provider",
                "class": answer, "probabilities": shares, "time_us": 4_000_000_000_000_000 + number,
            }
        )  # fmt: skip
    for prediction, answer in zip(list(predictions), shadow, strict=False):
        shares = {name: 0.7 if name == answer else 0.1 for name in DEFINITION.classes}
        beside = {"id": f"s{prediction['id'][1:]}", "version": 2, "shadow": True, "class": answer}
        predictions.append({**prediction, **beside, "probabilities": shares})
    RawStore(data).add(runs)
    log = ManifestLog(data.predictions)
    delta = {"predictions": predictions, "unpredictable": [], "repeats": [], "time_us": predictions[-1]["time_us"]}
    assert log.try_append(log.end() + 1, delta)
    return [prediction["run_id"] for prediction in predictions]


def make_shadow(data: DataRoot) -> DataRoot:
    """Make version 2 a shadow and no canary."""
    promote(Registry(data, "m"), 2, Signature("ann", "try it"), label=SHADOW)
    Registry(data, "m").commit(lambda state: {"kind": "labels", "labels": {}, "removed": [CANARY]})
    return data


def report_of(data: DataRoot, *, settle: bool = False, label: str = CANARY, trust: TrustPolicy = ALL) -> CanaryReport:
    """Compare the version of a label, which has to exist, with the stable one; settle it on demand."""
    report = (settle_canary if settle else compare_canary)(data, "m", trust, label=label)
    assert report is not None
    return report


BAD = [(1, "a", "a"), (2, "b", "a")] * 40
GOOD = [(1, "a", "a"), (2, "a", "a"), (1, "b", "a")] * 60


def test_a_canary_that_is_always_wrong_is_withdrawn_with_its_figures(data: DataRoot) -> None:
    predict(data, BAD)
    report = report_of(data, settle=True)
    assert (report.decision, report.canary.right, report.stable.right) == ("rollback", 0, 40)
    assert (report.canary.labelled, report.canary.predictions) == (40, 40)
    state = Registry(data, "m").state
    assert state.labels[STABLE] == 1
    assert state.versions[2].withdrawn
    last = list(history(Registry(data, "m")))[-1]
    assert (last.action, last.author, last.withdrawn) == ("withdraw", "the canary rule", (2,))
    assert "right in 0 of 40 labelled runs" in last.reasons[0]
    assert compare_canary(data, "m", ALL) is None


def test_a_canary_that_is_better_is_promoted_unless_a_person_holds_the_model(data: DataRoot) -> None:
    predict(data, GOOD)
    registry = Registry(data, "m")
    hold(registry, Signature("ann", "release week"))
    with pytest.raises(HeldError):
        settle_canary(data, "m", ALL)
    registry.commit(lambda state: {"kind": "release", "author": "ann", "reason": "over"})
    report = report_of(data, settle=True)
    assert report.decision == "promote"
    assert registry.state.champion == 2
    last = list(history(registry))[-1]
    assert (last.action, last.labels, last.author) == ("promote", {STABLE: 2}, "the canary rule")
    assert settle_canary(data, "m", ALL) is None


@pytest.mark.parametrize("moves", [{CANARY: 1}, {STABLE: 2}])
def test_nothing_is_settled_if_a_person_moves_a_label_meanwhile(
    data: DataRoot, moves: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    predict(data, BAD)
    read = module.read_predictions

    def move(*arguments: Any) -> Any:
        for label, version in moves.items():
            promote(Registry(data, "m"), version, Signature("ann", "another one"), label=label)
        return read(*arguments)

    monkeypatch.setattr(module, "read_predictions", move)
    assert settle_canary(data, "m", ALL) is None
    assert not Registry(data, "m").state.versions[2].withdrawn


def test_few_labels_decide_nothing_and_the_expected_share_needs_none(data: DataRoot) -> None:
    predict(data, [(1, "a", "a"), (2, "b", "a"), (1, "a", "")])
    report = report_of(data, settle=True)
    assert (report.decision, report.canary.labelled, report.stable.labelled) == ("", 1, 1)
    assert (report.stable.predictions, report.stable.estimate) == (2, pytest.approx(0.7))
    assert report.stable.error == pytest.approx(1.96 * (2 * 0.21) ** 0.5 / 2)
    assert report.lines()[-1] == "not decided yet"
    assert Registry(data, "m").state.labels == {STABLE: 1, CANARY: 2}


@pytest.mark.parametrize(
    ("known", "now_s", "settled_runs", "waits"),
    [
        (["r0 code", "r1 ", "r2 code"], 59, ["r0"], 2),
        (["r0 code", "r1 ", "r2 code"], 60, ["r0", "r2"], 0),
        (["c code", "c code", "r2 code"], 59, ["r0", "r2"], 0),  # the first run of a change counts
        (["c code", "c ", "r2 code"], 59, ["r0", "r2"], 0),  # and no other is waited for
        (["c ", "c code", "c code"], 60, ["r1"], 0),
    ],
)
def test_the_first_known_run_of_a_change_counts_and_none_before_one_that_is_waited_for(
    known: list[str], now_s: float, settled_runs: list[str], waits: int
) -> None:
    predictions = [{"run_id": f"r{number}", "version": 1, "class": "code", "time_us": 0} for number in range(3)]
    runs = [KnownRun(f"p {change}", name) for change, name in (text.split(" ") for text in known)]
    pairs, waiting = settled(predictions, {(f"r{number}", 1): run for number, run in enumerate(runs)}, 60, now_s)
    assert ([prediction["run_id"] for prediction, _ in pairs], waiting) == (settled_runs, waits)


def test_a_run_is_judged_by_the_definition_of_its_version_and_only_a_failed_one_has_a_cause(data: DataRoot) -> None:
    facts = [run(number, outcome=outcome, provider="a") for number, outcome in enumerate(("success", "failure"))]
    RawStore(data).add(facts)
    of_cause = DEFINITION.replace(
        definition=DEFINITION.definition.replace(class_label=CAUSE), classes=("code", "machine")
    )
    predictions = [{"run_id": mention.run_id, "version": version} for mention, _ in facts for version in (1, 2)]
    known = known_runs(data, ALL, predictions, {1: DEFINITION, 2: of_cause})
    assert {(run_id, version): one.name for (run_id, version), one in known.items()} == {
        ("zuul~0~1", 1): "a", ("zuul~1~1", 1): "a", ("zuul~1~1", 2): "",
    }  # fmt: skip


@pytest.mark.parametrize("same", [{"change": "7"}, {"head": "c0ffee"}, {"attempt_of": "81/unit"}, {}])
def test_without_a_change_the_runs_of_a_commit_or_of_a_series_of_attempts_count_once(
    data: DataRoot, same: dict[str, str]
) -> None:
    facts = [run(number, provider="a", **{"change": "", **same}) for number in range(2)]
    RawStore(data).add(facts)
    predictions = [{"run_id": mention.run_id, "version": 1, "class": "a", "time_us": 0} for mention, _ in facts]
    known = known_runs(data, ALL, predictions, {1: DEFINITION})
    assert len(settled(predictions, known, 60, 0)[0]) == (1 if same else 2)


def test_runs_that_are_not_trusted_and_predictions_before_the_canary_do_not_count(data: DataRoot) -> None:
    predict(data, BAD)
    untrusted = report_of(data, trust=TrustPolicy.parse(EVERYTHING.replace("true", "false")))
    assert (untrusted.canary.labelled, untrusted.stable.labelled, untrusted.decision) == (0, 0, "")
    registry = Registry(data, "m", lambda: 5_000_000_000_000_000)
    registry.commit(lambda state: {"kind": "labels", "labels": {CANARY: 2}})  # labelled again, later
    later = report_of(data)
    assert (later.canary.predictions, later.decision) == (0, "")


def test_without_a_canary_there_is_nothing_to_compare(data: DataRoot) -> None:
    registry = Registry(data, "m")
    registry.commit(lambda state: {"kind": "labels", "labels": {CANARY: 1}})  # the stable version itself
    assert compare_canary(data, "m", ALL, CanaryRule()) is None


@pytest.mark.parametrize(
    ("label", "answers", "shadow", "decision", "champion"),
    [
        (CANARY, BAD, [], "roll the canary back", 1),
        (SHADOW, [(1, "a", "a"), (1, "b", "a"), (1, "a", "")] * 100, ["a"] * 300, "promote the shadow", 2),
    ],
)
def test_the_command_shows_and_settles_when_asked(
    label: str, answers: Any, shadow: list[str], decision: str, champion: int, data: DataRoot, tmp_path: Path
) -> None:
    predict(make_shadow(data) if label == SHADOW else data, answers, shadow=shadow)
    policy = tmp_path / "trust.toml"
    policy.write_text(EVERYTHING)
    call = ["models", label, "m", "--data-path", data.url, "--trust-policy", str(policy)]
    assert CliRunner().invoke(cli, call).output.splitlines()[-1] == decision
    assert json.loads(CliRunner().invoke(cli, [*call, "--json"]).stdout)["label"] == label
    assert Registry(data, "m").state.labels == {STABLE: 1, label: 2}
    assert CliRunner().invoke(cli, [*call, "--settle"]).exit_code == 0
    state = Registry(data, "m").state
    assert (state.champion, state.versions[2].withdrawn) == (champion, champion == 1)
    assert f"m has no {label}" in CliRunner().invoke(cli, call).output


def test_a_trainer_of_canaries_settles_one_before_it_trains_the_next(
    data: DataRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    words: list[str] = []
    monkeypatch.setattr(trainer_module, "run_once", lambda *_, **__: TrainResult("nothing_new", ("the same",)))
    data.dataset("d").store.child("_manifest").create("000000000001.json", b"{}")
    service = TrainerService(
        TrainConfig(data, "d", "m", trust=ALL, label=CANARY), None, lambda word, *_: words.append(word)
    )
    run_planned(service)
    predict(data, BAD[:2])
    service.maintain()
    data.dataset("d").store.child("_manifest").create("000000000002.json", b"{}")
    assert service.plan() is None
    assert "canary, version 2: right in 0 of 1 labelled runs" in service.observe().facts["waits_for"]
    add(data.exclusions, [Exclusion("forged results", job="elsewhere")])
    run_planned(service)  # what learned excluded runs is not to serve longer
    data.dataset("d").store.child("_manifest").create("000000000003.json", b"{}")
    predict(data, BAD[2:], first=2)
    service.maintain()
    assert "roll the canary back" in words[-1]
    assert Registry(data, "m").state.versions[2].withdrawn
    service.maintain()
    assert service.plan() is not None


def test_a_trainer_goes_on_while_a_person_holds_the_model(data: DataRoot) -> None:
    registry = Registry(data, "m")
    hold(registry, Signature("ann", "release week"))
    predict(data, GOOD)
    service = TrainerService(TrainConfig(data, "d", "m", trust=ALL, label=CANARY))
    service.maintain()
    assert "the canary would be promoted, but model m is held by ann" in service.observe().facts["waits_for"]
    assert registry.state.champion == 1


def test_a_trainer_refreshes_when_labels_show_that_the_champion_is_worse_than_at_its_gate(
    data: DataRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry(data, "m")
    candidate = registry.state.versions[1].candidate
    registry.record_decision(candidate, Decision(True, (), {"accuracy": {"value": 0.95, "right": 57, "runs": 60}}))
    config = TrainConfig(data, "d", "m", trust=TrustPolicy.parse(EVERYTHING))
    predict(data, [(1, "a", "a"), (2, "b", "a")] * 20)
    good = served_accuracy(config, registry)
    assert good is not None
    assert not good.is_worse
    assert good.text() == "accuracy of version 1: 1.00 of 20 labelled runs, at its gate 0.95 of 60"
    predict(data, [(1, "b", "a")] * 40, first=100)
    worse = served_accuracy(config, registry)
    assert worse is not None
    assert worse.is_worse
    untrusted = served_accuracy(TrainConfig(data, "d", "m", trust=TrustPolicy.parse("")), registry)
    assert untrusted is not None
    assert not untrusted.is_worse
    assert untrusted.text().startswith("accuracy of version 1: no labelled runs; 0.70 ± 0.12 expected of 60")

    asked: list[str] = []

    def run_once(*_: object, reason: str, **__: object) -> TrainResult:
        asked.append(reason)
        return TrainResult("nothing_new", ("the same",))

    monkeypatch.setattr(trainer_module, "run_once", run_once)
    resolved = SimpleNamespace(definition=SimpleNamespace(class_label="provider"))
    without_runs = SimpleNamespace(resolved=resolved, runs=lambda: ())
    monkeypatch.setattr(trainer_module, "make_snapshot", lambda *_, **__: without_runs)
    service = TrainerService(config, triggers=Triggers(on_accuracy=True))
    data.dataset("d").store.child("_manifest").create("000000000001.json", b"{}")
    run_planned(service)
    assert asked == ["accuracy of version 1: 0.33 of 60 labelled runs, at its gate 0.95 of 60"]


def test_a_shadow_is_compared_on_the_same_runs_and_moves_only_when_asked(data: DataRoot) -> None:
    shadowed = make_shadow(data)
    predict(shadowed, [(1, "a", "a")] * 60, shadow=["b"] * 60)
    report = report_of(shadowed, label=SHADOW)
    assert (report.decision, report.canary.right, report.stable.right) == ("rollback", 0, 60)
    assert (report.canary.predictions, report.stable.predictions) == (60, 60)
    assert report.lines()[0].startswith("shadow, version 2: right in 0 of 60 labelled runs")
    assert report.lines()[-1] == "roll the shadow back"
    assert compare_canary(shadowed, "m", ALL) is None
    assert Registry(shadowed, "m").state.labels == {STABLE: 1, SHADOW: 2}
    settle_canary(shadowed, "m", ALL, label=SHADOW)
    last = list(history(Registry(shadowed, "m")))[-1]
    assert (last.action, last.author, last.withdrawn) == ("withdraw", "the shadow rule", (2,))


def test_runs_that_only_one_of_them_predicted_do_not_count(data: DataRoot) -> None:
    shadowed = make_shadow(data)
    predict(shadowed, [(1, "a", "a")] * 30, shadow=["b"] * 4)
    predict(shadowed, [(2, "b", "a")] * 30, first=30)  # a former label of version 2, or another stream
    report = report_of(shadowed, label=SHADOW)
    assert (report.canary.labelled, report.stable.labelled, report.canary.predictions) == (4, 4, 4)


@pytest.mark.parametrize("label", [SHADOW, CANARY])
def test_a_run_that_is_predicted_again_counts_once(label: str, data: DataRoot) -> None:
    if label == SHADOW:
        make_shadow(data)
        predict(data, [(1, "b", "a")] * 4, shadow=["b"] * 4)
    else:
        predict(data, [(1, "b", "a"), (2, "b", "a")] * 4)
    log = ManifestLog(data.predictions)
    delta = log.read(log.end())  # its rows are replaced, and both versions predict them differently
    again = [{**prediction, "id": f"a{prediction['id'][1:]}", "class": "a"} for prediction in delta["predictions"]]
    assert log.try_append(log.end() + 1, {**delta, "predictions": again})
    report = report_of(data, label=label)
    assert (report.canary.labelled, report.canary.right) == (report.stable.labelled, report.stable.right) == (4, 0)
    assert (report.canary.predictions, report.stable.predictions) == (4, 4)


def test_runs_of_a_change_are_one_observation_of_each_version(data: DataRoot) -> None:
    """Runs of a change are misjudged together: 40 wrong answers on four changes decide nothing."""
    predict(data, BAD, change=lambda number: f"c{number // 20}")
    report = report_of(data)
    assert (report.decision, report.canary.labelled, report.stable.labelled) == ("", 4, 4)
