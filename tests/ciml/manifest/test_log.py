"""The manifest log: deltas are complete, and each is computed from the one before, with concurrent writers."""

from __future__ import annotations

import hashlib
import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ciml.digest import canonical_json
from ciml.errors import IntegrityError
from ciml.manifest.log import Delta, ManifestLog, catch_up, commit
from ciml.manifest.verify import seal_older
from ciml.storage import LocalStore


class Names:
    """A state that collects names, each once."""

    def __init__(self) -> None:
        self.version = 0
        self.names: list[str] = []

    def apply(self, version: int, delta: Delta) -> None:
        self.names += msgspec.convert(delta["names"], list[str])

    def build(self, wanted: list[str]) -> Delta | None:
        new = [name for name in wanted if name not in self.names]
        return {"names": new} if new else None


def names(log: ManifestLog) -> list[str]:
    state = Names()
    catch_up(log, state)
    return state.names


def test_commits_are_numbered_from_one_and_read_back_in_order(tmp_path: Path) -> None:
    log, state = ManifestLog(LocalStore(tmp_path)), Names()
    assert list(log.since(0)) == []
    assert commit(log, state, lambda: state.build(["a"])) == 1
    assert commit(log, state, lambda: state.build(["a", "b"])) == 2
    assert commit(log, state, lambda: state.build(["b", "a"])) is None
    assert list(log.since(0)) == [(1, {"names": ["a"], "version": 1}), (2, {"names": ["b"], "version": 2})]
    assert list(log.since(1)) == [(2, {"names": ["b"], "version": 2})]
    first, second = ((tmp_path / "_manifest" / f"00000000000{number}.json").read_bytes() for number in (1, 2))
    before = hashlib.sha256(first[:-66]).hexdigest()
    content = f'{{"seal":"{before}","names":["b"],"version":2,"sha256":"'.encode()
    assert second == content + hashlib.sha256(content).hexdigest().encode() + b'"}'
    assert state.names == names(log) == names(pickle.loads(pickle.dumps(log))) == ["a", "b"]


def test_a_state_gets_neither_a_malformed_delta_nor_one_out_of_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, state = ManifestLog(LocalStore(tmp_path)), Names()
    assert log.try_append(1, {"names": ["a"]})
    assert log.try_append(2, {"names": [3]})
    with pytest.raises(IntegrityError, match=f"{tmp_path}: version 2: malformed record: Expected `str`, got `int`"):
        catch_up(log, state)
    assert (state.version, state.names) == (1, ["a"])
    monkeypatch.setattr(ManifestLog, "since", lambda self, version: [(version + 2, {"names": ["c"]})])
    with pytest.raises(IntegrityError, match="version 3 follows 1"):
        catch_up(log, state)
    assert (state.version, state.names) == (1, ["a"])


@pytest.mark.parametrize("delta", [{}, {"names": 3}])
def test_an_intact_delta_of_another_form_is_an_error(tmp_path: Path, delta: Delta) -> None:
    class Plain(Names):
        def apply(self, version: int, delta: Delta) -> None:
            self.names += [name.lower() for name in delta["names"]]

    log = ManifestLog(LocalStore(tmp_path))
    assert log.try_append(1, delta)
    with pytest.raises(IntegrityError, match="version 1: malformed record"):
        catch_up(log, Plain())


def test_files_of_other_programs_in_a_manifest_are_ignored(tmp_path: Path) -> None:
    log = ManifestLog(LocalStore(tmp_path))
    for version in (1, 2, 3):
        assert log.try_append(version, {"names": [str(version)]})
    for path in (".a", "000000000001.json.bak", "checkpoints/.DS_Store", "segments/000000/x.tmp"):
        log.store.create(f"_manifest/{path}", b"")
    log = ManifestLog(log.store)
    assert (names(log), log.newest_checkpoint(), log.archive.sizes()) == (["1", "2", "3"], 0, [])
    assert list(log.single_deltas()) == [1, 2, 3]
    assert [version for version, _ in log.raw_of_listing(log.store.list(log.folder))] == [1, 2, 3]


def test_the_losing_writer_computes_again(tmp_path: Path) -> None:
    log, state, rival = ManifestLog(LocalStore(tmp_path)), Names(), Names()
    seen: list[list[str]] = []

    def build() -> Delta | None:
        seen.append(list(state.names))
        if len(seen) == 1:  # between the read and the commit
            commit(log, rival, lambda: rival.build(["a", "b"]))
        return state.build(["b", "c"])

    assert commit(log, state, build) == 2
    assert seen == [[], ["a", "b"]]
    assert commit(log, rival, lambda: rival.build(["c"])) is None  # nothing is left for it
    assert not log.try_append(2, {"names": ["d"]})
    assert names(log) == ["a", "b", "c"]


def _commit_all(root: str, first: int) -> None:
    log, state = ManifestLog(LocalStore(root)), Names()
    for number in range(first, first + 20):
        commit(log, state, lambda number=number: state.build([f"own-{number}", f"shared-{number % 20}"]))  # type: ignore[misc]


def test_processes_that_race_lose_and_double_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_commit_all, args=(str(tmp_path), first)) for first in (0, 20, 40)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    expected = [f"own-{number}" for number in range(60)] + [f"shared-{number}" for number in range(20)]
    assert sorted(names(ManifestLog(LocalStore(tmp_path)))) == sorted(expected)


def stored(log: ManifestLog, version: int) -> Path:
    return Path(log.store.url(log.path(version)))


def older(log: ManifestLog, version: int, **content: Any) -> None:
    """A delta as versions without digests wrote it."""
    assert log.store.create(log.path(version), canonical_json({**content, "version": version}))


def test_each_flipped_bit_of_a_delta_is_detected_by_each_reader(tmp_path: Path) -> None:
    log = ManifestLog(LocalStore(tmp_path))
    for version in (1, 2, 3):
        assert log.try_append(version, {"names": [f"n{version}"]})
    for version in (1, 2, 3):
        file = stored(log, version)
        good = file.read_bytes()
        for bit in range(8 * len(good)):
            changed = bytearray(good)
            changed[bit // 8] ^= 1 << bit % 8
            file.write_bytes(changed)
            with pytest.raises(IntegrityError, match=f"{file} "):
                list(ManifestLog(log.store).since(0))
            with pytest.raises(IntegrityError, match=f"{file} "):
                ManifestLog(log.store).read(version)
        others = (good[:-1], good + b"\n", good + b" ", good[1:], good.upper(), good * 2, b"", b"[]", b"\xff")
        for changed_bytes in others:
            file.write_bytes(changed_bytes)
            with pytest.raises(IntegrityError, match=f"{file} "):
                list(ManifestLog(log.store).since(0))
        file.write_bytes(good)
    assert names(ManifestLog(log.store)) == ["n1", "n2", "n3"]


def test_a_delta_of_another_history_is_detected(tmp_path: Path) -> None:
    ours, theirs = (ManifestLog(LocalStore(tmp_path / name)) for name in ("ours", "theirs"))
    for version in (1, 2, 3):
        assert ours.try_append(version, {"names": [f"n{version}"]})
        assert theirs.try_append(version, {"names": [f"m{version}"]})
    stored(ours, 2).write_bytes(stored(theirs, 2).read_bytes())
    with pytest.raises(IntegrityError, match=r"000000000002\.json does not follow from the delta before it"):
        list(ManifestLog(ours.store).since(0))
    with pytest.raises(IntegrityError, match=r"000000000003\.json does not follow from the delta before it"):
        list(ManifestLog(ours.store).since(1))


def test_deltas_of_an_older_version_are_read_and_covered_by_the_next_commit(tmp_path: Path) -> None:
    log = ManifestLog(LocalStore(tmp_path))
    for version in (1, 2, 3):
        older(log, version, names=[f"n{version}"])
    assert names(ManifestLog(log.store)) == ["n1", "n2", "n3"]
    state = Names()
    assert commit(log, state, lambda: state.build(["n4"])) == 4
    assert commit(log, state, lambda: state.build(["n5"])) == 5
    assert names(ManifestLog(log.store)) == ["n1", "n2", "n3", "n4", "n5"]
    assert [version for version, _ in ManifestLog(log.store).since(2)] == [3, 4, 5]
    for version in (1, 2, 3):
        good = stored(log, version).read_bytes()
        stored(log, version).write_bytes(good.replace(b"n", b"o", 1))
        with pytest.raises(IntegrityError, match=r"000000000004\.json does not follow"):
            list(ManifestLog(log.store).since(0))
        stored(log, version).write_bytes(good)


def test_a_delta_without_a_digest_after_one_with_a_digest_is_an_error_until_it_is_sealed(tmp_path: Path) -> None:
    """An older version was started again after an upgrade."""
    log = ManifestLog(LocalStore(tmp_path))
    older(log, 1, names=["n1"])
    for version in (2, 3):
        assert log.try_append(version, {"names": [f"n{version}"]})
    for version in (4, 5):
        older(log, version, names=[f"n{version}"])
    for read in (lambda: list(ManifestLog(log.store).since(0)), lambda: ManifestLog(log.store).read(4)):
        with pytest.raises(IntegrityError, match=r"000000000004\.json has no digest.*ciml migrate DATA --apply"):
            read()
    with pytest.raises(IntegrityError, match="has no digest"):
        list(ManifestLog(log.store).since(3))
    assert seal_older(ManifestLog(log.store)) == 2
    assert seal_older(ManifestLog(log.store)) == 0
    assert names(ManifestLog(log.store)) == ["n1", "n2", "n3", "n4", "n5"]
