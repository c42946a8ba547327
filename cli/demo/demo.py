"""The demo from options to result: the run, the checks, the tables and the report."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec

from ciml.cli.demo import accounts as accounting
from ciml.cli.demo import checks as verify
from ciml.cli.demo.definitions import CAUSE, MODELS, POOL, STATUS
from ciml.cli.demo.direct import check_examples
from ciml.cli.demo.plan import WAVES
from ciml.cli.demo.predictions import Predictions, check_predictions, check_topic, prediction_lines
from ciml.cli.demo.report.result import AnswerLine, Check, Confusion, DemoResult, VersionLine
from ciml.cli.demo.review.act import answer_changes, begin_review
from ciml.cli.demo.review.servers import Review
from ciml.cli.demo.run import PREDICTIONS, RUNS, Demo, Options, end_commands, prepared, run
from ciml.cli.demo.served import check_answers
from ciml.cli.demo.steps import Steps
from ciml.errors import CimlError


def demo(options: Options, progress: Any, out: Any) -> DemoResult:
    """Run the demo and report on it.

    Args:
      options: of the command.
      progress: a `rich.console.Console` for the steps.
      out: one for the tables.

    Raises:
      CimlError: the chain did not finish; then there are no checks.
    """
    from ciml.cli.demo.report.page import render
    from ciml.cli.demo.report.table import show

    review = Review.of(options.home)
    with Steps(progress) as steps, prepared(options, steps, answers=not review.missing) as running:
        run(running)
        begin_review(running, review)
        with steps.step("verify the numbers") as step:
            result = balance(running, step.report)
        result = with_answers(result, answer_changes(running, review), review)
        end_commands(running)
        with steps.step("write the report"):
            result = msgspec.structs.replace(result, steps=steps.lines(), took_s=steps.seconds())
            running.data.demo.replace("result.json", msgspec.json.format(msgspec.json.encode(result), indent=1))
            running.data.demo.replace("report.html", render(result).encode())
        if not options.keep:
            with steps.step("shut down"):
                running.engines.stop()
    show(result, out)
    out.print()
    out.print(f"Report: {running.data.demo.url('report.html')}", soft_wrap=True, highlight=False, markup=False)
    if options.keep:
        _print_kept(running, out)
    wrong = sum(not check.passed for check in result.checks)
    color, summary = (
        ("bold green", "Every number adds up.")
        if result.passed
        else ("bold red", f"{wrong} check{'' if wrong == 1 else 's'} failed.")
    )
    out.print(f"[{color}]{summary}[/] {steps.seconds():.0f} s in all.", highlight=False)
    return result


def balance(demo: Demo, progress: Any = lambda _: None) -> DemoResult:
    """Recount all numbers from the stored data, and make the checks."""
    produced = demo.sender.produced
    accounts = demo.accounts
    runs = accounts.runs()
    checks = [
        accounting.check_accounting(produced, accounts),
        accounting.check_offsets(produced, accounts),
        accounting.check_waited(produced, accounts),
        accounting.check_trust(produced, accounts),
        verify.check_raw(produced, runs),
    ]
    progress("raw objects")
    tables, check = verify.read_raw(demo.raw, runs, accounts.paths())
    checks.append(check)
    progress("data sets")
    states = [demo.data.dataset(name).state() for name in MODELS]
    for state in states:
        checks.append(verify.check_dataset(state, [one.run_id for one in runs]))
        checks.append(_examples(demo, state, runs))
    progress("models")
    checks.append(verify.check_snapshots(_snapshots(demo), produced))
    versions = [version_line(refresh) for refresh in demo.refreshes if refresh["metrics"]]
    checks += [
        check_refreshes(demo.refreshes),
        check_accuracy(versions),
        *check_answers(demo),
    ]
    progress("predictions")
    predictions = Predictions(demo.data.predictions)
    predictions.catch_up()
    trusted = {one.run_id: one.trust.trusted for one in runs}
    pushed = [line.version for line in versions if line.model == STATUS and line.verdict == "pushed"]
    checks.append(check_predictions(trusted, predictions.records, pushed))
    checks += [
        check_topic(RUNS, _keys(demo, RUNS), list(trusted)),
        check_topic(PREDICTIONS, _ids(demo), [one["id"] for one in predictions.records]),
    ]
    spans, exclusions = verify.span_lines(states)
    providers = {one.run_id: one.mention.provider for one in runs if one.mention is not None}
    untrusted = {run_id for run_id, good in trusted.items() if not good}
    return DemoResult(
        started=demo.started.strftime("%Y-%m-%d %H:%M:%S UTC"),
        took_s=demo.steps.seconds(),
        engines=_engines(demo),
        runs=len(demo.plan.samples),
        messages=len(demo.plan.messages),
        accounting=accounting.accounting_lines(produced, accounts),
        spoilt=accounting.spoilt_lines(produced, accounts),
        spans=spans,
        exclusions=exclusions,
        versions=versions,
        confusions=_confusions(demo.refreshes),
        predictions=prediction_lines(predictions.records, untrusted, _first_push_us(demo)),
        profile_column=verify.PROFILE_COLUMN,
        profile_interval_s=verify.PROFILE_INTERVAL_S,
        profiles=verify.profiles(tables, providers),
        checks=checks,
        notes=demo.engines.notes,
    )


def with_answers(result: DemoResult, answers: list[AnswerLine], review: Review) -> DemoResult:
    """Return the result with the last act: its lines and their check, or a note that says why there is none."""
    if not answers:
        return msgspec.structs.replace(result, notes=[*result.notes, f"no changes were answered: {review.missing}"])
    notes = list(result.notes)
    checks = [*result.checks, check_messages(answers)]
    notes.append(
        f"model {CAUSE} speaks at once by active_models; a new model is in shadow until its verdicts are settled"
    )
    if review.rejected:
        notes.append(f"changes were answered by a model that the gate had rejected: {review.rejected}")
    return msgspec.structs.replace(result, answers=answers, checks=checks, notes=notes)


def check_messages(answers: list[AnswerLine]) -> Check:
    """Check that a verdict that the policy lets pass is one message on its change, and that no other one is said."""
    wrong = [
        f"change {one.change}: {one.verdict or 'no verdict'}, {one.silent or 'not silent'}, {len(one.messages)} sent"
        for one in answers
        if not one.verdict or len(one.messages) != (not one.silent)
    ]
    said = sum(len(one.messages) for one in answers)
    return accounting.made_check(
        "each verdict that the policy lets pass is one message on its change",
        wrong,
        f"{said} messages on {len(answers)} changes",
    )


def version_line(refresh: dict[str, Any]) -> VersionLine:
    """Return a refresh as a line of the table."""
    metrics = refresh["metrics"]
    evaluation = metrics["evaluation"]
    number, baseline = next(iter(metrics["baselines"].items()), ("", None))
    champion = metrics.get("champion")
    return VersionLine(
        model=refresh["model"],
        version=refresh["version"] or 0,
        verdict="pushed" if refresh["version"] else "kept",
        why="" if refresh["version"] else "; ".join(refresh["reasons"]),
        accuracy=evaluation["accuracy"]["value"],
        low=evaluation["accuracy"]["low"],
        high=evaluation["accuracy"]["high"],
        tested=evaluation["runs"],
        trained=evaluation["trained_on"],
        base_rate=evaluation["base_rate"]["value"],
        number=number,
        one_number=baseline["value"] if baseline else None,
        one_number_low=baseline["low"] if baseline else None,
        one_number_high=baseline["high"] if baseline else None,
        champion=champion["accuracy"]["value"] if champion else None,
        took_s=sum(refresh["seconds"].values()),
    )


def check_refreshes(refreshes: list[dict[str, Any]]) -> Check:
    """Check that models were refreshed (the first one after each wave), and that each refresh had a result."""
    found = Counter(refresh["model"] for refresh in refreshes)
    wrong = [
        f"{model} was refreshed {found[model]} times, not {least} times or more"
        for model, least in ((STATUS, len(WAVES)), (POOL, 1))
        if found[model] < least
    ]
    wrong += [
        f"{refresh['model']}: neither pushed nor rejected"
        for refresh in refreshes
        if not refresh["version"] and not refresh["reasons"]
    ]
    pushed = sum(bool(refresh["version"]) for refresh in refreshes)
    return accounting.made_check(
        "every refresh ended in a push or a reason", wrong, f"{found.total()} refreshes, {pushed} pushed"
    )


def check_accuracy(versions: list[VersionLine]) -> Check:
    """Check that the interval of the last pushed version of the first model is above the base rate."""
    mine = [line for line in versions if line.model == STATUS and line.verdict == "pushed"]
    name = f"the accuracy of {STATUS} is above the base rate"
    if not mine:
        return Check(name=name, passed=False, detail="no version was pushed")
    last = mine[-1]
    figures = f"{100 * last.accuracy:.1f} %, {100 * last.low:.1f}–{100 * last.high:.1f}"
    detail = f"v{last.version}: {figures}; base rate {100 * last.base_rate:.1f} %"
    return Check(name=name, passed=last.low > last.base_rate, detail=detail)


def _examples(demo: Demo, state: Any, runs: list[Any]) -> Check:
    """Check the examples of a data set against the direct computation."""
    from ciml.transforms.examples.spans import read_span

    name = state.definition.name
    texts = {
        one.run_id: demo.logs.read_text(one.mention.log_url, demo.engines.logs).decode()
        for one in runs
        if one.mention is not None
    }
    rows: dict[str, Any] = {}
    for span in state.latest():
        if not span.files:
            continue  # all of its runs are excluded
        table = read_span(demo.data.dataset(name).store, span)
        for row in table.select(["run_id", "n_windows", *state.resolved.features]).to_pylist():
            rows[row["run_id"]] = row
    return check_examples(rows, texts, state.resolved)


def _snapshots(demo: Demo) -> dict[str, Any]:
    from ciml.training.data.snapshot import read_snapshot

    digests = {
        (refresh["model"], refresh["metrics"]["snapshot"]["digest"]) for refresh in demo.refreshes if refresh["metrics"]
    }
    return {
        f"snapshot {digest[:8]} of {model}": read_snapshot(demo.data.trainer(model), digest)
        for model, digest in sorted(digests)
    }


def _confusions(refreshes: list[dict[str, Any]]) -> list[Confusion]:
    """Return the confusion of each model's last pushed version."""
    last: dict[str, Confusion] = {}
    for refresh in refreshes:
        if refresh.get("version"):
            found = refresh["metrics"]["evaluation"]["confusion"]
            last[refresh["model"]] = Confusion(
                model=refresh["model"],
                version=refresh["version"],
                classes=found["classes"],
                counts=found["rows_are_labels"],
            )
    return list(last.values())


def _first_push_us(demo: Demo) -> int:
    from ciml.serving.registry import Registry

    return min((one.time_us for one in Registry(demo.data, STATUS).state.versions.values()), default=0)


def _engines(demo: Demo) -> dict[str, str]:
    states = demo.engines.states
    kinds = {"events": states["kafka"].what, "ingest": "bounded micro-batches"}
    if demo.on_flink:
        kinds["ingest"] = states["flink"].what
    return {**kinds, "models": states["models"].what}


def _keys(demo: Demo, topic: str) -> list[str]:
    """Return the keys of a topic's messages."""
    return [(message.key or b"").decode() for message in _messages(demo, topic)]


def _ids(demo: Demo) -> list[str]:
    """Return the ids of a topic's CloudEvents."""
    return [(dict(message.headers).get("ce_id") or b"").decode() for message in _messages(demo, PREDICTIONS)]


def _messages(demo: Demo, topic: str) -> list[Any]:
    """Return all committed messages of a topic."""
    from ciml.kafka.options import KafkaOptions
    from ciml.pipelines.kafka.broker import list_topic
    from ciml.pipelines.kafka.reader import Reader

    kafka = KafkaOptions(demo.engines.kafka)
    found: list[Any] = []
    for partition, (first, end) in list_topic(kafka, topic).bounds.items():
        reader = Reader(kafka, topic, partition)
        try:
            reader.seek(first)
            idle = 0
            while reader.position < end:
                before = reader.position
                found += reader.read(5000, 1.0)
                idle = 0 if reader.position > before else idle + 1
                if idle > 10:
                    raise CimlError(
                        f"{topic}[{partition}] at offset {reader.position}: the broker does not answer reads"
                    )
        finally:
            reader.close()
    return found


def _print_kept(demo: Demo, out: Any) -> None:
    """Print the addresses and processes that --keep left running, and how to stop them."""
    lines = {
        "Kafka": demo.engines.kafka,
        "logs": demo.engines.logs,
        "models (gRPC)": demo.engines.models["grpc"],
        "models (REST)": f"{demo.engines.models['rest']}/v1/models/{STATUS}",
        **{f"ciml {child.name}": f"pid {child.pid}, {child.log}" for child in demo.kept},
    }
    for name, value in lines.items():
        out.print(f"{name:<15} {value}", soft_wrap=True, highlight=False, markup=False)
    pids = " ".join(str(child.pid) for child in demo.kept)
    out.print(f"Stop by:        kill {pids}; ciml down --home {demo.options.home}", soft_wrap=True, highlight=False)
