"""The demo from options to result: the run, the checks, the tables and the page."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import httpx
import msgspec
import numpy as np

import ciml
from ciml.cli.demo import DemoOptions, checks, example_checks
from ciml.cli.demo.accounts import Accounts, Predictions
from ciml.cli.demo.corpus import MODELS, STATUS
from ciml.cli.demo.plan import Expected
from ciml.cli.demo.processes import Steps
from ciml.cli.demo.result import AccountingLine, Check, DemoResult, PredictionLine, SpanLine, render, show, summary
from ciml.cli.demo.review import Review, answer_changes, begin_review, missing_servers
from ciml.cli.demo.run import PREDICTIONS, RUNS, Demo, end_commands, run, start_demo
from ciml.datasets.state import DatasetState
from ciml.errors import EngineError
from ciml.events.records import KIND_WORDS, Outcome
from ciml.serving.registry import Registry

#: Number of held-out runs that the REST API is asked for; JSON of all would be large.
_REST_RUNS = 8
#: Number of reads without a message, of up to a second each, after which a broker counts as unavailable.
_MOST_IDLE_READS = 10


def run_demo(options: DemoOptions, progress: Any, out: Any) -> DemoResult:
    """Run the demo and report on it.

    Args:
      options: of the command.
      progress: a `rich.console.Console` for the steps.
      out: one for the tables.

    Raises:
      CimlError: the chain did not finish; then there are no checks.
    """
    missing = missing_servers()
    with Steps(progress) as steps, start_demo(options, steps, answers=not missing) as demo:
        run(demo)
        review = begin_review(demo, missing)
        with steps.step("verify the numbers") as report:
            result = recount(demo, report)
        result = with_answers(result, answer_changes(demo, review))
        if not options.keep:
            end_commands(demo)
        with steps.step("write the report"):
            result = msgspec.structs.replace(result, steps=steps.lines(), took_s=steps.seconds())
            demo.data.demo.replace("result.json", msgspec.json.format(msgspec.json.encode(result), indent=1))
            demo.data.demo.replace("report.html", render(result).encode())
        if not options.keep:
            with steps.step("shut down"):
                demo.engines.stop()
    show(result, out)
    out.print(f"\nReport: {demo.data.demo.url('report.html')}", soft_wrap=True, highlight=False, markup=False)
    for line in _left_running_lines(demo):
        out.print(line, soft_wrap=True, highlight=False, markup=False)
    color = "green" if result.passed else "red"
    out.print(f"[bold {color}]{summary(result)}[/] {steps.seconds():.0f} s in all.", highlight=False)
    return result


def recount(demo: Demo, report: Callable[[str], None]) -> DemoResult:
    """Recount all numbers from the stored data, and check them; ``report`` gets the present part of the work."""
    runs = demo.accounts.outcomes("run")
    trusted = {run.run_id: run.trust.trusted for run in runs}
    states = {name: demo.data.dataset(name).state() for name in MODELS}
    predictions = Predictions(demo.data.predictions)
    predictions.catch_up()
    report("raw objects")
    all_checks = _check_raw_store(demo, runs)
    report("data sets")
    for name, state in states.items():
        all_checks.append(checks.check_dataset(name, [run.run_id for run in runs], state))
        all_checks.append(_check_examples(demo, name, state, runs))
    report("models")
    all_checks += [
        checks.check_snapshots(demo.produced, _snapshots(demo)),
        checks.check_refreshes(demo.refreshes),
        checks.check_accuracy(demo.refreshes),
        *_check_models(demo),
    ]
    report("predictions")
    all_checks += _check_predictions(demo, trusted, predictions.records)
    first_push_us = min((version.time_us for version in Registry(demo.data, STATUS).state.versions.values()), default=0)
    untrusted = {run_id for run_id, is_trusted in trusted.items() if not is_trusted}
    return DemoResult(
        started=demo.started.strftime("%Y-%m-%d %H:%M:%S UTC"),
        took_s=demo.steps.seconds(),
        engines=_engine_names(demo),
        runs=len(demo.plan.samples),
        messages=len(demo.plan.messages),
        accounting=accounting_lines(demo.produced, demo.accounts),
        spans=[line for name, state in states.items() for line in span_lines(name, state)],
        refreshes=demo.refreshes,
        predictions=prediction_lines(predictions.records, untrusted, first_push_us),
        checks=all_checks,
        notes=demo.engines.notes,
    )


def with_answers(result: DemoResult, review: Review) -> DemoResult:
    """Return the result with the notes of the last act, and its answers and their check if there are any."""
    all_checks = [*result.checks, *([checks.check_messages(review.answers)] if review.answers else [])]
    notes = [*result.notes, *review.notes]
    return msgspec.structs.replace(result, answers=review.answers, checks=all_checks, notes=notes)


def accounting_lines(produced: Iterable[Expected], accounts: Accounts) -> list[AccountingLine]:
    """Return the expected and the counted number of (event, run) pairs by kind, reason and trick."""
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
    """Return the examples of each span by split and by class, and the exclusions by reason."""
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
    """Return the number and latency of the predictions of each model.

    Args:
      records: predictions in the manifest.
      untrusted: ids of untrusted runs.
      since_us: time of the first push. Runs that were announced earlier waited for a model. Their latency is left out,
        unless there are no others.
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


def _left_running_lines(demo: Demo) -> Iterator[str]:
    """Yield the addresses and processes that --keep left running, and how to stop them."""
    if not demo.options.keep:
        return
    left_running = demo.children.running.values()
    models = demo.engines.models
    addresses = {"Kafka": demo.engines.kafka, "logs": demo.engines.logs, "models (gRPC)": models["grpc"]}
    addresses["models (REST)"] = f"{models['rest']}/v1/models/{STATUS}"
    addresses |= {f"ciml {child.name}": f"pid {child.process.pid}, {child.log}" for child in left_running}
    yield from (f"{name:<15} {address}" for name, address in addresses.items())
    pids = " ".join(str(child.process.pid) for child in left_running)
    yield f"Stop by:        kill {pids}; ciml down --home {demo.options.engines_home}"


def _engine_names(demo: Demo) -> dict[str, str]:
    """Return the engine of each use, for people."""
    states = demo.engines.states
    ingest = states["flink"].what if demo.on_flink else "bounded micro-batches"
    return {"events": states["kafka"].what, "models": states["models"].what, "ingest": ingest}


def _check_raw_store(demo: Demo, runs: Sequence[Outcome]) -> list[Check]:
    accounts = demo.accounts
    paths = [outcome.file.path for outcome in accounts.outcomes() if outcome.file is not None]
    return [
        checks.check_accounting(demo.produced, accounts),
        checks.check_offsets(demo.produced, accounts),
        checks.check_waited(demo.produced, accounts),
        checks.check_trust(demo.produced, accounts),
        checks.check_raw(demo.produced, runs),
        checks.check_objects(demo.data.raw, runs, paths),
        checks.check_outputs(demo.data.raw, demo.produced, runs, demo.logs.read),
    ]


def _check_examples(demo: Demo, name: str, state: DatasetState, runs: Sequence[Outcome]) -> Check:
    """Check the examples of a data set against the direct computation."""
    from ciml.transforms.examples.spans import read_span

    resolved = state.resolved
    if resolved is None:
        return Check(name=f"examples of {name} equal a direct computation", passed=False, detail="there are none")
    texts = {run.run_id: demo.logs.read_text(run.mention.log_url, demo.engines.logs) for run in runs if run.mention}
    store = demo.data.dataset(name).store
    tables = [read_span(store, span) for span in state.latest() if span.files]
    columns = ["run_id", "n_windows", *resolved.features]
    rows = {row["run_id"]: row for table in tables for row in table.select(columns).to_pylist()}
    return example_checks.check_examples(rows, texts, resolved)


def _snapshots(demo: Demo) -> dict[str, Any]:
    """Return the snapshots that models have learned from, by a name for people."""
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
    champion in this process. A model without a champion, whose versions the gate rejected, is left out.
    """
    from ciml.serving.client import ModelClient

    data = ciml.open(demo.data.url)
    champions = {model: Registry(demo.data, model).state.champion for model in MODELS}
    stable = {model: version for model, version in champions.items() if version is not None}
    served: dict[str, dict[str, int | None]] = {}
    differences: dict[str, tuple[int, float]] = {}
    for model, version in stable.items():
        dataset = data.dataset(model)
        inputs = dataset.to_numpy("test")[0]
        n_windows = dataset.n_windows("test")
        with data.model(model) as loaded:
            predictions = loaded.predict(dataset.facts("test").column("run_id").to_pylist())
        expected = np.array([[prediction.probabilities[name] for name in loaded.classes] for prediction in predictions])
        with ModelClient(demo.engines.models["grpc"], model) as client:
            client.wait_until_served(version)
            over_grpc = client.predict(inputs, n_windows, version=version).probabilities
            grpc_version = client.served_version()
        url = f"{demo.engines.models['rest']}/v1/models/{model}"
        over_rest = _rest_probabilities(url, inputs[:_REST_RUNS], n_windows[:_REST_RUNS])
        served[model] = {"gRPC": grpc_version, "REST": _rest_version(url)}
        apart = [
            _difference(over_grpc, expected),
            _difference(over_rest, expected[:_REST_RUNS]),
            *_disagreements(demo, model),
        ]
        differences[model] = (len(expected), float(np.max(apart)))  # NaN if one is NaN
    return [checks.check_served(stable, served), checks.check_probabilities(differences)]


def _rest_version(url: str) -> int | None:
    """Return the stable version that a model server reports over REST; None without one."""
    versions = httpx.get(f"{url}/labels/stable", trust_env=False).json().get("model_version_status", [])
    return next((int(version["version"]) for version in versions if version["state"] == "AVAILABLE"), None)


def _rest_probabilities(url: str, inputs: Any, n_windows: Any) -> Any:
    """Return the probabilities that a model server answers over REST; NaN for an error."""
    body = {"inputs": {"inputs": inputs.tolist(), "n_windows": n_windows.tolist()}}
    return httpx.post(f"{url}:predict", json=body, trust_env=False).json().get("outputs", math.nan)


def _difference(probabilities: Any, expected: Any) -> float:
    return float(np.abs(np.array(probabilities, np.float64) - expected).max(initial=0.0))


def _disagreements(demo: Demo, model: str) -> list[float]:
    """Return the differences between the exported and the trained versions of a model; NaN for an unknown one."""
    pushed = [refresh.metrics for refresh in demo.refreshes if refresh.model == model and refresh.version]
    return [math.nan if metrics.disagreement is None else metrics.disagreement for metrics in pushed]


def _check_predictions(demo: Demo, trusted: Mapping[str, bool], records: Sequence[Mapping[str, Any]]) -> list[Check]:
    """Check the stored predictions, and the topics of runs and predictions."""
    pushed = [refresh.version for refresh in demo.refreshes if refresh.model == STATUS and refresh.version]
    announced = [(message.key or b"").decode() for message in _messages(demo, RUNS)]
    published = [(dict(message.headers).get("ce_id") or b"").decode() for message in _messages(demo, PREDICTIONS)]
    return [
        checks.check_predictions(trusted, records, pushed),
        checks.check_topic(RUNS, trusted, announced),
        checks.check_topic(PREDICTIONS, [record["id"] for record in records], published),
    ]


def _messages(demo: Demo, topic: str) -> Iterator[Any]:
    """Yield all committed messages of a topic."""
    from ciml.kafka import KafkaOptions
    from ciml.pipelines.kafka.broker import list_topic
    from ciml.pipelines.kafka.reader import borrow

    kafka = KafkaOptions(demo.engines.kafka)
    for partition, (first, end) in list_topic(kafka, topic).bounds.items():
        with borrow(kafka, topic, partition) as reader:
            reader.seek(first)
            idle_reads = 0
            while reader.position < end:
                before = reader.position
                yield from reader.read(5000, 1.0)
                idle_reads = 0 if reader.position > before else idle_reads + 1
                if idle_reads > _MOST_IDLE_READS:
                    raise EngineError(f"{topic}[{partition}] at offset {before}: the broker does not answer reads")
