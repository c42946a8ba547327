"""Runs of the job unit in the real Zuul, with the causes of their failures: what the model learns.

They are run once, by changes like those of the loop, which takes half an hour, and kept in the folder of the real Zuul:
the listing of an operator who has judged each failed run, and the logs.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.interop.zuul.conftest import wait_until
from tests.interop.zuul.loop import API, EDITS, ENDED, FAILED, PASSED, SAME, Kind, machine, propose, reported

HERE = Path(__file__).parent
#: Changes that are tested at once; Zuul runs two jobs at a time.
_AT_ONCE = 6
_OUTCOMES = {"SUCCESS": "success", "FAILURE": "failure", "TIMED_OUT": "timeout"}
#: The changes, and the cause of their failures. Starved runs would disturb others.
_KINDS = (
    (Kind("passing, history", PASSED, (SAME,) * 24), ""),
    (Kind("failing by code, history", FAILED, EDITS * 8), "code"),
    (Kind("killed, history", FAILED, (SAME,) * 14, "killed"), "machine"),
    (Kind("starved, history", ENDED, (SAME,) * 14, "starved"), "machine"),
    (Kind("stopped, history", ENDED, (SAME,) * 14, "stopped"), "machine"),
)


def recorded(zuul: Path) -> Path:
    """Return the folder with the listing ``builds.jsonl`` and its logs; run the changes if it is not there yet.

    Args:
      zuul: the folder of the real Zuul, which is running.
    """
    sources = [*sorted((HERE / "app").glob("*.py")), *sorted((HERE / "zuul-config").rglob("*.yaml")), Path(__file__)]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    target = zuul / f"history-{digest}"
    if not target.is_dir():
        with tempfile.TemporaryDirectory(prefix=".history-", dir=zuul) as work:
            lines = [line for kind, cause in _KINDS for line in _run(zuul, kind, cause, Path(work))]
            assert len(lines) > 0.8 * sum(len(kind.edits) for kind, _ in _KINDS)
            Path(work, "builds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            os.rename(work, target)
            Path(work).mkdir()  # for the end of the block
    return target


def _run(zuul: Path, kind: Kind, cause: str, folder: Path) -> Iterator[dict[str, Any]]:
    """Run the changes of a kind. Yield their lines of the listing, and copy their logs below a folder."""
    with machine(zuul):
        for start in range(0, len(kind.edits), _AT_ONCE):
            changes = [propose(kind, edit) for edit in kind.edits[start : start + _AT_ONCE]]
            for change in changes:
                wait_until(lambda change=change: reported(change), f"check of change {change}")
            for change in changes:
                yield from _lines(zuul, kind, cause, change, folder)


def _lines(zuul: Path, kind: Kind, cause: str, change: str, folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the line of a change's run, if it ended as planned and not before the first sample."""
    with urllib.request.urlopen(f"{API}/builds?change={change}&project=app&job_name=unit", timeout=30) as answer:
        (build,) = json.load(answer)
    log = f"{build['uuid']}/dstat-csv_log.txt.gz"
    if _OUTCOMES.get(build["result"]) not in kind.outcomes or not (zuul / "sites" / log).is_file():
        print(f"history: {kind.name}, change {change}: {build['result']}, left out")
        return
    (folder / "logs" / build["uuid"]).mkdir(parents=True)
    shutil.copy(zuul / "sites" / log, folder / "logs" / log)
    yield {
        "build_uuid": build["uuid"], "build_name": "unit", "result": build["result"], "project": "app",
        "start_time": f"{build['start_time']}Z", "end_time": f"{build['end_time']}Z", "change": f"history-{change}",
        "log_path": f"logs/{log}", "labels": {"cause": cause} if cause else {},
    }  # fmt: skip
