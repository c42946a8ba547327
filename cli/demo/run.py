"""The chain of the demo: engines, events, ingest, data sets, models and predictions."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ciml import engines
from ciml.cli.demo.accounts import Accounts
from ciml.cli.demo.corpus import corpus_folder, read_corpus, unpack_logs
from ciml.cli.demo.definitions import CAUSE, MODELS, STATUS, cause_definition, definitions, examples, trust_policy
from ciml.cli.demo.plan import WAVES, Plan, make_plan
from ciml.cli.demo.predictions import Predictions
from ciml.cli.demo.processes import Child, Children, wait_for
from ciml.cli.demo.produce import LogRoot, Sender, dump
from ciml.cli.demo.refreshes import child_of, is_current, last_step, read_refreshes, start_refreshes
from ciml.cli.demo.steps import Steps
from ciml.data_root import DataRoot
from ciml.engines import processes
from ciml.errors import CimlError, EngineError
from ciml.serving.model_files import CONFIG_NAME
from ciml.serving.registry import Registry
from ciml.storage import Store

EVENTS = "ci-events"
RUNS = "runs"
PREDICTIONS = "predictions"
PARTITIONS = 3
#: Delays of further fetches of a log, s. Late logs are written as soon as their runs are deferred.
RETRIES_S = (3, 6)
WAIT_S = 120.0


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


@dataclass
class Demo:
    """The state of a running demo: processes, stores, plan and accounts; and whether changes will be answered."""

    options: Options
    steps: Steps
    children: Children
    engines: engines.Engines
    data: DataRoot
    plan: Plan
    logs: LogRoot
    sender: Sender
    started: datetime
    answers: bool
    accounts: Accounts = field(default_factory=Accounts)
    refreshes: list[dict[str, Any]] = field(default_factory=list)
    kept: list[Child] = field(default_factory=list)

    @property
    def models(self) -> tuple[str, ...]:
        """The models: that of causes only where changes are answered."""
        return (*MODELS, CAUSE) if self.answers else MODELS

    @property
    def raw(self) -> Store:
        return self.data.raw

    @property
    def on_flink(self) -> bool:
        return self.options.engine != "micro-batches" and not self.engines.states["flink"].light

    @property
    def engine(self) -> str:
        return f"flink:{self.engines.flink}" if self.on_flink else "micro-batches"


MARK = ".ciml-demo"
#: The processes that ``--keep`` left running; the next demo in the same folder stops them.
KEPT = "kept.json"


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
    """Start engines and services, ready for the first event; stop them at the end unless ``keep``.

    Args:
      options: of the command.
      steps: get those of the start.
      answers: whether changes will be answered.
    """
    began = datetime.now(UTC)
    corpus = corpus_folder(options.corpus)
    samples = read_corpus(corpus, options.runs)
    empty(options)
    data = DataRoot.open(options.data)
    logs = LogRoot(Path(data.demo.url("served-logs")), unpack_logs(corpus, Path(data.demo.url("corpus"))))
    logs.folder.mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        children = Children(Path(data.demo.url("logs")), options.data)
        settings = engines.Settings(logs_root=str(logs.folder), models_config=data.models.url(CONFIG_NAME))
        names = (
            ["kafka", "logs", "models"] if options.engine == "micro-batches" else ["kafka", "flink", "logs", "models"]
        )
        with steps.step("start engines") as step:
            # Engines that have started are stopped if starting the others fails or is interrupted.
            stack.push(lambda kind, *_: _end_engines(options.home, options.keep and kind is None))
            running = engines.start(names, options.home, settings)
            step.report(", ".join(one.what.split(" of ")[0] for one in running.states.values()))
        stack.enter_context(children)  # ended before the engines that they use
        if options.engine == "flink" and running.states["flink"].light:
            raise EngineError("--engine flink: no Java is installed; install it or use --engine micro-batches")
        plan = make_plan(samples, running.logs)
        logs.make(plan)
        sender = Sender(running.kafka, EVENTS)
        demo = Demo(options, steps, children, running, data, plan, logs, sender, began, answers)
        engines.create_topics(running.kafka, {EVENTS: PARTITIONS, RUNS: 1, PREDICTIONS: 1})
        pools = {sample.facts.provider for sample in samples} - {""}
        made = definitions(options.span_runs, pools)
        for definition in (*made, cause_definition(options.span_runs)) if answers else made:
            from ciml.pipelines.datasets.update import create_dataset

            create_dataset(data, definition)
        yield demo
        if options.keep:  # reached only when nothing failed
            demo.kept += children.running.values()
            children.running.clear()
            pids = [[child.pid, child.started] for child in demo.kept]
            data.demo.replace(KEPT, json.dumps(pids).encode())


def _end_engines(home: Path, keep: bool) -> bool:
    if not keep:
        engines.stop(None, home)
    return False  # do not suppress the exception


def run(demo: Demo) -> None:
    """Send events in waves, with spans and refreshes after each, until every run is predicted.

    The next wave comes when the first model has been refreshed, so that each of its versions predicts some runs. The
    other model is refreshed meanwhile.
    """
    start_ingest(demo)
    start_predict(demo)
    for model in MODELS:
        start_refreshes(demo.children, demo.data, model)
    for wave in range(len(WAVES)):
        ingest_wave(demo, wave)
        last = wave == len(WAVES) - 1
        if last:
            settle(demo)
        update(demo, seal=last)
        if last and CAUSE in demo.models:
            start_refreshes(demo.children, demo.data, CAUSE, "--experiment", str(examples() / "cause-experiment.toml"))
        for model in demo.models if last else MODELS[:1]:
            refresh(demo, model)
    drain(demo)


def start_ingest(demo: Demo) -> None:
    retries = [part for delay in RETRIES_S for part in ("--retry-after", f"{delay}s")]
    demo.children.start(
        "ingest",
        *("ingest", "--data-path", demo.data.url, "--kafka", demo.engines.kafka, "--engine", demo.engine),
        *("--allow-host", demo.engines.logs, "--trust-policy", str(trust_policy()), *retries),
    )


def start_predict(demo: Demo) -> None:
    # Bounded batches on either engine: a second Flink job would need another gigabyte and show nothing new.
    place = ("--data-path", demo.data.url, "--kafka", demo.engines.kafka, "--engine", "micro-batches")
    demo.children.start(
        "predict", "predict", "stream", *place, "--server", demo.engines.models["grpc"], "--model", STATUS
    )


def ingest_wave(demo: Demo, wave: int) -> None:
    """Send a wave and wait until the raw manifest covers it."""
    messages = demo.plan.waves()[wave]
    with demo.steps.step(f"ingest events, wave {wave + 1} of {len(WAVES)}") as step:
        demo.sender.send(messages)
        demo.data.demo.replace("produced.jsonl", dump(demo.sender.produced))

        def covered() -> bool:
            catch_up(demo)
            left = demo.accounts.unsettled(demo.sender.produced)
            runs = len(demo.accounts.runs())
            step.report(f"{len(demo.sender.produced)} (event, run) sent, {left} messages to go, {runs} raw rows")
            return left == 0

        wait_for(covered, "waiting for the accounting of all events", demo.children, WAIT_S)


def catch_up(demo: Demo) -> None:
    """Read new deltas of the raw manifest, and write the late logs of deferred runs."""
    demo.accounts.catch_up(demo.raw)
    waiting = {one.run_id for one in demo.accounts.deferred()}
    for path, run_id in demo.plan.late.items():
        if run_id in waiting and not (demo.logs.folder / path).exists():
            demo.logs.release(demo.plan, path)


def settle(demo: Demo) -> None:
    """Wait until no run is deferred."""
    with demo.steps.step("wait for late logs") as step:

        def settled() -> bool:
            catch_up(demo)
            step.report(f"{len(demo.accounts.deferred())} of {len(demo.accounts.waited)} wait")
            return not demo.accounts.deferred()

        wait_for(settled, "waiting for late logs", demo.children, WAIT_S)


def update(demo: Demo, *, seal: bool) -> None:
    """Seal the full spans of both data sets; with ``seal`` also the last one."""
    from ciml.pipelines.datasets.update import update_dataset

    with demo.steps.step("seal spans") as step:
        for name in demo.models:
            done = update_dataset(demo.data.dataset(name), seal=seal)
            step.report(
                f"{sum(len(span.runs) for span in done.state.latest())} examples in {len(done.state.spans)} spans"
            )


def refresh(demo: Demo, model: str) -> None:
    """Wait until a model has been refreshed with all sealed spans."""
    log = demo.children.running[child_of(model)].log
    with demo.steps.step(f"refresh {model}") as step:

        def refreshed() -> bool:
            step.report(last_step(log))
            return is_current(demo.data, model, read_refreshes(log))

        wait_for(refreshed, f"refreshing {model}", demo.children, WAIT_S)
        last = read_refreshes(log)[-1]
        step.report(f"pushed as v{last['version']}" if last["version"] else "not pushed")


def drain(demo: Demo) -> None:
    """Wait until every raw row is predicted."""
    with demo.steps.step("predict every run") as step:
        wanted = {one.run_id for one in demo.accounts.runs()}
        predictions = Predictions(demo.data.predictions)

        def predicted() -> bool:
            predictions.catch_up()
            step.report(f"{len(predictions.run_ids() & wanted)} of {len(wanted)}")
            return wanted <= predictions.run_ids()

        if Registry(demo.data, STATUS).state.champion is None:
            step.report("no version was pushed")  # a check reports it
        else:
            wait_for(predicted, "waiting for predictions", demo.children, WAIT_S)
    for model in demo.models:
        demo.refreshes += read_refreshes(demo.children.running[child_of(model)].log)
    catch_up(demo)


def end_commands(demo: Demo) -> None:
    """Stop the commands, which may still answer changes until then."""
    if not demo.options.keep:
        with demo.steps.step("end the commands"), ThreadPoolExecutor(len(demo.children.running)) as pool:
            list(pool.map(demo.children.end, tuple(demo.children.running)))
