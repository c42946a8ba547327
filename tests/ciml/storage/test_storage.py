"""Stores: the same contract in a folder and on S3, and no way out of the root."""

from __future__ import annotations

import errno
import os
import pickle
import random
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ciml.errors import CimlError, EngineError
from ciml.storage import LocalStore, S3Store, Store, open_store


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.engines)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "local":
        yield open_store(tmp_path / "root")
    else:
        s3: Any = request.getfixturevalue("s3")
        yield open_store(f"{s3.bucket()}/a/prefix")


def test_a_store_is_a_dictionary(store: Store) -> None:
    """Compared with one after each of many operations, some of them on a child or on a copy in another process."""
    choose, began, model = random.Random(1), time.time(), dict[str, bytes]()
    paths = ["a", "m/a/1", "m/2", "other/x"]
    for _ in range(120 if isinstance(store, LocalStore) else 40):  # a request to S3 takes long
        path, data = choose.choice(paths), choose.randbytes(choose.randrange(12))
        place = choose.choice([store, pickle.loads(pickle.dumps(store))])
        folder, _, name = path.partition("/")
        if name and choose.random() < 0.3:
            place, path = place.child(folder), name
        key = path if place.root == store.root else f"{folder}/{path}"
        verb = choose.choice(["create", "create", "replace", "delete"])
        if verb == "create":
            assert place.create(path, data) == (key not in model)
        else:
            place.delete(path) if verb == "delete" else place.replace(path, data)
        if verb == "delete":
            model.pop(key, None)
        elif verb == "replace" or key not in model:
            model[key] = data
        assert place.url(path) == f"{store.root}/{key}"
        assert {path: store.read(path) for path in store.list()} == model
        assert {entry.path: entry.size for entry in store.entries()} == {
            name: len(data) for name, data in model.items()
        }
        assert [entry.path for entry in store.child("m").entries("a")] == ["a/1"] * ("m/a/1" in model)
        assert all(store.exists(path) == (path in model) for path in (*paths, "m", "none"))  # a folder is no object
    assert store.child("m") == open_store(f"{store.root}/m") != store
    store.replace("a", b"0123456789")
    parts = [store.read_range("a", *part) for part in ((0, 4), (4, 1), (6, 100), (10, 4), (99, 1))]
    assert parts == [b"0123", b"4", b"6789", b"", b""]  # it may be cut meanwhile
    for read in (store.read, lambda path: store.read_range(path, 0, 4)):
        with pytest.raises(FileNotFoundError):
            read("none")
    assert list(store.entries("none")) == []
    assert all(began - 1.5 <= entry.modified_s <= time.time() + 1.5 for entry in store.entries())  # S3 has seconds


def test_list_is_sorted_and_goes_on_after_a_path(store: Store) -> None:
    for path in ("z", "m/2", "m/10", "m/1", "mm/1"):
        store.create(path, b"")
    assert store.list() == ["m/1", "m/10", "m/2", "mm/1", "z"]
    assert store.list("m") == ["m/1", "m/10", "m/2"]
    assert store.list("m", after="m/10") == ["m/2"]
    assert store.list("none") == []
    everything = ("a", "b/1/x", "b/10/y", "b/1x", "b/2/z/w", "c-d/1", "c/1", "m/1", "m/10", "m/2", "mm/1", "z")
    for path in everything:
        store.create(path, b"")
    for after in ("0", "a", "b", "b/1", "b/1/x", "b/1/y", "b/10", "b/2/z/a", "b0", "c", "c-d/1", "c/0", "zz"):
        assert store.list(after=after) == [path for path in everything if path > after]
        assert store.list("b", after=after) == [path for path in everything if path > after and path[:2] == "b/"]


def test_read_while_ends_at_the_first_that_is_missing(store: Store) -> None:
    for number in (0, 1, 2, 4, 5):
        store.create(f"m/{number}", bytes([number]))
    assert store.read_while([f"m/{number}" for number in range(9)]) == [b"\0", b"\1", b"\2"]
    assert store.read_while(["m/4", "m/5"]) == [b"\4", b"\5"]
    assert store.read_while(["m/3"]) == store.read_while([]) == []


@pytest.mark.parametrize("path", ["", "/etc/passwd", "../x", "a/../../x", "a/\0b", ".."])
def test_no_path_leaves_the_root(store: Store, path: str) -> None:
    for call in (store.read, store.exists, store.delete, store.child, lambda p: store.create(p, b""), store.url):
        if path == "" and call == store.url:
            continue  # the root itself
        with pytest.raises(CimlError, match="not a path below"):
            call(path)


def test_one_of_many_creates_wins(store: Store) -> None:
    results: list[tuple[bool, bytes]] = []
    gate = threading.Barrier(8)

    def race(data: bytes) -> None:
        gate.wait()
        results.append((store.create("x", data), data))

    threads = [threading.Thread(target=race, args=(bytes([65 + n]) * 100_000,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    [winner] = [data for won, data in results if won]
    assert store.read("x") == winner


def test_sweep_removes_what_killed_writers_left(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.create("m/a/x", b"1")
    store.create("m/empty/y", b"1")
    store.delete("m/empty/y")
    old, new = tmp_path / "m" / "a" / ".staging-old", tmp_path / "m" / "a" / ".staging-new"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (100, 100))
    os.utime(tmp_path / "m" / "empty", (100, 100))
    (tmp_path / "m" / "young").mkdir()  # a writer may be about to create an object there
    assert store.delete_leftovers("m", 200.0) == 1
    assert (old.exists(), new.exists(), store.list()) == (False, True, ["m/a/x"])
    assert os.stat(tmp_path / "m" / "a" / "x").st_mode & 0o777 == 0o644
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == ["a", "young"]
    assert store.delete_leftovers("none", 200.0) == 0


def test_a_folder_that_is_swept_while_a_file_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, made = LocalStore(tmp_path), []
    make = tempfile.mkstemp

    def swept_once(**arguments: Any) -> tuple[int, str]:
        made.append(arguments["dir"])
        if len(made) == 1:
            os.rmdir(arguments["dir"])
        return make(**arguments)

    monkeypatch.setattr(tempfile, "mkstemp", swept_once)
    assert store.create("a/b/x", b"1") is True
    assert (len(made), store.read("a/b/x")) == (2, b"1")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("step", ["fsync", "link", "replace", "mkdir"])
def test_a_disk_that_fails_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, number: int
) -> None:
    store = LocalStore(tmp_path)

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    write = store.replace if step == "replace" else store.create
    if step == "mkdir":
        monkeypatch.setattr(Path, step, fail)
    else:
        monkeypatch.setattr(os, step, fail)
    with pytest.raises(EngineError, match=os.strerror(number)):
        write("a/x", b"1")
    monkeypatch.undo()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    write("a/x", b"1")
    assert store.read("a/x") == b"1"


def test_a_folder_that_cannot_be_listed_written_or_deleted_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalStore(tmp_path)
    store.create("a/x", b"1")
    with pytest.raises(EngineError, match="cannot delete"):
        store.delete("a")
    with pytest.raises(EngineError, match="cannot write"):
        store.child("a/x").create("y", b"")
    assert store.read("a/x") == b"1"

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "scandir", fail)
    for listing in (store.list, lambda: list(store.entries())):  # it is no empty listing
        with pytest.raises(EngineError, match="cannot list"):
            listing()


def test_addresses_of_stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_store("data") == LocalStore(tmp_path / "data")
    assert isinstance(open_store("s3://bucket/prefix/"), S3Store)
    assert open_store("s3://bucket/prefix/").root == "s3://bucket/prefix"
    for url in ("http://host/x", "gs://bucket/x", "s3://", "s3:///x"):
        with pytest.raises(CimlError):
            open_store(url)
