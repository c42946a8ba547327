"""Push: the served version changes atomically, at any crash, and only to a blessed candidate."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from ciml.data_root import DataRoot
from ciml.errors import CimlError, IntegrityError
from ciml.serving import push as push_module
from ciml.serving.model_files import list_versions, parse_config
from ciml.serving.push import (
    NotBlessedError,
    Pushed,
    push,
    push_candidate,
    reconcile,
    rollback,
    verify_versions,
    write_config,
)
from ciml.serving.registry import Decision, Registry, RegistryVerifier
from ciml.storage import Store, open_store
from tests.ciml.lineage.recorded import Recorded, names, states
from tests.durable import Disk, Steps

BLESSED = Decision(True, ("accuracy 0.9 is above 0.5",), {"accuracy": 0.9})


def pushed(data: DataRoot, folder: Path, **options: Any) -> Pushed:
    return push(data, "m", open_store(folder), BLESSED, check=False, **options)


def config(data: DataRoot) -> dict[str, tuple[tuple[int, ...], dict[str, int]]]:
    text = data.models.read("models.config").decode()
    return {one.name: (one.versions, dict(one.labels)) for one in parse_config(text)}


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.engines)])
def data(request: pytest.FixtureRequest, tmp_path: Path) -> DataRoot:
    if request.param == "local":
        return DataRoot.open(tmp_path / "data")
    return DataRoot.open(request.getfixturevalue("s3").bucket() + "/data")


def test_pushes_count_up_and_keep_the_predecessor(data: DataRoot, good: dict[int, Path]) -> None:
    assert [pushed(data, good[seed]).version for seed in (1, 2, 3)] == [1, 2, 3]
    assert config(data) == {"m": ((2, 3), {"stable": 3})}
    assert verify_versions(data, "m") == {1: "", 2: "", 3: ""}
    state = Registry(data, "m").state
    assert state.champion == 3
    assert state.candidates[state.versions[2].candidate].folder == str(good[2])
    assert state.decisions[state.versions[2].candidate] == BLESSED


def test_same_candidate_again_becomes_no_second_version(data: DataRoot, good: dict[int, Path]) -> None:
    assert pushed(data, good[1]) == pushed(data, good[1])
    assert Registry(data, "m").state.pushed() == [1]


def test_a_push_is_reported_with_its_candidate_and_its_version(data: DataRoot, good: dict[int, Path]) -> None:
    recorded = Recorded(data)
    done = pushed(data, good[1], facts={"refresh": "key"}, lineage=recorded)
    with pytest.raises(NotBlessedError):  # which is no push
        push(data, "m", open_store(good[2]), Decision(False, ("worse",)), check=False, lineage=recorded)
    assert states(recorded.events) == [("push.m", "START"), ("push.m", "COMPLETE")]
    begun, ended = recorded.events
    (candidate,), (version,) = ended["inputs"], ended["outputs"]
    assert begun["inputs"] == [candidate]
    prefix = data.url.removeprefix("s3://").partition("/")[2] if data.url.startswith("s3://") else data.url
    assert names([candidate]) == [(f"{prefix}/registry/m/candidates", "key")]
    assert names([version]) == [(f"{prefix}/models/m", "1")]
    digest = Registry(data, "m").state.candidates[done.candidate].digest
    assert (version["facets"]["ciml_data"]["label"], version["facets"]["ciml_data"]["digest"]) == ("stable", digest)


def test_without_a_blessing_nothing_moves(data: DataRoot, good: dict[int, Path]) -> None:
    pushed(data, good[1])
    with pytest.raises(NotBlessedError, match="worse than the champion"):
        push(data, "m", open_store(good[2]), Decision(False, ("worse than the champion",)), check=False)
    registry = Registry(data, "m")
    with pytest.raises(NotBlessedError, match="no decision of the gate is recorded"):
        push_candidate(registry, registry.record_candidate(open_store(good[3])).id, check=False)
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


def test_steps_of_a_push(data: DataRoot, good: dict[int, Path]) -> None:
    pushed(data, good[1])
    with Steps(data.url).recording() as steps:
        pushed(data, good[2])
    assert steps.steps == steps_of_push(data)


def test_a_push_survives_a_power_cut(tmp_path: Path, good: dict[int, Path]) -> None:
    data = DataRoot.open(tmp_path / "data")
    pushed(data, good[1])
    with Disk(tmp_path / "data").recording() as disk:
        pushed(data, good[2])
    disk.lose_unsynced()
    assert verify_versions(data, "m") == {1: "", 2: ""}
    assert config(data) == {"m": ((1, 2), {"stable": 2})}


def test_killed_before_each_step(data: DataRoot, good: dict[int, Path]) -> None:
    for index, step in enumerate(steps_of_push(data)):
        root = DataRoot(data.store.child(str(index)))
        pushed(root, good[1])
        with Steps(root.url, index).recording() as steps:
            pushed(root, good[2])
        assert steps.is_dead
        check_after_kill(root, good[2], step)


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


def test_torn_staging_is_noticed(data: DataRoot, good: dict[int, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    real = push_module._stage

    def torn(*arguments: Any) -> Store:
        staged = real(*arguments)
        staged.replace("saved_model.pb", staged.read("saved_model.pb")[:-1])
        return staged

    monkeypatch.setattr(push_module, "_stage", torn)
    with pytest.raises(IntegrityError, match=r"saved_model\.pb was altered"):
        pushed(data, good[1])
    assert Registry(data, "m").state.pushed() == []
    assert not data.store.exists("models/models.config")


def test_another_model_is_pushed_before_each_step(data: DataRoot, good: dict[int, Path]) -> None:
    """Both pushers write the configuration of all models; the last writer has seen the last commit."""
    both = {"m": ((1,), {"stable": 1}), "other": ((1,), {"stable": 1})}
    for index, step in enumerate(steps_of_push(data)):
        root = DataRoot(data.store.child(str(index)))

        def push_other(root: DataRoot = root) -> Pushed:
            return push(root, "other", open_store(good[1]), BLESSED, check=False)

        with Steps(root.url, index, push_other).recording() as steps:
            pushed(root, good[2])
        assert steps.before is None  # the other model was pushed
        assert config(root) == both, step
        assert write_config(root) is False, step


def test_two_pushers_never_share_a_number(
    data: DataRoot, good: dict[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = push_module._stage

    def overtaken(*arguments: Any) -> Store:
        monkeypatch.setattr(push_module, "_stage", real)
        assert pushed(data, good[2]).version == 2
        return real(*arguments)

    monkeypatch.setattr(push_module, "_stage", overtaken)
    with pytest.raises(CimlError, match="abandoned version 1 meanwhile; push again"):
        pushed(data, good[1])
    assert config(data) == {"m": ((2,), {"stable": 2})}
    assert pushed(data, good[1]).version == 3


def test_a_pusher_whose_version_is_abandoned_is_told_to_push_again(data: DataRoot, good: dict[int, Path]) -> None:
    staged = STEPS.index("append registry/m: staged")
    for index in range(staged + 1, len(steps_of_push(data)) - 1):
        root = DataRoot(data.store.child(str(index)))
        cleaning = Steps(root.url, index, lambda root=root: reconcile(Registry(root, "m")))  # type: ignore[misc]
        with (
            cleaning.recording(),
            pytest.raises(CimlError, match=r"another push, .* abandoned version 1 meanwhile"),
        ):
            pushed(root, good[1])
        assert pushed(root, good[1]).version == 2
        assert verify_versions(root, "m") == {2: ""}


def test_the_folder_of_an_abandoned_version_is_removed_by_a_later_call(data: DataRoot, good: dict[int, Path]) -> None:
    commit = steps_of_push(data).index("append registry/m: pushed")
    for index in range(commit):
        root = DataRoot(data.store.child(str(index)))
        with Steps(root.url, commit).recording():
            pushed(root, good[2])  # which has no warm-up file, as the steps say
        with Steps(root.url, index).recording() as cleaning:
            reconcile(Registry(root, "m"))
        removals = [step for step in cleaning.steps if step.startswith("delete models/m/1/")]
        assert removals[:1] in (
            [],
            ["delete models/m/1/"],
            ["delete models/m/1/saved_model.pb"],
        )  # the last to be created
        reconcile(Registry(root, "m"))
        assert Registry(root, "m").state.in_state("abandoned") == [1]
        assert list_versions(root.models.child("m")) == []
        assert cleaning.is_dead or index >= len(cleaning.steps) >= 2


def test_candidate_that_changes_after_its_blessing_is_rejected(
    data: DataRoot, good: dict[int, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(good[1], tmp_path / "candidate"))
    registry = Registry(data, "m")
    candidate = registry.record_candidate(open_store(folder))
    registry.record_decision(candidate.id, BLESSED)
    (folder / "assets" / "definition.json").write_text("{}")
    with pytest.raises(IntegrityError, match=r"assets/definition\.json was altered"):
        push_candidate(registry, candidate.id, check=False)


def test_unsound_candidate_is_not_pushed_even_with_a_blessing(tmp_path: Path) -> None:
    from tests.serving.models_fixture import save_model

    data = DataRoot.open(tmp_path / "data")
    with pytest.raises(IntegrityError, match="not finite"):
        push(data, "m", open_store(save_model(tmp_path / "nan", spoil="nan")), BLESSED)
    assert Registry(data, "m").state.pushed() == []


def test_rollback_withdraws_and_can_be_undone(data: DataRoot, good: dict[int, Path]) -> None:
    for seed in (1, 2, 3):
        pushed(data, good[seed])
    assert rollback(data, "m").version == 2
    assert config(data) == {"m": ((1, 2), {"stable": 2})}
    assert Registry(data, "m").state.versions[3].withdrawn
    assert rollback(data, "m").version == 1
    with pytest.raises(CimlError, match="no predecessor"):
        rollback(data, "m")
    assert rollback(data, "m", 3).version == 3
    assert config(data) == {"m": ((1, 3), {"stable": 3})}  # 2 stays withdrawn
    with pytest.raises(CimlError, match="version 9 was never pushed"):
        rollback(data, "m", 9)
    with pytest.raises(CimlError, match="no version has the label"):
        rollback(data, "other")


def test_canary_beside_stable(data: DataRoot, good: dict[int, Path]) -> None:
    pushed(data, good[1])
    pushed(data, good[2], label="canary")
    assert config(data) == {"m": ((1, 2), {"stable": 1, "canary": 2})}
    assert pushed(data, good[2]).version == 2  # promoted
    assert config(data) == {"m": ((1, 2), {"stable": 2, "canary": 2})}
    rollback(data, "m")
    assert config(data) == {"m": ((1,), {"stable": 1})}


def test_a_rollback_of_the_canary_leaves_stable_as_it_is(data: DataRoot, good: dict[int, Path]) -> None:
    pushed(data, good[1])
    pushed(data, good[2])
    pushed(data, good[3], label="canary")
    rollback(data, "m", 1, label="canary")
    state = Registry(data, "m").state
    assert state.labels == {"stable": 2, "canary": 1}
    assert [number for number in state.pushed() if state.versions[number].withdrawn] == [3]


def test_tampering_is_seen(tmp_path: Path, good: dict[int, Path]) -> None:
    data = DataRoot.open(tmp_path / "data")
    pushed(data, good[1])
    base = tmp_path / "data" / "models" / "m"
    assert Registry(data, "m").read_asset(1, "definition.json") == (good[1] / "assets" / "definition.json").read_bytes()
    shutil.copytree(good[2], base / "7")
    os.symlink(good[3], base / "8")
    file = base / "1" / "assets" / "definition.json"
    file.write_bytes(file.read_bytes().replace(b"10s", b"20s"))
    found = verify_versions(data, "m")
    assert "definition.json was altered" in found[1]
    assert "was not pushed by ciml" in found[7]
    assert set(found) == {1, 7}  # a link is not a version
    with pytest.raises(IntegrityError, match="was altered"):
        Registry(data, "m").read_asset(1, "definition.json")
    assert pushed(data, good[2]).version == 9  # above all existing folders


def test_verifier_knows_only_what_was_pushed(tmp_path: Path, good: dict[int, Path]) -> None:
    data = DataRoot.open(tmp_path)
    pushed(data, good[1])
    registry = Registry(data, "m")
    files = registry.state.files(1)
    verify = RegistryVerifier(data.registry.root)
    verify("m", 1, files)
    undecided = registry.record_candidate(open_store(good[2]))
    for kind in ("staged", "pushed"):
        registry.commit(lambda _, kind=kind: {"kind": kind, "candidate": undecided.id, "model_version": 2})  # type: ignore[misc]
    for model, version, digests, message in (
        ("m", 3, files, "version 3 was never pushed"),
        ("n", 1, files, "version 1 was never pushed"),
        ("m", 1, {**files, "assets/more": "0"}, "assets/more was added"),
        ("m", 1, {path: files[path] for path in list(files)[1:]}, "is missing"),
        ("m", 2, undecided.files, "version 2 is not blessed"),
    ):
        with pytest.raises(IntegrityError, match=message):
            verify(model, version, digests)
    registry.record_decision(registry.state.versions[1].candidate, Decision(False, ("on second thoughts",)))
    with pytest.raises(IntegrityError, match="version 1 is not blessed"):
        verify("m", 1, files)
