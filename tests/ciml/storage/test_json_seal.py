"""Seals: any damage of a stored JSON object is detected, and objects of older versions are read as they are."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ciml.errors import CimlError, EngineError, IntegrityError
from ciml.storage.json_files import digest_of, read_object, seal, seal_of, without_seal


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
def test_what_is_no_object_is_an_error_of_the_caller_s_class(content: bytes) -> None:
    with pytest.raises(EngineError, match=r"^state is unreadable \(.*\); remove it$") as caught:
        read_object(content, "state", "remove it", EngineError)
    assert isinstance(caught.value, CimlError)
