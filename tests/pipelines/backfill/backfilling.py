"""What tests of backfill share: a small listing beside real logs, and what becomes of each of its lines."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ciml.data_root import DataRoot
from ciml.events.listing import Reading
from ciml.pipelines.backfill.plan import BackfillConfig
from ciml.runs.reader import verify_run
from ciml.transforms.fetch.policy import FetchPolicy
from tests.corpus import CORPUS, passed_builds
from tests.pipelines.ingest.ingesting import account, raw_rows


def corpus_lines(count: int) -> list[dict[str, Any]]:
    """Lines of the sample listing of runs that passed; taken again under other ids where there are not enough."""
    # without the pipeline, which makes a run trusted whatever its source is
    lines = [{name: value for name, value in line.items() if name != "pipeline"} for line in passed_builds(120)]
    return [
        {
            **lines[number % len(lines)],
            "build_uuid": f"{lines[number % len(lines)]['build_uuid']}.{number // len(lines)}",
        }
        for number in range(count)
    ]


@dataclass
class Listed:
    """A listing below a folder, and the (kind, reason) that each of its lines has to become."""

    folder: Path
    lines: list[bytes] = field(default_factory=list)
    expected: Counter[tuple[str, str]] = field(default_factory=Counter)
    runs: set[str] = field(default_factory=set)

    def add(self, line: dict[str, Any] | bytes, kind: str = "run", reason: str = "") -> None:
        self.lines.append(line if isinstance(line, bytes) else json.dumps(line).encode())
        if kind:
            self.expected[kind, reason] += 1
        if kind == "run":
            assert isinstance(line, dict)
            self.runs.add(f"zuul~{line['build_uuid']}~1")

    @property
    def path(self) -> Path:
        path = self.folder / "builds.jsonl"
        path.write_bytes(b"\n".join(self.lines) + b"\n")
        return path

    def config(self, data: Path | str, **changes: Any) -> BackfillConfig:
        return config(self.folder, data, **changes)


def config(logs: Path | str, data: Path | str, **changes: Any) -> BackfillConfig:
    fetch = FetchPolicy(file_roots=(str(logs),))
    made = {"reading": Reading("backfill", "zuul", str(logs)), "fetch": fetch, **changes}
    return BackfillConfig(DataRoot.open(str(data)).raw, **made)


def listed(folder: Path, runs: int = 40, tricks: bool = True) -> Listed:
    """A listing of real runs of which, with ``tricks``, every fourth line is followed by one that is odd."""
    made = Listed(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder.parent / "secret").write_bytes(b"secret")
    lines = corpus_lines(runs)

    def own(line: dict[str, Any], name: str) -> Path:
        target = folder / name
        shutil.copy(CORPUS / line["log_path"], target)
        return target

    def symlink(line: dict[str, Any]) -> None:
        (folder / "out").unlink(missing_ok=True)
        (folder / "out").symlink_to(folder.parent / "secret")
        made.add({**line, "build_uuid": "out", "log_path": "out"}, "dead_letter", "address_not_allowed")

    def cut(line: dict[str, Any]) -> None:
        path = own(line, "cut.gz")
        path.write_bytes(path.read_bytes()[:-9])
        made.add({**line, "build_uuid": "cut", "log_path": "cut.gz"}, "dead_letter", "corrupt_gzip")

    odd = [
        lambda line: made.add(b"{not json", "dead_letter", "broken_json"),
        lambda line: made.add(line, "repeat", "run"),
        lambda line: made.add({**line, "result": "FAILURE"}, "correction", "outcome"),
        lambda line: made.add({**line, "build_uuid": "c", "result": "ABORTED"}, "ignored", "cancelled"),
        lambda line: made.add({**line, "build_uuid": "n", "result": "NODE_FAILURE"}, "ignored", "node_lost"),
        lambda line: made.add({**line, "build_uuid": "up", "log_path": "../secret"}, "dead_letter", "bad_field"),
        lambda line: made.add({**line, "build_uuid": "abs", "log_path": "/etc/passwd"}, "dead_letter", "bad_field"),
        lambda line: made.add(
            {**line, "build_uuid": "net", "log_path": "http://127.0.0.1/x"}, "dead_letter", "address_not_allowed"
        ),
        lambda line: made.add({**line, "build_uuid": "gone", "log_path": "none"}, "dead_letter", "log_not_found"),
        symlink,
        cut,
        lambda line: made.add({**line, "build_uuid": "../x", "result": "odd"}, "dead_letter", "bad_field"),
        lambda line: made.add(b"  ", ""),
        lambda line: made.add({"build_name": "a"}, "dead_letter", "missing_field"),
    ]
    for number, line in enumerate(lines):
        target = folder / line["log_path"]
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            shutil.copy(CORPUS / line["log_path"], target)
        made.add(line)
        if tricks and number % 4 == 3:
            odd[number // 4 % len(odd)](line)
    return made


def rows_of(made: Listed, data: Path | str) -> dict[str, str]:
    """Compares the raw store with what the listing says; returns run id -> digest."""
    raw = DataRoot.open(str(data)).raw
    state, deltas = account(raw)
    assert state.counts == made.expected
    assert state.deferred == {}
    ((topic, partition, ranges),) = state.partitions()
    assert (partition, list(ranges)) == (0, [(0, len(made.lines))])
    assert topic.startswith("listing:")
    rows = raw_rows(deltas)
    assert rows.keys() == made.runs
    assert [fault for run_id, file in rows.items() if (fault := verify_run(raw, run_id, file))] == []
    offsets = [
        record["origin"][2]
        for delta in deltas
        for kind in ("runs", "repeats", "corrections", "ignored", "dead_letters")
        for record in delta[kind]
    ]
    assert sorted(offsets) == [number for number, line in enumerate(made.lines) if line.strip()]
    return {run_id: file.digest for run_id, file in rows.items()}
