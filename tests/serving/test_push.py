"""Push: the served version changes atomically, at any crash, and only to a blessed candidate."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from ciml.data_root import DataRoot
from ciml.errors import CimlError, IntegrityError
from ciml.serving import contract
from ciml.serving import push as push_module
from ciml.serving.lease import leased
from ciml.serving.ledger import rollback
from ciml.serving.model_files import list_versions, parse_config
from ciml.serving.push import NotBlessedError, Pushed, push, push_candidate, reconcile, write_config
from ciml.serving.registries import verify_versions
from ciml.serving.registry import Decision, Registry
from ciml.storage import LocalStore, Store, open_store
from tests.ciml.lineage.recorded import Recorded, names, states
from tests.durable import Disk, Steps, each_step

BLESSED = Decision(True, ("accuracy 0.9 is above 0.5",), {"accuracy": 0.9})


def pushed(data: DataRoot, folder: Path, model: str = "m", **options: Any) -> Pushed:
    return push(data, model, open_store(folder), BLESSED, check=False, **options)


def config(data: DataRoot) -> dict[str, tuple[tuple[int, ...], dict[str, int]]]:
    text = data.models.read("models.config").decode()
    return {entry.name: (entry.versions, dict(entry.labels)) for entry in parse_config(text)}


@pytest.mark.parametrize(
    ("steps", "versions", "labels", "withdrawn"),
    [
        ("1 2 3", (2, 3), {"stable": 3}, []),  # the predecessor is kept
        ("1 1", (1,), {"stable": 1}, []),
        ("1 2canary", (1, 2), {"stable": 1, "canary": 2}, []),
        ("1 2canary 2", (1, 2), {"stable": 2, "canary": 2}, []),
        ("1 2canary 2 back", (1,), {"stable": 1}, [2]),
        ("1 2 3 back", (1, 2), {"stable": 2}, [3]),
        ("1 2 3 back back", (1,), {"stable": 1}, [2, 3]),
        ("1 2 3 back back back3", (1, 3), {"stable": 3}, [2]),
        ("1 2 3canary back1canary", (1, 2), {"stable": 2, "canary": 1}, [3]),
    ],
)
def test_versions_and_labels_after_pushes_and_rollbacks(
    data: DataRoot, folders: dict[int, Path], steps: str, versions: Any, labels: dict[str, int], withdrawn: list[int]
) -> None:
    for back, seed, label in re.findall(r"(back)?(\d?)(canary)?(?: |$)", steps)[:-1]:
        if back:
            rollback(data, "m", int(seed) if seed else None, label=label or "stable")
        else:
            assert pushed(data, folders[int(seed)], label=label or "stable").version == int(seed)
    assert config(data) == {"m": (versions, labels)}
    state = Registry(data, "m").state
    assert [version for version in state.pushed() if state.versions[version].withdrawn] == withdrawn
    assert set(verify_versions(data, "m").values()) == {""}


def test_a_rollback_without_a_target_is_an_error(data: DataRoot, folders: dict[int, Path]) -> None:
    pushed(data, folders[1])
    with pytest.raises(CimlError, match="no predecessor"):
        rollback(data, "m")
    with pytest.raises(CimlError, match="version 9 was never pushed"):
        rollback(data, "m", 9)
    with pytest.raises(CimlError, match="no version has the label"):
        rollback(data, "other")


def test_the_candidate_and_the_decision_of_a_version_are_recorded(data: DataRoot, folders: dict[int, Path]) -> None:
    done = pushed(data, folders[2])
    state = Registry(data, "m").state
    candidate = state.candidates[state.versions[1].candidate]
    assert (state.champion, candidate.folder) == (1, str(folders[2]))
    assert state.decisions[candidate.id] == BLESSED
    assert done == pushed(data, folders[2]) == Pushed("m", 1, "stable", candidate.id)
    assert Registry(data, "m").state.version == state.version  # the second push records nothing


def test_a_push_is_reported_with_its_candidate_and_its_version(data: DataRoot, folders: dict[int, Path]) -> None:
    recorded = Recorded(data)
    done = pushed(data, folders[1], facts={"refresh": "key"}, lineage=recorded)
    with pytest.raises(NotBlessedError):  # which is no push
        push(data, "m", open_store(folders[2]), Decision(False, ("worse",)), check=False, lineage=recorded)
    assert states(recorded.events) == [("push.m", "START"), ("push.m", "COMPLETE")]
    begun, ended = recorded.events
    (candidate,), (version,) = ended["inputs"], ended["outputs"]
    assert begun["inputs"] == [candidate]
    assert names([candidate]) == [(f"{data.url}/registry/m/candidates", "key")]
    assert names([version]) == [(f"{data.url}/models/m", "1")]
    digest = Registry(data, "m").state.candidates[done.candidate].digest
    facts = candidate["facets"]["ciml_data"]
    assert (facts["candidate"], facts["digest"]) == (done.candidate, digest)
    assert (version["facets"]["ciml_data"]["label"], version["facets"]["ciml_data"]["digest"]) == ("stable", digest)


def test_without_a_blessing_nothing_moves(data: DataRoot, folders: dict[int, Path]) -> None:
    pushed(data, folders[1])
    with pytest.raises(NotBlessedError, match="worse than the champion"):
        push(data, "m", open_store(folders[2]), Decision(False, ("worse than the champion",)), check=False)
    registry = Registry(data, "m")
    with pytest.raises(NotBlessedError, match="no decision of the gate is recorded"):
        push_candidate(registry, registry.record_candidate(open_store(folders[3])).id, check=False)
    assert config(data) == {"m": ((1,), {"stable": 1})}
    assert registry.state.pushed() == [1]
    assert len(registry.state.candidates) == 3


#: Steps of a push of a second version. On S3, the folder has its number from the start.
STEPS = [
    "append registry/m: candidate",
    "append registry/m: verdict",
    "append registry/m: staged",
    "create models/m/staging-2-*/assets/definition.json",
    "create models/m/staging-2-*/fingerprint.pb",
    "create models/m/staging-2-*/variables/variables.data-00000-of-00001",
    "create models/m/staging-2-*/variables/variables.index",
    "create models/m/staging-2-*/saved_model.pb",  # last: a model server on S3 loads what has this file
    "rename models/m/staging-2-* to models/m/2",
    "append registry/m: pushed",
    "replace models/models.config",
]


def steps_of_push(data: DataRoot) -> list[str]:
    if data.url.startswith("s3://"):
        return [step.replace("staging-2-*", "2") for step in STEPS if not step.startswith("rename")]
    return STEPS


def test_steps_of_a_push(anywhere: DataRoot, folders: dict[int, Path]) -> None:
    pushed(anywhere, folders[1])
    with Steps(anywhere.url).recording() as steps:
        pushed(anywhere, folders[2])
    assert steps.steps == steps_of_push(anywhere)


def test_a_push_survives_a_power_cut(data: DataRoot, folders: dict[int, Path]) -> None:
    pushed(data, folders[1])
    with Disk(Path(data.url)).recording() as disk:
        pushed(data, folders[2])
    disk.lose_unsynced()
    assert verify_versions(data, "m") == {1: "", 2: ""}
    assert config(data) == {"m": ((1, 2), {"stable": 2})}


def test_killed_before_each_step(anywhere: DataRoot, folders: dict[int, Path]) -> None:
    steps = steps_of_push(anywhere)
    for index in each_step(len(steps) - 1, few=steps != STEPS):
        root = DataRoot(anywhere.store.child(str(index)))
        pushed(root, folders[1])
        with Steps(root.url, index).recording() as recorded:
            pushed(root, folders[2])
        assert recorded.is_dead
        check_after_kill(root, folders[2], steps[index])


def check_after_kill(data: DataRoot, candidate: Path, step: str) -> None:
    """Each configured version is complete and blessed, and the next push serves the candidate and cleans up."""
    served = config(data)["m"]
    assert served == ((1,), {"stable": 1}), step
    assert verify_versions(data, "m")[1] == ""
    registry = Registry(data, "m")
    pending = registry.state.pending()
    if step == "replace models/models.config":
        assert pending is None
        reconcile(registry)
    elif step in STEPS[:2]:
        assert pending is None
        pushed(data, candidate)
    else:
        assert pending is not None
        assert push_candidate(registry, pending.id, check=False).version > 1
    champion = Registry(data, "m").state.champion
    assert champion in (2, 3)
    assert config(data) == {"m": ((1, champion), {"stable": champion})}
    assert verify_versions(data, "m") == {1: "", champion: ""}
    assert [path for path in data.models.list("m") if "staging" in path] == []
    assert reconcile(Registry(data, "m")) == []


def test_torn_staging_is_noticed(data: DataRoot, folders: dict[int, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    real = push_module._create

    def torn(target: Store, path: str, content: bytes) -> None:
        real(target, path, content[:-1] if path == "saved_model.pb" else content)

    monkeypatch.setattr(push_module, "_create", torn)
    with pytest.raises(IntegrityError, match=r"saved_model\.pb was altered"):
        pushed(data, folders[1])
    assert Registry(data, "m").state.pushed() == []
    assert not data.store.exists("models/models.config")
    assert [line for line in reconcile(Registry(data, "m")) if re.fullmatch(r"staging-1-[0-9a-f]{8} removed", line)]


@pytest.mark.parametrize("own", [True, False])
def test_an_object_that_exists_already_is_the_pusher_s_own_or_an_error(
    data: DataRoot, folders: dict[int, Path], monkeypatch: pytest.MonkeyPatch, own: bool
) -> None:
    create = LocalStore.create

    def create_again(store: LocalStore, path: str, content: bytes) -> bool:
        if path == "saved_model.pb":
            create(store, path, content if own else b"other")
        return create(store, path, content)

    monkeypatch.setattr(LocalStore, "create", create_again)
    if own:
        assert pushed(data, folders[1]).version == 1
    else:
        with pytest.raises(IntegrityError, match=r"saved_model\.pb exists already"):
            pushed(data, folders[1])


def test_another_model_is_pushed_before_each_step(data: DataRoot, folders: dict[int, Path]) -> None:
    """Both pushers write the configuration of all models; the last writer has seen the last commit."""
    both = {"m": ((1,), {"stable": 1}), "other": ((1,), {"stable": 1})}
    for index, step in enumerate(steps_of_push(data)):
        root = DataRoot(data.store.child(str(index)))

        def push_other(root: DataRoot = root) -> Pushed:
            return pushed(root, folders[1], "other")

        with Steps(root.url, index, push_other).recording() as steps:
            pushed(root, folders[2])
        assert steps.before is None  # the other model was pushed
        assert config(root) == both, step
        assert write_config(root) is False, step


def test_two_pushers_of_one_moment_take_two_numbers(
    data: DataRoot, folders: dict[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their deltas differ only in the pusher."""
    first, second = (Registry(data, "m", now_us=lambda: 1_000_000) for _ in range(2))
    candidate = first.record_candidate(open_store(folders[1]))
    assert second.state.version == first.state.version
    real_listing = push_module.list_versions
    numbers: list[int] = []

    def meanwhile(base: Store, *, real: bool = True) -> list[int]:
        monkeypatch.setattr(push_module, "list_versions", real_listing)
        numbers.append(push_module._take_number(first, candidate.id))
        return real_listing(base, real=real)

    monkeypatch.setattr(push_module, "list_versions", meanwhile)
    numbers.append(push_module._take_number(second, candidate.id))
    assert numbers == [1, 2]
    assert sorted(first.state.versions) == [1, 2]


def test_a_pusher_whose_version_is_abandoned_is_told_to_push_again(data: DataRoot, folders: dict[int, Path]) -> None:
    staged = STEPS.index("append registry/m: staged")
    for index in range(staged + 1, len(steps_of_push(data)) - 1):
        root = DataRoot(data.store.child(str(index)))
        cleaning = Steps(root.url, index, lambda root=root: reconcile(Registry(root, "m")))  # type: ignore[misc]
        with cleaning.recording(), pytest.raises(CimlError, match=r"another push, .* abandoned version 1 meanwhile"):
            pushed(root, folders[1])
        assert pushed(root, folders[1]).version == 2
        assert verify_versions(root, "m") == {2: ""}


def test_the_push_of_a_trainer_with_a_lease_is_not_cleaned_up(data: DataRoot, folders: dict[int, Path]) -> None:
    staged = STEPS.index("append registry/m: staged")
    for index in range(1, len(STEPS) - staged):
        root = DataRoot(data.store.child(str(index)))
        trainer = Registry(root, "m")
        candidate = trainer.record_candidate(open_store(folders[1]))
        trainer.record_decision(candidate.id, BLESSED)
        cleaning = Steps(root.url, index, lambda root=root: reconcile(Registry(root, "m")))  # type: ignore[misc]
        with leased(trainer), cleaning.recording():
            assert push_candidate(trainer, candidate.id, check=False).version == 1
        assert cleaning.before is None  # it was called
        assert verify_versions(root, "m") == {1: ""}


def test_the_folder_of_an_abandoned_version_is_removed_by_a_later_call(
    anywhere: DataRoot, folders: dict[int, Path]
) -> None:
    commit = steps_of_push(anywhere).index("append registry/m: pushed")
    removals: list[list[str]] = []
    while True:
        root = DataRoot(anywhere.store.child(str(len(removals))))
        with Steps(root.url, commit).recording():
            pushed(root, folders[2])
        with Steps(root.url, len(removals)).recording() as cleaning:
            reconcile(Registry(root, "m"))
        removals.append([step for step in cleaning.steps if step.startswith("delete models/m/1/")])
        reconcile(Registry(root, "m"))
        assert Registry(root, "m").state.in_state("abandoned") == [1]
        assert list_versions(root.models.child("m")) == []
        if not cleaning.is_dead:
            break
    assert len(removals) > 2
    # A folder is removed at once; of a prefix, the object that was the last to be created is removed first.
    assert removals[-1][0] in ("delete models/m/1/", "delete models/m/1/saved_model.pb")


def test_candidate_that_changes_after_its_blessing_is_rejected(
    data: DataRoot, folders: dict[int, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(folders[1], tmp_path / "candidate"))
    registry = Registry(data, "m")
    candidate = registry.record_candidate(open_store(folder))
    registry.record_decision(candidate.id, BLESSED)
    (folder / "assets" / "definition.json").write_text("{}")
    with pytest.raises(IntegrityError, match=r"assets/definition\.json was altered"):
        push_candidate(registry, candidate.id, check=False)


def test_unsound_candidate_is_not_pushed_even_with_a_blessing(
    data: DataRoot, folders: dict[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(folder: Store) -> None:
        raise IntegrityError(f"{folder.root}: not finite")

    monkeypatch.setattr(contract, "check_candidate", check)
    with pytest.raises(IntegrityError, match="not finite"):
        push(data, "m", open_store(folders[1]), BLESSED)
    assert Registry(data, "m").state.versions == {}


def test_tampering_is_seen(data: DataRoot, folders: dict[int, Path]) -> None:
    pushed(data, folders[1])
    base = Path(data.url, "models", "m")
    shutil.copytree(folders[2], base / "7")
    os.symlink(folders[3], base / "8")
    file = base / "1" / "assets" / "definition.json"
    file.write_bytes(file.read_bytes().replace(b"10s", b"20s"))
    found = verify_versions(data, "m")
    assert "definition.json was altered" in found[1]
    assert "was not pushed by ciml" in found[7]
    assert set(found) == {1, 7}  # a link is not a version
    assert pushed(data, folders[2]).version == 9  # above all existing folders
