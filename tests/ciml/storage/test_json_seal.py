"""Small JSON files are replaced whole or not at all; any damage of a sealed object is detected."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from ciml.errors import CimlError, EngineError, IntegrityError
from ciml.storage.json_files import digest_of, read_json, read_object, seal, seal_of, without_seal, write_json


@pytest.mark.parametrize("value", [{}, {"a": 1}, {"sha256": "0" * 64}, {"seal": "x", "text": 'é"'}])
def test_an_object_is_read_as_it_was_written(value: dict[str, Any]) -> None:
    for document in (json.dumps(value).encode(), json.dumps(value, indent=1).encode()):
        sealed = seal(document, "3:ab")
        assert without_seal(sealed) == document
        assert without_seal(document) == document or document.startswith(b'{"seal":"')
        found = seal_of(sealed, "x")
        assert found == ("3:ab", digest_of(sealed))
        assert read_object(sealed, "x") == value
        assert json.loads(sealed)["sha256"] == digest_of(sealed)


def test_an_object_of_an_older_version_has_no_seal() -> None:
    assert seal_of(b'{"a":1}', "x") is None
    assert read_object(b'{"a":1}\n', "x") == {"a": 1}


def test_each_flipped_bit_and_each_cut_is_detected() -> None:
    sealed = seal(b'{"number":1e5,"text":"a b","none":null}', "0" * 64)
    for bit in range(8 * len(sealed)):
        changed = bytearray(sealed)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(IntegrityError, match="x differs from its digest; restore a backup"):
            read_object(bytes(changed), "x")
    for size in range(1, len(sealed)):
        for cut in (sealed[:size], sealed[size:]):
            with pytest.raises(IntegrityError, match=r"^x "):
                read_object(cut, "x")
    for more in (b" ", b"\n", b"\0", b"}", sealed):
        with pytest.raises(IntegrityError, match="x differs from its digest"):
            read_object(sealed + more, "x")


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"7", b"\xff", b"[" * 100_000])
def test_what_is_no_object_is_an_error_of_the_caller_s_class(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"^state is unreadable \(.*\); remove it$"):
        read_object(content, "state", "remove it", EngineError)
    path = tmp_path / "state.json"
    path.write_bytes(content)
    with pytest.raises(CimlError, match=f"{path} is unreadable .*; remove it"):
        read_json(path)
    with pytest.raises(EngineError, match="; run ciml down"):
        read_json(path, "run ciml down", EngineError)


def test_what_was_written_is_read_and_a_missing_file_is_none(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "state.json"
    assert read_json(path) is None
    write_json(path, {"a": [1]}, 0o600)
    assert read_json(path) == {"a": [1]}
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_json(path, {"a": 2})
    assert read_json(path) == {"a": 1}
    assert os.listdir(tmp_path) == ["state.json"]
