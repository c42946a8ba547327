"""A bookmark is used where it is whole, of its kind and of this history; else it is left aside."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from ciml.errors import EngineError
from ciml.manifest.bookmarks import Bookmark, Bookmarks
from ciml.storage import LocalStore

DIGESTS = {7: "a7", 8: "a8"}


def digest_of(version: int) -> str:
    if version not in DIGESTS:
        raise FileNotFoundError(version)
    return DIGESTS[version]


def bookmarks(folder: Path, kind: str = "k", history: dict[int, str] = DIGESTS) -> Bookmarks:
    return Bookmarks(LocalStore(folder), "_replay", kind, lambda version: history[version])


def test_what_is_saved_is_loaded_and_the_last_one_counts(tmp_path: Path) -> None:
    kept = Bookmarks(LocalStore(tmp_path), "_replay", "k", digest_of)
    assert kept.load() is None
    kept.save(7, b"one\nstate")
    assert kept.load() == Bookmark(7, b"one\nstate")
    kept.save(8, b"")
    assert bookmarks(tmp_path).load() == Bookmark(8, b"")


def test_another_kind_or_another_history_is_left_aside(tmp_path: Path) -> None:
    bookmarks(tmp_path).save(7, b"state")
    assert bookmarks(tmp_path, kind="l").load() is None
    assert bookmarks(tmp_path, history={7: "b7"}).load() is None
    DIGESTS.pop(8)
    bookmarks(tmp_path, history={8: "a8"}).save(8, b"state")
    assert Bookmarks(LocalStore(tmp_path), "_replay", "k", digest_of).load() is None  # the manifest has no version 8
    DIGESTS[8] = "a8"
    assert Bookmarks(LocalStore(tmp_path), "_replay", "k", digest_of).load() is not None


@pytest.mark.parametrize("position", range(0, 200, 7))
def test_a_flipped_byte_is_left_aside(tmp_path: Path, position: int) -> None:
    bookmarks(tmp_path).save(7, b"state" * 20)
    file = tmp_path / "_replay"
    data = bytearray(file.read_bytes())
    data[position % len(data)] ^= 1
    file.write_bytes(data)
    assert Bookmarks(LocalStore(tmp_path), "_replay", "k", digest_of).load() is None


@pytest.mark.parametrize("data", [b"", b"\n", b"{}", b"[]\nx", b"null\n", b"\xff\n", b'{"format":1}\n'])
def test_anything_else_is_left_aside_with_a_warning(
    tmp_path: Path, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "_replay").write_bytes(data)
    with caplog.at_level(logging.WARNING):
        assert bookmarks(tmp_path).load() is None
    assert "_replay is no bookmark of this manifest" in caplog.text


def test_a_store_that_rejects_it_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def rejects(self: LocalStore, path: str, data: bytes) -> None:
        raise EngineError("read-only")

    monkeypatch.setattr(LocalStore, "replace", rejects)
    with caplog.at_level(logging.WARNING):
        bookmarks(tmp_path).save(7, b"state")
    assert "_replay: not written: read-only" in caplog.text
