"""The chain of the demo: engines, events, ingest, data sets, models and predictions."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from ciml import engines
from ciml.cli.demo.corpus import (
    CAUSE,
    MODELS,
    STATUS,
    corpus_folder,
    definitions,
    examples,
    read_corpus,
    trust_policy,
    unpack_logs,
)
from ciml.cli.demo.plan import WAVES, Expected, Key, LogRoot, Plan, make_plan, produce
from ciml.cli.demo.processes import Child, Children, Steps
from ciml.cli.demo.result import Refresh
from ciml.data_root import DataRoot
from ciml.engines import processes
from ciml.errors import CimlError, EngineError
from ciml.events.records import Origin, Outcome, records_of
from ciml.manifest.coverage import RangeSet
from ciml.manifest.log import ManifestLog
from ciml.serving.model_files import CONFIG_NAME
from ciml.serving.registry import Registry
from ciml.storage import Store

EVENTS = "ci-events"
RUNS = "runs"
PREDICTIONS = "predictions"
TOPICS = {EVENTS: 3, RUNS: 1, PREDICTIONS: 1}
#: Delays of further fetches of a log, s. Late logs are written as soon as their runs are deferred.
RETRIES_S = (3, 6)
#: The file that marks a folder as a demo's.
MARK = ".ciml-demo"
#: The processes that ``--keep`` left running; the next demo in the same folder stops them.
KEPT = "kept.json"


@dataclass(frozen=True)
class Options:
    """Options of the demo.

    Attributes:
      data: the folder of all output; it is emptied first.
      home: the folder of the engines' files.
      engine: ``flink``, ``micro-batches``, or ``auto`` for Flink where there is Java.
      corpus: the folder of sample runs; None for the checkout's.
      runs: number of sample runs; None for all.
      span_runs: number of runs of a span.
      keep: leave engines and services running at the end.
    """

    data: Path
    home: Path
    engine: str = "auto"
    corpus: str | None = None
    runs: int | None = None
    span_runs: int = 60
    keep: bool = False


@dataclass(slots=True)
class Accounts:
    """Outcomes of the raw manifest up to ``version``.

    Attributes:
      final: outcomes by key that no later delta closed; exactly one is correct.
      waited: keys that were deferred at some time.
      covered: settled offsets by (topic, partition).
    """

    version: int = 0
    final: dict[Key, list[Outcome]] = field(default_factory=lambda: defaultdict(list))
    waited: set[Key] = field(default_factory=set)
    covered: dict[tuple[str, int], RangeSet] = field(default_factory=lambda: defaultdict(RangeSet))

    def catch_up(self, raw: Store) -> None:
        """Read new deltas."""
        for version, delta in ManifestLog(raw).since(self.version):
            self.apply(delta)
            self.version = version

    def apply(self, delta: Mapping[str, Any]) -> None:
        for topic, entry in delta["offsets"].items():
            for partition, ranges in entry["partitions"].items():
                for start, end in ranges:
                    self.covered[topic, int(partition)].add(start, end)
        for origin, run_id in delta["closes"]:
            self.final.pop(_key(Origin.from_json(origin), run_id), None)
        for _, record in records_of(delta):
            outcome = Outcome.from_json(record)
            key = _key(outcome.origin, outcome.run_id)
            if outcome.kind == "deferred":
                self.waited.add(key)
                self.final[key] = [earlier for earlier in self.final[key] if earlier.kind != "deferred"]
            self.final[key].append(outcome)

    def outcomes(self, kind: str = "") -> list[Outcome]:
        """Return the outcomes of a kind, or all, in the manifest's order."""
        return [out for outcomes in self.final.values() for out in outcomes if kind in ("", out.kind)]

    def unsettled(self, produced: Iterable[Expected]) -> int:
        """Return the number of acknowledged messages that are not covered yet."""
        sent = {(line.topic, line.partition, line.offset) for line in produced}
        return sum(offset not in self.covered[topic, partition] for topic, partition, offset in sent)


def _key(origin: Origin, run_id: str) -> Key:
    return origin.topic, origin.partition, origin.offset, run_id


@dataclass(slots=True)
class Predictions:
    """The predictions of a data root, as far as they were read.

    Attributes:
      records: the predictions.
      run_ids: runs that were predicted, or found unpredictable.
    """

    store: Store
    version: int = 0
    records: list[dict[str, Any]] = field(default_factory=list)
    run_ids: set[str] = field(default_factory=set)

    def catch_up(self) -> Predictions:
        """Read new deltas."""
        for version, delta in ManifestLog(self.store).since(self.version):
            self.records += delta["predictions"]
            self.run_ids.update(record["run_id"] for record in (*delta["predictions"], *delta["unpredictable"]))
            self.version = version
        return self


@dataclass
class Demo:
    """The state of a running demo.

    Attributes:
      models: the models; that of causes only where changes are answered.
      produced: the producer's list of acknowledged (event, run) pairs.
      refreshes: the results of ``ciml refresh``, after the last wave.
      left_running: the commands that ``--keep`` leaves running.
    """

    options: Options
    steps: Steps
    children: Children
    engines: engines.Engines
    data: DataRoot
    plan: Plan
    logs: LogRoot
    started: datetime
    models: tuple[str, ...]
    produced: list[Expected] = field(default_factory=list)
    accounts: Accounts = field(default_factory=Accounts)
    refreshes: list[Refresh] = field(default_factory=list)
    left_running: list[Child] = field(default_factory=list)

    @property
    def on_flink(self) -> bool:
        return self.options.engine != "micro-batches" and not self.engines.states["flink"].light

    def start(self, name: str, *arguments: str, kafka: bool = True, data: bool = True) -> Child:
        """Start a command, named after its first argument, with the demo's broker and data root."""
        places = ("--kafka", self.engines.kafka) * kafka + ("--data-path", self.data.url) * data
        return self.children.start(name, *arguments, *places)


def empty(options: Options) -> None:
    """Make an empty folder for the demo; an earlier demo in it is removed.

    Raises:
      CimlError: the folder has other content.
    """
    folder = options.data
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not (folder / MARK).exists():
        raise CimlError(f"{folder} is not a demo folder; refusing to overwrite it. Name another one by --data-path")
    with contextlib.suppress(FileNotFoundError):
        for pid, started in json.loads(DataRoot.open(folder).demo.read(KEPT)):
            processes.end(pid, started)
    if engines.read(options.home):
        engines.stop(None, options.home)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / MARK).write_text("written by ciml demo, which empties this folder\n")


@contextlib.contextmanager
def prepared(options: Options, steps: Steps, answers: bool) -> Iterator[Demo]:
    """Start engines, ready for the first event. At the end, stop commands and engines unless ``keep``.

    Args:
      options: of the command.
      steps: get those of the start.
      answers: whether changes will be answered.
    """
    from ciml.pipelines.datasets.update import create_dataset

    begin = datetime.now(UTC)
    corpus = corpus_folder(options.corpus)
    samples = read_corpus(corpus, options.runs)
    empty(options)
    data = DataRoot.open(options.data)
    logs = LogRoot(Path(data.demo.url("served-logs")), unpack_logs(corpus, Path(data.demo.url("corpus"))))
    logs.folder.mkdir(parents=True)
    settings = engines.Settings(logs_root=str(logs.folder), models_config=data.models.url(CONFIG_NAME))
    names = ["kafka", "logs", "models", *["flink"] * (options.engine != "micro-batches")]
    with contextlib.ExitStack() as stack:
        with steps.step("start engines") as report:
            # Engines that have started are stopped if starting the others fails or is interrupted.
            stack.push(lambda kind, *_: _end_engines(options.home, options.keep and kind is None))
            running = engines.start(names, options.home, settings)
            report(", ".join(state.what.split(" of ")[0] for state in running.states.values()))
        if options.engine == "flink" and running.states["flink"].light:
            raise EngineError("--engine flink: no Java is installed; install it or use --engine micro-batches")
        # Commands end before the engines that they use.
        children = stack.enter_context(Children(Path(data.demo.url("logs")), options.data))
        plan = make_plan(samples, running.logs)
        logs.make(plan)
        engines.create_topics(running.kafka, TOPICS)
        for definition in definitions(options.span_runs, samples, answers):
            create_dataset(data, definition)
        models = (*MODELS, CAUSE) if answers else MODELS
        demo = Demo(options, steps, children, running, data, plan, logs, begin, models)
        yield demo
        if options.keep:  # reached only when nothing failed
            demo.left_running += children.running.values()
            children.running.clear()
            data.demo.replace(KEPT, json.dumps([[child.pid, child.started] for child in demo.left_running]).encode())


def _end_engines(home: Path, keep: bool) -> bool:
    if not keep:
        engines.stop(None, home)
    return False  # do not suppress the exception


def run(demo: Demo) -> None:
    """Send events in waves, with spans and refreshes after each, until every run is predicted.

    The next wave comes when the first model has been refreshed, so that each of its versions predicts some runs. The
    other model is refreshed meanwhile.
    """
    retries = [part for delay in RETRIES_S for part in ("--retry-after", f"{delay}s")]
    engine = f"flink:{demo.engines.flink}" if demo.on_flink else "micro-batches"
    policies = ("--allow-host", demo.engines.logs, "--trust-policy", str(trust_policy()))
    demo.start("ingest", "ingest", "--engine", engine, *policies, *retries)
    start_predict(demo, STATUS)
    for model in MODELS:
        start_refreshes(demo, model)
    for wave in range(len(WAVES)):
        ingest_wave(demo, wave)
        last = wave == len(WAVES) - 1
        if last:
            settle(demo)
        update(demo, seal=last)
        if last and CAUSE in demo.models:
            start_refreshes(demo, CAUSE, "--experiment", str(examples() / "cause-experiment.toml"))
        for model in demo.models if last else MODELS[:1]:
            refresh(demo, model)
    drain(demo)


def start_predict(demo: Demo, model: str) -> None:
    """Start the predictions of a model, in micro-batches: a second Flink job would need another gigabyte."""
    server = demo.engines.models["grpc"]
    demo.start("predict", "predict", "stream", "--engine", "micro-batches", "--server", server, "--model", model)


def start_refreshes(demo: Demo, model: str, *options: str) -> None:
    """Start the command that refreshes a model whenever the data set of the same name grows."""
    command = ("refresh", "--dataset", model, "--watch", "--json", "--trust-policy", str(trust_policy()), *options)
    demo.start(f"refresh-{model}", *command, kafka=False)


def ingest_wave(demo: Demo, wave: int) -> None:
    """Send a wave and wait until the raw manifest covers it."""
    with demo.steps.step(f"ingest events, wave {wave + 1} of {len(WAVES)}") as report:
        demo.produced += produce(demo.engines.kafka, EVENTS, demo.plan.waves()[wave])
        demo.data.demo.replace("produced.jsonl", b"".join(msgspec.json.encode(line) + b"\n" for line in demo.produced))

        def covered() -> bool:
            catch_up(demo)
            unsettled = demo.accounts.unsettled(demo.produced)
            runs = len(demo.accounts.outcomes("run"))
            report(f"{len(demo.produced)} (event, run) sent, {unsettled} messages to go, {runs} raw rows")
            return unsettled == 0

        demo.children.wait_for(covered, "waiting for the accounting of all events")


def catch_up(demo: Demo) -> None:
    """Read new deltas of the raw manifest, and write the late logs of deferred runs."""
    demo.accounts.catch_up(demo.data.raw)
    waiting = {outcome.run_id for outcome in demo.accounts.outcomes("deferred")}
    for path, run_id in demo.plan.late.items():
        if run_id in waiting and not (demo.logs.folder / path).exists():
            demo.logs.release(demo.plan, path)


def settle(demo: Demo) -> None:
    """Wait until no run is deferred."""
    with demo.steps.step("wait for late logs") as report:

        def settled() -> bool:
            catch_up(demo)
            waiting = len(demo.accounts.outcomes("deferred"))
            report(f"{waiting} of {len(demo.accounts.waited)} wait")
            return not waiting

        demo.children.wait_for(settled, "waiting for late logs")


def update(demo: Demo, *, seal: bool) -> None:
    """Seal the full spans of all data sets; with ``seal`` also the last one."""
    from ciml.pipelines.datasets.update import update_dataset

    with demo.steps.step("seal spans") as report:
        for name in demo.models:
            state = update_dataset(demo.data.dataset(name), seal=seal).state
            report(f"{sum(len(span.runs) for span in state.latest())} examples in {len(state.spans)} spans")


def refresh(demo: Demo, model: str) -> None:
    """Wait until a model has been refreshed with all sealed spans."""
    from ciml.training.data.snapshot import make_snapshot
    from ciml.trust import TrustPolicy

    log = demo.children.running[f"refresh-{model}"].log
    snapshot = make_snapshot(demo.data.dataset(model), TrustPolicy.load(trust_policy())).digest
    with demo.steps.step(f"refresh {model}") as report:

        def refreshed() -> bool:
            report(last_step(log))
            return snapshot in [result.metrics.snapshot.digest for result in read_refreshes(log)]

        demo.children.wait_for(refreshed, f"refreshing {model}", 240.0)
        version = read_refreshes(log)[-1].version
        report(f"pushed as v{version}" if version else "not pushed")


def read_refreshes(log: Path) -> list[Refresh]:
    """Return the refreshes that a command has printed as JSON lines."""
    lines = log.read_bytes().split(b"\n")[:-1]  # the last one may be incomplete
    return [msgspec.convert(json.loads(line), Refresh) for line in lines if line.startswith(b"{")]


def last_step(log: Path) -> str:
    """Return the last line of a command's log that is not a result: its present step."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line and not line.startswith("{")]
    return lines[-1].partition(": ")[2] if lines else ""


def drain(demo: Demo) -> None:
    """Wait until every raw row is predicted."""
    with demo.steps.step("predict every run") as report:
        runs = {outcome.run_id for outcome in demo.accounts.outcomes("run")}
        predictions = Predictions(demo.data.predictions)

        def predicted() -> bool:
            finished = predictions.catch_up().run_ids & runs
            report(f"{len(finished)} of {len(runs)}")
            return finished == runs

        if Registry(demo.data, STATUS).state.champion is None:
            report("no version was pushed")  # a check reports it
        else:
            demo.children.wait_for(predicted, "waiting for predictions")
    for model in demo.models:
        demo.refreshes += read_refreshes(demo.children.running[f"refresh-{model}"].log)
    catch_up(demo)


def end_commands(demo: Demo) -> None:
    """Stop the commands, which may still answer changes until then."""
    with demo.steps.step("end the commands"), ThreadPoolExecutor(len(demo.children.running)) as pool:
        list(pool.map(demo.children.end, tuple(demo.children.running)))
