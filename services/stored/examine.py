"""Examines a data root for ``ciml migrate``: every object is listed, and read by the reader of its kind.

`examine` reports; `seal_older` and `rewrite` bring the objects of older versions up to date.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from ciml.data_root import DataRoot, StoredDataset
from ciml.digest import sha256_hex
from ciml.errors import IntegrityError
from ciml.events.payloads import message_of, read_payload
from ciml.manifest.checkpoints import Checkpointed, Checkpoints
from ciml.manifest.log import ManifestLog
from ciml.manifest.verify import seal_older as seal_log
from ciml.manifest.verify import verify_log
from ciml.pipelines.datasets.build import DEFINITION
from ciml.pipelines.datasets.update import verify_dataset
from ciml.progress import Progress, no_progress, renamed
from ciml.runs.state import RAW
from ciml.runs.tables.row_tables import part_of
from ciml.runs.verify import verify_raw
from ciml.services.stored.erase import read_plan, read_receipts
from ciml.services.stored.findings import Kind, RootFindings, kind_of
from ciml.serving.model_files import CONFIG_NAME, render_config
from ciml.serving.predict.log import prediction_checkpoints
from ciml.serving.registries import registered_models, verify_versions
from ciml.serving.registry import Registry
from ciml.storage import Store
from ciml.storage.json_files import read_stored
from ciml.stored_trust import read_policies
from ciml.training.data.analysis import AnalysisCache
from ciml.training.data.snapshot import read_snapshot
from ciml.training.exclusions import read_state
from ciml.training.experiments.results import RESULT, load_experiment
from ciml.training.sweeps.study import read_outcome, sweep_store
from ciml.verdicts.feedback.state import FEEDBACK
from ciml.verdicts.feedback.truths import corrections_of
from ciml.verdicts.signatures.notes import read_notes

T = TypeVar("T")
#: The kind of object by the kind of a fault: of a log with checkpoints, besides its deltas, and of the raw store.
_LOG_KINDS: Mapping[str, Kind] = {
    "segment": Kind.SEGMENTS,
    "checkpoint": Kind.CHECKPOINTS,
    "index": Kind.ID_INDEX,
    "older": Kind.CHECKPOINTS,
}
_RAW_KINDS: Mapping[str, Kind] = {
    **_LOG_KINDS,
    "delta": Kind.RAW_DELTAS,
    "run": Kind.RUNS,
    "pack": Kind.PACKS,
    "output": Kind.OUTPUTS,
    "pack delta": Kind.PACK_DELTAS,
}
#: The format of results and of sweeps, which stands in them.
_FORMAT = 1
_DELTA = re.compile(r"/_manifest/[0-9]{12}\.json$")
_PREDICTIONS = re.compile(r"predictions-([0-9a-f]{16})\.parquet")
#: Objects of no kind that are named.
_MOST_NAMED = 10

Check = Callable[[DataRoot, RootFindings, Progress], None]


def examine(data: DataRoot, progress: Progress = no_progress) -> RootFindings:
    """List and verify all objects below a data root. Changes nothing; may run next to services.

    Time is linear in the objects. Memory grows by 20 bytes for each run, as in `ciml runs verify`.

    Args:
      data: the data root.
      progress: called with (activity, number done, total or None).

    Raises:
      EngineError: the store does not answer.
    """
    findings = RootFindings()
    for number, entry in enumerate(data.store.entries(), 1):
        kind = kind_of(entry.path)
        findings.objects[kind] += 1
        if kind == Kind.OTHER and findings.objects[Kind.OTHER] <= _MOST_NAMED:
            findings.notes.append(f"{data.store.url(entry.path)} was not written by ciml; it is not read")
        if not number % 1000:
            progress("objects", number, None)
    for check, kinds in _CHECKS.items():
        is_complete = False
        findings.read.update(kinds)
        with findings.guard(kinds[0], f"{kinds[0]} of {data.url}"):
            check(data, findings, progress)
            is_complete = True
        if not is_complete:  # `guard` has made a fault of its error
            findings.read.difference_update(kinds)
    return findings


def seal_older(data: DataRoot) -> int:
    """Add digests to the deltas that an older version appended after deltas with digests; return their number.

    Services must be stopped. Repeating it is safe, also after a kill. A damaged log is left as it is: `examine`
    reports it.

    Raises:
      EngineError: the store does not answer.
    """
    folders = {path.rpartition("/_manifest/")[0] for path in data.store.list() if _DELTA.search(path)}
    sealed = 0
    for folder in sorted(folders):
        with contextlib.suppress(IntegrityError):
            sealed += seal_log(ManifestLog(data.store.child(folder)))
    return sealed


def rewrite(data: DataRoot, findings: RootFindings, progress: Progress = no_progress) -> int:
    """Rebuild the objects that older versions wrote with less in them: checkpoints and index of the raw manifest.

    Repeating it is safe, also after a kill.

    Args:
      data: the data root.
      findings: of `examine`.
      progress: as that of `examine`.

    Returns:
      The number of new checkpoints.

    Raises:
      IntegrityError: deltas or segments are damaged, so nothing is changed; or the new checkpoints are not right.
    """
    if not findings.rewritten:
        return 0
    if findings.broken[Kind.RAW_DELTAS] or findings.broken[Kind.SEGMENTS]:
        raise IntegrityError(f"{data.raw.url()}: the manifest is damaged, so it was not rewritten; restore a backup")
    log = ManifestLog(data.raw)
    checkpoints = Checkpoints(log, RAW).rebuild(lambda version: progress("checkpoints", version, None))
    for fault in verify_log(log, RAW, renamed(progress, "manifest again")):
        if fault.kind != "unsealed":
            raise IntegrityError(f"after rewriting: {fault.text}")
    return checkpoints


def _check_raw(data: DataRoot, findings: RootFindings, progress: Progress) -> None:
    """Verify manifest, runs and packs, as `ciml runs verify` does, and the messages of dead letters."""
    result = verify_raw(data.raw, progress=progress)
    findings.add(result, _RAW_KINDS)
    if result.older:
        findings.rewritten[Kind.CHECKPOINTS] = sum(1 for _ in data.raw.entries("_manifest/checkpoints"))
        findings.rewritten[Kind.ID_INDEX] = sum(1 for _ in data.raw.entries("_manifest/index"))
    if result.version or not result.broken:
        findings.read |= {Kind.RUNS, Kind.PACKS, Kind.OUTPUTS, Kind.DEAD_LETTERS}
        _check_dead_letters(data.raw, findings, progress)


def _check_dead_letters(raw: Store, findings: RootFindings, progress: Progress) -> None:
    """Read each message that a dead letter may need again."""
    last_path = ""
    for version, delta in ManifestLog(raw).since(0):
        for record in (*delta.get("dead_letters", ()), *delta.get("deferred", ())):
            payload = record.get("payload")
            if not payload:
                continue
            path = payload.get("object", "")  # "": the message is in the delta
            if path and path == last_path:
                continue  # the runs of one message share it
            last_path = path
            with findings.guard(Kind.DEAD_LETTERS if path else Kind.RAW_DELTAS, f"version {version}, a dead letter"):
                message = read_payload(raw, payload)
                if "value" in message:  # that of a message above a limit is not stored
                    message_of(message, 0)
        progress("dead letters", version, None)


def _check_datasets(data: DataRoot, findings: RootFindings, progress: Progress) -> None:
    """Verify each data set, as `ciml dataset verify` does."""
    examples = findings.formats[Kind.EXAMPLES]
    # `DataRoot.dataset_names` would leave out a data set whose first delta is lost.
    paths = (entry.path for entry in data.datasets.entries())
    names = {
        path.split("/")[0] for path in paths if kind_of(f"datasets/{path}") in (Kind.DATA_SET_DELTAS, Kind.EXAMPLES)
    }
    for name in sorted(names):
        with findings.guard(Kind.DATA_SET_DELTAS, f"data set {name}"):
            dataset = data.dataset(name)
            for line in verify_dataset(dataset, progress=renamed(progress, name), formats=examples):
                findings.add_fault(Kind.EXAMPLES, f"data set {name}: {line}")
            _check_definition(dataset, findings)


def _check_definition(dataset: StoredDataset, findings: RootFindings) -> None:
    """Compare the definition next to the examples, a copy for people, with that in the manifest."""
    definition = dataset.state().definition
    try:
        copy = dataset.store.read(DEFINITION)
    except FileNotFoundError:
        return
    if definition is None or copy != definition.to_toml().encode():
        findings.notes.append(
            f"{dataset.store.url(DEFINITION)} is not the definition of the data set; delete it, and "
            "ciml dataset build writes it again"
        )


def _check_tables(data: DataRoot, findings: RootFindings, progress: Progress) -> None:
    """Compare the files of Delta tables with the digests in their names. They are copies for other engines."""
    findings.read.discard(Kind.DERIVED)  # most objects of this kind are not read
    for entry in _counted(data.tables.entries(), "tables", progress):
        name, _, path = entry.path.partition("/")
        if part_of(path) is None:
            continue
        try:
            content = data.tables.read(entry.path)
        except FileNotFoundError:
            continue  # a publication has removed it meanwhile
        if sha256_hex(content)[:32] != path.split(".")[1]:
            findings.notes.append(
                f"{data.tables.url(entry.path)} differs from its digest; delete {data.tables.url(name)}, and "
                "ciml tables publish writes it again"
            )


def _check_experiments(data: DataRoot, findings: RootFindings, progress: Progress) -> None:
    """Read each experiment and result; compare predictions with the digest in their name."""
    store = data.experiments
    checked = set[str]()
    for entry in _counted(store.entries(), "experiments", progress):
        kind = kind_of(f"experiments/{entry.path}")
        name, _, path = entry.path.partition("/")
        with findings.guard(kind, f"experiment {name}"):
            if kind == Kind.EXPERIMENTS:
                stored_name = load_experiment(store, name).name
                if stored_name != name:
                    raise IntegrityError(f"{store.url(entry.path)} is of experiment {stored_name!r:.100}")
            if name not in checked:
                checked.add(name)
                if not store.exists(f"{name}/experiment.json"):
                    raise IntegrityError(f"{store.url(name)} has results, but no experiment.json")
            if kind == Kind.RESULTS:
                _check_result(store, entry.path)
            elif kind == Kind.RESULT_PREDICTIONS:
                digest = path.rpartition("-")[2].removesuffix(".parquet")
                if sha256_hex(store.read(entry.path))[: len(digest)] != digest:
                    raise IntegrityError(f"{store.url(entry.path)} was altered: its digest differs")


def _check_result(store: Store, path: str) -> None:
    result = _read_json(store, path)
    if not path.endswith(f"/{RESULT}"):
        return
    _check_format(result, store.url(path))
    name = str(result.get("predictions"))
    if not _PREDICTIONS.fullmatch(name) or not store.exists(f"{path.rpartition('/')[0]}/{name}"):
        raise IntegrityError(f"{store.url(path)}: its predictions {name!r:.60} are missing")


def _read_json(store: Store, path: str) -> dict[str, Any]:
    value = read_stored(store, path)
    if value is None:
        raise IntegrityError(f"{store.url(path)} is missing")
    return value


def _check_format(value: Mapping[str, Any], where: str) -> None:
    if value.get("format") != _FORMAT:
        raise IntegrityError(f"{where} has format {value.get('format')!r:.20}, not {_FORMAT}; upgrade ciml")


def _check_sweeps(data: DataRoot, findings: RootFindings, progress: Progress) -> None:
    """Read each sweep, and the outcomes of its trials."""
    checked = set[str]()
    for entry in _counted(data.sweeps.entries(), "sweeps", progress):
        name, _, path = entry.path.partition("/")
        with findings.guard(Kind.SWEEPS, f"sweep {name}"):
            store = sweep_store(data.sweeps, name)
            if name not in checked:
                checked.add(name)
                sweep = _read_json(store, "sweep.json")
                where = store.url("sweep.json")
                _check_format(sweep, where)
                if not isinstance(sweep.get("raw_version"), int) or not isinstance(sweep.get("sweep"), dict):
                    raise IntegrityError(f"{where} is not a sweep")
            if path.startswith("trials/"):
                read_outcome(store, int(path.removeprefix("trials/").removesuffix(".json")))
            elif path.startswith("baselines/"):
                _read_json(store, path)


def _check_logs(data: DataRoot, findings: RootFindings, progress: Progress) -> None:
    """Read the small logs: of exclusions, trust policies and notes on failure signatures."""
    for kind, (store, read) in {
        Kind.EXCLUSIONS: (data.exclusions, read_state),
        Kind.TRUST: (data.trust, read_policies),
        Kind.FAILURE_NOTES: (data.failures, read_notes),
    }.items():
        with findings.guard(kind, store.url()):
            read(store)


def _check_erasures(data: DataRoot, findings: RootFindings, progress: Progress) -> None:
    """Read the receipts of erasures, and the plan of one that is under way."""
    with findings.guard(Kind.ERASURES, data.erasures.url()):
        read_receipts(data)
        plan = read_plan(data)
        if plan is not None:
            findings.notes.append(
                f"{data.erasures.url()}: an erasure of {len(plan.run_ids):,} runs is not complete; repeat ciml erase"
            )


def _check_trainers(data: DataRoot, findings: RootFindings, progress: Progress) -> None:
    """Compare snapshots and analyses with their digests; read metrics."""
    for entry in _counted(data.trainers.entries(), "trainers", progress):
        kind = kind_of(f"trainer/{entry.path}")
        if kind not in (Kind.SNAPSHOTS, Kind.ANALYSES, Kind.TRAINING_METRICS):
            continue  # scratch
        model, _, path = entry.path.partition("/")
        trainer = data.trainer(model)
        name = path.rpartition("/")[2].removesuffix(".json")
        with findings.guard(kind, f"trainer of {model}"):
            if kind == Kind.SNAPSHOTS:
                read_snapshot(trainer, name)
            elif kind == Kind.TRAINING_METRICS:
                _read_json(trainer, path)
            elif not AnalysisCache(trainer.child("analyses")).is_whole(name):
                raise IntegrityError(
                    f"{trainer.url(path)} differs from its digest; delete it, the next refresh computes it again"
                )


def _check_models(data: DataRoot, findings: RootFindings, progress: Progress) -> None:
    """Compare the files of each version with its registry, as `ciml models verify` does."""
    names = registered_models(data)
    entries = []
    for number, name in enumerate(names, 1):
        progress("models", number, len(names))
        with findings.guard(Kind.REGISTRY_DELTAS, f"model {name}"):
            entries.append(Registry(data, name).entry())
            for fault in filter(None, verify_versions(data, name).values()):
                findings.add_fault(Kind.MODELS, f"model {name}: {fault}")
    if findings.broken[Kind.REGISTRY_DELTAS]:
        findings.read.discard(Kind.MODELS)  # not all of them
        return
    config = render_config([entry for entry in entries if entry is not None])
    with contextlib.suppress(FileNotFoundError):
        if data.models.read(CONFIG_NAME) != config.encode():
            findings.notes.append(
                f"{data.models.url(CONFIG_NAME)} is not that of the registry in this data root; "
                "ciml models reconcile writes it again"
            )


def _check_predictions(data: DataRoot, findings: RootFindings, progress: Progress) -> None:
    """Verify the log of predictions."""
    _check_log(data.predictions, prediction_checkpoints(), Kind.PREDICTIONS_DELTAS, findings, progress)


def _check_feedback(data: DataRoot, findings: RootFindings, progress: Progress) -> None:
    """Verify the logs of messages on changes and of reviewers' corrections."""
    _check_log(data.feedback, FEEDBACK, Kind.FEEDBACK_DELTAS, findings, progress)
    with findings.guard(Kind.CORRECTIONS, data.feedback.url("corrections")):
        corrections_of(data)


def _check_log(store: Store, kind: Checkpointed[Any], deltas: Kind, findings: RootFindings, progress: Progress) -> None:
    """Verify a log with checkpoints that is not the raw manifest; ``deltas`` is the kind of its deltas."""
    kinds = {**_LOG_KINDS, "delta": deltas}
    for fault in verify_log(ManifestLog(store), kind, renamed(progress, deltas)):
        if fault.kind == "unsealed":
            findings.notes.append(f"{store.url()}: {fault.text}")
        else:
            findings.add_fault(kinds[fault.kind], fault.text)


def _counted(entries: Iterable[T], activity: str, progress: Progress) -> Iterator[T]:
    """Yield the entries, and report their number so far."""
    for number, entry in enumerate(entries, 1):
        progress(activity, number, None)
        yield entry


#: The checks in their order, each with the kinds of objects that it reads completely. An error of a whole check is a
#: fault of its first kind.
_CHECKS: Mapping[Check, tuple[Kind, ...]] = {
    _check_raw: (Kind.RAW_DELTAS, Kind.SEGMENTS, Kind.CHECKPOINTS, Kind.ID_INDEX, Kind.PACK_DELTAS),
    _check_datasets: (Kind.DATA_SET_DELTAS, Kind.EXAMPLES),
    _check_tables: (Kind.DERIVED,),
    _check_experiments: (Kind.RESULTS, Kind.EXPERIMENTS, Kind.RESULT_PREDICTIONS),
    _check_sweeps: (Kind.SWEEPS,),
    _check_logs: (Kind.EXCLUSIONS, Kind.TRUST, Kind.FAILURE_NOTES),
    _check_erasures: (Kind.ERASURES,),
    _check_trainers: (Kind.SNAPSHOTS, Kind.ANALYSES, Kind.TRAINING_METRICS),
    _check_models: (Kind.REGISTRY_DELTAS, Kind.MODELS),
    _check_predictions: (Kind.PREDICTIONS_DELTAS, Kind.SEGMENTS, Kind.CHECKPOINTS, Kind.ID_INDEX),
    _check_feedback: (Kind.FEEDBACK_DELTAS, Kind.SEGMENTS, Kind.CHECKPOINTS, Kind.ID_INDEX, Kind.CORRECTIONS),
}
