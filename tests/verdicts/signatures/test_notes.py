"""Notes on failure signatures: appended, checked, inherited by what they supersede."""

from __future__ import annotations

from pathlib import Path

import pytest

from ciml.data_root import DataRoot
from ciml.errors import CimlError, IntegrityError
from ciml.manifest.log import ManifestLog
from ciml.storage import Store
from ciml.verdicts.signatures.notes import Note, add_note, read_notes


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return DataRoot.open(tmp_path).failures


def test_the_last_note_is_in_force_and_earlier_ones_remain(store: Store) -> None:
    first = add_note(store, Note("a", "ada", cause="machine", text="mirror down"), now_us=1)
    last = add_note(store, Note("a", "bob", name="mirror", cause="machine", text="mirror is back"), now_us=2)
    notes = read_notes(store)
    assert notes.of("a") == last == Note("a", "bob", "mirror", "machine", "mirror is back", time_us=2)
    assert notes.by_signature == {"a": [first, last]}
    assert notes.of("b") is None


def test_a_superseded_signature_inherits_the_notes_of_the_other_one(store: Store) -> None:
    add_note(store, Note("old", "ada", text="older advice"))
    add_note(store, Note("old", "ada", same_as="newer"))
    add_note(store, Note("newer", "ada", same_as="newest"))
    assert read_notes(store).of("old") is None
    advice = add_note(store, Note("newest", "ada", text="advice"))
    notes = read_notes(store)
    assert [notes.current(number) for number in ("old", "newer", "newest")] == ["newest"] * 3
    assert notes.of("old") == advice
    with pytest.raises(CimlError, match="old is the same as newest already"):
        add_note(store, Note("newest", "ada", same_as="old"))
    with pytest.raises(CimlError, match="a is the same as a already"):
        add_note(store, Note("a", "ada", same_as="a"))
    assert read_notes(store).version == 4


@pytest.mark.parametrize(
    ("note", "message"),
    [
        (Note("a", "ada"), "is empty"),
        (Note("a", "ada", cause="weather"), "unknown cause 'weather'; choose from code, machine"),
        (Note("a", "ada", text="two\nlines"), "note: text: 'two"),
        (Note("a", "ada", name="n" * 5000), "note: name: 'nnn"),
        (Note("a", "\x1b[2J", name="n"), "note: author"),
    ],
)
def test_an_invalid_note_is_rejected(store: Store, note: Note, message: str) -> None:
    with pytest.raises(CimlError, match=message):
        add_note(store, note)
    assert read_notes(store).version == 0


@pytest.mark.parametrize(
    ("delta", "message"),
    [
        ({"kind": "rename"}, "has kind 'rename'; upgrade ciml"),
        ({"kind": "note", "note": {"signature": 3}}, "version 1"),
    ],
)
def test_notes_of_a_later_version_are_not_guessed(store: Store, delta: dict[str, object], message: str) -> None:
    assert ManifestLog(store).try_append(1, delta)
    with pytest.raises(IntegrityError, match=message):
        read_notes(store)
