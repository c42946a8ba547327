"""Erases runs from a data root: from its plan to its receipt; and their records from topics.

The plan names the runs, and is stored before anything is changed. Every step may be repeated, so an erasure that was
killed is completed by the next call, whatever that call asks for. At the end, all bytes of the data root are searched
for the names. Then the plan, which has them, is deleted, and a receipt without them is stored.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any, NamedTuple

import msgspec
from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka.admin import ConfigResource, ResourceType

from ciml.data_root import DataRoot
from ciml.digest import canonical_json
from ciml.errors import CimlError, EngineError, IntegrityError
from ciml.events.records import RunFacts, records_of, rows_of
from ciml.events.run_id import ERASED, erased_id, is_erased
from ciml.kafka import KafkaOptions
from ciml.kafka.connect import admin, as_engine_error
from ciml.manifest.log import Delta, ManifestLog, catch_up, commit
from ciml.pipelines.kafka.publish import enqueue
from ciml.progress import Progress, no_progress
from ciml.runs.erased import ErasedRuns, RunCriteria
from ciml.runs.known_subjects import Subject, subjects_of
from ciml.runs.pack_index import run_of, split_path
from ciml.runs.state import RawState, open_raw
from ciml.services.files import now_us
from ciml.services.stored.erasure_steps import STEPS, Work, begin, is_of_other_run, published_tables, remove_unnamed
from ciml.services.stored.findings import Kind, kind_of
from ciml.services.stored.names import NOT_SEARCHED, OWNER, Names, contents
from ciml.serving.registry import Signature
from ciml.storage.json_files import read_stored, seal
from ciml.stored_trust import read_policies

#: The most runs of one erasure; `erase` begins the next one for those that are left.
MOST_RUNS = 10_000
#: How often all steps are repeated, because other processes have written names meanwhile.
_ROUNDS = 5
#: The plan, next to the manifest of receipts.
PLAN = "plan.json"
#: The topics of ciml whose records have the run id as their key.
TOPICS = ("runs", "predictions")
_BROKER_S = 30.0


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An erasure that is under way.

    Attributes:
      criteria: by which the runs were found.
      run_ids: the runs.
      origins: of messages that name them and are stored, because they could not be processed.
      letters: paths of such messages, below the raw store.
      folders: those of the runs' objects.
      tables: names of the published tables.
      author, reason: of the erasure.
      began_us: epoch microseconds.
      subjects: (source, subject) of runs of the owner that remain. Their updates still name the owner, because by these
        the next erasure finds the runs.
      others: other people's runs, of which records that are not believed name the owner.
    """

    criteria: RunCriteria
    run_ids: tuple[str, ...]
    origins: tuple[tuple[str, int, int], ...]
    letters: tuple[str, ...]
    folders: tuple[str, ...]
    tables: tuple[str, ...]
    author: str
    reason: str
    began_us: int
    subjects: tuple[Subject, ...] = ()
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class Receipt:
    """What an erasure did. It names no erased run by its own id, and no person but its author.

    Attributes:
      version: of the receipt in its manifest.
      author, reason: of the erasure.
      by: the criteria: ``owner``, ``change``, ``run``, ``before``.
      runs: ids of the erased runs, as they are now.
      changed: number of changed and removed objects by kind.
      remaining: number of objects in which a name is left, by folder: a word like that of the owner, or an id in the
        output of another run or in an object that ciml did not write. The latter also counts if it cannot be searched.
      searched_bytes: of the objects that were searched, compressed content included.
      began_us, time_us: of the first step and of the receipt, epoch microseconds.
    """

    version: int
    author: str
    reason: str
    by: tuple[str, ...]
    runs: tuple[str, ...]
    changed: dict[str, int]
    remaining: dict[str, int]
    searched_bytes: int
    began_us: int
    time_us: int

    def lines(self) -> list[str]:
        """Return the receipt as lines of text."""
        changed = ", ".join(f"{number:,} {kind}" for kind, number in sorted(self.changed.items()) if number)
        return [
            f"receipt {self.version}: {len(self.runs):,} runs erased (by {', '.join(self.by)}): {self.reason}",
            f"  changed or removed: {changed or 'nothing'}",
            f"  searched: {self.searched_bytes / 1e6:,.1f} MB; objects with a name left: "
            f"{sum(self.remaining.values()):,}",
        ]


@dataclass
class Receipts:
    """The receipts of a data root, in order. ``version`` is that of their manifest."""

    version: int = 0
    receipts: list[Receipt] = field(default_factory=list)

    def apply(self, version: int, delta: Delta) -> None:
        """Apply the next delta; see `ciml.manifest.log.State`."""
        if delta["kind"] != ERASED:
            raise IntegrityError(f"erasures: version {version} has the unknown kind {delta['kind']!r}; upgrade ciml")
        self.receipts.append(msgspec.convert({**delta["receipt"], "version": version}, Receipt))


def read_receipts(data: DataRoot) -> list[Receipt]:
    """Return the receipts of a data root, in order. Raises `IntegrityError` if one is malformed."""
    return catch_up(ManifestLog(data.erasures), Receipts()).receipts


def read_plan(data: DataRoot) -> Plan | None:
    """Return the plan of the erasure that is under way; None without one."""
    value = read_stored(data.erasures, PLAN)
    if value is None:
        return None
    try:
        return msgspec.convert(value, Plan)
    except msgspec.ValidationError as error:
        raise IntegrityError(f"{data.erasures.url(PLAN)} is not a plan: {error}") from None


class Erased(NamedTuple):
    """A completed erasure.

    Attributes:
      receipt: as it is stored.
      remaining: the objects with a name that is left, or that were not searched, a line each. The receipt does not have
        the lines, since paths may hold the name.
    """

    receipt: Receipt
    remaining: tuple[str, ...]


def erase(
    data: DataRoot,
    criteria: RunCriteria,
    signed: Signature,
    progress: Progress = no_progress,
    erase_topics: Callable[[Collection[str]], None] | None = None,
) -> Iterator[Erased]:
    """Erase runs. An erasure that was killed is completed first.

    Args:
      data: the data root. Services may run meanwhile.
      criteria: which runs.
      signed: who erases, and why. It must not name the owner.
      progress: called with (activity, number done, total or None).
      erase_topics: removes the records of runs from topics, given their ids; it may be called again for the same runs.

    Yields:
      Each completed erasure: one that was killed before, and one for each `MOST_RUNS` runs.

    Raises:
      CimlError: the criteria are empty, the reason or the trust policy names the owner, or processes write ids again.
      EngineError: the store does not answer. The next call completes the erasure.
    """
    signed.check()
    _check(criteria)
    if criteria.owner:
        _check_owner(data, criteria.owner, signed)
    plan = read_plan(data)
    if plan is not None:
        data.erasures.replace(PLAN, _encode(plan))  # its time is that of this call
        yield _complete(data, plan, frozenset(), progress, erase_topics)
    is_first = True
    while (part := _make_plan(data, criteria, signed, progress, is_first=is_first)) is not None:
        yield _complete(data, *part, progress, erase_topics)
        is_first = False


def count_runs(data: DataRoot, criteria: RunCriteria, progress: Progress = no_progress) -> int:
    """Return the number of runs that `erase` would erase."""
    _check(criteria)
    return len(_find(data, criteria, sys.maxsize, progress).run_ids)


def _check(criteria: RunCriteria) -> None:
    if not (criteria.run_id or criteria.owner or criteria.change or criteria.before_us is not None):
        raise CimlError("erase: name the runs: --run, --owner, --change, --before or --older-than")


def _check_owner(data: DataRoot, owner: str, signed: Signature) -> None:
    names = Names((), owner)
    if names.found_in(f"{signed.author}\n{signed.reason}".encode()):
        raise CimlError("erase: author and reason are kept in the receipt, so they must not name the owner")
    policy = read_policies(data.trust).in_force
    if policy is not None and names.found_in(canonical_json(policy.to_json())):
        raise CimlError(
            "erase: the trust policy in force names the owner; apply one without the name first (ciml trust apply)"
        )


def _make_plan(
    data: DataRoot, criteria: RunCriteria, signed: Signature, progress: Progress, *, is_first: bool
) -> tuple[Plan, frozenset[str]] | None:
    """Store the plan of the next part, and return it with the runs of later parts; None if no run is left."""
    selection = _find(data, criteria, MOST_RUNS, progress)
    if not selection.run_ids and not (is_first and _is_named(data, criteria.owner, progress)):
        return None
    plan = Plan(
        criteria=criteria,
        run_ids=tuple(selection.run_ids),
        origins=tuple(selection.origins),
        letters=tuple(selection.letters),
        folders=tuple(selection.folders),
        tables=published_tables(data),
        author=signed.author,
        reason=signed.reason,
        began_us=now_us(),
        subjects=tuple(selection.subjects),
        others=tuple(selection.others),
    )
    if not data.erasures.create(PLAN, _encode(plan)):
        raise CimlError(f"{data.erasures.url(PLAN)}: another erasure has just begun; try again later")
    return plan, selection.later


def _is_named(data: DataRoot, owner: str, progress: Progress) -> bool:
    """Return whether an account without a run is named, such as that of a reviewer; False for no account."""
    return bool(owner) and any(OWNER in kinds for kinds in _search(data, Names((), owner), progress)[0].values())


def _encode(plan: Plan) -> bytes:
    return seal(canonical_json(msgspec.to_builtins(plan)))


class _Found(NamedTuple):
    """The runs to erase, those of later parts, and what else of the raw manifest is in the `Plan`, in its order."""

    run_ids: dict[str, None]
    later: frozenset[str]
    origins: dict[tuple[str, int, int], None]
    letters: dict[str, None]
    folders: dict[str, None]
    subjects: dict[Subject, None]
    others: dict[str, None]


def _find(data: DataRoot, criteria: RunCriteria, most: int, progress: Progress) -> _Found:
    """Find the runs to erase, at most ``most``."""
    log, state = open_raw(data.raw)
    matching, subjects_of_owner = _select(log, state, criteria, progress)
    run_ids = dict.fromkeys(islice(matching, most))
    remaining = (subjects for run_id, subjects in subjects_of_owner.items() if run_id not in run_ids)
    later = frozenset(matching) - run_ids.keys()
    found = _Found(run_ids, later, {}, {}, {}, dict.fromkeys(chain.from_iterable(remaining)), {})
    for _, delta in log.since(0) if run_ids or criteria.owner else ():
        for _, record in records_of(delta):
            mention = record.get("mention")
            if mention is None:
                continue
            if mention["run_id"] in run_ids:
                _add_record(found, record)
            elif mention["run_id"] not in subjects_of_owner and criteria.is_named(record):
                found.others[mention["run_id"]] = None
                _add_message(found, record)
    return found


def _select(
    log: ManifestLog, state: RawState, criteria: RunCriteria, progress: Progress
) -> tuple[dict[str, None], dict[str, list[Subject]]]:
    """Return the runs that match the criteria, and the subjects of all runs of the owner.

    The last row of a run decides, with the updates of its subjects, because no event that is believed less changes the
    run. Of a run without a row, each record decides.
    """
    matching: dict[str, None] = {}
    subjects_of_owner: dict[str, list[Subject]] = {}
    for version, delta in log.since(0):
        if version > state.version:
            break
        if criteria.facts():
            state.index.subjects.prefetch_runs([RunFacts.from_json(row["mention"]) for row in rows_of(delta)])
        state.index.prefetch(runs=[record.get("mention", {}).get("run_id", "") for _, record in records_of(delta)])
        for kind, record in records_of(delta):
            mention = record.get("mention")
            if mention is None or is_erased(mention["run_id"]):
                continue
            run_id = mention["run_id"]
            facts = None
            if kind in ("run", "reclaim"):
                facts = RunFacts.from_json(mention)
                matching.pop(run_id, None)
                subjects_of_owner.pop(run_id, None)
            elif state.index.run(run_id) is not None:
                continue
            joined = state.index.subjects.join(facts).to_json() if facts and criteria.facts() else {}
            if criteria.owner and criteria.owner in (joined.get("owner"), mention.get("owner")):
                subjects_of_owner[run_id] = subjects_of(facts) if facts else []
            if criteria.matches(mention, joined, delta["time_us"]):
                matching[run_id] = None
        progress("manifest", version, state.version)
    return matching, subjects_of_owner


def _add_record(found: _Found, record: Mapping[str, Any]) -> None:
    """Add what a record of a run to erase refers to."""
    _add_message(found, record)
    if (file := record.get("file")) is not None and (parts := split_path(file["path"])) is not None:
        found.folders[parts[0]] = None


def _add_message(found: _Found, record: Mapping[str, Any]) -> None:
    """Add the message of a record, if it has one."""
    payload = record.get("payload")
    if payload is not None:
        found.origins[tuple(record["origin"])] = None
        if path := payload.get("object"):
            found.letters[path] = None


def _complete(
    data: DataRoot,
    plan: Plan,
    later: frozenset[str],
    progress: Progress,
    erase_topics: Callable[[Collection[str]], None] | None,
) -> Erased:
    """Do all steps of a plan until no id of its runs is left, and store the receipt.

    What is left is not reported if later parts remove it: the owner, and outputs of ``later`` runs.
    """
    erased = ErasedRuns(
        run_ids=frozenset(plan.run_ids),
        origins=frozenset(plan.origins),
        criteria=plan.criteria,
        subjects=frozenset(plan.subjects),
        others=frozenset(plan.others),
    )
    changed = Counter[str]()
    for _ in range(_ROUNDS):
        names = _names(data, plan)
        work = Work(data, erased, names, plan.tables, plan.letters, plan.folders, changed)
        begin(work)
        for number, (name, step) in enumerate(STEPS.items()):
            progress(f"erase: {name}", number, len(STEPS))
            step(work)
        places, searched_bytes = _search(data, names, progress)
        written = [
            path
            for path, kinds in places.items()
            if kinds != {OWNER} and not _is_foreign(path) and not is_of_other_run(work, path)
        ]
        if not written:
            if erase_topics is not None:
                erase_topics(plan.run_ids)
            if later:
                places = {
                    path: kinds for path, kinds in places.items() if kinds != {OWNER} and run_of(path) not in later
                }
            remaining = Counter(path.partition("/")[0] for path in places)
            receipt = _store_receipt(data, plan, work, remaining, searched_bytes)
            lines = (f"{data.store.url(path)}: {', '.join(sorted(kinds))}" for path, kinds in sorted(places.items()))
            return Erased(receipt, tuple(lines))
        remove_unnamed(work, written)
    raise CimlError(
        f"{data.store.url(written[0])} still names an erased run; repeat the command when its writer has stopped"
    )


def _names(data: DataRoot, plan: Plan) -> Names:
    records = (record for _, delta in ManifestLog(data.raw).since(0) for _, record in records_of(delta))
    run_ids = (record["mention"]["run_id"] for record in records if "mention" in record)
    return Names(plan.run_ids, plan.criteria.owner).not_of(run_ids)


def _is_foreign(path: str) -> bool:
    """Return whether an object is not ciml's: of another program below the data root, or of the demo's CI system."""
    return kind_of(path) == Kind.OTHER or path.startswith("demo/")


def _search(data: DataRoot, names: Names, progress: Progress) -> tuple[dict[str, set[str]], int]:
    """Search all objects for the names; return what was found by path, and the number of bytes."""
    places: dict[str, set[str]] = {}
    size = 0
    for number, entry in enumerate(data.store.entries(), 1):
        if entry.path == f"erasures/{PLAN}":
            continue
        try:
            content = data.store.read(entry.path)
        except FileNotFoundError:
            continue  # removed meanwhile
        try:
            for part in contents(entry.path, content):
                size += len(part)
                if kinds := names.found_in(part):
                    places.setdefault(entry.path, set()).update(kinds)
        except IntegrityError:
            if not _is_foreign(entry.path):
                raise
            places.setdefault(entry.path, set()).add(NOT_SEARCHED)
        if not number % 100:
            progress("search", number, None)
    return places, size


def _store_receipt(
    data: DataRoot, plan: Plan, work: Work, remaining: Mapping[str, int], searched_bytes: int
) -> Receipt:
    by = [name.removesuffix("_us").removesuffix("_id") for name, value in vars(plan.criteria).items() if value]
    state = Receipts()

    def stored() -> list[Receipt]:
        return [receipt for receipt in state.receipts if receipt.began_us == plan.began_us]

    def build() -> Delta | None:
        if stored():
            return None  # by a call that was killed, or that was faster
        receipt = {
            "author": plan.author,
            "reason": plan.reason,
            "by": by,
            "runs": sorted(map(erased_id, plan.run_ids)),
            "changed": {kind: number for kind, number in work.changed.items() if number},
            "remaining": dict(remaining),
            "searched_bytes": searched_bytes,
            "began_us": plan.began_us,
            "time_us": now_us(),
        }
        return {"kind": ERASED, "time_us": now_us(), "receipt": receipt}

    commit(ManifestLog(data.erasures), state, build)
    present = read_plan(data)
    if present is not None and present.began_us == plan.began_us:  # else a faster call has begun the next part
        data.erasures.delete(PLAN)
    return stored()[0]


def write_tombstones(kafka: KafkaOptions, topic: str, run_ids: Collection[str]) -> None:
    """Write a tombstone for each run to a topic: a record of its key without a value.

    The broker removes the records of the key when it compacts the topic.

    Raises:
      EngineError: the broker does not answer, or there is no such topic.
    """
    failures: list[KafkaError] = []

    def delivered(error: KafkaError | None, _: Any) -> None:
        if error is not None:
            failures.append(error)

    producer = Producer(
        {**kafka.common(), "enable.idempotence": True, "linger.ms": 5, "allow.auto.create.topics": False}
    )
    for run_id in run_ids:
        enqueue(producer, topic, None, run_id.encode(), on_delivery=delivered)
    if producer.flush(_BROKER_S):
        raise EngineError(f"topic {topic}: the broker did not accept all tombstones within {_BROKER_S:g} s")
    if failures:
        raise as_engine_error(kafka, topic, KafkaException(failures[0]))


def is_compacted(kafka: KafkaOptions, topic: str) -> bool:
    """Return whether a topic is compacted, so that tombstones remove records.

    Raises:
      EngineError: the broker does not answer, or there is no such topic.
    """
    resource = ConfigResource(ResourceType.TOPIC, topic)
    try:
        entries = admin(kafka).describe_configs([resource], request_timeout=_BROKER_S)[resource].result()
    except KafkaException as error:
        raise as_engine_error(kafka, topic, error) from None
    return "compact" in entries["cleanup.policy"].value
