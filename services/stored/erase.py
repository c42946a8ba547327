"""Erases runs from a data root: from its plan to its receipt.

The plan names the runs, and is stored before anything is changed. Every step may be repeated, so an erasure that was
killed is completed by the next call, whatever that call asks for. At the end, all bytes of the data root are searched
for the names. Then the plan, which has them, is deleted, and a receipt without them is stored.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from ciml.data_root import DataRoot
from ciml.digest import canonical_json
from ciml.errors import CimlError
from ciml.events.records import records_of
from ciml.events.run_id import ERASED, erased_id, is_erased
from ciml.manifest.log import Delta, ManifestLog, commit
from ciml.progress import Progress, no_progress
from ciml.runs.erased import ErasedRuns, RunCriteria
from ciml.runs.pack_index import split_path
from ciml.runs.state import open_raw
from ciml.services.files import now_us
from ciml.services.stored.erasure_steps import STEPS, Work, begin, published_tables, remove_unnamed
from ciml.services.stored.findings import Kind, kind_of
from ciml.services.stored.names import OWNER, Names, contents
from ciml.services.stored.receipts import PLAN, Plan, Receipt, Receipts, read_plan
from ciml.serving.registry import Signature
from ciml.storage.json_files import seal
from ciml.stored_trust import read_policies

#: The most runs of one erasure; `erase` begins the next one for those that are left.
MOST_RUNS = 10_000
#: How often all steps are repeated, because other processes have written names meanwhile.
_ROUNDS = 5


class Erased(NamedTuple):
    """A completed erasure.

    Attributes:
      receipt: as it is stored.
      remaining: the objects with a name that is left, and which one, a line each. The receipt does not have the lines,
        since paths may hold the name.
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
      CimlError: the criteria are empty, the reason or the trust policy names the owner, or ids of the runs are left
        because other processes write them again and again.
      EngineError: the store does not answer. The next call completes the erasure.
    """
    signed.check()
    _check(criteria)
    if criteria.owner:
        _check_owner(data, criteria.owner, signed)
    plan = read_plan(data)
    if plan is not None:
        data.erasures.replace(PLAN, _encode(plan))  # its time is that of this call
        yield _complete(data, plan, progress, erase_topics)
    is_first = True
    while (plan := _make_plan(data, criteria, signed, progress, is_first=is_first)) is not None:
        yield _complete(data, plan, progress, erase_topics)
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
) -> Plan | None:
    """Store the plan of the next erasure; return None if no run is left."""
    selection = _find(data, criteria, MOST_RUNS, progress)
    if not selection.run_ids and not (is_first and _is_named(data, criteria.owner, progress)):
        return None
    tables = published_tables(data)
    named = (tuple(selection.origins), tuple(selection.letters), tuple(selection.folders))
    plan = Plan(criteria, tuple(selection.run_ids), *named, tables, signed.author, signed.reason, now_us())
    if not data.erasures.create(PLAN, _encode(plan)):
        raise CimlError(f"{data.erasures.url(PLAN)}: another erasure has just begun; try again later")
    return plan


def _is_named(data: DataRoot, owner: str, progress: Progress) -> bool:
    """Return whether an account without a run is named, such as that of a reviewer; False for no account."""
    return bool(owner) and bool(_search(data, Names((), owner), progress)[0])


def _encode(plan: Plan) -> bytes:
    return seal(canonical_json(msgspec.to_builtins(plan)))


class _Found(NamedTuple):
    """The runs to erase, and what the raw manifest has of them (`Plan`), each as keys in the order of the records."""

    run_ids: dict[str, None]
    origins: dict[tuple[str, int, int], None]
    letters: dict[str, None]
    folders: dict[str, None]


def _find(data: DataRoot, criteria: RunCriteria, most: int, progress: Progress) -> _Found:
    """Find the runs to erase, at most ``most``."""
    log, state = open_raw(data.raw)
    selection = _Found({}, {}, {}, {})
    subjects: dict[tuple[str, str], None] = {}
    for version, delta in log.since(0):
        for _, record in records_of(delta):
            subjects |= {
                (update["source"], update["subject"]): None
                for update in record.get("updates", ())
                if criteria.owner and update.get("facts", {}).get("owner") == criteria.owner
            }
            mention = record.get("mention")
            if mention is None or is_erased(mention["run_id"]) or len(selection.run_ids) >= most:
                continue
            if criteria.matches(mention, record.get("joined", {}), delta["time_us"]):
                selection.run_ids[mention["run_id"]] = None
        progress("manifest", version, state.version)
    for subject in subjects:
        for facts in state.index.subjects.runs(subject, most):
            if len(selection.run_ids) < most and not is_erased(facts.run_id):
                selection.run_ids[facts.run_id] = None
    for _, delta in log.since(0) if selection.run_ids else ():
        for _, record in records_of(delta):
            if record.get("mention", {}).get("run_id") in selection.run_ids:
                _add_record(selection, record)
    return selection


def _add_record(found: _Found, record: Mapping[str, Any]) -> None:
    """Add what a record of a run to erase refers to."""
    payload = record.get("payload")
    if payload is not None:
        found.origins[tuple(record["origin"])] = None
        if path := payload.get("object"):
            found.letters[path] = None
    if (file := record.get("file")) is not None and (parts := split_path(file["path"])) is not None:
        found.folders[parts[0]] = None


def _complete(
    data: DataRoot, plan: Plan, progress: Progress, erase_topics: Callable[[Collection[str]], None] | None
) -> Erased:
    """Do all steps of a plan until no id of its runs is left, and store the receipt."""
    erased = ErasedRuns(frozenset(plan.run_ids), frozenset(plan.origins), plan.criteria)
    names = Names(plan.run_ids, plan.criteria.owner)
    work = Work(data, erased, names, plan.tables, plan.letters, plan.folders, Counter())
    for _ in range(_ROUNDS):
        begin(work)
        for number, (name, step) in enumerate(STEPS.items()):
            progress(f"erase: {name}", number, len(STEPS))
            step(work)
        places, searched_bytes = _search(data, names, progress)
        written = [path for path, kinds in places.items() if kinds != {OWNER} and not _is_foreign(path)]
        if not written:
            if erase_topics is not None:
                erase_topics(plan.run_ids)
            remaining = Counter(path.partition("/")[0] for path in places)
            receipt = _store_receipt(data, plan, work, remaining, searched_bytes)
            lines = (f"{data.store.url(path)}: {', '.join(sorted(kinds))}" for path, kinds in sorted(places.items()))
            return Erased(receipt, tuple(lines))
        remove_unnamed(work, written)
    raise CimlError(
        f"{data.store.url(written[0])} still names an erased run; repeat the command when its writer has stopped"
    )


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
        for part in contents(entry.path, content):
            size += len(part)
            if kinds := names.found_in(part):
                places.setdefault(entry.path, set()).update(kinds)
        if not number % 100:
            progress("search", number, None)
    return places, size


def _store_receipt(
    data: DataRoot, plan: Plan, work: Work, remaining: Mapping[str, int], searched_bytes: int
) -> Receipt:
    by = [name.removesuffix("_us").removesuffix("_id") for name, value in vars(plan.criteria).items() if value]
    state = Receipts()

    def build() -> Delta | None:
        if state.receipts and state.receipts[-1].began_us == plan.began_us:
            return None  # a call that was killed has stored it
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
    data.erasures.delete(PLAN)
    return state.receipts[-1]
