"""The numbers of the demo: recounted from the stored data, and checked against the producer's list.

Examples are computed directly from the text of logs.
"""

from __future__ import annotations

import csv
import math
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from ciml.cli.demo.corpus import POOL, STATUS
from ciml.cli.demo.plan import WAVES, Expected, Key
from ciml.cli.demo.result import AccountingLine, AnswerLine, Check, PredictionLine, Refresh, SpanLine
from ciml.cli.demo.run import Accounts
from ciml.datasets.state import DatasetState
from ciml.events.records import KIND_WORDS, Outcome
from ciml.manifest.coverage import RangeSet
from ciml.storage import Store

if TYPE_CHECKING:
    from ciml.datasets.definition import ResolvedDefinition
    from ciml.training.data.snapshot import Snapshot

#: Largest difference relative to max(|x|, 1) that counts as equal: examples are stored as float32.
TOLERANCE = 1e-6
#: Largest difference of a probability that counts as equal.
PROBABILITY_TOLERANCE = 1e-5
#: The sentence of a message that quotes the output of the job.
_QUOTATION = re.compile(r"is new in this job \((?:[^(),]+, )?line [0-9,]+")
_FUNCTIONS: dict[str, Callable[[Sequence[float]], float]] = {
    "mean": statistics.fmean,
    "min": min,
    "max": max,
    "median": statistics.median,
    "sum": math.fsum,
    "std": lambda values: statistics.stdev(values) if len(values) > 1 else 0.0,
}


def check_accounting(produced: Sequence[Expected], accounts: Accounts) -> Check:
    """Check that each acknowledged (event, run) has exactly its expected outcome, and no others exist."""
    expected: dict[Key, list[Any]] = defaultdict(list)
    for line in produced:
        expected[line.key].append((line.kind, line.reason, line.event_key))
    unreadable = {line.key for line in produced if not line.event_key}
    counted = {
        key: [(outcome.kind, outcome.reason, "" if key in unreadable else outcome.event_key) for outcome in outcomes]
        for key, outcomes in accounts.by_key.items()
    }
    return compare(
        "each (event, run) has the expected outcome", expected, counted, f"{len(produced)} of {len(produced)}"
    )


def check_offsets(produced: Iterable[Expected], accounts: Accounts) -> Check:
    """Check that the covered offsets are exactly the acknowledged ones."""
    sent: dict[tuple[str, int], RangeSet] = defaultdict(RangeSet)
    for line in produced:
        sent[line.topic, line.partition].add(line.offset, line.offset + 1)
    total = sum(ranges.count() for ranges in sent.values())
    detail = f"{total} in {len(sent)} partitions"
    return compare("acknowledged offsets are covered, and no others", sent, accounts.covered, detail)


def check_waited(produced: Iterable[Expected], accounts: Accounts) -> Check:
    """Check that exactly the runs with late logs were deferred, and that none still is."""
    late = {line.key: "deferred" for line in produced if line.deferred}
    waited = dict.fromkeys(accounts.waited, "deferred")
    findings = [f"{outcome.run_id} still waits: {outcome.reason}" for outcome in accounts.outcomes("deferred")]
    return compare("late logs were waited for, and none is waiting", late, waited, f"{len(late)} waited", findings)


def check_trust(produced: Sequence[Expected], accounts: Accounts) -> Check:
    """Check that the trust of each raw row is as the producer expects."""
    trusted = {line.key: line.trusted for line in produced}
    counted = {
        key: outcome.trust.trusted
        for key, outcomes in accounts.by_key.items()
        for outcome in outcomes
        if outcome.kind == "run" and key in trusted
    }
    expected = {key: trusted[key] for key in counted}
    detail = f"{sum(line.trusted is False for line in produced)} untrusted"
    return compare("runs of the pipeline check are untrusted, all others trusted", expected, counted, detail)


def check_raw(produced: Iterable[Expected], runs: Sequence[Outcome]) -> Check:
    """Check that each accepted run has exactly one raw row, with as many samples as its log."""
    expected = {line.run_id: [f"{line.rows} samples"] for line in produced if line.kind == "run"}
    counted: dict[str, list[str]] = defaultdict(list)
    for run in runs:
        counted[run.run_id].append(f"{run.file.rows} samples" if run.file is not None else "a row without an object")
    return compare("each accepted run is one raw row with all its samples", expected, counted, f"{len(expected)} runs")


def check_objects(raw: Store, runs: Sequence[Outcome], named: Iterable[str]) -> Check:
    """Check each raw object against the manifest.

    Args:
      raw: the raw store.
      runs: the raw rows.
      named: the paths in the manifest, including other logs of a run.
    """
    from ciml.runs.reader import verify_runs

    files = [(run.run_id, run.file) for run in runs if run.file is not None]
    findings = list(filter(None, verify_runs(raw, files)))
    findings += [f"{raw.url(path)} is not in the manifest" for path in {*raw.list("runs")} - {*named}]
    detail = f"{len(files)} objects, {sum(file.size for _, file in files) / 1e6:.1f} MB"
    return make_check("every raw object is there with its rows and digest", findings, detail)


def check_outputs(
    raw: Store, produced: Iterable[Expected], runs: Iterable[Outcome], read_served: Callable[[str], bytes]
) -> Check:
    """Check that each run has exactly the output that is served for it, and that its templates count all lines.

    Args:
      raw: the raw store.
      produced: the producer's list, with the paths of the outputs.
      runs: the raw rows.
      read_served: returns the text at a path of the log server.
    """
    from ciml.runs.outputs import NO_OUTPUT, read_output, read_templates

    served = {line.run_id: read_served(line.output) for line in produced if line.kind == "run" and line.output}
    counts = {run_id: text.count(b"\n") + 1 for run_id, text in served.items()}
    counted: dict[str, str] = {}
    findings = []
    for run in runs:
        output = read_output(raw, run.output)
        templates = read_templates(raw, run.output)
        if isinstance(output, str) or isinstance(templates, str):
            findings += [f"{run.run_id}: {output}"] if output != NO_OUTPUT else []
            continue
        counted[run.run_id] = f"{sum(templates.counts) + templates.others} lines"
        if output.data != served.get(run.run_id, output.data):
            findings.append(f"{run.run_id}: the stored output differs from the served one")
    detail = f"{len(served)} outputs, {sum(counts.values()):,} lines"
    expected = {run_id: f"{count} lines" for run_id, count in counts.items()}
    return compare("each output that is served is stored with its run", expected, counted, detail, findings)


def check_dataset(name: str, state: DatasetState, runs: Iterable[str]) -> Check:
    """Check that each raw row is exactly one example of the data set, or one exclusion with a reason."""
    spans = list(state.latest())
    examples = [run.run_id for span in spans for run in span.runs]
    excluded = [run for span in spans for run in span.excluded]
    findings = [f"{run['run_id']} is excluded without a reason" for run in excluded if not run["reason"]]
    counted = Counter([*examples, *(run["run_id"] for run in excluded)])
    detail = f"{len(examples)} examples, {len(excluded)} exclusions"
    return compare(
        f"each raw row is one example of {name} or excluded", dict.fromkeys(runs, 1), counted, detail, findings
    )


def check_examples(
    examples: Mapping[str, Mapping[str, Any]], texts: Mapping[str, str], resolved: ResolvedDefinition
) -> Check:
    """Check that every example equals the direct computation from the log that the log server served.

    Args:
      examples: run id -> its row: ``n_windows`` and each feature's list.
      texts: run id -> the text of its log.
      resolved: the data set's definition.
    """
    definition = resolved.definition
    worst = 0.0
    findings = [] if examples else ["there are none"]
    for run_id, row in examples.items():
        direct, n_windows = direct_example(
            texts[run_id],
            resolved.columns,
            definition.interval_us // 1_000_000,
            definition.aggregation_functions,
            resolved.windows,
            first=definition.count_first_sample,
        )
        if row["n_windows"] != n_windows:
            findings.append(f"{run_id} has {row['n_windows']} windows, not {n_windows}")
            continue
        for column, feature in zip(resolved.columns, resolved.telemetry_features, strict=True):
            apart = difference(row[feature], direct[column], n_windows)
            worst = max(worst, apart)
            if not apart <= TOLERANCE:
                findings.append(f"{run_id} {column}: {apart:.1e} apart")
    name = f"examples of {definition.name} equal a direct computation"
    return make_check(name, findings, f"{len(examples)} runs, at most {worst:.0e} apart")


def direct_example(
    text: str, columns: Sequence[str], interval_s: int, functions: Sequence[str], windows: int, *, first: bool = True
) -> tuple[dict[str, list[float]], int]:
    """Compute one run's example from a log of dstat or dool with its date in the header (UTC), by sums alone.

    Args:
      text: the log.
      columns: full names (``load avg:1m``).
      interval_s: length of a window; divides a day, so that windows from any midnight are the same.
      functions: aggregations over the windows; empty for the windows themselves.
      windows: L.
      first: whether the first sample, an average since boot, counts.

    Returns:
      column -> its values without padding, and n_windows.
    """
    bins: dict[int, list[list[float]]] = defaultdict(lambda: [[] for _ in columns])
    for time_s, cells in _samples(text, columns, first=first):
        for values, cell in zip(bins[time_s // interval_s], cells, strict=True):
            if cell:
                values.append(float(cell))
    complete = [bins[number] for number in sorted(bins) if all(bins[number])]
    courses = [[math.fsum(values) / len(values) for values in course] for course in zip(*complete, strict=True)]
    if functions:
        courses = [[_FUNCTIONS[name](course) for name in functions] for course in courses]
    courses = [course[:windows] for course in courses]
    return dict(zip(columns, courses, strict=True)), len(courses[0])


def _samples(text: str, columns: Sequence[str], *, first: bool) -> Iterator[tuple[int, list[str]]]:
    """Yield the epoch second and the cells of the columns of each complete line of a log."""
    rows = list(csv.reader(text.splitlines()))
    year = next(int(row[row.index("Date:") + 1].split()[2]) for row in rows if "Date:" in row)
    heading = next(index for index, row in enumerate(rows) if "time" in row)
    groups: list[str] = []
    for cell in rows[heading - 1]:
        groups.append(cell or groups[-1])
    names = [f"{group}:{name}" for group, name in zip(groups, rows[heading], strict=False)]
    places = [names.index(column) for column in columns]
    clock = rows[heading].index("time")
    time_format = "%Y %b-%d %H:%M:%S" if "dool" in rows[0][0] else "%Y %d-%m %H:%M:%S"
    for row in rows[heading + (1 if first else 2) :]:
        if len(row) >= len(rows[heading]):
            time = datetime.strptime(f"{year} {row[clock]}", time_format).replace(tzinfo=UTC)
            yield int(time.timestamp()), [row[place] for place in places]


def difference(stored: Sequence[float], direct: Sequence[float], n_windows: int) -> float:
    """Return the largest difference relative to max(|x|, 1) over values and padding.

    It is infinite if lengths differ, and NaN if a value is NaN.
    """
    if len(direct) != n_windows or len(stored) < n_windows:
        return math.inf
    padded = [*direct, *([0.0] * (len(stored) - n_windows))]
    differences = [abs(a - b) / max(abs(b), 1.0) for a, b in zip(stored, padded, strict=True)]
    return float(np.max(differences, initial=0.0))


def check_snapshots(snapshots: Mapping[str, Snapshot], produced: Iterable[Expected]) -> Check:
    """Check that no snapshot holds an untrusted run, or a run on both sides of a split.

    Args:
      snapshots: by a name for people.
      produced: the producer's list, with the expected trust.
    """
    trusted = {line.run_id: line.trusted for line in produced if line.kind == "run"}
    findings = [] if snapshots else ["there is no snapshot"]
    for name, snapshot in snapshots.items():
        roles: dict[str, set[str]] = defaultdict(set)
        for run in snapshot.runs():
            roles[run.run_id].add(run.role)
        findings += [f"{name} holds the untrusted {run_id}" for run_id in roles if not trusted.get(run_id)]
        findings += [
            f"{name} holds {run} as {' and '.join(sorted(both))}" for run, both in roles.items() if len(both) > 1
        ]
    untrusted = sum(value is False for value in trusted.values())
    detail = f"{len(snapshots)} snapshots, {untrusted} untrusted runs"
    return make_check("no untrusted run in any snapshot", findings, detail)


def check_refreshes(refreshes: Sequence[Refresh]) -> Check:
    """Check that models were refreshed (the first one after each wave), and that each refresh had a result."""
    counts = Counter(refresh.model for refresh in refreshes)
    findings = [
        f"{model} was refreshed {counts[model]} times, not {least} times or more"
        for model, least in ((STATUS, len(WAVES)), (POOL, 1))
        if counts[model] < least
    ]
    findings += [
        f"{result.model}: neither pushed nor rejected"
        for result in refreshes
        if not result.version and not result.reasons
    ]
    pushed = sum(bool(refresh.version) for refresh in refreshes)
    return make_check(
        "every refresh ended in a push or a reason", findings, f"{counts.total()} refreshes, {pushed} pushed"
    )


def check_accuracy(refreshes: Iterable[Refresh]) -> Check:
    """Check that the interval of the last pushed version of the first model is above the base rate."""
    name = f"the accuracy of {STATUS} is above the base rate"
    pushed = [refresh for refresh in refreshes if refresh.model == STATUS and refresh.version]
    if not pushed:
        return Check(name=name, passed=False, detail="no version was pushed")
    evaluation = pushed[-1].metrics.evaluation
    accuracy = evaluation.accuracy
    base = evaluation.base_rate.value
    figures = f"{100 * accuracy.value:.1f} %, {100 * accuracy.low:.1f}–{100 * accuracy.high:.1f}"
    detail = f"v{pushed[-1].version}: {figures}; base rate {100 * base:.1f} %"
    return Check(name=name, passed=accuracy.low > base, detail=detail)


def check_served(served: Mapping[str, Mapping[str, int | None]], stable: Mapping[str, int | None]) -> Check:
    """Check that the model server serves the registry's stable version, by gRPC and by REST.

    Args:
      served: model -> the reported versions, such as ``{"gRPC": 2, "REST": 2}``.
      stable: model -> the registry's champion.
    """
    expected = {(model, api): number for model, number in stable.items() for api in ("gRPC", "REST")}
    counted = {(model, api): number for model, versions in served.items() for api, number in versions.items()}
    findings = [] if any(stable.values()) else ["there is no champion"]
    detail = ", ".join(f"{model} {number}" for model, number in stable.items())
    return compare("the served versions are the registry's", expected, counted, detail, findings)


def check_probabilities(differences: Mapping[str, tuple[int, float]]) -> Check:
    """Check that the server, the Python API and the trainer give the same probabilities for the same runs.

    Args:
      differences: model -> (number of compared runs, largest difference of a probability).
    """
    findings = [] if differences else ["no model was queried"]
    for model, (runs, worst) in differences.items():
        if not runs:
            findings.append(f"{model}: no run was compared")
        if not worst <= PROBABILITY_TOLERANCE:
            findings.append(f"{model}: {worst:.1e} apart")
    detail = ", ".join(f"{model}: {runs} runs, {worst:.0e}" for model, (runs, worst) in differences.items())
    return make_check("the server, the API and the trainer give the same probabilities", findings, detail)


def check_predictions(runs: Mapping[str, bool], records: Sequence[Mapping[str, Any]], versions: Iterable[int]) -> Check:
    """Check that each raw row, trusted or not, is predicted exactly once by a pushed version.

    Args:
      runs: run id of each raw row -> whether it is trusted.
      records: the predictions of one model.
      versions: the pushed versions of the model.
    """
    pushed = set(versions)
    findings = [
        f"{record['run_id']} by version {record['version']}" for record in records if record["version"] not in pushed
    ]
    counted = Counter(record["run_id"] for record in records)
    detail = f"{len(runs)}, {sum(not trusted for trusted in runs.values())} untrusted"
    name = "each raw row is predicted once, the untrusted too"
    return compare(name, dict.fromkeys(runs, 1), counted, detail, findings)


def check_topic(name: str, published: Iterable[str], expected: Iterable[str]) -> Check:
    """Check that a topic holds each record of a manifest exactly once."""
    records = Counter([*expected])  # of a mapping, its keys
    detail = f"{records.total()} messages"
    return compare(f"the topic {name} has each record once", records, Counter(published), detail)


def check_messages(answers: Sequence[AnswerLine]) -> Check:
    """Check that each verdict that the policy lets pass is one message on its change, and nothing else is posted."""
    findings = [
        f"change {line.change}: verdict {line.verdict!r}, silent {line.silent!r}, {len(line.messages)} sent"
        for line in answers
        if not line.verdict or len(line.messages) != (not line.silent)
    ]
    messages = [message for line in answers for message in line.messages]
    quoting = sum(bool(_QUOTATION.search(message)) for message in messages)
    detail = f"{len(messages)} messages on {len(answers)} changes, {quoting} with a line of the output"
    return make_check("each verdict that the policy lets pass is one message on its change", findings, detail)


def compare(
    name: str, expected: Mapping[Any, Any], counted: Mapping[Any, Any], detail: str, findings: Iterable[str] = ()
) -> Check:
    """Check that what was counted is what is expected, for each key.

    Args:
      name: of the check.
      expected: values by key; a list has one for each of several.
      counted: the same, from the stored data.
      detail: of a check that passed.
      findings: faults of other kinds.
    """
    differences = [
        f"{_words(key)}: {_words(counted.get(key))}, not {_words(expected.get(key))}"
        for key in {**expected, **counted}
        if counted.get(key) != expected.get(key)
    ]
    return make_check(name, [*findings, *differences], detail)


def _words(value: Any) -> str:
    """Return a key or a value for people."""
    if value is None:
        return "nothing"
    if isinstance(value, list):
        return " and ".join(map(_words, value)) or "nothing"
    return " ".join(map(str, value)).rstrip() if isinstance(value, tuple) else str(value)


def make_check(name: str, findings: Iterable[str], detail: str) -> Check:
    """Return a check that passed, with its detail, or that failed, with the first of the findings as its detail."""
    first, *further = [*findings] or [""]
    more = f" (and {len(further)} more)" if further else ""
    return Check(name=name, passed=not first, detail=first + more or detail)


def accounting_lines(produced: Iterable[Expected], accounts: Accounts) -> list[AccountingLine]:
    """Return expected and counted (event, run) pairs by class, reason and damage."""
    tricks = {line.key: line.trick for line in produced}
    expected = Counter((line.kind, line.reason, line.trick) for line in produced)
    pairs = [(key, outcome) for key, outcomes in accounts.by_key.items() for outcome in outcomes]
    counted = Counter((outcome.kind, outcome.reason, tricks.get(key, "")) for key, outcome in pairs)
    kinds = list(KIND_WORDS)
    return [
        AccountingLine(kind=row[0], reason=row[1], trick=row[2], expected=expected[row], counted=counted[row])
        for row in sorted({*expected, *counted}, key=lambda row: (kinds.index(row[0]), row))
    ]


def span_lines(name: str, state: DatasetState) -> list[SpanLine]:
    """Return examples by split and by class, and exclusions by reason, of each span."""
    return [
        SpanLine(
            dataset=name,
            span=span.span,
            version=span.version,
            splits=dict(Counter(run.split for run in span.runs)),
            classes=dict(sorted(Counter(run.label_name for run in span.runs).items())),
            excluded=dict(Counter(run["reason"] for run in span.excluded)),
        )
        for span in state.latest()
    ]


def prediction_lines(
    records: Iterable[Mapping[str, Any]], untrusted: set[str], since_us: int = 0
) -> list[PredictionLine]:
    """Return count and latency by model.

    Args:
      records: of the manifest.
      untrusted: run ids.
      since_us: time of the first push. Runs announced earlier waited for a model, so their latency is left out, unless
        there are no others.
    """
    by_model: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for record in records:
        by_model[record["model"]].append(record)
    lines = []
    for model, group in sorted(by_model.items()):
        after_push = [record for record in group if record["time_us"] - record["latency_ms"] * 1000 >= since_us]
        latencies = [record["latency_ms"] for record in after_push or group]
        versions = Counter(record["version"] for record in group)
        p50_ms, p99_ms = np.quantile(latencies, (0.5, 0.99), method="inverted_cdf").tolist()
        lines.append(
            PredictionLine(
                model=model,
                by_version={str(number): count for number, count in sorted(versions.items())},
                untrusted=sum(record["run_id"] in untrusted for record in group),
                p50_ms=p50_ms,
                p99_ms=p99_ms,
            )
        )
    return lines
