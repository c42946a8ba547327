"""Measure templates and ranking on public benchmarks of logs. Writes the tables of docs/job-output.md.

    python -m studies.job_output loghub FOLDER
    python -m studies.job_output logjuicer FOLDER basic-01 dib-01 … [--logjuicer PROGRAM]
    python -m studies.job_output logdx FOLDER dev stress v2/dev v2/stress
    python -m studies.job_output recorded FOLDER recorded-ci recorded-ci-2

FOLDER is a checkout of ``logpai/loghub``, ``logjuicer/logjuicer-tests`` or ``eyuansu62/LogDx``, whose parts are named.
For ``recorded``, it holds recordings: ``builds.jsonl``, and the outputs beside the logs that it names.

PROGRAM is ``logjuicer`` itself, whose answers on the same pairs are then in the table.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import importlib
import importlib.util
import json
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ciml.intervals import wilson
from ciml.transforms.logs.lines import clean_lines
from ciml.transforms.logs.profile import printed_templates, profile_of
from ciml.transforms.logs.ranking import excerpt, is_known_template, rank, scan
from ciml.transforms.logs.templates import templates_of
from ciml.transforms.logs.text_arrays import strings

#: Characters of an excerpt.
BUDGETS = (2_000, 4_000, 20_000)


def grouping_accuracy(truth: Sequence[str], groups: Sequence[str]) -> float:
    """Return the share of lines whose group has exactly the lines of their true template.

    This is the measure of Zhu et al., Tools and Benchmarks for Automated Log Parsing, ICSE-SEIP 2019.
    """
    by_truth = defaultdict(list)
    by_group = defaultdict(list)
    for line, (true, group) in enumerate(zip(truth, groups, strict=True)):
        by_truth[true].append(line)
        by_group[group].append(line)
    right = set(map(tuple, by_truth.values()))
    return sum(len(lines) for lines in by_group.values() if tuple(lines) in right) / len(truth)


def loghub(folder: Path) -> Iterator[str]:
    """Yield a row a system: the accuracy of the masks, and of the parser drain3 where it is installed."""
    methods: dict[str, Callable[[list[str]], list[str]]] = {"masks": _masked}
    if importlib.util.find_spec("drain3") is not None:
        methods |= {"drain3": _drained, "drain3 on masks": lambda lines: _drained(_masked(lines))}
    yield f"| system | {' | '.join(methods)} |"
    yield f"|---|{'---|' * len(methods)}"
    accuracies: dict[str, list[float]] = defaultdict(list)
    for path in sorted(folder.glob("*/*_2k.log_structured.csv")):
        with path.open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        truth = [row["EventId"] for row in rows]
        contents = [row["Content"] for row in rows]
        for name, method in methods.items():
            accuracies[name].append(grouping_accuracy(truth, method(contents)))
        yield f"| {path.parent.name} | {' | '.join(f'{values[-1]:.3f}' for values in accuracies.values())} |"
    yield f"| mean | {' | '.join(f'{np.mean(values):.3f}' for values in accuracies.values())} |"


def _masked(lines: list[str]) -> list[str]:
    masked: list[str] = templates_of(strings(lines)).to_pylist()
    return masked


def _drained(lines: list[str]) -> list[str]:
    drain3 = importlib.import_module("drain3")
    config = importlib.import_module("drain3.template_miner_config").TemplateMinerConfig()
    miner = drain3.TemplateMiner(config=config)
    return [str(miner.add_log_message(line)["cluster_id"]) for line in lines]


def logjuicer(folder: Path, names: Sequence[str], program: str = "") -> Iterator[str]:
    """Yield a row a pair: marked lines among the new ones, and the place of the worst of them in the ranking.

    With the program: also the lines that logjuicer shows, how many marked ones they have, and how many as many lines of
    the ranking have; the same with the lines around them.
    """
    yaml = importlib.import_module("yaml")
    theirs = "| logjuicer's lines | found | found in as many | with context | found | found in as many " * bool(program)
    yield f"| pair | lines | new | marked | found | place of the first | of the last {theirs}|"
    yield f"|{'---|' * (13 if program else 7)}"
    for name in names:
        (good,) = (folder / "datasets" / name).glob("*.good")
        (bad,) = (folder / "datasets" / name).glob("*.fail")
        document = yaml.safe_load((folder / "datasets" / name / "inf.yaml").read_text())
        marked = [str(anomaly["line"]).strip() for anomaly in document["anomalies"]]
        passing = set(scan(good.read_bytes()).templates.to_pylist())
        output = scan(bad.read_bytes())
        new = np.flatnonzero(~is_known_template(output, passing)[output.codes])
        texts = output.text_of(new)
        best = [texts[place] for place in np.argsort(-rank(output, passing)[new], kind="stable")]
        places = [next((place for place, text in enumerate(best, 1) if line in text), 0) for line in marked]
        ranks = [place for place in places if place]
        row = [name, len(output.codes), len(new), len(marked), len(ranks), min(ranks, default=0), max(ranks, default=0)]
        for lines in _shown_by(program, good, bad) if program else ():
            row += [len(lines), sum(any(line in shown for shown in lines) for line in marked)]
            row.append(sum(place <= len(lines) for place in ranks))
        yield f"| {' | '.join(map(str, row))} |"


def _shown_by(program: str, good: Path, bad: Path) -> tuple[list[str], list[str]]:
    """Return the lines that logjuicer calls anomalies, and these with the lines that it shows around them."""
    command = [program, "--report", "/dev/stdout", "diff", str(good), str(bad)]
    report = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    anomalies = [anomaly for log in report["log_reports"] for anomaly in log["anomalies"]]
    lines = [anomaly["anomaly"]["line"] for anomaly in anomalies]
    return lines, lines + [line for anomaly in anomalies for line in (*anomaly["before"], *anomaly["after"])]


def logdx(folder: Path, splits: Sequence[str]) -> Iterator[str]:
    """Yield a row a case: the share of critical signals in the last characters, and in the excerpt of as many."""
    score = _scorer(folder)
    yield f"| case | {' | '.join(f'tail {size:,} | excerpt {size:,}' for size in BUDGETS)} |"
    yield f"|---|{'---|' * 2 * len(BUDGETS)}"
    rows = []
    for case in (case for split in splits for case in sorted((folder / "cases" / split).glob("*/raw.log"))):
        data = case.read_bytes()
        truth = json.loads(case.with_name("ground_truth.json").read_text())
        clean = "\n".join(line for block in clean_lines(data) for line in block.to_pylist())
        output = scan(data)
        row = []
        for size in BUDGETS:
            row.append(score(truth, clean[-size:]))
            row.append(score(truth, "\n".join(line.text for line in excerpt(output, size))))
        rows.append(row)
        yield _row(case.parent.name, row)
    yield _row(f"mean of {len(rows)}", np.mean(rows, axis=0))


def _scorer(folder: Path) -> Callable[[Any, str], float]:
    """Return the benchmark's own function of truth and text to the share of critical signals."""
    spec = importlib.util.spec_from_file_location("evaluate", folder / "tools" / "evaluate_signal_recall.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    manifest = {"case_id": "", "line_mapping_available": False, "included_line_ranges": []}

    def score(truth: Any, text: str) -> float:
        scored = module.score_case(manifest_row=manifest, ground_truth=truth, context_text=text)
        return float(scored["critical_signal_recall"])

    return score


def recorded(folder: Path, names: Sequence[str]) -> Iterator[str]:
    """Yield how often the cause is among the best lines of failed runs, next to the passing runs of other changes.

    ``stated_causes.jsonl`` has the lines of 39 runs that state the cause, as a person read them: the error of a first
    failed test, the end of a traceback. The other failed runs were killed or ended by a timeout, and state none.
    """
    runs = [read_run(folder / name, text) for name in names for text in (folder / name / "builds.jsonl").open()]
    text = Path(__file__).with_name("stated_causes.jsonl").read_text()
    causes = {row["build_uuid"]: row["lines"] for row in map(json.loads, text.splitlines())}
    places = []
    for run in runs:
        if run["build_uuid"] not in causes:
            continue
        passed = (peer for peer in runs if peer["build_name"] == run["build_name"] and peer["result"] == "SUCCESS")
        change = run.get("change", run["build_uuid"])
        profile = profile_of(peer["printed"] for peer in passed if peer.get("change") != change)
        scores = rank(run["output"], profile)
        best = (np.argsort(-scores, kind="stable") + 1).tolist()
        places.append(min(best.index(line) for line in causes[run["build_uuid"]]) + 1)
    for limit in (1, 3, 5):
        within = sum(place <= limit for place in places)
        low, high = wilson(within, len(places))
        yield f"| the first {limit} | {within} of {len(places)} | {low:.2f} to {high:.2f} |"


def read_run(recording: Path, text: str) -> dict[str, Any]:
    """Return a line of ``builds.jsonl`` with the scanned output of its run, and the templates that it printed."""
    run: dict[str, Any] = json.loads(text)
    path = (recording / run["log_path"]).with_name("job-output.txt.gz")
    output = scan(gzip.decompress(path.read_bytes()))
    return {**run, "output": output, "printed": printed_templates(output)}


def _row(name: str, shares: Iterable[float]) -> str:
    return f"| {name} | {' | '.join(f'{share:.2f}' for share in shares)} |"


def main() -> None:
    """Print the table of a benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", choices=("loghub", "logjuicer", "logdx", "recorded"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("parts", nargs="*", help="of logjuicer, the pairs; of logdx, the splits; recordings")
    parser.add_argument("--logjuicer", default="", metavar="PROGRAM", help="compare with it")
    options = parser.parse_args()
    if options.benchmark == "loghub":
        rows = loghub(options.folder)
    elif options.benchmark == "logjuicer":
        rows = logjuicer(options.folder, options.parts, options.logjuicer)
    elif options.benchmark == "recorded":
        rows = recorded(options.folder, options.parts)
    else:
        rows = logdx(options.folder, options.parts)
    for row in rows:
        print(row, flush=True)


if __name__ == "__main__":
    main()
