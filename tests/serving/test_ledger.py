"""Decisions of people about versions: recorded with author and reason, and never undone by a refresh."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from ciml.data_root import DataRoot
from ciml.errors import CimlError, IntegrityError, UnknownModelError
from ciml.manifest.log import ManifestLog
from ciml.serving.ledger import facts_of_version, history, hold, promote, release, rollback, unlabel, withdraw
from ciml.serving.model_files import parse_config
from ciml.serving.push import HeldError, NotBlessedError, push
from ciml.serving.registry import CANARY, STABLE, Decision, Registry, Signature
from ciml.storage import open_store
from tests.durable import Steps

ANN = Signature("ann", "release week")
BOB = Signature("bob", "it is out")


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(DataRoot.open(tmp_path / "data"), "m")


def pushed(registry: Registry, folder: Path, label: str = STABLE, *, blessed: bool = True) -> int:
    decision = Decision(blessed, ("better",), {"accuracy": 0.9})
    return push(registry.data, "m", open_store(folder), decision, label=label, check=False).version


def push_three(registry: Registry, folders: dict[int, Path]) -> None:
    for folder in folders.values():
        pushed(registry, folder)


def alter(registry: Registry, version: int) -> None:
    Path(registry.folder(version).root, "saved_model.pb").write_bytes(b"other")


def served(registry: Registry) -> tuple[int, ...]:
    entries = parse_config(registry.data.models.read("models.config").decode())
    return entries[0].versions if entries else ()


def test_a_held_model_keeps_its_version_until_it_is_released(registry: Registry, folders: dict[int, Path]) -> None:
    pushed(registry, folders[1])
    hold(registry, ANN)
    for number in range(2):
        with pytest.raises(HeldError, match="model m is held by ann: release week"):
            pushed(registry, folders[2])
        assert registry.state.champion == 1, number
    assert registry.state.decisions[registry.state.last_candidate].blessed
    assert not registry.state.in_state("staged")
    assert pushed(registry, folders[3], CANARY) == 2  # a trial beside it
    for change in (lambda: promote(registry, 2, BOB), lambda: rollback(registry.data, "m", 2)):
        with pytest.raises(HeldError):
            change()
    with pytest.raises(CimlError, match="held already by ann"):
        hold(registry, BOB)
    release(registry, BOB)
    assert pushed(registry, folders[2]) == 3
    assert registry.state.champion == 3
    with pytest.raises(CimlError, match="not held"):
        release(registry, BOB)


def test_a_hold_that_comes_during_a_push_stops_it(
    registry: Registry, folders: dict[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed(registry, folders[1])
    from ciml.serving import push as module

    rename = module._rename
    monkeypatch.setattr(module, "_rename", lambda *arguments: (rename(*arguments), hold(registry, ANN)))
    with pytest.raises(HeldError):
        pushed(registry, folders[2])
    assert (registry.state.champion, registry.state.pushed()) == (1, [1])
    module.reconcile(registry)
    assert registry.state.in_state("abandoned") == [2]


def test_only_a_served_model_can_be_held(registry: Registry) -> None:
    with pytest.raises(UnknownModelError, match="nothing to hold"):
        hold(registry, ANN)


def test_a_canary_is_promoted(registry: Registry, folders: dict[int, Path]) -> None:
    pushed(registry, folders[1])
    pushed(registry, folders[2], CANARY)
    moved = promote(registry, 2, ANN)
    assert (moved.version, moved.label, registry.state.labels) == (2, STABLE, {STABLE: 2, CANARY: 2})
    before = registry.state.version
    promote(registry, 2, ANN)
    assert registry.state.version == before  # nothing to record
    with pytest.raises(UnknownModelError, match="version 9 was never pushed"):
        promote(registry, 9, ANN)


def test_a_label_is_removed_and_its_version_stays(registry: Registry, folders: dict[int, Path]) -> None:
    pushed(registry, folders[1])
    pushed(registry, folders[2], CANARY)
    assert unlabel(registry, CANARY, ANN) == 2
    assert (registry.state.labels, registry.state.pushed()) == ({STABLE: 1}, [1, 2])
    assert not registry.state.versions[2].withdrawn
    assert CANARY not in registry.data.models.read("models.config").decode()
    entry = list(history(registry))[-1]
    assert (entry.action, entry.version, entry.removed, entry.author) == ("unlabel", 2, (CANARY,), "ann")
    with pytest.raises(UnknownModelError, match="no version has the label canary"):
        unlabel(registry, CANARY, ANN)
    with pytest.raises(CimlError, match="the label stable is not removed"):
        unlabel(registry, STABLE, ANN)
    promote(registry, 2, BOB)
    assert registry.state.champion == 2


def test_what_was_withdrawn_or_altered_is_not_promoted(registry: Registry, folders: dict[int, Path]) -> None:
    push_three(registry, folders)
    withdraw(registry, [1], ANN)
    with pytest.raises(CimlError, match="version 1 was withdrawn"):
        promote(registry, 1, BOB)
    alter(registry, 2)
    with pytest.raises(IntegrityError):
        promote(registry, 2, BOB)


def test_an_altered_version_replaces_none_that_is_withdrawn(registry: Registry, folders: dict[int, Path]) -> None:
    push_three(registry, folders)
    alter(registry, 2)
    assert withdraw(registry, [3], ANN) == {STABLE: 1}
    alter(registry, 1)
    assert withdraw(registry, [1], ANN) == {STABLE: None}


def test_an_altered_version_gets_no_label_by_a_repeated_push(registry: Registry, folders: dict[int, Path]) -> None:
    pushed(registry, folders[1])
    pushed(registry, folders[2], CANARY)
    alter(registry, 2)
    with pytest.raises(IntegrityError, match="was altered"):
        pushed(registry, folders[2])
    assert registry.state.champion == 1


def test_a_rollback_passes_over_a_version_that_is_withdrawn_meanwhile(
    registry: Registry, folders: dict[int, Path]
) -> None:
    push_three(registry, folders)
    other = partial(withdraw, Registry(registry.data, "m"), [2], BOB)
    with Steps(registry.data.url, 0, other).recording():
        assert rollback(registry.data, "m", signed=ANN).version == 1
    assert registry.state.champion == 1


def test_a_damaged_registry_stops_no_decision_on_another_model(registry: Registry, folders: dict[int, Path]) -> None:
    pushed(registry, folders[1])
    pushed(registry, folders[2])
    push(registry.data, "other", open_store(folders[3]), Decision(True), check=False)
    log = ManifestLog(registry.data.registry.child("other"))
    Path(log.store.root, log.path(1)).write_bytes(b"{")
    withdraw(registry, [2], ANN)
    first, second = parse_config(registry.data.models.read("models.config").decode())
    assert (first.name, dict(first.labels)) == ("m", {STABLE: 1})
    assert (second.name, dict(second.labels)) == ("other", {STABLE: 1})  # as before


@pytest.mark.parametrize("label", ["a\nb", "", "a b", "x" * 101])
def test_a_label_is_one_that_a_server_can_read(registry: Registry, folders: dict[int, Path], label: str) -> None:
    pushed(registry, folders[1])
    for change in (lambda: promote(registry, 1, ANN, label=label), lambda: pushed(registry, folders[2], label)):
        with pytest.raises(CimlError, match="invalid label"):
            change()
    assert registry.state.labels == {STABLE: 1}


@pytest.mark.parametrize(
    ("versions", "moved", "labels", "now_served"),
    [
        ([3], {STABLE: 2}, {STABLE: 2}, (1, 2)),
        ([2], {}, {STABLE: 3}, (1, 3)),
        ([2, 3], {STABLE: 1}, {STABLE: 1}, (1,)),
        ([1, 2, 3], {STABLE: None}, {}, ()),
    ],
)
def test_withdrawn_versions_are_served_no_longer(
    registry: Registry, folders: dict[int, Path], versions: list[int], moved: object, labels: object, now_served: object
) -> None:
    push_three(registry, folders)
    assert withdraw(registry, versions, ANN) == moved
    assert registry.state.labels == labels
    assert served(registry) == now_served
    assert withdraw(registry, versions, BOB) == {}  # a second time changes nothing
    assert [entry.author for entry in history(registry) if entry.action == "withdraw"] == ["ann"]


def test_a_label_that_is_removed_meanwhile_is_not_moved(registry: Registry, folders: dict[int, Path]) -> None:
    """The commit is lost, so the withdrawal is derived again from the labels that are left."""
    for folder, label in zip(folders.values(), (STABLE, STABLE, CANARY), strict=True):
        pushed(registry, folder, label)
    remove = partial(unlabel, Registry(registry.data, "m"), CANARY, BOB)
    with Steps(registry.data.url, 0, remove).recording():
        assert withdraw(registry, [2, 3], ANN) == {STABLE: 1}
    assert registry.state.labels == {STABLE: 1}


def test_no_push_or_label_brings_a_withdrawn_version_back(registry: Registry, folders: dict[int, Path]) -> None:
    pushed(registry, folders[1])
    pushed(registry, folders[2])
    withdraw(registry, [2], ANN)
    with pytest.raises(CimlError, match="version 2 was withdrawn"):
        pushed(registry, folders[2])  # the same candidate
    assert registry.state.champion == 1
    rollback(registry.data, "m", 2, signed=BOB)  # a person names it
    assert registry.state.champion == 2


def test_a_withdrawal_ends_the_hold_of_its_version(registry: Registry, folders: dict[int, Path]) -> None:
    pushed(registry, folders[1])
    pushed(registry, folders[2])
    hold(registry, ANN)
    withdraw(registry, [1], BOB)
    assert registry.state.hold is not None
    withdraw(registry, [2], BOB)
    assert registry.state.hold is None


def test_the_history_has_all_of_it(registry: Registry, folders: dict[int, Path]) -> None:
    pushed(registry, folders[1])
    with pytest.raises(NotBlessedError):
        pushed(registry, folders[2], blessed=False)
    pushed(registry, folders[3])
    hold(registry, ANN)
    release(registry, BOB)
    rollback(registry.data, "m", signed=Signature("ann", "worse"))
    promote(registry, 1, BOB, label=CANARY)
    entries = list(history(registry))
    assert [(entry.action, entry.version, entry.author) for entry in entries] == [
        ("train", None, ""),
        ("bless", None, ""),
        ("push", 1, ""),
        ("train", None, ""),
        ("reject", None, ""),
        ("train", None, ""),
        ("bless", None, ""),
        ("push", 2, ""),
        ("hold", 2, "ann"),
        ("release", None, "bob"),
        ("rollback", None, "ann"),
        ("promote", None, "bob"),
    ]
    assert entries[-2].withdrawn == (2,)
    assert entries[-2].reasons == ("worse",)
    assert [entry.time_us for entry in entries] == sorted(entry.time_us for entry in entries)


def test_labels_that_older_versions_moved_have_no_author(registry: Registry, folders: dict[int, Path]) -> None:
    pushed(registry, folders[1])
    pushed(registry, folders[2])
    log = ManifestLog(registry.data.registry.child("m"))
    delta = {"kind": "labels", "labels": {STABLE: 1}, "withdrawn": [2], "removed": [], "time_us": 9}
    assert log.try_append(registry.state.version + 1, delta)
    assert [(entry.action, entry.author, entry.reasons) for entry in history(registry)][-1] == ("rollback", "", ())


@pytest.mark.parametrize("signed", [Signature("", "why"), Signature("ann", "two\nlines"), Signature("ann", " ")])
def test_a_decision_is_signed(registry: Registry, folders: dict[int, Path], signed: Signature) -> None:
    pushed(registry, folders[1])
    for decide in (lambda: hold(registry, signed), lambda: withdraw(registry, [1], signed)):
        with pytest.raises(CimlError, match="want one printable line"):
            decide()
    assert registry.state.champion == 1


def test_the_facts_of_a_version(registry: Registry, folders: dict[int, Path]) -> None:
    pushed(registry, folders[1])
    facts = facts_of_version(registry, 1)
    assert (facts["state"], facts["labels"], facts["decision"]["metrics"]) == ("pushed", [STABLE], {"accuracy": 0.9})
    with pytest.raises(UnknownModelError, match=r"no version 2; versions: \[1\]"):
        facts_of_version(registry, 2)
