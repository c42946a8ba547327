"""The state of a registry follows from its deltas; a delta that contradicts the earlier ones is an error."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from ciml.data_root import DataRoot
from ciml.errors import CimlError, IntegrityError
from ciml.serving.registries import RegistryVerifier, known_registries
from ciml.serving.registry import Decision, Registry, RegistryState
from ciml.storage import open_store


def candidate(name: str, **files: str) -> dict[str, Any]:
    files = {"saved_model.pb": name, **files}
    facts = {"id": name, "digest": name * 64, "files": files, "folder": name, "facts": {}}
    return {"kind": "candidate", "candidate": facts}


def decision(name: str, blessed: bool) -> dict[str, Any]:
    return {"kind": "verdict", "candidate": name, "blessed": blessed, "reasons": [], "metrics": {}}


def staged(number: int, name: str = "a") -> dict[str, Any]:
    return {"kind": "staged", "candidate": name, "model_version": number}


def pushed(number: int, *labels: str) -> dict[str, Any]:
    return {"kind": "pushed", "model_version": number, "labels": dict.fromkeys(labels, number)}


def both(number: int, *labels: str, name: str = "a") -> list[dict[str, Any]]:
    return [staged(number, name), pushed(number, *labels)]


def labels(withdrawn: tuple[int, ...] = (), removed: tuple[str, ...] = (), **labels: int) -> dict[str, Any]:
    return {"kind": "labels", "labels": labels, "withdrawn": list(withdrawn), "removed": list(removed)}


def state_of(*deltas: dict[str, Any]) -> RegistryState:
    state = RegistryState()
    for version, delta in enumerate(deltas, 1):
        state.apply(version, {**delta, "time_us": version})
    return state


A, B = candidate("a"), candidate("b")
THREE = [A, *both(1, "stable"), *both(2, "stable"), *both(3, "stable")]


@pytest.mark.parametrize(
    ("deltas", "pending"),
    [
        ([A], None),
        ([A, decision("a", True)], "a"),
        ([A, decision("a", True), decision("a", False)], None),  # the last decision counts
        ([A, decision("a", False), decision("a", True)], "a"),
        ([A, decision("a", True), B], None),
        ([A, decision("a", True), B, A], "a"),  # the last candidate counts
        ([A, decision("a", True), staged(1)], "a"),
        ([A, decision("a", True), *both(1)], None),
    ],
)
def test_the_last_candidate_is_pending_while_it_is_blessed_and_not_pushed(
    deltas: list[dict[str, Any]], pending: str | None
) -> None:
    last = state_of(*deltas).pending()
    assert (last.id if last else None) == pending


@pytest.mark.parametrize(
    ("deltas", "served", "predecessor"),
    [
        (THREE, [2, 3], 2),
        ([*THREE, labels(stable=2, withdrawn=(3,))], [1, 2], 1),
        ([*THREE, labels(stable=2, withdrawn=(3,)), *both(4, "stable")], [2, 4], 2),  # 3 is no predecessor
        ([*THREE, labels(stable=2, withdrawn=(3,)), labels(stable=3), *both(4, "stable")], [3, 4], 3),  # it is again
        ([*THREE, {"kind": "labels", "labels": {"stable": 2}}], [1, 2], 1),
        ([*THREE, *both(4, "canary")], [2, 3, 4], 2),
        ([*THREE, *both(4, "canary"), labels(stable=2, withdrawn=(3, 4), removed=("canary",))], [1, 2], 1),
        ([A, *both(1, "canary")], [1], None),
        ([A, staged(1), {"kind": "abandoned", "model_version": 1}, *both(2, "stable")], [2], None),
    ],
)
def test_labelled_versions_and_the_champion_s_predecessor_are_served(
    deltas: list[dict[str, Any]], served: list[int], predecessor: int | None
) -> None:
    state = state_of(*deltas)
    assert state.served() == served
    assert (state.champion and state.predecessor(state.champion)) == predecessor


def test_a_candidate_that_was_pushed_twice_is_its_last_version() -> None:
    assert state_of(A, B, *both(1), *both(2, name="b"), *both(3), staged(4)).version_of("a") == 3


@pytest.mark.parametrize(
    ("deltas", "message"),
    [
        ([A, staged(1), staged(1)], "model version 1 is staged twice"),
        ([A, pushed(1)], "model version 1 is pushed but was never staged"),
        ([A, *both(1), pushed(1)], "model version 1 is pushed but was never staged"),
        ([A, staged(1), {"kind": "abandoned", "model_version": 1}, pushed(1)], "is pushed but was never staged"),
        ([A, staged(1), labels(stable=1)], "label stable names version 1, which was not pushed"),
        ([{"kind": "mood"}], "unknown kind 'mood'; upgrade ciml"),
    ],
)
def test_a_delta_that_contradicts_the_earlier_ones_is_an_error(deltas: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(IntegrityError, match=message):
        state_of(*deltas)


def test_the_last_candidate_and_its_last_decision_are_recorded(tmp_path: Path, folders: dict[int, Path]) -> None:
    registry = Registry(DataRoot.open(tmp_path), "m")
    first, _, again, _ = (registry.record_candidate(open_store(folders[seed])) for seed in (1, 2, 1, 1))
    assert (again.id, registry.state.last_candidate, registry.state.version) == (first.id, first.id, 3)
    for blessed in (True, False, True):
        for _ in range(2):  # the second adds nothing
            registry.record_decision(first.id, Decision(blessed, ("why",)))
        assert (registry.state.pending() is not None) is blessed
    assert registry.state.version == 6
    with pytest.raises(CimlError, match="unknown candidate x"):
        registry.record_decision("x", Decision(True))


def registry_of(data: DataRoot, model: str, *deltas: dict[str, Any]) -> Registry:
    registry = Registry(data, model)
    for delta in deltas:
        registry.commit(lambda _, delta=delta: delta)  # type: ignore[misc]
    return registry


def test_files_are_verified_only_as_those_of_a_pushed_and_blessed_version(tmp_path: Path) -> None:
    data, files = DataRoot.open(tmp_path), {"saved_model.pb": "a"}
    registry = registry_of(data, "m", A, decision("a", True), *both(1), staged(2), B, *both(3, name="b"))
    verify = RegistryVerifier(data.registry.root)
    verify("m", 1, files)
    for model, version, digests, message in [
        ("m", 1, {"saved_model.pb": "b"}, "saved_model.pb was altered"),
        ("m", 1, {}, "saved_model.pb is missing"),
        ("m", 1, {**files, "assets/more": "0"}, "assets/more was added"),
        ("m", 2, files, r"model m: version 2 was never pushed; pushed versions: \[1, 3\]"),
        ("m", 3, {"saved_model.pb": "b"}, "model m: version 3 is not blessed"),
        ("n", 1, files, "model n: version 1 was never pushed"),
    ]:
        with pytest.raises(IntegrityError, match=message):
            verify(model, version, digests)
    registry.commit(lambda _: decision("a", False))
    with pytest.raises(IntegrityError, match="model m: version 1 is not blessed"):
        verify("m", 1, files)


def test_an_asset_of_a_labelled_version_is_read_as_it_was_pushed(tmp_path: Path) -> None:
    with_asset = candidate("a", **{"assets/x": hashlib.sha256(b"good").hexdigest()})
    registry = registry_of(DataRoot.open(tmp_path), "m", with_asset, *both(1, "stable"))
    assert registry.labelled("stable") == 1
    with pytest.raises(CimlError, match="model m: no version has the label 'canary'; labels: stable"):
        registry.labelled("canary")
    with pytest.raises(IntegrityError, match="m/1/assets/x is missing"):
        registry.read_asset(1, "x")
    folder = registry.folder(1)
    folder.replace("assets/x", b"good")
    assert registry.read_asset(1, "x") == b"good"
    folder.replace("assets/x", b"bad")
    with pytest.raises(IntegrityError, match="assets/x"):
        registry.read_asset(1, "x")
    with pytest.raises(CimlError, match="model m: version 1 has no assets/y"):
        registry.read_asset(1, "y")


def test_registries_are_found_by_the_name_of_the_model(tmp_path: Path) -> None:
    data = DataRoot.open(tmp_path)
    with pytest.raises(CimlError, match="choose from none"):
        known_registries(data, "m")
    for model in ("m", "n"):
        registry_of(data, model, A)
    assert {name: registry.model for name, registry in known_registries(data).items()} == {"m": "m", "n": "n"}
    assert list(known_registries(data, "n")) == ["n"]
    with pytest.raises(CimlError, match=r"no model 'x' in .*; choose from m, n"):
        known_registries(data, "x")
