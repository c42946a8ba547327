"""``ciml failures``: what it lists, shows and stores."""

from __future__ import annotations

import getpass
import json
from pathlib import Path

import pytest
from click.testing import Result

from ciml.data_root import DataRoot
from tests.cli.calling import ciml
from tests.runs.scenes import RawStore
from tests.verdicts.signatures.test_stored import DOWN, add, add_all


@pytest.fixture
def data(tmp_path: Path) -> Path:
    add_all(RawStore(DataRoot.open(tmp_path / "data")))
    return tmp_path / "data"


def failures(data: Path, *words: str, code: int = 0) -> Result:
    return ciml("--data-path", data, "failures", *words, code=code)


def listed(data: Path, *words: str) -> list[str]:
    return [json.loads(line)["id"] for line in failures(data, *words, "--json").stdout.splitlines()]


def test_it_lists_the_lines_that_failed_runs_share(data: Path) -> None:
    ended, down = listed(data)
    table = failures(data).stdout
    rows = [line.split("│")[1:-1] for line in table.splitlines() if line.startswith("│ ")]
    assert [[cell.strip() for cell in row] for row in rows] == [
        [ended, "ends before: error: no cache was found here", "1", "1", "unit-tests", "1970-01-01 00:00", ""],
        [
            down,
            "error: could not reach the mirror token=REDACTED",
            "4",
            "4",
            "unit-tests",
            "1970-01-01 00:00",
            "machine",
        ],
    ]


def test_it_selects_by_time_job_and_number(data: Path) -> None:
    both = listed(data)
    assert listed(data, "--job", "unit-*") == both
    assert listed(data, "--job", "tempest", "--job", "docs") == []
    assert listed(data, "--last", "1") == both[:1]
    assert listed(data, "--runs", "2", "--last", "1") == both[1:]
    assert failures(data, "--since", "7d").output == "no failure signatures\n"
    assert listed(data, "list", "--since", "90000d") == both


def test_it_shows_a_signature_by_its_id_its_first_digits_or_a_run(data: Path) -> None:
    _, down = listed(data)
    shown = failures(data, "show", down).stdout
    assert shown == failures(data, "show", down[:5]).stdout == failures(data, "show", "zuul~7~1").stdout
    assert shown.splitlines() == [
        f"signature  {down}",
        "line       error: could not reach the mirror token=REDACTED",
        "first in   zuul~6~1, line 3",
        "compared   across all jobs",
        "seen       1970-01-01 00:00 to 1970-01-01 00:00",
        "runs       4, 4 trusted; latest: zuul~6~1, zuul~7~1, zuul~8~1, zuul~9~1",
        "changes    4, at most 4 within 6 h; latest: 6, 7, 8, 9",
        "jobs       unit-tests 4",
        "nodes      node-0 2, node-1 2",
        "providers  east 4",
        "indicates  machine",
    ]
    assert json.loads(failures(data, "show", down, "--json").stdout)["latest_runs"][0] == "zuul~6~1"
    assert "no failure signature 'zuul~1~1'" in failures(data, "show", "zuul~1~1", code=2).output
    assert "2 failure signatures begin with ''" not in failures(data, "show", "", code=2).output


def test_later_runs_inherit_the_note_of_a_signature(data: Path) -> None:
    ended, down = listed(data)
    words = ("--name", "mirror", "--cause", "machine", "--text", "mirror down, recheck after 14:00", "--author", "ada")
    named = failures(data, "name", down[:6], *words).stdout
    assert "\nnote       mirror: machine: mirror down, recheck after 14:00 (ada, 20" in named
    add(RawStore(DataRoot.open(data)), 12, DOWN)
    assert "mirror down, recheck after 14:00" in failures(data, "show", "zuul~12~1").stdout
    assert "mirror: machine: mirror down" in failures(data).stdout

    superseded = failures(data, "name", ended, "--same-as", down[:6]).stdout
    assert f"\nnote       same as {down}\n" in superseded
    assert "mirror down, recheck after 14:00" in superseded
    (note,) = [json.loads(line) for line in failures(data, "--json").stdout.splitlines() if json.loads(line)["same_as"]]
    assert (note["id"], note["same_as"], note["note"]["author"]) == (ended, down, "ada")


def test_the_author_of_a_note_is_the_user(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, down = listed(data)
    monkeypatch.setattr(getpass, "getuser", lambda: "grace")
    assert "advice (grace, 20" in failures(data, "name", down, "--text", "advice").stdout

    def nameless() -> str:
        raise OSError("no entry")

    monkeypatch.setattr(getpass, "getuser", nameless)
    anonymous = failures(data, "name", down, "--text", "x", code=2)
    assert "--author: the user of this process has no name" in anonymous.output


def test_a_note_that_says_nothing_is_rejected(data: Path) -> None:
    assert "note: is empty; give a name" in failures(data, "name", listed(data)[0], code=2).output


def test_lines_cannot_control_the_terminal(tmp_path: Path) -> None:
    raw = RawStore(DataRoot.open(tmp_path / "data"))
    add(raw, 1, "error: could not \x07reach \u202ethe mirror\n")
    for words in ((), ("show", "zuul~1~1")):
        shown = failures(tmp_path / "data", *words).stdout
        assert "could not" in shown
        assert not any(character in shown for character in "\x07\u202e")
