"""Recordings that an earlier job of the same user put into the spool."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ciml.recorder.spool.folder import open_private
from ciml.recorder.spool.recording import Recording

T0_US = 1_795_600_000_000_000
TELEMETRY = b'"epoch","load avg",,\n"epoch","1m","5m","15m"\n' + b"".join(
    b"%d.5,1,2,3\n" % (T0_US // 1_000_000 + second) for second in range(3)
)
FILES = {"dstat-csv_log.txt": TELEMETRY}
GATE = {"pipeline": "gate", "project": "nova", "branch": "main", "event": "merge", "review": "approved"}


def planted_facts(native: str = "planted", source: str = "zuul", **more: Any) -> dict[str, Any]:
    """The run of a planted recording, as ``run.json`` holds it."""
    return {
        "run_id": f"{source}~{native}~1", "build_uuid": native, "build_name": "job", "phase": "started",
        "source": source, "start_us": T0_US, **GATE, **more,
    }  # fmt: skip


def plant(spool: Path, name: str | None = None, *, result: str = "SUCCESS", **plan: Any) -> Path:
    """A whole recording of a gated run that passed. ``plan`` changes its ``run.json``."""
    spool.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = spool / (name or f"{T0_US}-1")
    folder.mkdir(mode=0o700)
    content = {
        "mention": planted_facts(), "kafka": "", "samples_topic": "samples", "events_topic": "ci-events", "log_dir": "",
        "log_url": "", **plan,
    }  # fmt: skip
    (folder / "lock").touch()
    (folder / "run.json").write_text(json.dumps(content))
    (folder / "dstat-csv_log.txt").write_bytes(TELEMETRY)
    (folder / "starts").write_text(json.dumps({"offset": 0, "recorder_us": T0_US}) + "\n")
    (folder / "end.json").write_text(json.dumps({"end_us": T0_US + 4_000_000, "result": result, "labels": {}}))
    return folder


def taken(folder: Path) -> Recording:
    """The recording in a folder of the spool, locked by this process."""
    with open_private(folder.parent) as spool:
        recording = Recording.take(spool, folder.name)
    assert recording is not None
    return recording
