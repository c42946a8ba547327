"""Small JSON files are replaced whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ciml.errors import CimlError, EngineError
from ciml.storage.json_files import read_json, write_json


def test_what_was_written_is_read_and_a_missing_file_is_none(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "state.json"
    assert read_json(path) is None
    write_json(path, {"a": [1]}, 0o600)
    assert read_json(path) == {"a": [1]}
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", [b"", b"{", b"[1, 2]", b"7", b"\xff"])
def test_an_unreadable_file_is_named_with_its_remedy(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "state.json"
    path.write_bytes(content)
    with pytest.raises(CimlError, match=f"{path} is unreadable .*; remove it"):
        read_json(path)
    with pytest.raises(EngineError, match="; run ciml down"):
        read_json(path, "run ciml down", EngineError)


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
