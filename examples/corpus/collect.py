"""Makes the corpus next to this file from folders of recordings, always the same from the same ones.

    python examples/corpus/collect.py RECORDING... [--into FOLDER]

A recording is a folder with ``builds.jsonl`` and the logs that it names by ``log_path``; an unpacked corpus is one. The
output of a run's job is the file that it names by ``output_path``, or ``job-output.txt.gz`` next to the log; a run
needs none. Outputs are collected as ciml stores them: lines as a terminal shows them, without secrets.
Writes ``builds.jsonl``, ``logs.tar`` and the counts in ``README.md``. Prints each run without a usable log.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import os
import re
import sys
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ciml.runs.outputs import decompressed
from ciml.transforms.logs.prepare import prepare_small

#: The fields of a line, in order. Those that a recording lacks are left out.
FIELDS = (
    "build_uuid",
    "build_name",
    "node_provider",
    "node_flavor",
    "result",
    "exit_code",
    "project",
    "change",
    "patchset",
    "attempt",
    "pipeline",
    "start_time",
    "end_time",
    "elapsed_s",
    "rows",
    "log_path",
    "output_path",
    "patch",
    "trouble",
    "trouble_s",
    "cause",
)
#: The folder of the log in the recorder's command line: it says nothing about the run.
_LOG_FOLDER = re.compile(rb"--output [^\s\"]+/")
#: Where a recording has the output of a job that its line does not name: next to the log.
_OUTPUT_NAME = "job-output.txt.gz"
_BEGIN, _END = "<!-- counts: written by collect.py -->\n", "<!-- end of counts -->\n"


class Run(NamedTuple):
    """A line of the listing, and its log and output as they are stored; an output that is missing is None."""

    line: dict[str, Any]
    log: bytes
    output: bytes | None

    def members(self) -> Iterator[tuple[str, bytes]]:
        """Yield the paths and the content of its files."""
        yield self.line["log_path"], self.log
        if self.output is not None:
            yield self.line["output_path"], self.output


class UnusableRun(Exception):
    """A run that the corpus cannot contain, and why."""


def read_recording(folder: Path, rejected: list[str]) -> Iterator[Run]:
    """Yield the runs of a recording. Each unusable one becomes a line of ``rejected``."""
    for number, text in enumerate((folder / "builds.jsonl").read_text().splitlines(), 1):
        try:
            yield read_run(folder, text)
        except UnusableRun as error:
            rejected.append(f"{folder / 'builds.jsonl'} line {number}: {error}")


def read_run(folder: Path, text: str) -> Run:
    """Return the run in a line of a recording's listing.

    Raises:
      UnusableRun: the line is incomplete, its log is missing, damaged or without a sample, or an output that it names
        is missing or damaged.
    """
    try:
        build = json.loads(text)
        log = unpacked(folder / build["log_path"])
        output = read_output(folder, build)
        log = _LOG_FOLDER.sub(b"--output ", log, count=1)
        # Earlier recordings have one field for both; their jobs are named after the project.
        fault = build.get("fault", "none")
        found = {
            "patch": fault == "patch",
            "trouble": "none" if fault == "patch" else fault,
            "project": build["build_name"].partition("-")[0],
            "attempt": 1,
            **build,
            "rows": count_samples(log),
            "log_path": f"logs/{build['build_name']}/{build['build_uuid']}.csv.gz",
        }
        if "change" in found:
            found.setdefault("patchset", "1")  # all runs of a change, reruns too, have its one patch
        if output is not None:
            found["output_path"] = f"logs/{build['build_name']}/{build['build_uuid']}.txt.gz"
        found |= cause_of(found)
        line = {name: found[name] for name in FIELDS if name in found}
    except KeyError as error:
        raise UnusableRun(f"no field {error}") from None
    except (ValueError, OSError, EOFError) as error:
        raise UnusableRun(str(error)) from None
    if not line["rows"]:
        raise UnusableRun(f"{build['log_path']} has no sample")
    return Run(line, compressed(log), None if output is None else compressed(output))


def unpacked(path: Path) -> bytes:
    """Return the content of a file, which may be gzip."""
    data = path.read_bytes()
    return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data


def read_output(folder: Path, build: dict[str, Any]) -> bytes | None:
    """Return the lines of a job's output without secrets, as ciml stores them; None if there is no output."""
    named = build.get("output_path")
    path = folder / (named or Path(build["log_path"]).with_name(_OUTPUT_NAME))
    if not named and not path.is_file():
        return None
    (prepared,) = prepare_small([unpacked(path)])
    return b"".join(decompressed(prepared.text, str(path)))


def cause_of(build: dict[str, Any]) -> dict[str, str]:
    """Return the field ``cause`` of a run that failed by a broken change or by trouble alone; else no field."""
    broken, troubled = bool(build["patch"]), build["trouble"] != "none"
    if build["result"] == "SUCCESS" or broken == troubled:
        return {}
    return {"cause": "code" if broken else "machine"}


def count_samples(log: bytes) -> int:
    """Return the number of samples in a CSV log of dstat or dool: the complete lines below its header."""
    lines = log.split(b"\n")
    head = next((number for number, line in enumerate(lines) if line.startswith(b'"time"')), len(lines) - 1)
    columns = lines[head].count(b",")
    return sum(line.count(b",") >= columns and not line.startswith(b'"') for line in lines[head + 1 :] if line)


def compressed(data: bytes) -> bytes:
    """Return the data as gzip, without the time and the name of a file."""
    out = io.BytesIO()
    with gzip.GzipFile("", "wb", 9, out, mtime=0) as file:
        file.write(data)
    return out.getvalue()


def archive(runs: Iterable[Run]) -> bytes:
    """Return the logs and outputs as a tar file: sorted, with no time, owner or folder."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for path, data in sorted(member for run in runs for member in run.members()):
            member = tarfile.TarInfo(path)
            member.size, member.mode = len(data), 0o644
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


def counts(lines: Sequence[dict[str, Any]]) -> str:
    """Return the runs by job and result, and by pool, as tables in Markdown."""
    results = sorted({line["result"] for line in lines}, key=("SUCCESS", "FAILURE", "TIMED_OUT").index)
    table = [f"| job | {' | '.join(results)} | all |", "|---" * (len(results) + 2) + "|"]
    for job in [*sorted({line["build_name"] for line in lines}), "all"]:
        found = Counter(line["result"] for line in lines if job in ("all", line["build_name"]))
        table.append(f"| {job} | {' | '.join(str(found[result]) for result in results)} | {found.total()} |")
    pools = Counter(line.get("node_provider", "unknown") for line in lines)
    named = pools.total() - pools["unknown"]
    passed = sum(line["result"] == "SUCCESS" for line in lines) / max(len(lines), 1)
    changes = len({line["change"] for line in lines if "change" in line})
    reruns = sum(line["attempt"] > 1 for line in lines)
    table += ["", "| pool | runs |", "|---|---|", *(f"| {pool} | {count} |" for pool, count in sorted(pools.items()))]
    most = max((count for pool, count in pools.items() if pool != "unknown"), default=0)
    rate = f"; of the commonest pool, among the {named} runs with one, {most / named:.3f}" if named else ""
    sizes = f"{len(lines)} runs, {changes} changes, {reruns} reruns"
    table += ["", f"{sizes}. Base rate of passed runs {passed:.3f}{rate}."]
    printed = [line for line in lines if "output_path" in line]
    failed = sum(line["result"] != "SUCCESS" for line in printed)
    table += ["", f"{len(printed)} runs have the output of their job; {failed} of them failed."]
    return "\n".join(table) + "\n"


def collect(recordings: Sequence[Path], into: Path) -> list[str]:
    """Write the corpus of these recordings; return a line for each run that it does not contain."""
    rejected: list[str] = []
    runs = [run for folder in recordings for run in read_recording(folder, rejected)]
    runs.sort(key=lambda run: (run.line["end_time"], run.line["build_uuid"]))
    twice = [uuid for uuid, count in Counter(run.line["build_uuid"] for run in runs).items() if count > 1]
    if twice:
        raise SystemExit(f"{len(twice)} runs are in two recordings, such as {twice[0]}; name each recording once")
    lines = [run.line for run in runs]
    replace(into / "logs.tar", archive(runs))
    replace(into / "builds.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
    card = into / "README.md"
    if card.exists():
        before, _, rest = card.read_text().partition(_BEGIN)
        replace(card, (before + _BEGIN + counts(lines) + _END + rest.partition(_END)[2]).encode())
    return rejected


def replace(path: Path, data: bytes) -> None:
    """Write a file atomically."""
    staged = path.with_name(f".{path.name}.new")
    staged.write_bytes(data)
    os.replace(staged, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recordings", type=Path, nargs="+", metavar="RECORDING")
    parser.add_argument("--into", type=Path, default=Path(__file__).resolve().parent, metavar="FOLDER")
    options = parser.parse_args()
    rejected = collect(options.recordings, options.into)
    for line in rejected:
        print(line, file=sys.stderr)
    runs = len((options.into / "builds.jsonl").read_text().splitlines())
    print(f"{runs} runs collected, {len(rejected)} left out")


if __name__ == "__main__":
    main()
