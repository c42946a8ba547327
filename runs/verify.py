"""Verifies a raw store: its manifest, and the runs that the manifest names.

The audit of the manifest counts its records independently of the committers: each (event, run) is accounted for once.
Then every named run must exist, with its rows and its digest, and older objects without a name are findings. A *name*
is the path of a raw object in the manifest. The run is in that object or in a pack.
"""

from __future__ import annotations

import heapq
import random
import time
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, groupby, takewhile
from typing import Any

import numpy as np

from ciml.digest import telemetry_digest
from ciml.errors import IntegrityError
from ciml.events.records import records_of, rows_of
from ciml.manifest.coverage import RangeSet
from ciml.manifest.id_index import fingerprint
from ciml.manifest.log import Delta, ManifestLog
from ciml.manifest.verify import Findings, verify_log
from ciml.progress import Progress, no_progress
from ciml.runs.compact import ASIDE_S
from ciml.runs.outputs import path_hash, unnamed_outputs, verify_output
from ciml.runs.pack_index import PACKS, RUNS, SWEPT, NamedRun, PackFile, named_runs, pack_state, run_of, split_path
from ciml.runs.packs import OpenPack, open_pack, prove_pack
from ciml.runs.reader import decode_object, verify_run
from ciml.runs.run_log import RunRecord, StoredRunLog
from ciml.runs.state import RAW, RawState, open_raw
from ciml.runs.tables import FOLDER as DELTA_LOG
from ciml.storage import Store

#: Age from which an unreferenced object is a finding: compaction has had the time to remove it, seconds.
GRACE_S = 3 * 86_400.0


@dataclass(slots=True)
class Verification(Findings):
    """The result of a verification.

    The kinds of objects are ``delta``, ``segment``, ``checkpoint``, ``index``, ``run``, ``pack``, ``output`` and
    ``pack delta``.

    Attributes:
      version: the raw manifest's version up to which it was verified.
      records: number of records of the manifest.
      runs: number of records that store a new run.
      objects: number of raw objects that the manifest names.
      read: number of raw objects, and of runs in packs, whose digest was computed.
      packs, packed: number of packs that were read, and of the runs in them.
      single: number of raw objects that were read.
      outputs: number of outputs of jobs whose digest was computed.
      older: number of checkpoints of an older version (`ciml.manifest.verify.Fault`).
    """

    formats: defaultdict[str, Counter[str]] = field(
        default_factory=lambda: defaultdict(Counter, run=Counter(), pack=Counter())
    )
    version: int = 0
    records: int = 0
    runs: int = 0
    objects: int = 0
    read: int = 0
    packs: int = 0
    packed: int = 0
    single: int = 0
    outputs: int = 0
    older: int = 0


def verify_raw(
    raw: Store,
    *,
    sample: int | None = None,
    seed: int = 0,
    grace_s: float = GRACE_S,
    clock: Callable[[], float] = time.time,
    progress: Progress = no_progress,
) -> Verification:
    """Verify manifest, accounting and runs. Later commits are not verified.

    Memory grows by 20 bytes for each raw object that the manifest names.

    Args:
      raw: the raw store.
      sample: number of runs to read, chosen at random; None for all. The manifest is verified completely.
      seed: of the choice.
      grace_s: age from which an unreferenced object is a finding, seconds.
      clock: epoch seconds.
      progress: called with (activity, number done, total or None).

    Raises:
      EngineError: if the store does not answer.
    """
    result = Verification()
    for fault in verify_log(ManifestLog(raw), RAW, progress):
        if fault.kind == "older":
            result.older += 1
        elif fault.kind == "unsealed":
            result.notes.append(fault.text)
        else:
            result.add_fault(fault.kind, fault.text)
    if result.older:
        result.notes.append(
            f"{result.older:,} checkpoints are of an older version, which stored no trust of runs in them; "
            "ciml migrate --apply makes them again"
        )
    is_sound = not result.findings
    try:
        names = _audit(raw, result, progress)
    except (IntegrityError, LookupError, TypeError, ValueError, AttributeError) as error:
        # The manifest cannot be read to its end: a digest differs, or a delta of an older version has another form.
        if is_sound:
            result.add_fault("delta", f"the manifest cannot be read: {error}")
        return result
    objects = _Objects(raw, result, names, clock() - grace_s, progress)
    if sample is None:
        objects.verify_packs()
        objects.verify_singles()
        objects.verify_named_outputs()
    objects.verify_unread(sample, seed)
    _verify_outputs(raw, result, sample, seed, progress)
    objects.note_unreferenced()
    return result


def _verify_outputs(raw: Store, result: Verification, sample: int | None, seed: int, progress: Progress) -> None:
    """Verify the outputs of the rows, or of a sample of them."""
    deltas = takewhile(lambda item: item[0] <= result.version, StoredRunLog(ManifestLog(raw)).since(0))
    rows: Iterable[RunRecord] = (row for _, delta in deltas for row in delta.rows if row.output and row.output.path)
    if sample is not None:
        chance = random.Random(seed)  # noqa: S311 - no secret depends on it
        rows = heapq.nsmallest(sample, rows, key=lambda _: chance.random())
    for row in rows:
        if fault := verify_output(raw, row.output):
            result.add_fault("output", fault)
        result.outputs += 1
        progress("outputs", result.outputs, None)


def _audit(raw: Store, result: Verification, progress: Progress) -> _Names:
    """Read the manifest once: check the accounting, and return the names."""
    log, state = open_raw(raw)
    audit = Audit(result)
    names = _Names()
    superseded: dict[str, str] = {}
    for version, delta in log.since(0):
        if version > state.version:
            break
        audit.add_delta(version, delta)
        _compare_runs(state, delta, superseded, result)
        for run in named_runs(delta):
            names.add(run)
        progress("accounting", version, state.version)
    for run_id, digest in superseded.items():
        indexed = state.index.run(run_id)
        result.add_fault("index", f"run {run_id}: its row has the digest {digest}, the index has {indexed}")
    audit.compare(state)
    for topic, partition, covered, recorded in audit.offsets():
        if covered != recorded:
            result.notes.append(
                f"{topic}[{partition}]: {covered - recorded:,} of {covered:,} covered offsets hold no event of a run"
            )
    names.sort()
    result.objects = len(names)
    return names


def _compare_runs(state: RawState, delta: dict[str, Any], superseded: dict[str, str], result: Verification) -> None:
    """Compare rows with the index, which has the digest of each run's last row.

    Args:
      state: has the index.
      delta: the next delta.
      superseded: by run id, the digest of a row that differs from the index. A later reclaim must supersede that row.
      result: gets the findings.
    """
    rows = [(record["mention"]["run_id"], record["file"]["digest"]) for record in rows_of(delta)]
    state.index.prefetch(runs=[run_id for run_id, _ in rows])
    for run_id, digest in rows:
        indexed = state.index.run(run_id)
        if indexed is None:
            result.add_fault("index", f"run {run_id}: its row has the digest {digest}, the index does not have the run")
        elif indexed.digest != digest:
            superseded[run_id] = digest
        else:
            superseded.pop(run_id, None)


class _Names:
    """The raw objects that a manifest names, 20 bytes each. Add all of them, then sort.

    Attributes:
      paths, digests, rows: an entry for each name, in the order of ``paths``; only after `sort`. Hashes of path and
        digest, uint64 [n], and number of rows, uint32 [n].
    """

    def __init__(self) -> None:
        self._added_paths = array("Q")
        self._added_digests = array("Q")
        self._added_rows = array("I")

    def add(self, run: NamedRun) -> None:
        self._added_paths.append(path_hash(run.path))
        self._added_digests.append(path_hash(run.digest))
        self._added_rows.append(run.rows)

    def sort(self) -> None:
        """Sort the names and remove duplicates. No name can be added afterwards."""
        self.paths, first = np.unique(np.frombuffer(self._added_paths, np.uint64), return_index=True)
        self.digests = np.frombuffer(self._added_digests, np.uint64)[first]
        self.rows = np.frombuffer(self._added_rows, np.uint32)[first]
        del self._added_paths, self._added_digests, self._added_rows

    def __len__(self) -> int:
        return len(self.paths)

    def find(self, path: str) -> int | None:
        """Return the index of a path; None for one that is not named."""
        target = np.uint64(path_hash(path))
        index = int(np.searchsorted(self.paths, target))
        return index if index < len(self.paths) and self.paths[index] == target else None


class _Objects:
    """Reads all objects of the store, and compares them with the names. Findings go to the result."""

    def __init__(self, raw: Store, result: Verification, names: _Names, before_s: float, progress: Progress) -> None:
        self._raw = raw
        self._result = result
        self._names = names
        self._before_s = before_s
        self._progress = progress
        self._young = 0
        self._checked = np.zeros(len(names), bool)

    def verify_packs(self) -> None:
        """Verify the bytes and the runs of every pack in the manifests of packs; report others."""
        of_table = f"{PACKS}/{DELTA_LOG}/"
        entries = (
            entry
            for entry in self._raw.entries(PACKS)
            if not entry.path.startswith(of_table) and (entry.path.endswith(".parquet") or "/_manifest/" in entry.path)
        )
        for prefix, group in groupby(entries, lambda entry: _folder_of(entry.path)):
            pack_entries = {entry.path: entry for entry in group if entry.path.endswith(".parquet")}
            folder = prefix.removeprefix(f"{PACKS}/")
            try:
                state = pack_state(self._raw, folder)
            except IntegrityError as error:
                self._result.add_fault("pack delta", f"{folder}: {error}")
                continue
            for file in state.packs.values():
                self._verify_pack(folder, file)
            for path, entry in pack_entries.items():
                if path not in state.packs and path not in state.replaced:
                    self._unnamed(path, entry.modified_s, "pack")

    def _verify_pack(self, folder: str, file: PackFile) -> None:
        if fault := prove_pack(self._raw, file):
            if file.path in pack_state(self._raw, folder).packs:  # not replaced meanwhile
                self._result.add_fault("pack", fault)
            return
        self._result.packs += 1
        try:
            pack = open_pack(self._raw, file)
            self._verify_pack_runs(folder, pack)
            self._result.formats["pack"][pack.format] += 1
        except (FileNotFoundError, IntegrityError) as error:
            self._result.add_fault("pack", str(error))

    def _verify_pack_runs(self, folder: str, pack: OpenPack) -> None:
        for numbers in pack.batches():
            for number, table in pack.read(self._raw, numbers, None).items():
                name = pack.runs[number].name
                path = f"{RUNS}/{folder}/{name}"
                self._result.packed += 1
                if self._names.find(path) is None:
                    self._result.add_fault("pack", f"{pack.file.path} holds {name}, which the manifest does not name")
                digest = telemetry_digest(run_of(name), table)
                self._check(path, table.num_rows, digest, pack.file.path, "pack")

    def verify_singles(self) -> None:
        """Verify every raw object that the manifest names; report others."""
        for entry in self._raw.entries(RUNS):
            parts = split_path(entry.path)
            if parts is None or self._names.find(entry.path) is None:
                self._unnamed(entry.path, entry.modified_s, "run")
                continue
            self._result.single += 1
            try:
                table, number = decode_object(self._raw.read(entry.path), entry.path, self._raw.url(entry.path))
                digest = telemetry_digest(run_of(parts[1]), table)
            except FileNotFoundError:
                continue  # packed meanwhile
            except (IntegrityError, TypeError) as error:
                self._result.add_fault("run", str(error))
                self._checked[self._names.find(entry.path)] = True
                continue
            self._result.formats["run"][number] += 1
            self._check(entry.path, table.num_rows, digest, self._raw.url(), "run")

    def verify_unread(self, sample: int | None, seed: int) -> None:
        """Verify the named runs that were not read, or a sample of them: a compaction may have moved them meanwhile.

        Args:
          sample: number of runs, chosen at random; None for all.
          seed: of the choice.
        """
        hashes = self._names.paths[~self._checked]
        if sample is not None:
            hashes = np.random.default_rng(seed).choice(hashes, min(sample, len(hashes)), replace=False)
        unread = set(hashes.tolist())
        if not unread:
            return
        deltas = takewhile(lambda item: item[0] <= self._result.version, ManifestLog(self._raw).since(0))
        for run in chain.from_iterable(named_runs(delta) for _, delta in deltas):
            if path_hash(run.path) in unread:
                unread.discard(path_hash(run.path))
                if fault := verify_run(self._raw, run.run_id, run.file):
                    self._result.add_fault("run", fault)
                self._result.read += 1
                self._progress("runs", self._result.read, len(self._names) if sample is None else len(hashes))

    def _check(self, path: str, rows: int, digest: str, where: str, what: str) -> None:
        """Compare a run that was read with the manifest's rows and digest for its path.

        Args:
          path: of the run, as in the manifest.
          rows, digest: those that were read.
          where: the pack or the store that holds it, for findings.
          what: the kind of object that holds it.
        """
        self._result.read += 1
        if (index := self._names.find(path)) is None:
            return
        self._checked[index] = True
        if rows != self._names.rows[index]:
            self._result.add_fault(
                what, f"{where}: {path} has {rows} rows, the manifest says {self._names.rows[index]}"
            )
        elif path_hash(digest) != self._names.digests[index]:
            self._result.add_fault(what, f"{where}: {path} has the digest {digest}, the manifest has another")
        self._progress("runs", int(self._result.read), len(self._names))

    def _unnamed(self, path: str, modified_s: float, what: str) -> None:
        if modified_s < self._before_s:
            self._result.add_fault(what, f"{self._raw.url(path)} is not named by any manifest")
        else:
            self._young += 1

    def verify_named_outputs(self) -> None:
        """Report outputs that no row names; a later commit may name one that is younger than a month."""
        for entry in unnamed_outputs(self._raw):
            self._unnamed(entry.path, entry.modified_s + ASIDE_S, "output")

    def note_unreferenced(self) -> None:
        """Note how many unreferenced objects are not findings: set aside by a compaction, or too young."""
        count = sum(1 for _ in self._raw.entries(SWEPT))
        if count:
            self._result.notes.append(
                f"{count:,} unreferenced objects are in {SWEPT}/; a later compaction removes them"
            )
        if self._young:
            self._result.notes.append(f"{self._young:,} young objects are not named by any manifest yet")


def _folder_of(path: str) -> str:
    """Return the folder of a pack, or of a delta in the manifest of its folder. Both are adjacent in a listing."""
    return path.rpartition("/")[0].removesuffix("/_manifest")


class Audit:
    """Totals of deltas, and their faults.

    Attributes:
      result: gets the faults, the last version, and the numbers of records and runs.
      counts: number of (event, run) by (kind, reason) of their last record.
    """

    def __init__(self, result: Verification) -> None:
        self.result = result
        self._report = partial(result.add_fault, "delta")
        self.counts: Counter[tuple[str, str]] = Counter()
        self._covered: defaultdict[tuple[str, int], RangeSet] = defaultdict(RangeSet)
        self._recorded: defaultdict[tuple[str, int], RangeSet] = defaultdict(RangeSet)
        self._open: dict[bytes, tuple[str, str]] = {}  # (kind, reason) of open records, by `_key`

    def add_delta(self, version: int, delta: Delta) -> None:
        """Add the next delta, and find its faults."""
        self.result.version = version
        fresh = self._cover(version, delta)
        closed = {_key(origin, run_id) for origin, run_id in delta["closes"]}
        for key in closed:
            if key in self._open:
                self.counts[self._open.pop(key)] -= 1
            else:
                self._report(f"version {version} closes a record that is not open")
        settled: set[bytes] = set()
        for kind, record in records_of(delta):
            topic, partition, offset = record["origin"]
            run_id = record.get("mention", {}).get("run_id", "")
            key = _key(record["origin"], run_id)
            undecoded_key = _key(record["origin"], "")  # of an earlier record of a message that could not be decoded
            outcome = (kind, record.get("reason", ""))
            label = f"version {version}: {topic}[{partition}] {offset} {run_id}".rstrip()
            self.result.records += 1
            self.result.runs += kind == "run"
            self.counts[outcome] += 1
            if key in settled:
                self._report(f"{label} is settled twice")
            settled.add(key)
            self._recorded[topic, partition].add(offset, offset + 1)
            if key in self._open:  # the log was tried again, and is still unavailable
                if kind != "deferred":
                    self._report(f"{label} is settled, but its open record is not closed")
                self.counts[self._open.pop(key)] -= 1
            elif key not in closed and undecoded_key not in closed and offset not in fresh[topic, partition]:
                self._report(f"{label} is settled, but this version does not cover it")
            if kind in ("deferred", "dead_letter"):
                self._open[key] = outcome

    def _cover(self, version: int, delta: Delta) -> Mapping[tuple[str, int], RangeSet]:
        """Add the offsets that a delta covers, and return them by (topic, partition)."""
        fresh: defaultdict[tuple[str, int], RangeSet] = defaultdict(RangeSet)
        for topic, entry in delta["offsets"].items():
            for partition, ranges in entry["partitions"].items():
                source = (topic, int(partition))
                for start, end in ranges:
                    if self._covered[source].missing(start, end) != [(start, end)]:
                        self._report(f"version {version} covers {topic}[{partition}] {start} to {end} again")
                    self._covered[source].add(start, end)
                    fresh[source].add(start, end)
        return fresh

    def compare(self, state: RawState) -> None:
        """Compare the totals with a state of the version that was added last."""
        counts = Counter({key: number for key, number in self.counts.items() if number})
        for key in sorted(set(counts) | set(state.counts)):
            if counts[key] != state.counts[key]:
                self._report(f"{' '.join(key).rstrip()}: {counts[key]} recorded, but {state.counts[key]} in the state")
        if self.result.runs != state.index.run_count():
            self._report(f"{self.result.runs} runs recorded, but {state.index.run_count()} in the index")
        covered = {(topic, number): ranges for topic, number, ranges in state.partitions() if ranges}
        audited = {source: ranges for source, ranges in self._covered.items() if ranges}
        for topic, number in sorted(set(covered) | set(audited)):
            if covered.get((topic, number)) != audited.get((topic, number)):
                self._report(f"{topic}[{number}]: the offsets covered by the state differ from those of the deltas")
        total = sum(counts.values())
        if total != sum(state.totals().values()):
            self._report(f"{total} (event, run) recorded, but {sum(state.totals().values())} in the totals")

    def offsets(self) -> Iterator[tuple[str, int, int, int]]:
        """Yield (topic, partition, number of covered offsets, number of those with a record), in order.

        An offset without a record held no message (removed, or a transaction marker), or one without a run.
        """
        for topic, partition in sorted(self._covered):
            source = (topic, partition)
            yield topic, partition, self._covered[source].count(), self._recorded[source].count()


def _key(origin: Iterable[object], run_id: str) -> bytes:
    return fingerprint("\0".join(map(str, origin)), run_id)
