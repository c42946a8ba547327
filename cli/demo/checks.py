"""Check what the demo stored against the producer's list.

Each check recounts the stored data. `ciml.cli.demo.example_checks` checks the examples of data sets.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ciml.cli.demo.accounts import Accounts
from ciml.cli.demo.corpus import POOL, STATUS
from ciml.cli.demo.plan import WAVES, Expected, Key
from ciml.cli.demo.result import AnswerLine, Check, Refresh
from ciml.datasets.state import DatasetState
from ciml.events.records import Outcome
from ciml.manifest.coverage import RangeSet
from ciml.storage import Store

if TYPE_CHECKING:
    from ciml.training.data.snapshot import Snapshot

#: Largest difference of a probability that counts as equal.
PROBABILITY_TOLERANCE = 1e-5
#: The sentence of a message that quotes the output of the job.
_QUOTATION = re.compile(r"is new in this job \((?:[^(),]+, )?line [0-9,]+")


def check_accounting(produced: Sequence[Expected], accounts: Accounts) -> Check:
    """Check that each acknowledged (event, run) has exactly the expected outcomes, and that there are no others."""
    expected: dict[Key, list[Any]] = defaultdict(list)
    for line in produced:
        expected[line.key].append((line.kind, line.reason, line.event_key))
    unreadable = {line.key for line in produced if not line.event_key}
    counted = {
        key: [(outcome.kind, outcome.reason, "" if key in unreadable else outcome.event_key) for outcome in outcomes]
        for key, outcomes in accounts.by_key.items()
    }
    return compare("each (event, run) has the expected outcome", expected, counted, f"{len(produced)} outcomes")


def check_offsets(produced: Iterable[Expected], accounts: Accounts) -> Check:
    """Check that the covered offsets are exactly the acknowledged ones."""
    sent: dict[tuple[str, int], RangeSet] = defaultdict(RangeSet)
    for line in produced:
        sent[line.topic, line.partition].add(line.offset, line.offset + 1)
    total = sum(ranges.count() for ranges in sent.values())
    detail = f"{total} in {len(sent)} partitions"
    return compare("acknowledged offsets are covered, and no others", sent, accounts.covered, detail)


def check_waited(produced: Iterable[Expected], accounts: Accounts) -> Check:
    """Check that exactly the runs with late logs were deferred, and that no run still is."""
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
      named: the paths that the manifest names, including further logs of a run.
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
    """Check that each run has exactly the output that is served for it, and that the templates count all lines.

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


def check_dataset(name: str, runs: Iterable[str], state: DatasetState) -> Check:
    """Check that each raw row is exactly one example of the data set, or one exclusion with a reason.

    Args:
      name: of the data set.
      runs: the run ids of the raw rows.
      state: of the data set.
    """
    spans = list(state.latest())
    examples = [run.run_id for span in spans for run in span.runs]
    excluded = [run for span in spans for run in span.excluded]
    findings = [f"{run['run_id']} is excluded without a reason" for run in excluded if not run["reason"]]
    counted = Counter([*examples, *(run["run_id"] for run in excluded)])
    detail = f"{len(examples)} examples, {len(excluded)} exclusions"
    return compare(
        f"each raw row is one example of {name} or excluded", dict.fromkeys(runs, 1), counted, detail, findings
    )


def check_snapshots(produced: Iterable[Expected], snapshots: Mapping[str, Snapshot]) -> Check:
    """Check that no snapshot holds an untrusted run, or a run on both sides of a split.

    Args:
      produced: the producer's list, with the expected trust.
      snapshots: by a name for people.
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
    """Check that each model was refreshed often enough, and that each refresh ended in a push or a reason."""
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
    """Check that the accuracy interval of the last pushed version of `STATUS` lies above the base rate."""
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


def check_served(stable: Mapping[str, int | None], served: Mapping[str, Mapping[str, int | None]]) -> Check:
    """Check that the model server serves the stable version of each model, by gRPC and by REST.

    Args:
      stable: the champion of each model in the registry.
      served: the versions that the server reports for each model, such as ``{"gRPC": 2, "REST": 2}``.
    """
    expected = {(model, api): number for model, number in stable.items() for api in ("gRPC", "REST")}
    counted = {(model, api): number for model, versions in served.items() for api, number in versions.items()}
    findings = [] if any(stable.values()) else ["there is no champion"]
    detail = ", ".join(f"{model} {number}" for model, number in stable.items())
    return compare("the served versions are the registry's", expected, counted, detail, findings)


def check_probabilities(differences: Mapping[str, tuple[int, float]]) -> Check:
    """Check that the server, the Python API and the trainer give the same probabilities for the same runs.

    Args:
      differences: (number of compared runs, largest difference of a probability) of each model.
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
      runs: whether each raw row is trusted, by run id.
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


def check_topic(name: str, expected: Iterable[str], published: Iterable[str]) -> Check:
    """Check that a topic holds each record of a manifest exactly once.

    Args:
      name: of the topic.
      expected: keys of the records.
      published: keys of the messages.
    """
    records = Counter([*expected])  # of a mapping, its keys
    detail = f"{records.total()} messages"
    return compare(f"the topic {name} has each record once", records, Counter(published), detail)


def check_messages(answers: Sequence[AnswerLine]) -> Check:
    """Check that each verdict that the policy permits is one message on the change, and nothing else is posted."""
    findings = []
    for line in answers:
        expected = 0 if line.silent else 1
        if not line.verdict or len(line.messages) != expected:
            detail = f"verdict {line.verdict!r}, silent {line.silent!r}, {len(line.messages)} sent"
            findings.append(f"change {line.change}: {detail}")
    messages = [message for line in answers for message in line.messages]
    quoting = sum(bool(_QUOTATION.search(message)) for message in messages)
    detail = f"{len(messages)} messages on {len(answers)} changes, {quoting} with a line of the output"
    return make_check("each verdict that the policy lets pass is one message on its change", findings, detail)


def compare(
    name: str, expected: Mapping[Any, Any], counted: Mapping[Any, Any], detail: str, findings: Iterable[str] = ()
) -> Check:
    """Check that the counted value of each key is the expected one.

    Args:
      name: of the check.
      expected: values by key; a key with several values has a list.
      counted: the same from the stored data.
      detail: text of a check that passes.
      findings: other faults.
    """
    differences = [
        f"{_words(key)}: {_words(counted.get(key))}, not {_words(expected.get(key))}"
        for key in {**expected, **counted}
        if counted.get(key) != expected.get(key)
    ]
    return make_check(name, [*findings, *differences], detail)


def _words(value: Any) -> str:
    """Return a key or a value as text."""
    if value is None:
        return "nothing"
    if isinstance(value, list):
        return " and ".join(map(_words, value)) or "nothing"
    return " ".join(map(str, value)).rstrip() if isinstance(value, tuple) else str(value)


def make_check(name: str, findings: Iterable[str], detail: str) -> Check:
    """Return a check that passes if there are no findings; otherwise the detail is the first finding."""
    all_findings = list(findings)
    if not all_findings:
        return Check(name=name, passed=True, detail=detail)
    more = f" (and {len(all_findings) - 1} more)" if len(all_findings) > 1 else ""
    return Check(name=name, passed=False, detail=all_findings[0] + more)
