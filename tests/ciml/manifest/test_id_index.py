"""The sorted index of ids equals a dictionary, for any merges and any number of parts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ciml.errors import IntegrityError
from ciml.manifest import id_index
from ciml.manifest.id_index import TIER, IdTable, IndexFileMissingError, PartFiles, SortedRun, TableKind, fingerprint
from ciml.storage import LocalStore
from tests.tier import tries

KIND = TableKind({"value": "int64", "text": "string"}, is_removed=lambda values: np.from_dlpack(values["value"]) == 0)


def finish(table: IdTable) -> IdTable:
    steps = table.merged()
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def grown(table: IdTable, new: dict[bytes, int]) -> IdTable:
    rows = KIND.rows(list(new), {"value": list(new.values()), "text": [f"t{value}" for value in new.values()]})
    return finish(table.with_rows(rows))


def as_dict(table: IdTable) -> dict[bytes, int]:
    found: dict[bytes, int] = {}
    for rows in table.scan():
        for at, (high, low) in enumerate(zip(rows.high.tolist(), rows.low.tolist(), strict=True)):
            identity = high.to_bytes(8, "big") + low.to_bytes(8, "big")
            assert identity not in found
            value = rows.row(at)
            assert value["text"] == f"t{value['value']}"
            found[identity] = value["value"]
    return found


# Few first halves, so that two ids often share one, and the ends of the range.
_HALF = st.sampled_from([b"\0" * 8, b"\0" * 7 + b"\1", b"\x80" + b"\0" * 7, b"\xff" * 8, b"ABCDEFGH"])
_ID = st.builds(lambda one, two: one + two, _HALF, _HALF) | st.binary(min_size=16, max_size=16)


@settings(max_examples=tries(60))
@given(st.lists(st.dictionaries(_ID, st.integers(0, 9), max_size=12), max_size=20), st.integers(1, 6))
def test_a_table_is_a_dictionary_in_which_the_last_write_wins(
    tmp_path_factory: pytest.TempPathFactory, writes: list[dict[bytes, int]], part_rows: int
) -> None:
    files = PartFiles(LocalStore(tmp_path_factory.mktemp("parts")), "index")
    table, model = IdTable(KIND, (), files), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(id_index, "PART_ROWS", part_rows)
        for new in writes:
            table = grown(table, new)
            model.update(new)
        asked = [*model, *(bytes(reversed(identity)) for identity in model), b"\0" * 16]
        answers = table.get(asked)
        scanned = as_dict(table)
    # A removed id may still be found, with a value that marks it as removed; the caller checks that.
    want = {identity: value for identity, value in model.items() if value}
    got = {identity: answer["value"] for identity, answer in zip(asked, answers, strict=True) if answer}
    assert {identity: value for identity, value in got.items() if value} == want
    assert set(got) <= set(model)
    assert scanned == want


def test_eight_runs_of_a_level_become_one_of_the_next(tmp_path: Path) -> None:
    table = IdTable(KIND, (), PartFiles(LocalStore(tmp_path), "index"))
    for number in range(TIER * TIER + TIER + 1):
        table = grown(table, {fingerprint(f"{number} {one}"): number + 1 for one in range(10)})
    assert [(run.level, run.rows) for run in table.runs] == [(2, 640), (1, 80), (0, 10)]
    assert len(as_dict(table)) == 730


def test_parts_are_ranges_that_do_not_overlap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(id_index, "PART_ROWS", 100)
    table = IdTable(KIND, (), PartFiles(LocalStore(tmp_path), "index"))
    model: dict[bytes, int] = {}
    for _ in range(TIER):
        new = {os.urandom(16): 1 for _ in range(200)}
        table, model = grown(table, new), model | new
    nulls = KIND.rows([fingerprint("none")], {name: [None] for name in KIND.columns})
    assert table.with_rows(nulls).get([fingerprint("none")]) == [{"value": None, "text": None}]
    [run] = table.runs
    assert len(run.parts) == 16
    assert all(part.rows < 200 for part in run.parts)
    bounds = [bound for part in run.parts for bound in (part.first, part.last)]
    assert bounds == sorted(bounds)
    assert as_dict(table) == model


def test_ids_with_the_same_first_half_are_found_the_newest_first(tmp_path: Path) -> None:
    half = b"ABCDEFGH"
    table = IdTable(KIND, (), PartFiles(LocalStore(tmp_path), "index"))
    table = grown(table, {bytes(16): 1, half + bytes(8): 2, half + b"\xff" * 8: 3, b"\xff" * 16: 4})
    table = grown(table, {half + b"middle__": 5, half + b"more ids": 6})
    values = [[row["value"] for row in table.starting(half, most)] for most in (9, 3, 1)]
    assert [sorted(values[0][:2]), values[0][2:]] == [[5, 6], [2, 3]]
    assert values[1:] == [values[0][:3], values[0][:1]]
    assert table.starting(b"ABCDEFGG", 9) == []


def test_equal_rows_give_the_same_part(tmp_path: Path) -> None:
    def build(folder: Path) -> list[Any]:
        table = IdTable(KIND, (), PartFiles(LocalStore(folder), "index"))
        for number in range(20):
            table = grown(table, {fingerprint(str(one)): number + 1 for one in range(number, number + 30)})
        return [msgspec.to_builtins(run) for run in table.runs]

    one, two = build(tmp_path / "a"), build(tmp_path / "b")
    assert one == two
    assert [msgspec.to_builtins(msgspec.convert(value, SortedRun)) for value in one] == one


def test_removed_ids_are_dropped_with_the_oldest_run(tmp_path: Path) -> None:
    table = IdTable(KIND, (), PartFiles(LocalStore(tmp_path), "index"))
    ids = [fingerprint(str(one)) for one in range(100)]
    table = grown(table, dict.fromkeys(ids, 5))
    table = grown(table, dict.fromkeys(ids[:60], 0))
    assert set(as_dict(table)) == set(ids[60:])
    for number in range(TIER - 2):
        table = grown(table, {fingerprint(f"other {number}"): 1})
    assert [(run.level, run.rows) for run in table.runs] == [(1, 40 + TIER - 2)]
    for identity in ids[60 : 60 + TIER]:  # these runs are merged, but the run before them still has the ids
        table = grown(table, {identity: 0})
    assert [(run.level, run.rows) for run in table.runs] == [(1, 40 + TIER - 2), (1, TIER)]
    assert set(ids) & set(as_dict(table)) == set(ids[60 + TIER :])


def test_parts_are_released_while_another_thread_opens_some(tmp_path: Path) -> None:
    files = PartFiles(LocalStore(tmp_path), "index")
    first, second = (files.write(TableKind().rows([fingerprint(name)], {})) for name in "ab")
    files.open(first)

    class Used(list[str]):
        def __contains__(self, path: object) -> bool:
            files.open(second)
            return path == second.path

    files.release(Used())
    assert list(files._open) == [second.path]


def test_a_changed_or_missing_part_is_an_error_before_it_is_parsed(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    table = grown(IdTable(KIND, (), PartFiles(store, "index")), {fingerprint("a"): 1})
    [part] = table.runs[0].parts
    good = store.read(part.path)
    assert PartFiles(store, "index").check(part) is None
    assert table.get([fingerprint("a")]) == [{"value": 1, "text": "t1"}]
    for bit in (*range(0, 8 * len(good), 13), None):
        changed = bytearray(good) if bit is not None else bytearray(good[:-8])
        if bit is not None:
            changed[bit // 8] ^= 1 << bit % 8
        store.replace(part.path, bytes(changed))
        files = PartFiles(store, "index")
        assert "differs from its digest" in (files.check(part) or "")
        with pytest.raises(IntegrityError, match="differs from its digest"):
            IdTable(KIND, table.runs, files).get([fingerprint("a")])
    store.delete(part.path)
    assert "is missing" in (PartFiles(store, "index").check(part) or "")
    with pytest.raises(IndexFileMissingError):
        IdTable(KIND, table.runs, PartFiles(store, "index")).get([fingerprint("a")])
    assert table.get([fingerprint("a"), fingerprint("b")]) == [{"value": 1, "text": "t1"}, None]  # it is mapped


@pytest.mark.engines
def test_parts_on_s3_are_fetched_once_into_a_private_folder(s3: Any, tmp_path: Path) -> None:
    from ciml.storage import open_store

    store, cache = open_store(f"{s3.bucket()}/raw"), tmp_path / "cache"
    table = grown(IdTable(KIND, (), PartFiles(store, "index", cache)), {fingerprint("a"): 1})
    [part] = table.runs[0].parts
    assert table.get([fingerprint("a")]) == [{"value": 1, "text": "t1"}]
    assert (cache.stat().st_mode & 0o777, [file.stat().st_size for file in cache.iterdir()]) == (0o700, [part.size])
    good = store.read(part.path)
    store.replace(part.path, bytes(len(good)))
    other = PartFiles(store, "index", cache)
    assert other.open(part).batch["value"].to_pylist() == [1]  # from the cache
    [file] = cache.iterdir()
    file.write_bytes(b"cut short")
    with pytest.raises(IntegrityError, match="differs from its digest"):
        PartFiles(store, "index", cache).open(part)
    store.replace(part.path, good)
    assert len(PartFiles(store, "index", cache).open(part)) == 1
    other.release(())
    assert list(cache.iterdir()) == []
