"""A refresh: trains on a data set's present runs, and returns a candidate with the gate's decision.

The caller (`ciml.training.trainer`) registers and pushes the candidate. A refresh is two steps of lineage,
``snapshot.<model>`` and ``train.<model>``; the end of this module describes what they read and write.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from ciml.data_root import DataRoot, StoredDataset
from ciml.datasets.definition import ResolvedDefinition
from ciml.digest import canonical_json, sha256_json
from ciml.lineage import OFF, Data, Description, Lineage
from ciml.progress import Progress, no_progress
from ciml.serving.lease import ModelLockedError
from ciml.serving.registry import STABLE, Decision
from ciml.storage import LocalStore, Store
from ciml.storage.json_files import seal
from ciml.training.data.analysis import AnalysisCache
from ciml.training.data.materialise import materialise
from ciml.training.data.snapshot import RECORDS_FOLDER, Snapshot, check_trainable, make_snapshot, write_snapshot
from ciml.training.estimators import check_use, estimator_of, identified, reseeded
from ciml.training.evaluation.candidate import Champion
from ciml.training.evaluation.gate import GatePolicy, decide
from ciml.training.experiment import NORMALISATION, Experiment, metrics_path, refresh_key
from ciml.training.experiments.results import default_experiment
from ciml.training.quarantine import quarantine
from ciml.trust import PolicySource, TrustPolicy
from ciml.verdict_rules import PROFILES, VERDICTS
from ciml.version import __version__

if TYPE_CHECKING:
    import numpy as np

    from ciml.training.calibration.calibrate import Calibrated


#: Candidates that are kept on disk: the push of the last one may be in progress.
_CANDIDATES_ON_DISK = 5
#: The latest spans that lineage lists; the version of the data set covers all.
_LINEAGE_SPANS = 100
#: Figures of `ciml.training.evaluation.metrics.evaluate` that lineage reports.
_LINEAGE_FIGURES = ("runs", "trained_on", "accuracy", "base_rate", "log_loss")


@dataclass(frozen=True)
class TrainConfig:
    """Configuration of a trainer.

    Attributes:
      data: the data root.
      dataset: name of the training data set.
      model: the name under which its models are served.
      experiment: the estimator and its parameters. None: in `run_once` those of the model's last candidate; without
        one, and in `refresh`, the `default_experiment`.
      trust: names the policy that decides which runs are trusted for training.
      gate: the requirements on a candidate.
      label: the label of a pushed version; ``stable`` makes it the champion. With ``canary``, the first version is
        stable, since nothing else is served.
      lineage: whether OpenLineage events are sent.
      allow_modules: modules of estimators that may be imported; see `ciml.training.estimators.estimator_of`.
    """

    data: DataRoot
    dataset: str
    model: str
    experiment: Experiment | None = None
    trust: PolicySource = field(default_factory=TrustPolicy.load)
    gate: GatePolicy = field(default_factory=GatePolicy)
    label: str = STABLE
    lineage: bool = False
    allow_modules: tuple[str, ...] = ()


@dataclass(frozen=True)
class Candidate:
    """A trained model and its facts.

    Attributes:
      folder: the SavedModel, on local disk.
      snapshot: its training and test runs.
      experiment: the trained experiment.
      metrics: see docs/training.md; JSON.
      decision: the gate's decision.
      timings: seconds by step.
    """

    folder: Path
    snapshot: Snapshot
    experiment: Experiment
    metrics: Mapping[str, Any]
    decision: Decision
    timings: Mapping[str, float]

    def facts(self) -> dict[str, Any]:
        """Return the facts that the registry records."""
        return {
            "dataset": self.snapshot.dataset,
            "snapshot": self.snapshot.digest,
            "definition": self.snapshot.resolved.digest,
            "experiment": self.experiment.to_json(),
            "normalisation": NORMALISATION,
            "refresh": refresh_key(self.snapshot.digest, self.experiment),
            "ciml": __version__,
            "rejected": self.snapshot.rejected(),
        }


@dataclass(frozen=True)
class Skipped:
    """A refresh without training.

    Attributes:
      reason: why it was skipped, in one line.
      snapshot: the snapshot that would have been trained on.
    """

    reason: str
    snapshot: Snapshot


def refresh(
    config: TrainConfig,
    *,
    champion: Champion | None = None,
    last_key: str | None = None,
    work: Path | None = None,
    progress: Progress = no_progress,
    lineage: Lineage = OFF,
) -> Candidate | Skipped:
    """Make a snapshot, train on it, evaluate the candidate, and let the gate decide.

    Args:
      config: of the trainer. ``DATA/trainer/<model>`` holds its files.
      champion: the model served now, or None.
      last_key: `refresh_key` of the last candidate (its fact ``refresh``), unless another policy of the gate rejected
        it; an equal key skips the refresh.
      work: local folder for candidates; by default below the trainer's folder, or in the user's cache if that is not on
        local disk.
      progress: called at each step.
      lineage: reports the steps ``snapshot.<model>`` and ``train.<model>``.

    Raises:
      UnknownDatasetError, NoTrainingDataError: if the data set does not exist, or holds too few runs.
      ModelLockedError: if another process trains the model.
      CimlError: if the experiment is invalid or cannot be served.
      IntegrityError: if the stored data are inconsistent.
    """
    model = config.model
    experiment = identified(config.experiment or default_experiment(), config.allow_modules)
    timer = _StepTimer(progress)
    trainer = config.data.trainer(model)
    dataset = config.data.dataset(config.dataset)
    dataset_description = Description((Data(dataset.store.url()),))
    with timer("snapshot"), lineage.step(f"snapshot.{model}", lambda: dataset_description) as step:
        policy = config.trust.current()
        if policy.quarantine:
            quarantine(dataset, policy)
        snapshot = make_snapshot(dataset, policy, window=experiment.window, half_life=experiment.half_life)
        step.describe(partial(_describe_snapshot, dataset, snapshot, model))
        check_use(experiment, snapshot.resolved, config.allow_modules, served=True)
        key = refresh_key(snapshot.digest, experiment)
        if key == last_key:
            return Skipped("nothing new: runs, experiment and gate are those of the last candidate", snapshot)
        write_snapshot(trainer, snapshot)
    folder = _work_folder(trainer, work)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    describe_training = partial(_describe_training, dataset, snapshot, model, champion)
    with _locked(folder, model), lineage.step(f"train.{model}", describe_training) as step:
        candidate = _train_candidate(config, experiment, dataset, snapshot, champion, folder / key, timer)
        write_metrics(trainer, key, candidate.metrics)
        output = Data(config.data.candidates(model), key)
        step.describe(lambda: _describe_candidate(describe_training().inputs, output, candidate))
        _remove_old(folder / key)
    return candidate


def write_metrics(trainer: Store, key: str, metrics: Mapping[str, Any]) -> None:
    """Store the figures of a candidate below its model's trainer folder; ``key`` is its `refresh_key`."""
    trainer.replace(metrics_path(key), seal(json.dumps(metrics, indent=1, sort_keys=True).encode()))


def _work_folder(trainer: Store, work: Path | None) -> Path:
    """Return the local folder of candidates; see `refresh`."""
    if work is not None:
        return work
    if isinstance(trainer, LocalStore):
        return Path(trainer.root, "work")
    from platformdirs import user_cache_path

    return user_cache_path("ciml") / "trainer" / hashlib.sha256(trainer.root.encode()).hexdigest()[:16]


@contextmanager
def _locked(folder: Path, model: str) -> Iterator[None]:
    """Lock a model's folder against concurrent trainers. A killed trainer releases the lock."""
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout:
        raise ModelLockedError(
            f"model {model!r} is being trained by another process in {folder}; wait for it"
        ) from None


def _train_candidate(
    config: TrainConfig,
    experiment: Experiment,
    dataset: StoredDataset,
    snapshot: Snapshot,
    champion: Champion | None,
    folder: Path,
    timer: _StepTimer,
) -> Candidate:
    """Train, calibrate, export and evaluate in a folder, and let the gate decide."""
    with timer("import"):
        import ciml.training.data.materialise_beam  # noqa: F401  (so that its time does not count for materialise)
        from ciml.training.calibration.calibrate import calibrate_on_dev
        from ciml.training.conversion.step import ConversionError
        from ciml.training.evaluation.candidate import assess, changes_of_test_runs, cross_validated, stability
        from ciml.training.export import Timed, UnservedError, export, load_served, transform_of
        from ciml.training.kept import keep, load_kept
        from ciml.training.train import (
            NormalisedRows,
            RecordedRows,
            TrainingRows,
            predict_in_memory,
            train,
            trained_roles,
        )
    check_trainable(snapshot, *trained_roles(experiment, dev_from_train=snapshot.dev_from_train))
    shutil.rmtree(folder, ignore_errors=True)  # of a refresh that died
    resolved = snapshot.resolved
    rows: TrainingRows = RecordedRows(dataset.store, snapshot)
    normalise = None
    analyses = {"analysed": 0, "cached": 0}
    if estimator_of(experiment, config.allow_modules).normalises:
        with timer("materialise"):
            cache = AnalysisCache(config.data.trainer(config.model).child("analyses"))
            materialised = materialise(dataset.store, snapshot, folder, cache=cache)
            rows = NormalisedRows(materialised, resolved, snapshot.weights)
            normalise = transform_of(materialised.transform_folder)
            analyses = {"analysed": materialised.analysed, "cached": materialised.cached}
    with timer("train"):
        dev_from_train = snapshot.dev_from_train
        fitted = train(experiment, rows, resolved, dev_from_train=dev_from_train, allow_modules=config.allow_modules)
    calibrated = None
    if experiment.calibration is not None:
        with timer("calibrate"):
            dev = predict_in_memory(fitted, rows, "dev")

            def predict(inputs: np.ndarray, n_windows: np.ndarray) -> np.ndarray:
                return fitted.predict(inputs if normalise is None else normalise(inputs).numpy(), n_windows)

            calibrated = calibrate_on_dev(dataset.store, snapshot, experiment, dev, predict)
    with timer("export"):
        saved = folder / "model"
        calibrator = None if calibrated is None else calibrated.calibrator
        assets = _assets(resolved, calibrated)
        unserved = ""
        try:
            export(fitted, normalise, resolved, saved, name=config.model, calibrator=calibrator, assets=assets)
        except ConversionError as error:
            unserved = str(error)
            keep(fitted, resolved, saved, calibrator=calibrator, assets=assets)
    figures: dict[str, Any] = {}
    failure = unserved
    with timer("evaluate"), ExitStack() as stack:
        in_memory = predict_in_memory(fitted, rows, "test")
        try:
            exported: Timed = (
                load_kept(saved, config.allow_modules) if unserved else stack.enter_context(load_served(saved))
            )
            figures = assess(dataset, snapshot, in_memory, exported, experiment, champion, config.gate, calibrated)
        except UnservedError as error:
            failure = str(error)
    if figures and figures["evaluation"]["runs"] < config.gate.min_test_runs:
        with timer("cross-validate"):
            figures["cross_validated"] = cross_validated(experiment, dataset, snapshot, config.allow_modules)
    decide_on = partial(decide, figures or None, has_champion=champion is not None)
    decision = decide_on(replace(config.gate, min_agreement=0.0))
    if decision.blessed and not failure and config.gate.min_agreement > 0:  # else it would be for nothing
        with timer("stability"):
            other = reseeded(experiment)
            twin = train(other, rows, resolved, dev_from_train=dev_from_train, allow_modules=config.allow_modules)
            changes = changes_of_test_runs(dataset, snapshot)
            figures["stability"] = stability(fitted, twin, rows, seed=other.seed, changes=changes)
        decision = decide_on(config.gate)
    if failure:
        against = () if decision.blessed or not figures else decision.reasons
        decision = Decision(False, (failure, *against), decision.metrics)
    decision = replace(decision, metrics={**decision.metrics, "gate": config.gate.to_json()})
    metrics = {
        **figures,
        "training": fitted.to_json(),
        "snapshot": {**snapshot.summary(), "dataset": snapshot.dataset},
        "materialised": analyses,
        "experiment": experiment.to_json(),
        "normalisation": NORMALISATION,
        "gate": config.gate.to_json(),
        "verdict": {"blessed": decision.blessed, "reasons": list(decision.reasons)},
        "timings_s": {name: round(seconds, 3) for name, seconds in timer.seconds.items()},
    }
    return Candidate(saved, snapshot, experiment, metrics, decision, dict(timer.seconds))


def _assets(resolved: ResolvedDefinition, calibrated: Calibrated | None) -> dict[str, bytes]:
    """Return further assets of the exported model: the passing profiles and the rules of verdicts, if it has them."""
    assets: dict[str, bytes] = {}
    if resolved.profiles is not None:
        assets[PROFILES] = canonical_json(resolved.profiles) + b"\n"
    rules = None if calibrated is None else calibrated.asset()
    if rules is not None:
        assets[VERDICTS] = rules
    return assets


def _remove_old(folder: Path) -> None:
    """Remove the files of earlier refreshes next to ``folder``: all records, and all but the latest candidates."""
    older_folders = [path for path in folder.parent.iterdir() if path.is_dir() and path != folder]
    older_folders.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for index, path in enumerate(older_folders):
        is_recent = index < _CANDIDATES_ON_DISK - 1
        shutil.rmtree(path / RECORDS_FOLDER if is_recent else path, ignore_errors=True)


@dataclass
class _StepTimer:
    """Measures steps, and reports each to ``progress`` when it begins."""

    progress: Progress
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self.progress(name, len(self.seconds), None)
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = time.perf_counter() - started


def _describe_snapshot(dataset: StoredDataset, snapshot: Snapshot, model: str) -> Description:
    """Describe a snapshot: the raw store (or listing), the span versions, and the selected runs by role and class."""
    state = dataset.state()
    if state.listing is not None:
        source = Data(state.listing["url"], state.listing["digest"])
    else:
        source = Data(dataset.raw(state).url(), str(state.cursor[0]))
    return Description((source, _examples_data(dataset, snapshot)), (_snapshot_data(dataset.root, snapshot, model),))


def _describe_training(
    dataset: StoredDataset, snapshot: Snapshot, model: str, champion: Champion | None
) -> Description:
    """Describe what a candidate is trained on and compared with."""
    inputs = [_examples_data(dataset, snapshot), _snapshot_data(dataset.root, snapshot, model)]
    if champion is not None:
        inputs.append(Data(dataset.root.models.child(model).url(), str(champion.version)))
    return Description(tuple(inputs))


def _describe_candidate(inputs: tuple[Data, ...], output: Data, candidate: Candidate) -> Description:
    """Describe a candidate: experiment, figures with their intervals, the gate's decision, seconds by step."""
    evaluation = candidate.metrics.get("evaluation")  # none of a candidate that cannot be loaded
    decision = candidate.decision
    facts: Mapping[str, Any] = {
        "evaluation": evaluation
        and {
            **{name: evaluation[name] for name in _LINEAGE_FIGURES},
            "calibration_error": evaluation["calibration"]["ece"],
        },
        "champion": candidate.metrics.get("champion"),
        "blessed": decision.blessed,
        "reasons": list(decision.reasons),
        "seconds": candidate.metrics["timings_s"],
    }
    checks = tuple((reason, decision.blessed) for reason in decision.reasons)
    return Description(inputs, (output,), candidate.experiment.to_json(), checks, facts)


def _examples_data(dataset: StoredDataset, snapshot: Snapshot) -> Data:
    """Describe the examples of a snapshot; the digests of the files of its span versions are their version."""
    resolved = snapshot.resolved
    spans = []
    for span in snapshot.spans:
        digests = [file.digest for _, files in sorted(span.files.items()) for file in files]
        spans.append([span.span, span.version, sha256_json(digests)])
    columns = [(name, f"float32[{resolved.windows}]") for name in resolved.features]
    facts = {"definition": resolved.digest, "classes": list(resolved.classes), "spans": spans[-_LINEAGE_SPANS:]}
    columns.append((resolved.definition.class_label, "string"))
    return Data(dataset.store.url(), sha256_json(spans), tuple(columns), facts=facts)


def _snapshot_data(root: DataRoot, snapshot: Snapshot, model: str) -> Data:
    """Describe a stored snapshot: its policy, and the number of its runs by role and class."""
    facts = {
        "policy": snapshot.policy,
        "counts": snapshot.counts(),
        "untrusted": dict(snapshot.untrusted),
        "excluded": dict(snapshot.excluded),
        "withheld": dict(snapshot.withheld),
    }
    rows = sum(1 for _ in snapshot.runs())
    return Data(root.trainer(model).url("snapshots"), snapshot.digest, rows=rows, facts=facts)
