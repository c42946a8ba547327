"""The steps of an erasure, each for some kinds of objects. Each may be repeated, and does nothing the second time."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cache, lru_cache, partial
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ciml.data_root import DataRoot, StoredDataset
from ciml.datasets.state import ExampleFile, SpanVersion
from ciml.digest import canonical_json
from ciml.errors import UnknownDatasetError
from ciml.events.records import records_of
from ciml.events.run_id import ERASED, erased_id
from ciml.manifest.checkpoints import Checkpointed, Checkpoints
from ciml.manifest.log import Delta, ManifestLog, commit
from ciml.manifest.rewrite import rewrite_log
from ciml.runs.arrow import read_parquet
from ciml.runs.erased import ErasedRuns, erasing_delta, runs_without_time, store_without_samples, with_other_facts
from ciml.runs.outputs import TEMPLATES, TEXTS
from ciml.runs.pack_index import RUNS, SWEPT, pack_log, run_of
from ciml.runs.packing import FolderPacker
from ciml.runs.state import RAW, open_raw
from ciml.runs.tables import store_of
from ciml.runs.tables.publish import list_tables, publish_tables
from ciml.services.files import now_us
from ciml.services.stored.findings import Kind, kind_of
from ciml.services.stored.names import OWNER, RUN, Names, message_texts
from ciml.serving.predict.log import prediction_checkpoints
from ciml.serving.registries import registered_models
from ciml.storage import Store
from ciml.storage.json_files import read_object, seal, seal_of
from ciml.training.data.snapshot import ERASED_RUNS
from ciml.training.experiments.results import RESULT
from ciml.transforms.examples.spans import read_examples, rows_digest, write_examples
from ciml.verdicts.feedback.state import FEEDBACK

#: What is kept of a prediction in the log of messages: without it, a later reaction to the message fits to nothing.
_KEPT_OF_PREDICTION = ("id", "model", "version", "label", "class", "time_us", "verdict", "n_windows", "probabilities")
#: Objects in JSON that other objects do not name by a digest, besides logs.
_PLAIN_JSON = (Kind.EXPERIMENTS, Kind.RESULTS, Kind.SWEEPS, Kind.TRAINING_METRICS)
#: Age after which examples that no manifest names are those of an update that was killed.
_LEFT_OVER_S = 3600.0
#: As `ciml runs compact` has it by default.
_PACK_BYTES = 32 << 20
#: The folders of a raw store in which each job and day has its own.
_FOLDERS_OF_RUNS = (RUNS, f"{SWEPT}/{RUNS}", TEXTS, TEMPLATES)


class Work(NamedTuple):
    """What an erasure works on.

    Attributes:
      data: the data root.
      erased: the runs.
      names: their names.
      tables: names of the published tables, which are made again.
      letters: paths of messages above the inline limit, below the raw store.
      folders: those of the runs below the raw store, ``job=…/date=…``.
      changed: counts the changed and removed objects by kind.
    """

    data: DataRoot
    erased: ErasedRuns
    names: Names
    tables: tuple[str, ...]
    letters: tuple[str, ...]
    folders: tuple[str, ...]
    changed: Counter[str]

    def rewrite(
        self,
        log: ManifestLog,
        kind: Kind,
        change: Callable[[Delta], Any],
        checkpointed: Checkpointed[Any] | None = None,
    ) -> None:
        """Rewrite the deltas of a log that a change alters, and count them."""

        def rewrite(delta: Delta) -> Delta | None:
            changed = change(delta)
            return None if changed == delta else changed

        self.changed[kind] += rewrite_log(log, rewrite, checkpointed)

    def kind(self, store: Store, path: str) -> Kind:
        """Return the kind of an object in a folder of the data root."""
        return kind_of(store.url(path).removeprefix(f"{self.data.url}/"))

    def delete(self, store: Store, path: str) -> None:
        """Delete an object in a folder of the data root, and count it."""
        store.delete(path)
        self.changed[self.kind(store, path)] += 1


def begin(work: Work) -> None:
    """Commit that the runs are erased: from then on their events are ignored."""
    log, state = open_raw(work.data.raw)
    without_time = runs_without_time(log, work.erased.run_ids) if work.erased.criteria.by_time else ()

    def build() -> Delta | None:
        delta = erasing_delta(state, work.erased, now_us(), without_time)
        is_known = state.erased.issuperset(delta["erases"])
        return None if is_known and state.erased_before_us >= delta.get("erases_before_us", 0) else delta

    if log.end():
        commit(log, state, build)


def erase_raw(work: Work) -> None:
    """Remove the runs from the raw manifest, then their telemetry, outputs and messages."""
    raw = work.data.raw
    file_of = partial(store_without_samples, raw)
    # Messages are deleted before the manifest forgets them: the next call takes a missing one for one with a name.
    _delete_present(work, work.letters)
    named = dict(_named_messages(work))
    _delete_present(work, {*named.values()} - {""})
    erased = replace(work.erased, origins=work.erased.origins | named.keys())
    ids = work.names.ids()

    def change(delta: Delta) -> Delta:
        value = erased.of(delta, file_of)
        return with_other_facts(value, ids.without) if ids.found_in(canonical_json(value)) else value

    work.rewrite(ManifestLog(raw), Kind.RAW_DELTAS, change, RAW)

    def is_named(name: str) -> bool:
        return run_of(name) in work.names.run_ids

    packer = FolderPacker(raw, min_runs=1, pack_bytes=_PACK_BYTES, clock=lambda: now_us() / 1e6)
    for folder in work.folders:
        work.changed[Kind.PACKS] += packer.erase(folder, is_named)
        work.rewrite(pack_log(raw, folder), Kind.PACK_DELTAS, partial(_without_alone, is_named))
        for path in [path for prefix in _FOLDERS_OF_RUNS for path in raw.list(f"{prefix}/{folder}")]:
            # An output is named <run id>.<digest>.zst, a run <run id>.<digest>.parquet.
            if is_named(path):
                work.delete(raw, path)


def _delete_present(work: Work, paths: Iterable[str]) -> None:
    for path in paths:
        if work.data.raw.exists(path):
            work.delete(work.data.raw, path)


def _named_messages(work: Work) -> Iterator[tuple[tuple[Any, ...], str]]:
    """Yield origin and object of each stored message that names an erased run or, undecoded, the owner; "" for none.

    A decoded message is that of its run, and may have a word like the owner's name.
    """
    raw = work.data.raw

    def kinds_in(data: bytes) -> set[str]:
        return set[str]().union(*map(work.names.found_in, message_texts(data)))

    @lru_cache(maxsize=1)  # the runs of a message follow each other
    def kinds_of(path: str) -> set[str]:
        try:
            return kinds_in(raw.read(path))
        except FileNotFoundError:
            return {RUN}

    for _, delta in ManifestLog(raw).since(0):
        for _, record in records_of(delta):
            payload = record.get("payload")
            if payload is None:
                continue
            path = payload.get("object", "")
            kinds = kinds_of(path) if path else kinds_in(canonical_json(payload))
            if kinds - {OWNER} or (kinds and "mention" not in record):
                yield tuple(record["origin"]), path


def is_of_other_run(work: Work, path: str) -> bool:
    """Return whether an object is the telemetry or output of a run that is not erased. It may name an erased one."""
    is_run = kind_of(path) in (Kind.RUNS, Kind.OUTPUTS) or path.startswith(f"raw/{SWEPT}/{RUNS}/")
    return is_run and run_of(path) not in work.names.run_ids


def remove_unnamed(work: Work, paths: Iterable[str]) -> None:
    """Remove those of some objects that no manifest names: of workers that were killed or slow."""
    for path in paths:
        kind = kind_of(path)
        is_unnamed = kind in (Kind.RUNS, Kind.OUTPUTS, Kind.UNREFERENCED)
        if kind == Kind.ID_INDEX:
            folder, _, part = path.partition("/")
            newest = Checkpoints(ManifestLog(work.data.store.child(folder)), RAW).newest()  # reading depends on no kind
            is_unnamed = newest is None or part not in newest.paths()
        elif kind == Kind.EXAMPLES:
            is_unnamed = _is_left_over(work.data, path)
        if is_unnamed:
            work.delete(work.data.store, path)


def _is_left_over(data: DataRoot, path: str) -> bool:
    """Return whether an update of a data set was killed before it named a file of examples, or is very slow."""
    _, name, below = path.split("/", 2)
    dataset = data.dataset(name)
    written_s = {entry.path: entry.modified_s for entry in dataset.store.entries()}
    named = {file for versions in dataset.state().spans.values() for span in versions.values() for file in span.paths}
    plan_s = max((entry.modified_s for entry in data.erasures.entries()), default=0.0)  # the present, by the same clock
    return below not in named and written_s.get(below, plan_s) < plan_s - _LEFT_OVER_S


def _without_alone(is_named: Callable[[str], bool], delta: Delta) -> Delta:
    return {**delta, "alone": {name: run for name, run in delta["alone"].items() if not is_named(name)}}


def erase_predictions(work: Work) -> None:
    """Remove the predictions of the runs, with the pictures of their evidence."""
    log = ManifestLog(work.data.predictions)
    run_ids = work.names.run_ids
    for _, delta in log.since(0):
        for prediction in delta["predictions"]:
            if prediction["run_id"] in run_ids:
                work.data.evidence.delete(f"{prediction['id'][:2]}/{prediction['id']}.svg")

    def change(delta: Delta) -> Delta:
        predictions = [prediction for prediction in delta["predictions"] if prediction["run_id"] not in run_ids]
        unpredictable = [_without_detail(record, run_ids) for record in delta["unpredictable"]]
        value: Delta = work.names.without({**delta, "predictions": predictions, "unpredictable": unpredictable})
        return value

    work.rewrite(log, Kind.PREDICTIONS_DELTAS, change, prediction_checkpoints())


def _without_detail(record: Mapping[str, Any], run_ids: frozenset[str]) -> Mapping[str, Any]:
    if record["run_id"] not in run_ids:
        return record
    return {name: value for name, value in record.items() if name != "detail"}


def erase_feedback(work: Work) -> None:
    """Remove the runs from the logs of messages, corrections and notes.

    The number of a change stays in the log of messages: without it, a message could be written a second time.
    """
    run_ids = work.names.run_ids

    def change(delta: Delta) -> Delta:
        items = [
            {**item, "prediction": _kept_prediction(item)} if item["run_id"] in run_ids else item
            for item in delta.get("verdicts", ())
        ]
        recorded = [
            {**verdict, "change": ""} if verdict["run_id"] in run_ids else verdict
            for verdict in delta.get("recorded", ())
        ]
        value: Delta = work.names.without(
            {
                **delta,
                **({"verdicts": items} if "verdicts" in delta else {}),
                **({"recorded": recorded} if "recorded" in delta else {}),
            }
        )
        return value

    work.rewrite(ManifestLog(work.data.feedback), Kind.FEEDBACK_DELTAS, change, FEEDBACK)
    corrections = ManifestLog(work.data.feedback.child("corrections"))
    work.rewrite(corrections, Kind.CORRECTIONS, work.names.without)
    work.rewrite(ManifestLog(work.data.failures), Kind.FAILURE_NOTES, work.names.without)


def _kept_prediction(item: Mapping[str, Any]) -> dict[str, Any]:
    prediction = item["prediction"]
    run = prediction.get("run", {})
    kept_run = {"run_id": item["run_id"], "build_uuid": "", "build_name": run.get("build_name", "")}
    auth = {"auth": run["auth"]} if run.get("auth") else {}
    copied = {name: prediction[name] for name in _KEPT_OF_PREDICTION if name in prediction}
    return {**copied, "run_id": item["run_id"], "build_name": run.get("build_name", ""), "run": {**kept_run, **auth}}


def erase_datasets(work: Work) -> None:
    """Remove the examples of the runs from all versions of all spans, and the runs from the snapshots of trainers."""
    for name in work.data.dataset_names():
        _erase_dataset(work, work.data.dataset(name))
    for entry in list(work.data.trainers.entries()):
        if work.kind(work.data.trainers, entry.path) == Kind.SNAPSHOTS:
            _erase_snapshot(work, entry.path)


def _erase_dataset(work: Work, dataset: StoredDataset) -> None:
    run_ids = work.names.run_ids

    @cache
    def erased_file(path: str, digest: str, rows: int) -> ExampleFile | None:
        return _erase_file(dataset, ExampleFile(path, digest, rows), run_ids)

    def change(delta: Delta) -> Delta:
        value: Delta = {**delta}
        if delta.get("spans"):
            value["spans"] = [_erase_span(span, run_ids, erased_file) for span in delta["spans"]]
        for name in ("corrections", "causes"):
            if delta.get(name):
                value[name] = [record for record in delta[name] if record["run_id"] not in run_ids]
        return value

    work.rewrite(dataset.log, Kind.DATA_SET_DELTAS, change)
    # What a call left that was killed is removed, too: no manifest will ever name another file of a sealed span.
    present = {span.folder: span.paths for by_version in dataset.state().spans.values() for span in by_version.values()}
    for path in dataset.store.list():
        folder = "/".join(path.split("/")[:2])
        if folder in present and path not in present[folder]:
            work.delete(dataset.store, path)


def _erase_file(dataset: StoredDataset, file: ExampleFile, run_ids: frozenset[str]) -> ExampleFile | None:
    """Write the examples of a file without those of the runs; return the new file, None if no example is left."""
    table = read_examples(dataset.store, file)
    remaining = _without_runs(table, run_ids)
    if remaining.num_rows == table.num_rows:
        return file
    if not remaining.num_rows:
        return None
    digest = rows_digest(remaining)
    path = f"{file.path.rpartition('/')[0]}/examples-{digest[:16]}.parquet"
    dataset.store.create(path, write_examples(remaining, path))
    return ExampleFile(path, digest, remaining.num_rows)


def _without_runs(table: pa.Table, run_ids: frozenset[str]) -> pa.Table:
    """Return the rows of a table without those of some runs."""
    return table.filter(pc.invert(pc.is_in(table.column("run_id"), pa.array(sorted(run_ids), pa.string()))))


def _erase_span(
    span: Mapping[str, Any], run_ids: frozenset[str], erased_file: Callable[..., ExampleFile | None]
) -> dict[str, Any]:
    erased = [run["run_id"] for run in span["runs"] if run["run_id"] in run_ids]
    files = span["files"]
    if erased:
        present = {split: [erased_file(**file) for file in stored] for split, stored in files.items()}
        values = {split: [file.to_json() for file in stored if file is not None] for split, stored in present.items()}
        files = {split: stored for split, stored in values.items() if stored}
    excluded = [
        {"run_id": erased_id(run["run_id"]), "reason": run["reason"]} if run["run_id"] in run_ids else run
        for run in span["excluded"]
    ]
    return {
        **span,
        "files": files,
        "runs": [run for run in span["runs"] if run["run_id"] not in run_ids],
        "excluded": [*excluded, *({"run_id": erased_id(run_id), "reason": ERASED} for run_id in erased)],
    }


def _erase_snapshot(work: Work, path: str) -> None:
    """Remove the runs from a snapshot, which keeps its name; remove what its model's trainer has materialised.

    A snapshot without the runs is changed too, if their examples were in its files.
    """
    store = work.data.trainers
    data = store.read(path)
    value = read_object(data, store.url(path))
    try:
        present = work.data.dataset(value["dataset"]).state().spans
    except UnknownDatasetError:
        present = {}
    spans = [
        _erase_snapshot_span(span, work.names.run_ids, present.get(span["span"], {}).get(span["version"]))
        for span in value["spans"]
    ]
    if spans == value["spans"]:
        return
    number = sum(len(span["runs"]) for span in value["spans"]) - sum(len(span["runs"]) for span in spans)
    _replace(work, store, path, data, {**value, "spans": spans, ERASED_RUNS: value.get(ERASED_RUNS, 0) + number})
    model = path.partition("/")[0]
    for scratch in store.list(f"{model}/work"):
        work.delete(store, scratch)


def _erase_snapshot_span(
    span: Mapping[str, Any], run_ids: frozenset[str], present: SpanVersion | None
) -> dict[str, Any]:
    """Return a span of a snapshot without the runs.

    Args:
      span: as it is stored.
      run_ids: the runs.
      present: this span version of the data set now; None if the data set was removed, or built again without it.
    """
    remaining = [run for run in span["runs"] if run[0] not in run_ids]
    erased: dict[str, Any] = {**span, "runs": remaining}
    if span.get("weights"):
        weighted = zip(span["runs"], span["weights"], strict=True)
        erased["weights"] = [weight for run, weight in weighted if run[0] not in run_ids]
    # Files that hold other examples are those of a data set that was built again under the same name.
    if present is not None and {(run.run_id, run.digest) for run in present.runs}.issuperset(
        (run[0], run[-1]) for run in remaining
    ):
        files = {split: stored for split, stored in present.files.items() if split in span["files"]}
        erased["files"] = {split: [file.to_json() for file in stored] for split, stored in files.items()}
    return erased


def _replace(work: Work, store: Store, path: str, data: bytes, value: Any) -> None:
    """Replace an object in JSON by another value; a seal then names the digest of the object before."""
    sealed = seal_of(data, store.url(path))
    content = canonical_json(value)
    store.replace(path, content if sealed is None else seal(content, sealed.text, sealed.digest))
    work.changed[work.kind(store, path)] += 1


def erase_learning(work: Work) -> None:
    """Remove the names from what models, experiments and the trust policy refer to."""
    data = work.data
    logs = [(Kind.EXCLUSIONS, data.exclusions), (Kind.TRUST, data.trust)]
    logs += [(Kind.REGISTRY_DELTAS, data.registry.child(name)) for name in registered_models(data)]
    for kind, store in logs:
        work.rewrite(ManifestLog(store), kind, work.names.without)
    for store in (data.experiments, data.sweeps, data.trainers):
        for path in store.list():
            kind = work.kind(store, path)
            if kind in _PLAIN_JSON:
                _erase_json(work, store, path)
            if kind == Kind.RESULTS and path.endswith(f"/{RESULT}"):
                _erase_result(work, store, path)


def _erase_json(work: Work, store: Store, path: str) -> None:
    data = store.read(path)
    value = read_object(data, store.url(path))
    erased = work.names.without(value)
    if erased != value:
        _replace(work, store, path, data, erased)


def _erase_result(work: Work, store: Store, path: str) -> None:
    """Remove the runs from the predictions of a trial, and give the result the name of the new file."""
    data = store.read(path)
    value = read_object(data, store.url(path))
    folder = path.rpartition("/")[0]
    former = f"{folder}/{value['predictions']}"
    if store.exists(former):
        table = read_parquet(store.read(former))
        remaining = _without_runs(table, work.names.run_ids)
        if remaining.num_rows < table.num_rows:
            sink = pa.BufferOutputStream()
            pq.write_table(remaining, sink, compression="zstd")
            content = bytes(sink.getvalue())
            value["predictions"] = f"predictions-{hashlib.sha256(content).hexdigest()[:16]}.parquet"
            store.create(f"{folder}/{value['predictions']}", content)
            _replace(work, store, path, data, value)
    for sibling in store.list(folder):
        # Also the file that a call left which was killed.
        is_former = work.kind(store, sibling) == Kind.RESULT_PREDICTIONS and not sibling.endswith(
            f"/{value['predictions']}"
        )
        if is_former:
            work.delete(store, sibling)


def erase_derived(work: Work) -> None:
    """Remove what readers have derived from the runs and write again, and publish the tables again."""
    data = work.data
    # Not those of the raw store, which has by far the most objects: none there holds facts of runs.
    for store in (data.datasets, data.predictions, data.feedback, data.failures, data.tables, data.lineage):
        for path in store.list():
            if work.kind(store, path) == Kind.DERIVED and _is_stale(work, store, path):
                work.delete(store, path)
    for name in work.tables:
        store = store_of(data, name)
        for path in store.list("_delta_log"):
            store.delete(path)
    for table in publish_tables(data, work.tables) if work.tables else ():
        work.changed["tables"] += table.committed


def _is_stale(work: Work, store: Store, path: str) -> bool:
    """Return whether a derived object may hold facts of erased runs."""
    if store == work.data.lineage:
        return bool(work.names.found_in(store.read(path)))
    is_bookmark = path.rpartition("/")[2] in ("_replay", "_neighbours", "_causes", "_signatures")
    return store == work.data.tables or is_bookmark or "/statistics/" in path


def published_tables(data: DataRoot) -> tuple[str, ...]:
    """Return the names of the tables that were published."""
    return tuple(table.name for table in list_tables(data) if table.version is not None)


#: All steps, in their order: what names a run by its position in the raw manifest comes before that.
STEPS: Mapping[str, Callable[[Work], None]] = {
    "data sets": erase_datasets,
    "raw store": erase_raw,
    "predictions": erase_predictions,
    "messages": erase_feedback,
    "models and experiments": erase_learning,
    "derived": erase_derived,
}
