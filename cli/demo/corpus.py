"""The sample runs: the listing of examples/corpus as run facts."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from ciml.errors import CimlError
from ciml.events.records import RunFacts
from ciml.events.run_id import RunId

#: The simulated CI system.
SOURCE = "zuul-demo"
#: Runs of one change that are tested together.
RUNS_A_CHANGE = 3


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of the corpus: its facts (without a log's address), and the path of its log below the corpus."""

    facts: RunFacts
    log_path: str
    rows: int


def corpus_folder(folder: str | None = None) -> Path:
    """Return the corpus: ``folder``, else examples/corpus of the checkout.

    Raises:
      CimlError: there is no listing.
    """
    path = Path(folder) if folder else Path(__file__).resolve().parents[2] / "examples" / "corpus"
    if not (path / "builds.jsonl").is_file():
        raise CimlError(f"no builds.jsonl in {path}; run ciml demo in a checkout, or name a corpus by --corpus")
    return path


def read_corpus(folder: Path, runs: int | None = None) -> list[Sample]:
    """Return the runs in the order in which the demo's CI finishes them.

    The order is a hash of the run: the listing has one cloud after the other, and a CI farm uses them in parallel.
    Changes, which decide the split, are numbered in this order.

    Args:
      folder: holds ``builds.jsonl`` and its logs.
      runs: number of runs, the first in that order; None for all.
    """
    lines = [json.loads(line) for line in (folder / "builds.jsonl").read_text().splitlines()]
    lines.sort(key=lambda line: hashlib.sha256(f"ciml demo {line['build_uuid']}".encode()).digest())
    return [_sample(index, line) for index, line in enumerate(lines[:runs])]


def _sample(index: int, line: dict[str, str]) -> Sample:
    facts = RunFacts(
        run_id=RunId(SOURCE, line["build_uuid"]).encode(),
        build_uuid=line["build_uuid"],
        build_name=line["build_name"],
        outcome="success",
        result=line["result"],
        source=SOURCE,
        pipeline="gate",
        project="bench/hibench",
        branch="main",
        change=str(4200 + index // RUNS_A_CHANGE),
        patchset="1",
        provider=line["node_provider"],
        flavour=line["node_flavor"],
        start_us=_epoch_us(line["start_time"]),
        end_us=_epoch_us(line["end_time"]),
        labels={name: line[name] for name in ("framework", "workload", "size")},
    )
    return Sample(facts, line["log_path"], int(line["rows"]))


def _epoch_us(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1_000_000)
