"""A data root with an object of each kind that ciml stores, written by the code that writes them in production."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

from ciml.data_root import DataRoot
from ciml.datasets.definition import DatasetDefinition
from ciml.digest import sha256_hex
from ciml.events.payloads import payload_of
from ciml.events.records import Batch, Message, OffsetRange, Origin, Outcome
from ciml.manifest import rewrite
from ciml.manifest.bookmarks import Bookmarks
from ciml.manifest.checkpoints import Checkpointed, Checkpoints, Limits
from ciml.manifest.log import ManifestLog
from ciml.pipelines.datasets.build import build_dataset
from ciml.pipelines.datasets.validate import Piece, statistics_of_pieces
from ciml.pipelines.ingest.committer import Committer
from ciml.recorder.spool.recording import End, Plan, Recording
from ciml.runs.compact import compact
from ciml.runs.erased import RunCriteria
from ciml.runs.latest_runs import latest_runs
from ciml.runs.state import RAW, open_raw
from ciml.runs.tables.publish import publish_tables
from ciml.services.stored.erase import erase
from ciml.serving.predict import answers
from ciml.serving.predict.log import Predicted, prediction_checkpoints
from ciml.serving.push import push
from ciml.serving.registry import Decision, Signature
from ciml.storage import LocalStore, Store
from ciml.storage.json_files import write_json
from ciml.stored_trust import apply_policy
from ciml.training.data.analysis import AnalysisCache, SpanAnalysis
from ciml.training.data.examples import read_dataset
from ciml.training.data.snapshot import make_snapshot, write_snapshot
from ciml.training.exclusions import Exclusion, add
from ciml.training.experiment import Experiment
from ciml.training.experiments.results import create_experiment
from ciml.training.experiments.trials import Trial
from ciml.training.refresh import write_metrics
from ciml.training.sweeps.definition import Sweep
from ciml.training.sweeps.study import Outcome as TrialOutcome
from ciml.training.sweeps.study import begin_sweep, store_baselines, store_outcome, sweep_store
from ciml.transforms.examples import changes
from ciml.trust import TrustPolicy
from ciml.verdicts.feedback.state import FEEDBACK
from ciml.verdicts.feedback.truths import Correction, add_corrections
from tests.pipelines.predict.predicting import Predictions
from tests.runs.scenes import RawStore
from tests.transforms.samples import RECORDINGS, by_recording, corpus
from tests.verdicts.feedback.reviews import feedback, prediction
from tests.verdicts.feedback.worlds import World

RUNS = 40
DATASET = "providers"


def make(folder: Path) -> None:
    """Write ``data``, a data root; ``home/state.json``, a state of a service; and ``spool``, a recording."""
    data = DataRoot.open(folder / "data")
    _make_raw(data)
    _make_dataset(data)
    _make_learning(data)
    _make_model(data, folder / "model")
    _make_logs(data, folder / "data")
    _erase_one(data)
    _make_derived(data)
    for table in publish_tables(data):
        assert table.committed, table
    write_json(folder / "home" / "state.json", {"pid": 7, "wanted": "run", "said": {"lag": 3}})
    _make_recording(folder / "spool")


def _make_raw(data: DataRoot) -> None:
    runs, tables, _ = corpus(RUNS)
    facts = [
        by_recording(run).replace(source="zuul", event="", pipeline="gate", project="", change=f"change-{number // 2}")
        for number, run in enumerate(runs)
    ]
    raw = RawStore(data)
    half = RUNS // 2
    raw.add(list(zip(facts[:half], tables[:half], strict=True)))
    compact(data.raw, older_than_s=0, grace_s=0)
    raw.add(list(zip(facts[half:], tables[half:], strict=True)))
    message = Message(0, b"x" * 20_000, (), timestamp_ms=7)
    dead_letter = Outcome("dead_letter", Origin("t", 0, 0), reason="broken_json", payload=payload_of(message))
    Committer(data.raw).commit([Batch(OffsetRange("t", "T", 0, 0, 1), settled=[dead_letter])])
    _checkpoint(data.raw, RAW)
    for number in range(1, 4):
        ignored = Outcome("ignored", Origin("t", 0, number), f"zuul {number}", reason="not_finished")
        Committer(data.raw).commit([Batch(OffsetRange("t", "T", 0, number, number + 1), settled=[ignored])])


def _checkpoint(store: Store, kind: Checkpointed) -> None:  # type: ignore[type-arg]
    """Make one checkpoint of all deltas."""
    log = ManifestLog(store)
    checkpoints = Checkpoints(log, kind, Limits(deltas=log.end()))
    while checkpoints.maintain():
        pass


def _make_dataset(data: DataRoot) -> None:
    definition = DatasetDefinition(
        name=DATASET, sample_interval="1min", class_label="provider", classes=RECORDINGS, span_runs=20,
        features_regex="usr",
    )  # fmt: skip
    build_dataset(data, data, definition)


def _make_derived(data: DataRoot) -> None:
    compact(data.raw, older_than_s=1e9, grace_s=1e9)  # its cursor names a delta that the erasure has rewritten
    state = data.dataset(DATASET).state()
    assert state.resolved is not None
    store = data.dataset(DATASET).store
    list(statistics_of_pieces(store, state.resolved, [Piece(s.span, s.version, s.files) for s in state.latest()]))
    log = ManifestLog(data.raw)
    for at, path in ((store, changes.BOOKMARK), (data.predictions, answers.BOOKMARK)):
        Bookmarks(at, path, "kind", lambda version: sha256_hex(log.read_raw(version))).save(2, b"state of a reader")


def _make_learning(data: DataRoot) -> None:
    dataset = data.dataset(DATASET)
    snapshot = make_snapshot(dataset, TrustPolicy.load())
    trainer = data.trainer(DATASET)
    write_snapshot(trainer, snapshot)
    AnalysisCache(trainer.child("analyses")).write("0" * 64, {"1" * 64: SpanAnalysis(1, b"", b"", b"")})
    write_metrics(trainer, "0" * 64, {"evaluation": {"accuracy": 0.75}, "baselines": {}})
    forest = Experiment(name="forest", estimator="random_forest", parameters={"n_estimators": 5})
    create_experiment(data.experiments, forest)
    Trial(data.experiments, forest, read_dataset(dataset, TrustPolicy.load())).run()
    sweep = Sweep.from_json({"name": "intervals", "vary": {"dataset": {"sample_interval": ["1s", "1min"]}}})
    store = sweep_store(data.sweeps, sweep.name)
    begin_sweep(store, sweep, {}, lambda: 2)
    failed = TrialOutcome(
        number=0, question=0, parameters={"sample_interval": "1s"}, state="failed", reason="too few runs"
    )
    store_outcome(store, failed)
    store_baselines(store, 0, {"majority": {"accuracy": 0.5}})
    add(data.exclusions, [Exclusion("disk was full", job="tempest-*", since_us=1_790_000_000_000_000)], now_us=1)
    document = {
        "globs": 2,
        "quarantine": True,
        "caps": {"source": 1.0},
        "rule": [{"name": "all", "trusted": True, "source": ["*"]}],
    }
    apply_policy(data.trust, document, "ann", "a trial", now_us=1)


def _make_model(data: DataRoot, folder: Path) -> None:
    files = {"saved_model.pb": b"graph", "assets/definition.json": b"{}", "variables/variables.index": b"index"}
    candidate = LocalStore(folder)
    for path, content in files.items():
        candidate.create(path, content * 20)
    push(data, DATASET, candidate, Decision(True, (), {"accuracy": 0.75}), check=False)


def _make_logs(data: DataRoot, folder: Path) -> None:
    committer = Predictions(data.predictions, DATASET)
    for number in range(3):
        record = {
            "id": f"{number:032x}", "run_id": f"zuul~{number}~1", "model": DATASET, "version": 1, "offset": number,
            "class": "passed", "probabilities": [0.25, 0.75], "announced_us": 1, "predicted_us": 2,
        }  # fmt: skip
        covers = OffsetRange("runs", "R", 0, number, number + 1)
        assert committer.commit([Predicted(covers, [record])]) == number + 1
        if number == 1:
            _checkpoint(data.predictions, prediction_checkpoints())
    add_corrections(data, [Correction("zuul~1~1", "machine", "gerrit:7", 1)])
    world = World(folder, feedback())
    world.take(prediction(1))
    _checkpoint(data.feedback, FEEDBACK)
    world.take(prediction(2))


def _erase_one(data: DataRoot) -> None:
    """Erase a run, so that objects of all logs that name it are rewritten. Nobody else makes checkpoints meanwhile."""
    log, state = open_raw(data.raw)
    first = min(run.facts.run_id for run in latest_runs(log, state))
    with patch.object(rewrite, "WAIT_S", 0.0):
        list(erase(data, RunCriteria(run_id=first), Signature("ann", "a request")))


def _make_recording(spool: Path) -> None:
    facts = by_recording(corpus(1)[0][0]).replace(start_us=1_790_000_000_000_000)
    recording = Recording.create(spool, Plan(facts, kafka="localhost:9092"))
    recording.write_end(End(1_790_000_060_000_000, "SUCCESS", {"exit_code": "0"}))
    recording.release()
