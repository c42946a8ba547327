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

from cli.demo.corpus import corpus_folder, unpack_logs

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


#: The unpacked corpus: ``builds.jsonl``, and the logs that it names by ``log_path``.
CORPUS = _unpacked()


@cache
def _lines() -> tuple[dict[str, Any], ...]:
    return tuple(json.loads(line) for line in (CORPUS / "builds.jsonl").read_text().splitlines())


def builds(count: int | None = None) -> list[dict[str, Any]]:
    """Return so many lines at equal distances, so that every recording is there; all by default."""
    return _spread(_lines(), count)


def passed_builds(count: int) -> list[dict[str, Any]]:
    """Return so many lines of first attempts that passed, at equal distances."""
    return _spread([line for line in _lines() if (line["result"], line["attempt"]) == ("SUCCESS", 1)], count)


def _spread(lines: Sequence[dict[str, Any]], count: int | None) -> list[dict[str, Any]]:
    wanted = len(lines) if count is None else count
    assert wanted <= len(lines), f"the corpus has {len(lines)} such runs, not {wanted}"
    return [dict(lines[at * len(lines) // wanted]) for at in range(wanted)]
