"""Stores: the same contract in a folder and on S3, and no way out of the root."""

from __future__ import annotations

import os
import pickle
import threading
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


def test_create_is_exclusive_and_whole(store: Store) -> None:
    assert store.create("a/b", b"first") is True
    assert store.create("a/b", b"second") is False
    assert store.read("a/b") == b"first"


def test_replace_is_not_exclusive(store: Store) -> None:
    store.replace("a", b"first")
    store.replace("a", b"second")
    assert store.read("a") == b"second"


def test_what_is_not_there(store: Store) -> None:
    assert not store.exists("a")
    with pytest.raises(FileNotFoundError):
        store.read("a")
    store.delete("a")
    store.create("a/b", b"")
    assert store.exists("a/b")
    assert not store.exists("a")  # a folder is no object
    store.delete("a/b")
    assert not store.exists("a/b")


def test_list_is_sorted_and_goes_on_after_a_path(store: Store) -> None:
    for path in ("z", "m/2", "m/10", "m/1", "mm/1"):
        store.create(path, b"")
    assert store.list() == ["m/1", "m/10", "m/2", "mm/1", "z"]
    assert store.list("m") == ["m/1", "m/10", "m/2"]
    assert store.list("m", after="m/10") == ["m/2"]
    assert store.list("none") == []


def test_child_and_url(store: Store) -> None:
    child = store.child("raw")
    child.create("x", b"1")
    assert store.read("raw/x") == b"1"
    assert child.url("x") == f"{store.root}/raw/x"
    assert child == open_store(child.root)
    assert child != store


def test_a_store_can_be_pickled_after_use(store: Store) -> None:
    store.create("x", b"1")
    assert pickle.loads(pickle.dumps(store)).read("x") == b"1"


@pytest.mark.parametrize("path", ["", "/etc/passwd", "../x", "a/../../x", "a/\0b", ".."])
def test_no_path_leaves_the_root(store: Store, path: str) -> None:
    for call in (store.read, store.exists, store.delete, store.child, lambda p: store.create(p, b""), store.url):
        if path == "" and call == store.url:
            continue  # the root itself
        with pytest.raises(CimlError, match="no path below"):
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


def test_a_staged_file_is_no_object(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.create("a/x", b"1")
    (tmp_path / "a" / ".staging-left-by-a-kill").write_bytes(b"half")
    assert store.list() == ["a/x"]
    assert os.stat(tmp_path / "a" / "x").st_mode & 0o777 == 0o644
    assert sorted(os.listdir(tmp_path / "a")) == [".staging-left-by-a-kill", "x"]


def test_storage_that_fails_is_an_engine_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = LocalStore(tmp_path / "file")
    with pytest.raises(EngineError, match="cannot write"):
        store.create("x", b"")


@pytest.mark.engines
def test_no_bucket_is_an_engine_error(s3: Any) -> None:
    store = open_store("s3://not-a-bucket-anyone-made/x")
    with pytest.raises((EngineError, FileNotFoundError)):
        store.create("x", b"")


@pytest.mark.parametrize("url", ["http://host/x", "gs://bucket/x", "s3://", "s3:///x"])
def test_other_addresses_are_no_stores(url: str) -> None:
    with pytest.raises(CimlError):
        open_store(url)


def test_open_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_store("data") == LocalStore(tmp_path / "data")
    assert isinstance(open_store("s3://bucket/prefix/"), S3Store)
    assert open_store("s3://bucket/prefix/").root == "s3://bucket/prefix"
