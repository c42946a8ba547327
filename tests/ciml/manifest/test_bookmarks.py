"""A bookmark is used where it is whole, of its kind and of this history; else it is left aside."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from ciml.errors import EngineError
from ciml.manifest.bookmarks import Bookmark, Bookmarks
from ciml.storage import LocalStore


def bookmarks(folder: Path, kind: str = "k", **history: str) -> Bookmarks:
    """Bookmarks of a manifest whose versions 7 and 8 have the digests a7 and a8, or others."""
    digests = {"v7": "a7", "v8": "a8", **history}

    def digest_of(version: int) -> str:
        if digests[f"v{version}"]:
            return digests[f"v{version}"]
        raise FileNotFoundError(version)

    return Bookmarks(LocalStore(folder), "_replay", kind, digest_of)


def test_the_last_saved_one_is_loaded_unless_the_kind_or_the_history_is_another(tmp_path: Path) -> None:
    assert bookmarks(tmp_path).load() is None
    for version, state in ((7, b"one\nstate"), (8, b"")):
        bookmarks(tmp_path).save(version, state)
        assert bookmarks(tmp_path).load() == Bookmark(version, state)
    assert bookmarks(tmp_path, kind="l").load() is None
    assert bookmarks(tmp_path, v8="b8").load() is None
    assert bookmarks(tmp_path, v8="").load() is None  # the manifest has no version 8


def test_a_flipped_byte_is_left_aside(tmp_path: Path) -> None:
    bookmarks(tmp_path).save(7, b"state" * 20)
    good = (tmp_path / "_replay").read_bytes()
    for position in range(0, len(good), 7):
        (tmp_path / "_replay").write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
        assert bookmarks(tmp_path).load() is None, position


@pytest.mark.parametrize("data", [b"", b"\n", b"{}", b"[]\nx", b"null\n", b"\xff\n", b'{"format":1}\n'])
def test_anything_else_is_left_aside_with_a_warning(
    tmp_path: Path, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "_replay").write_bytes(data)
    assert bookmarks(tmp_path).load() is None
    assert "_replay is not a bookmark of this manifest" in caplog.text


def test_a_store_that_rejects_it_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def rejects(self: LocalStore, path: str, data: bytes) -> None:
        raise EngineError("read-only")

    monkeypatch.setattr(LocalStore, "replace", rejects)
    bookmarks(tmp_path).save(7, b"state")
    assert "_replay: not written: read-only" in caplog.text


class Words:
    """A reader whose state is words; the word "bad" is none."""

    def __init__(self) -> None:
        self.words: list[bytes] = []

    def restore(self, state: bytes) -> None:
        for word in state.split():
            self.words.append(word)
            if word == b"bad":
                raise msgspec.DecodeError("a bad word")


def test_a_reader_continues_from_the_bookmark_and_begins_anew_if_its_state_cannot_be_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reader, version = bookmarks(tmp_path).resume(Words)
    assert (reader.words, version) == ([], 0)
    bookmarks(tmp_path).save(7, b"two words")
    reader, version = bookmarks(tmp_path).resume(Words)
    assert (reader.words, version) == ([b"two", b"words"], 7)
    bookmarks(tmp_path).save(8, b"two bad words")
    reader, version = bookmarks(tmp_path).resume(Words)
    assert (reader.words, version) == ([], 0)
    assert "_replay cannot be read (a bad word)" in caplog.text
