"""The chain of the demo: engines, events, ingest, data sets, models and predictions."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from ciml import engines
from ciml.cli.demo import DemoOptions
from ciml.cli.demo.accounts import Accounts, Predictions
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
from ciml.cli.demo.plan import WAVES, Expected, LogRoot, Plan, make_plan, produce
from ciml.cli.demo.processes import Children, Steps
from ciml.cli.demo.result import Refresh
from ciml.data_root import DataRoot
from ciml.datasets.definition import DatasetDefinition
from ciml.engines import processes
from ciml.engines.state import ProcessId
from ciml.errors import CimlError, EngineError
from ciml.serving.model_files import CONFIG_NAME
from ciml.serving.registry import Registry

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


@dataclass
class Demo:
    """The state of a running demo.

    Attributes:
      models: the models; the model of causes is included only if changes are answered.
      produced: the producer's list of acknowledged (event, run) pairs.
      accounts: of the raw manifest, as read last.
      refreshes: all results of ``ciml refresh``, which are read at the end.
    """

    options: DemoOptions
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

    @property
    def on_flink(self) -> bool:
        return self.options.engine != "micro-batches" and not self.engines.states["flink"].light


@contextmanager
def start_demo(options: DemoOptions, steps: Steps, answers: bool) -> Iterator[Demo]:
    """Start engines, ready for the first event. At the end, stop commands and engines unless ``--keep``.

    Args:
      options: of the command.
      steps: receive the steps of the start.
      answers: whether changes will be answered.
    """
    started = datetime.now(UTC)
    corpus = corpus_folder(options.corpus)
    samples = read_corpus(corpus, options.runs)
    make_folder(options)
    data = DataRoot.open(options.folder)
    logs = LogRoot(Path(data.demo.url("served-logs")), unpack_logs(corpus, Path(data.demo.url("corpus"))))
    logs.folder.mkdir(parents=True)
    settings = engines.Settings(logs_root=str(logs.folder), models_config=data.models.url(CONFIG_NAME))
    with ExitStack() as started_processes:
        started_processes.callback(engines.stop, None, options.engines_home)  # also after an error of the start
        running = _start_engines(options, settings, steps)
        environment = {"CIML_DATA_PATH": data.url, "CIML_KAFKA": running.kafka}
        # Commands end before the engines that they use.
        children = started_processes.enter_context(Children(Path(data.demo.url("logs")), options.folder, environment))
        plan = make_plan(samples, running.logs)
        logs.make(plan)
        engines.create_topics(running.kafka, TOPICS)
        _define(data, definitions(options.span_runs, samples, answers))
        models = (*MODELS, CAUSE) if answers else MODELS
        demo = Demo(options, steps, children, running, data, plan, logs, started, models)
        yield demo
        if options.keep:  # reached only when nothing failed
            data.demo.replace(KEPT, json.dumps([child.process for child in children.running.values()]).encode())
            started_processes.pop_all()


def make_folder(options: DemoOptions) -> None:
    """Make an empty folder for the demo. A folder of an earlier demo is emptied.

    The commands that the earlier demo left running are stopped, and all engines in its home folder.

    Raises:
      CimlError: the folder has other content, or cannot be emptied.
    """
    folder = options.folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not (folder / MARK).exists():
        raise CimlError(f"{folder} is not a demo folder; refusing to overwrite it. Name another one by --data-path")
    with suppress(FileNotFoundError, msgspec.DecodeError):  # a damaged list names no processes
        for process in msgspec.json.decode(DataRoot.open(folder).demo.read(KEPT), type=list[ProcessId]):
            processes.end(process)
    if engines.read(options.engines_home):
        engines.stop(None, options.engines_home)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.iterdir():  # the folder itself stays: it may be a mount point or behind a link
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != MARK:  # a folder that is emptied in part is still a demo's
                path.unlink()
        (folder / MARK).write_text("written by ciml demo, which empties this folder\n")
    except OSError as error:
        raise CimlError(f"{error.filename or folder}: {error.strerror}; cannot empty the folder of the demo") from None


def _start_engines(options: DemoOptions, settings: engines.Settings, steps: Steps) -> engines.Engines:
    """Start the engines. Raises `EngineError` if one does not start, or if ``--engine flink`` has no Java."""
    names = ["kafka", "logs", "models", *["flink"] * (options.engine != "micro-batches")]
    with steps.step("start engines") as report:
        running = engines.start(names, options.engines_home, settings)
        report(", ".join(state.what.split(" of ")[0] for state in running.states.values()))
    if options.engine == "flink" and running.states["flink"].light:
        raise EngineError("--engine flink: no Java is installed; install it or use --engine micro-batches")
    return running


def _define(data: DataRoot, datasets: Iterable[DatasetDefinition]) -> None:
    """Store the trust policy and the definitions of the data sets."""
    from ciml.pipelines.datasets.update import create_dataset
    from ciml.settings import read_toml
    from ciml.stored_trust import apply_policy

    apply_policy(data.trust, read_toml(trust_policy()), "ciml demo", "the sample events are not signed")
    for definition in datasets:
        create_dataset(data, definition)


def run(demo: Demo) -> None:
    """Send events in waves. After each wave, seal spans and refresh models; at the end, wait for all predictions.

    The next wave comes when the first model has been refreshed, so that each of its versions predicts some runs. The
    other models are refreshed meanwhile.
    """
    start_ingest(demo)
    start_predict(demo, STATUS)
    for model in MODELS:
        start_refreshes(demo, model)
    last = len(WAVES) - 1
    for wave in range(last):
        ingest_wave(demo, wave)
        update_datasets(demo)
        wait_for_refresh(demo, STATUS)
    ingest_wave(demo, last)
    wait_for_late_logs(demo)
    update_datasets(demo, seal_last=True)
    if CAUSE in demo.models:
        start_refreshes(demo, CAUSE)
    for model in demo.models:
        wait_for_refresh(demo, model)
    wait_for_predictions(demo)
    for model in demo.models:
        demo.refreshes += read_refreshes(demo.children.running[f"refresh-{model}"].log)
    catch_up_and_release_logs(demo)


def start_ingest(demo: Demo) -> None:
    """Start the ingest of events, on Flink if it runs."""
    engine = f"flink:{demo.engines.flink}" if demo.on_flink else "micro-batches"
    policies = ("--allow-host", demo.engines.logs)
    retries = [part for delay in RETRIES_S for part in ("--retry-after", f"{delay}s")]
    demo.children.start("ingest", "ingest", "--engine", engine, *policies, *retries)


def start_predict(demo: Demo, model: str) -> None:
    """Start the predictions of a model, in micro-batches: a second Flink job would need another gigabyte."""
    options = ("--engine", "micro-batches", "--server", demo.engines.models["grpc"], "--model", model)
    demo.children.start("predict", "predict", "stream", *options)


def start_refreshes(demo: Demo, model: str) -> None:
    """Start the command that refreshes a model whenever the data set of the same name grows."""
    experiment = examples() / f"{model}-experiment.toml"
    options = ("--experiment", str(experiment)) if experiment.exists() else ()
    demo.children.start(f"refresh-{model}", "refresh", "--dataset", model, "--watch", "--json", *options)


def ingest_wave(demo: Demo, wave: int) -> None:
    """Send a wave and wait until the raw manifest covers it."""
    with demo.steps.step(f"ingest events, wave {wave + 1} of {len(WAVES)}") as report:
        demo.produced += produce(demo.engines.kafka, EVENTS, demo.plan.waves()[wave])
        demo.data.demo.replace("produced.jsonl", b"".join(msgspec.json.encode(line) + b"\n" for line in demo.produced))

        def covered() -> bool:
            catch_up_and_release_logs(demo)
            unsettled = demo.accounts.unsettled(demo.produced)
            runs = len(demo.accounts.outcomes("run"))
            report(f"{len(demo.produced)} (event, run) sent, {unsettled} messages to go, {runs} raw rows")
            return unsettled == 0

        demo.children.wait_for(covered, "waiting for the accounting of all events")


def wait_for_late_logs(demo: Demo) -> None:
    """Wait until no run is deferred."""
    with demo.steps.step("wait for late logs") as report:

        def settled() -> bool:
            catch_up_and_release_logs(demo)
            waiting = len(demo.accounts.outcomes("deferred"))
            report(f"{waiting} of {len(demo.accounts.waited)} wait")
            return not waiting

        demo.children.wait_for(settled, "waiting for late logs")


def catch_up_and_release_logs(demo: Demo) -> None:
    """Read new deltas of the raw manifest, and write the late logs of deferred runs."""
    demo.accounts.catch_up(demo.data.raw)
    waiting = {outcome.run_id for outcome in demo.accounts.outcomes("deferred")}
    for path, run_id in demo.plan.late.items():
        if run_id in waiting and not (demo.logs.folder / path).exists():
            demo.logs.release(demo.plan, path)


def update_datasets(demo: Demo, *, seal_last: bool = False) -> None:
    """Seal all full spans of all data sets; with ``seal_last`` also the last, incomplete ones."""
    from ciml.pipelines.datasets.update import update_dataset

    with demo.steps.step("seal spans") as report:
        for name in demo.models:
            state = update_dataset(demo.data.dataset(name), seal=seal_last).state
            report(f"{name}: {sum(len(span.runs) for span in state.latest())} examples in {len(state.spans)} spans")


def wait_for_refresh(demo: Demo, model: str) -> None:
    """Wait until a model has been refreshed with all sealed spans."""
    from ciml.stored_trust import policy_of
    from ciml.training.data.snapshot import make_snapshot

    log = demo.children.running[f"refresh-{model}"].log
    snapshot = make_snapshot(demo.data.dataset(model), policy_of(demo.data).current()).digest
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


def wait_for_predictions(demo: Demo) -> None:
    """Wait until every raw row is predicted; without a pushed version, nothing can be."""
    with demo.steps.step("predict every run") as report:
        if Registry(demo.data, STATUS).state.champion is None:
            report("no version was pushed")  # a check reports it
            return
        runs = {outcome.run_id for outcome in demo.accounts.outcomes("run")}
        predictions = Predictions(demo.data.predictions)

        def predicted() -> bool:
            predictions.catch_up()
            finished = predictions.run_ids & runs
            report(f"{len(finished)} of {len(runs)}")
            return finished == runs

        demo.children.wait_for(predicted, "waiting for predictions")


def end_commands(demo: Demo) -> None:
    """Stop the commands, which may still answer changes until then."""
    with demo.steps.step("end the commands"), ThreadPoolExecutor(max(len(demo.children.running), 1)) as pool:
        list(pool.map(demo.children.end, tuple(demo.children.running)))
