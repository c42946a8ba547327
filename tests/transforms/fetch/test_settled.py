"""A run is the same raw row, wherever its log was: in a file, in a folder, or in an artifact of its CI system."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pytest

from ciml.events.records import Batch, Outcome, RunFacts
from ciml.storage import open_store
from ciml.transforms.fetch import fetch
from ciml.transforms.fetch.fetch import Fetcher
from ciml.transforms.fetch.policy import FetchPolicy
from ciml.transforms.ingest.run_stages import take_logs
from tests.corpus import CORPUS
from tests.transforms.fetch.fetching import NOW, pending
from tests.transforms.fetch.github import Systems, job, listed, systems
from tests.transforms.fetch.zips import zipped


def test_a_run_has_the_same_row_wherever_its_log_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (CORPUS / "builds.jsonl").open() as lines:
        run = json.loads(next(lines))
    log = (CORPUS / run["log_path"]).read_bytes()
    file = tmp_path / "logs" / "dstat-csv_log.txt.gz"
    file.parent.mkdir()
    file.write_bytes(log)
    start_us, end_us = (int(datetime.fromisoformat(run[key]).timestamp() * 1e6) for key in ("start_time", "end_time"))
    facts = job("terasort").replace(start_us=start_us, end_us=end_us)
    with systems(tmp_path) as both:
        both.lists(listed(1, "ciml-terasort", end_us))
        both.artifact(1, zipped({"telemetry/terasort/github~42~1/dstat-csv_log.txt.gz": log}, streamed=True))
        both.stores("/api/v4/projects/3/jobs/42/artifacts", zipped({"logs/dstat-csv.log": log}))
        both.api.answers["/zuul/42/controller/logs/dstat-csv_log.txt"] = (200, log, {})
        policy = both.policy.replace(file_roots=(str(tmp_path),))
        fetcher = Fetcher(policy, lambda *_: ["127.0.0.1"])
        monkeypatch.setattr(fetch, "_fetcher", lambda _: fetcher)  # it resolves the names of this test
        rows = [_row(url, facts, policy, tmp_path / f"{at}") for at, url in enumerate(_addresses(both, str(file)))]
        fetcher.close()
    assert [(each.kind, each.reason) for each in rows] == [("run", "")] * 5
    assert {(each.file.digest, each.file.rows) for each in rows if each.file} == {(rows[0].file.digest, run["rows"])}


def _addresses(both: Systems, file: str) -> list[str]:
    folder = file.rpartition("/")[0]
    return [
        file,
        f"{folder}/",
        f"{both.url}/zuul/42/",
        both.artifacts,
        f"{both.url}/api/v4/projects/3/jobs/42/artifacts",
    ]


def _row(url: str, facts: RunFacts, policy: FetchPolicy, raw: Path) -> Outcome:
    waiting = pending(url)
    waiting.mention = facts.replace(log_url=url)
    raw.mkdir()
    (outcome,) = take_logs(Batch(None, pending_runs=[waiting]), policy, open_store(str(raw)), NOW).settled
    return outcome
