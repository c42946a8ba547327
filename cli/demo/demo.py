"""The demo from options to result: the run, the checks, the tables and the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from ciml.cli.demo import checks as verify
from ciml.cli.demo.corpus import CAUSE, MODELS, STATUS, trust_policy
from ciml.cli.demo.processes import Steps
from ciml.cli.demo.report import render, show, summary
from ciml.cli.demo.result import AnswerLine, Check, DemoResult
from ciml.cli.demo.review import Review, answer_changes, begin_review
from ciml.cli.demo.run import PREDICTIONS, RUNS, Demo, Options, Predictions, end_commands, prepared, run
from ciml.errors import EngineError
from ciml.serving.registry import Registry


def demo(options: Options, progress: Any, out: Any) -> DemoResult:
    """Run the demo and report on it.

    Args:
      options: of the command.
      progress: a `rich.console.Console` for the steps.
      out: one for the tables.

    Raises:
      CimlError: the chain did not finish; then there are no checks.
    """
    review = Review.of(options.home)
    with Steps(progress) as steps, prepared(options, steps, answers=not review.missing) as running:
        run(running)
        begin_review(running, review)
        with steps.step("verify the numbers") as report:
            result = balance(running, report)
        result = with_answers(result, answer_changes(running, review), review)
        if not options.keep:
            end_commands(running)
        with steps.step("write the report"):
            result = msgspec.structs.replace(result, steps=steps.lines(), took_s=steps.seconds())
            running.data.demo.replace("result.json", msgspec.json.format(msgspec.json.encode(result), indent=1))
            running.data.demo.replace("report.html", render(result).encode())
        if not options.keep:
            with steps.step("shut down"):
                running.engines.stop()
    show(result, out)
    out.print(f"\nReport: {running.data.demo.url('report.html')}", soft_wrap=True, highlight=False, markup=False)
    for line in _kept_lines(running):
        out.print(line, soft_wrap=True, highlight=False, markup=False)
    color = "green" if result.passed else "red"
    out.print(f"[bold {color}]{summary(result)}[/] {steps.seconds():.0f} s in all.", highlight=False)
    return result


def balance(demo: Demo, progress: Callable[[str], None]) -> DemoResult:
    """Recount all numbers from the stored data, and make the checks."""
    accounts = demo.accounts
    produced = demo.produced
    runs = accounts.outcomes("run")
    checks = [
        verify.check_accounting(produced, accounts),
        verify.check_offsets(produced, accounts),
        verify.check_waited(produced, accounts),
        verify.check_trust(produced, accounts),
        verify.check_raw(produced, runs),
    ]
    progress("raw objects")
    named = [outcome.file.path for outcome in accounts.outcomes() if outcome.file is not None]
    checks.append(verify.check_objects(demo.data.raw, runs, named))
    progress("data sets")
    spans = []
    for name in MODELS:
        state = demo.data.dataset(name).state()
        spans += verify.span_lines(name, state)
        checks += [verify.check_dataset(name, state, [run.run_id for run in runs]), _examples(demo, name, runs)]
    progress("models")
    checks += [
        verify.check_snapshots(_snapshots(demo), produced),
        verify.check_refreshes(demo.refreshes),
        verify.check_accuracy(demo.refreshes),
        *_check_models(demo),
    ]
    progress("predictions")
    records = Predictions(demo.data.predictions).catch_up().records
    trusted = {run.run_id: run.trust.trusted for run in runs}
    pushed = [refresh.version for refresh in demo.refreshes if refresh.model == STATUS and refresh.version]
    announced = [(message.key or b"").decode() for message in _messages(demo, RUNS)]
    published = [(dict(message.headers).get("ce_id") or b"").decode() for message in _messages(demo, PREDICTIONS)]
    checks += [
        verify.check_predictions(trusted, records, pushed),
        verify.check_topic(RUNS, announced, trusted),
        verify.check_topic(PREDICTIONS, published, [record["id"] for record in records]),
    ]
    versions = Registry(demo.data, STATUS).state.versions.values()
    first_push_us = min((version.time_us for version in versions), default=0)
    states = demo.engines.states
    engines = {"events": states["kafka"].what, "models": states["models"].what}
    engines["ingest"] = states["flink"].what if demo.on_flink else "bounded micro-batches"
    return DemoResult(
        started=demo.started.strftime("%Y-%m-%d %H:%M:%S UTC"),
        took_s=demo.steps.seconds(),
        engines=engines,
        runs=len(demo.plan.samples),
        messages=len(demo.plan.messages),
        accounting=verify.accounting_lines(produced, accounts),
        spans=spans,
        refreshes=demo.refreshes,
        predictions=verify.prediction_lines(
            records, {run_id for run_id in trusted if not trusted[run_id]}, first_push_us
        ),
        checks=checks,
        notes=demo.engines.notes,
    )


def with_answers(result: DemoResult, answers: list[AnswerLine], review: Review) -> DemoResult:
    """Return the result with the last act: its lines and their check, or a note that says why there is none."""
    if not answers:
        return msgspec.structs.replace(result, notes=[*result.notes, f"no changes were answered: {review.missing}"])
    notes = [*result.notes, f"model {CAUSE} posts immediately because of active_models; a new model is in shadow"]
    if review.rejected:
        notes.append(f"changes were answered by a model that the gate had rejected: {review.rejected}")
    checks = [*result.checks, verify.check_messages(answers)]
    return msgspec.structs.replace(result, answers=answers, checks=checks, notes=notes)


def _examples(demo: Demo, name: str, runs: list[Any]) -> Check:
    """Check the examples of a data set against the direct computation."""
    from ciml.transforms.examples.spans import read_span

    dataset = demo.data.dataset(name)
    state = dataset.state()
    resolved = state.resolved
    assert resolved is not None
    texts = {run.run_id: demo.logs.read_text(run.mention.log_url, demo.engines.logs) for run in runs}
    tables = [read_span(dataset.store, span) for span in state.latest() if span.files]
    columns = ["run_id", "n_windows", *resolved.features]
    rows = {row["run_id"]: row for table in tables for row in table.select(columns).to_pylist()}
    return verify.check_examples(rows, texts, resolved)


def _snapshots(demo: Demo) -> dict[str, Any]:
    from ciml.training.data.snapshot import read_snapshot

    snapshots = {(refresh.model, refresh.metrics.snapshot.digest) for refresh in demo.refreshes}
    return {
        f"snapshot {digest[:8]} of {model}": read_snapshot(demo.data.trainer(model), digest)
        for model, digest in sorted(snapshots)
        if digest
    }


def _check_models(demo: Demo) -> list[Check]:
    """Check the server's versions, and its answers to the held-out examples against those of the Python API.

    The server is sent the examples of the data set. The API prepares the same runs from the raw store, and loads the
    champion in this process.
    """
    import httpx
    import numpy as np

    import ciml
    from ciml.serving.client import ModelClient

    data = ciml.open(demo.data.url)
    served: dict[str, dict[str, int | None]] = {}
    stable: dict[str, int | None] = {}
    differences: dict[str, tuple[int, float]] = {}
    for model in MODELS:
        champion = Registry(demo.data, model).state.champion
        if champion is None:
            continue  # the gate rejected every version, with a reason
        stable[model] = champion
        dataset = data.dataset(model, trust_policy=trust_policy())
        inputs = dataset.to_numpy("test")[0]
        n_windows = dataset.n_windows("test")
        loaded = data.model(model)
        predictions = loaded.predict(dataset.facts("test").column("run_id").to_pylist())
        expected = np.array(
            [[prediction.probabilities[name] for name in loaded.classes] for prediction in predictions], np.float64
        )
        loaded.close()
        with ModelClient(demo.engines.models["grpc"], model) as client:
            client.wait_until_served(champion)
            over_grpc = client.predict(inputs, n_windows, version=champion).probabilities
            served[model] = {"gRPC": client.served_version()}
        url = f"{demo.engines.models['rest']}/v1/models/{model}"
        status = httpx.get(f"{url}/labels/stable", trust_env=False).json().get("model_version_status", [])
        available = [int(version["version"]) for version in status if version["state"] == "AVAILABLE"]
        served[model]["REST"] = next(iter(available), None)
        body = {"inputs": {"inputs": inputs[:8].tolist(), "n_windows": n_windows[:8].tolist()}}
        over_rest = httpx.post(f"{url}:predict", json=body, trust_env=False).json().get("outputs", math.nan)
        disagreements = [
            prediction.metrics.disagreement
            for prediction in demo.refreshes
            if prediction.model == model and prediction.version
        ]
        apart = [math.nan if value is None else value for value in disagreements]
        for answers, reference in ((over_grpc, expected), (over_rest, expected[:8])):
            apart.append(float(np.abs(np.array(answers, np.float64) - reference).max(initial=0.0)))
        differences[model] = (len(expected), float(np.max(apart)))  # NaN if one is NaN
    return [verify.check_served(served, stable), verify.check_probabilities(differences)]


def _messages(demo: Demo, topic: str) -> Iterator[Any]:
    """Yield all committed messages of a topic."""
    from ciml.kafka.options import KafkaOptions
    from ciml.pipelines.kafka.broker import list_topic
    from ciml.pipelines.kafka.plan import borrow

    kafka = KafkaOptions(demo.engines.kafka)
    for partition, (first, end) in list_topic(kafka, topic).bounds.items():
        with borrow(kafka, topic, partition) as reader:
            reader.seek(first)
            idle = 0
            while reader.position < end:
                before = reader.position
                yield from reader.read(5000, 1.0)
                idle = 0 if reader.position > before else idle + 1
                if idle > 10:
                    raise EngineError(f"{topic}[{partition}] at offset {before}: the broker does not answer reads")


def _kept_lines(demo: Demo) -> Iterator[str]:
    """Yield the addresses and processes that --keep left running, and how to stop them."""
    if not demo.left_running:
        return
    models = demo.engines.models
    addresses = {"Kafka": demo.engines.kafka, "logs": demo.engines.logs, "models (gRPC)": models["grpc"]}
    addresses["models (REST)"] = f"{models['rest']}/v1/models/{STATUS}"
    addresses |= {f"ciml {child.name}": f"pid {child.pid}, {child.log}" for child in demo.left_running}
    yield from (f"{name:<15} {address}" for name, address in addresses.items())
    pids = " ".join(str(child.pid) for child in demo.left_running)
    yield f"Stop by:        kill {pids}; ciml down --home {demo.options.home}"
