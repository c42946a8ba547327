"""The sample corpus of examples/, unpacked once a process: a listing with its logs beside it."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from ciml.cli.demo.corpus import corpus_folder, unpack_logs

#: The packed corpus: a card, a listing, an archive of logs.
PACKED = corpus_folder()


def _unpacked() -> Path:
    folder, owner = Path(tempfile.mkdtemp(prefix="ciml-corpus-")), os.getpid()

    def remove() -> None:
        if os.getpid() == owner:  # forked processes leave it to the one that made it
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    shutil.copyfile(PACKED / "builds.jsonl", folder / "builds.jsonl")
    return unpack_logs(PACKED, folder)


#: Lines at the beginning of the listing that further recordings do not move: tests that take a part of the corpus take
#: it from these, so that they see the same runs when it grows.
STABLE = 280
#: The unpacked corpus: ``builds.jsonl``, and the logs that it names by ``log_path``.
CORPUS = _unpacked()


@cache
def _lines() -> tuple[dict[str, Any], ...]:
    return tuple(json.loads(line) for line in (CORPUS / "builds.jsonl").read_text().splitlines())


def builds(count: int | None = None) -> list[dict[str, Any]]:
    """Return all lines; with a count, so many of the first `STABLE`, at equal distances."""
    return [dict(line) for line in _lines()] if count is None else _spread(_lines()[:STABLE], count)


def passed_builds(count: int) -> list[dict[str, Any]]:
    """Return so many lines of first attempts that passed, of the first `STABLE` lines at equal distances."""
    passed = [line for line in _lines()[:STABLE] if (line["result"], line["attempt"]) == ("SUCCESS", 1)]
    return _spread(passed, count)


def _spread(lines: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    assert count <= len(lines), f"there are {len(lines)} such runs, not {count}"
    return [dict(lines[at * len(lines) // count]) for at in range(count)]
