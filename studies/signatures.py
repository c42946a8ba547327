"""Measure failure signatures on recorded runs whose causes are known. Writes the tables of docs/failures.md.

    python -m studies.signatures FOLDER recorded-ci recorded-ci-2
    python -m studies.signatures --logdx FOLDER dev stress v2/dev v2/stress

FOLDER holds recordings: ``builds.jsonl``, and the outputs next to the logs that it names. Runs are taken in the order
of their ends. Each is compared with the passing runs of its job that ended before, and judged by the runs before it.
With ``--logdx`` it is a checkout of ``eyuansu62/LogDx``, whose failures of different projects should share nothing.
"""

from __future__ import annotations

import argparse
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from ciml.events.outcomes import CODE, MACHINE
from ciml.intervals import wilson
from ciml.transforms.logs.failure_keys import keys_of
from ciml.transforms.logs.profile import OutputProfile, Printed, printed_templates, profile_of
from ciml.transforms.logs.ranking import scan
from ciml.transforms.logs.signatures import Failure, Signatures
from studies.job_output import read_run

#: Passing runs of a job with which a failed one is compared.
PASSED = 20


class Judged(NamedTuple):
    """A failed run: its true cause, "" if it had two or none; the id and the judgement of its signature, when added."""

    cause: str
    signature: str
    judgement: str


def judge(runs: Iterable[Mapping[str, Any]]) -> Iterator[Judged]:
    """Yield each failed run of lines of ``builds.jsonl`` with ``printed``, in the order of their ends."""
    passed: dict[str, deque[dict[str, Printed]]] = defaultdict(lambda: deque(maxlen=PASSED))
    signatures = Signatures()
    for run in sorted(runs, key=lambda run: (run["end_time"], run["build_uuid"])):
        job = run["build_name"]
        if run["result"] == "SUCCESS":
            passed[job].append(run["printed"])
            continue
        keys = keys_of(run["printed"], job, profile_of(passed[job]))
        time_us = int(datetime.fromisoformat(run["end_time"]).timestamp() * 1e6)
        change = str(run.get("change", run["build_uuid"]))
        signature = signatures.add(Failure(run["build_uuid"], job, change, time_us, keys))
        if signature is None:
            yield Judged(true_cause(run), "", "")
        else:
            yield Judged(true_cause(run), signature.id, signature.judgement)


def true_cause(run: Mapping[str, Any]) -> str:
    """Return what failed a recorded run: ``code``, a kind of trouble, or "" for both or neither."""
    fault = run.get("fault", "none")
    is_broken = bool(run.get("patch", fault == "patch"))
    trouble = run.get("trouble", "none" if fault == "patch" else fault)
    if is_broken == (trouble != "none"):
        return ""
    return CODE if is_broken else str(trouble)


def recorded(judged: Sequence[Judged]) -> Iterator[str]:
    """Yield the rows of the table."""
    causes: dict[str, list[str]] = defaultdict(list)
    for run in judged:
        causes[run.signature].append(run.cause)
    without = len(causes.pop("", ()))
    shared = [names for names in causes.values() if len(names) > 1]
    judgeable = [set(filter(None, names)) for names in shared if any(names)]
    yield _row("failed runs with a signature", len(judged) - without, len(judged))
    yield f"| signatures | {len(causes)} | |"
    yield _row("runs that share one with another run", sum(map(len, shared)), len(judged))
    yield _row(
        "shared signatures whose runs have one true cause", sum(len(names) == 1 for names in judgeable), len(judgeable)
    )
    for judgement in (MACHINE, CODE):
        true_causes = [run.cause for run in judged if run.judgement == judgement and run.cause]
        right = sum((cause == CODE) == (judgement == CODE) for cause in true_causes)
        yield _row(f"`{judgement}` when the run ended, right", right, len(true_causes))


def logdx(folder: Path, splits: Sequence[str]) -> Iterator[str]:
    """Yield how many failures of different projects share a signature."""
    signatures = Signatures()
    number = 0
    for path in (path for split in splits for path in sorted((folder / "cases" / split).glob("*/raw.log"))):
        keys = keys_of(printed_templates(scan(path.read_bytes())), path.parent.name, OutputProfile())
        signatures.add(Failure(str(path), path.parent.name, path.parent.name, 0, keys))
        number += 1
    shared = sum(signature.runs for signature in signatures.all() if signature.runs > 1)
    yield _row("failures of other projects that share a signature", shared, number)


def _row(name: str, count: int, total: int) -> str:
    low, high = wilson(count, total)
    return f"| {name} | {count} of {total} | {low:.2f} to {high:.2f} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("parts", nargs="+", help="recordings; of LogDx, the splits")
    parser.add_argument("--logdx", action="store_true")
    options = parser.parse_args()
    if options.logdx:
        rows = logdx(options.folder, options.parts)
    else:
        folders = [options.folder / name for name in options.parts]
        runs = [read_run(folder, text) for folder in folders for text in (folder / "builds.jsonl").open()]
        rows = recorded(list(judge(runs)))
    for row in rows:
        print(row, flush=True)


if __name__ == "__main__":
    main()
