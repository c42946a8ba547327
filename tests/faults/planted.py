"""Defects, planted into services to see whether the harness finds them: one for each check. A harness that stays green
proves nothing.

``python -m tests.faults.planted DEFECTS ARGUMENTS`` is ``ciml ARGUMENTS`` with defects. Each patch goes where a
careless change could have made the same mistake, and fails if what it patches no longer exists.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

#: Environment variables: how many messages of a partition a micro-batch takes at most; the age at which feedback
#: settles a call of unknown outcome, seconds.
CYCLE, SETTLE = "CIML_FAULTS_CYCLE", "CIML_FAULTS_SETTLE"


@dataclass(frozen=True)
class Defect:
    """A defect, and the trial that has to find it.

    Attributes:
      row, seed: the trial.
      finds: what one of the reported lines has to begin with.
      tries: seeds to try, if it is a race.
    """

    plant: Callable[[], None]
    row: int
    seed: int
    finds: tuple[str, ...]
    tries: int = 1


DEFECTS: dict[str, Defect] = {}


def _defect(row: int, *finds: str, seed: int = 1, tries: int = 1) -> Callable[[Callable[[], None]], None]:
    def add(plant: Callable[[], None]) -> None:
        DEFECTS[plant.__name__.strip("_").replace("_", "-")] = Defect(plant, row, seed, finds, tries)

    return add


def ciml(defects: str, arguments: Sequence[str]) -> None:
    """Run ``ciml arguments`` in this process, with defects."""
    if most := int(os.environ.get(CYCLE, "0")):
        from ciml.pipelines.ingest.committer import IngestConfig

        _set(IngestConfig, cycle_messages=most)
    if settle_s := float(os.environ.get(SETTLE, "0")):
        from ciml.pipelines.feedback import FeedbackConfig

        _set(FeedbackConfig, settle_s=settle_s)
    for name in filter(None, defects.split(",")):
        DEFECTS[name].plant()
    from ciml.cli import main

    sys.argv = ["ciml", *arguments]
    main.main()


def _patch(owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    before = getattr(owner, name)  # an AttributeError says that the patch needs to follow a change
    setattr(owner, name, make(before))


def _set(config: Any, **values: Any) -> None:
    """Change defaults of a configuration."""

    def make(init: Any) -> Any:
        return lambda self, *arguments, **named: init(self, *arguments, **{**values, **named})

    _patch(config, "__init__", make)


def _accept_second_rows() -> None:
    """The state accepts a run a second time: otherwise it refuses to start again on what the defect wrote."""
    from ciml.errors import IntegrityError
    from ciml.runs.state import RawState

    def make(apply_record: Any) -> Any:
        def apply(self: Any, version: int, kind: str, record: dict[str, Any]) -> None:
            try:
                apply_record(self, version, kind, record)
            except IntegrityError as error:
                if "again" not in str(error):
                    raise

        return apply

    _patch(RawState, "_apply_record", make)


def _in_delta(change: Callable[[dict[str, Any]], None]) -> None:
    from ciml.pipelines.ingest import committer

    def make(reconcile: Any) -> Any:
        def changed(*arguments: Any) -> Any:
            delta = reconcile(*arguments)
            if delta is not None:
                change(delta)
            return delta

        return changed

    _patch(committer, "reconcile", make)


@_defect(9, "I1", "I2")
def _row_twice() -> None:
    _in_delta(lambda delta: delta["runs"].extend(delta["runs"][:1]))
    _accept_second_rows()


@_defect(9, "gap")
def _dropped_repeat() -> None:
    _in_delta(lambda delta: delta["repeats"].clear())


@_defect(9, "row")
def _other_values() -> None:
    """One value of each twentieth object is not what was measured."""
    import pyarrow.compute as pc

    from ciml.runs import writer

    def make(write_run: Any) -> Any:
        count = 0

        def write(table: Any, path: str) -> bytes:
            nonlocal count
            count += 1
            if count % 20 == 10:
                table = table.set_column(2, table.column_names[2], pc.add(table.column(2), 1e-9))
            return bytes(write_run(table, path))

        return write

    _patch(writer, "write_run", make)


@_defect(9, "I3")
def _named_too_early() -> None:
    """The manifest names objects that are written a little later."""
    from ciml.storage import LocalStore

    def make(create: Any) -> Any:
        def later(self: Any, path: str, data: bytes) -> bool:
            if not path.startswith("runs/"):
                return bool(create(self, path, data))
            threading.Timer(1.0, create, (self, path, data)).start()
            return True

        return later

    _patch(LocalStore, "create", make)


@_defect(9, "I6")
def _leak() -> None:
    kept: list[bytearray] = []
    _in_delta(lambda delta: kept.append(bytearray(os.urandom(1 << 20) * 250)) if len(kept) < 5 else None)


@_defect(1, "I4", "I2", seed=3, tries=3)
def _overwriting_create() -> None:
    """A create checks first and writes then, as on an S3 without conditions."""
    from ciml.storage import LocalStore

    def create(self: Any, path: str, data: bytes) -> bool:
        if self.exists(path):
            return False
        if "_manifest" in path:
            time.sleep(0.3)
        self.replace(path, data)
        return True

    _patch(LocalStore, "create", lambda _: create)
    _accept_second_rows()


@_defect(6, "I7", seed=4)
def _hangs_after_outage() -> None:
    """A request to the broker that is answered late, or not at all, never returns."""
    from ciml.pipelines.kafka import broker

    def make(topic_of: Any) -> Any:
        def hang(*arguments: Any) -> Any:
            began = time.monotonic()
            try:
                return topic_of(*arguments)
            finally:
                if time.monotonic() - began > 3:
                    time.sleep(600)

        return hang

    _patch(broker, "topic_of", make)


@_defect(8, "alarm")
def _skips_what_is_gone() -> None:
    """As with ``auto.offset.reset=earliest``, expired offsets are skipped."""
    from ciml.manifest.coverage import RangeSet
    from ciml.services import service

    def make(plan: Any) -> Any:
        def forgiving(state: Any, listing: Any, **options: Any) -> Any:
            class Forgiving:
                def topic_id(self, topic: str) -> str:
                    return str(listing.topic_id)

                def covered(self, topic: str, partition: int) -> RangeSet:
                    return RangeSet([(0, listing.bounds[partition][0]), *state.covered(topic, partition)])

            return plan(Forgiving(), listing, **options)

        return forgiving

    _patch(service, "plan", make)


@_defect(17, "finite", "row")
def _stores_infinity() -> None:
    """What is no number becomes infinite, not null."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from ciml.transforms.parse import logs as stage

    def infinite(table: Any) -> Any:
        for at, name in enumerate(table.column_names[2:] if isinstance(table, pa.Table) else (), 2):
            table = table.set_column(at, name, pc.fill_null(table.column(name), float("inf")))
        return table

    _patch(stage, "parse_logs", lambda parse: lambda logs, *rest: [infinite(each) for each in parse(logs, *rest)])


@_defect(18, "golden", "I2", "row")
def _this_year() -> None:
    """The event's times do not settle the year."""
    from ciml.transforms.parse import logs as stage

    _patch(stage, "Log", lambda log: lambda data, start_us=None, end_us=None: log(data, None, None))


@_defect(26, "I11")
def _never_reads_its_message() -> None:
    """The outbox sends what it has no outcome for, as a retry would, and does not read what is there."""
    from ciml.verdicts.feedback.outbox import Outbox

    _patch(Outbox, "_find", lambda find: lambda self, client, change, marker: None)


@_defect(27, "I9")
def _shows_names_as_they_are() -> None:
    """Names appear in messages unescaped."""
    from ciml.verdicts.feedback import text

    _patch(text, "quoted_name", lambda quoted_name: lambda value, most_bytes=120: value)


@_defect(30, "I5")
def _pushes_in_place() -> None:
    """A push copies the files over those of the version that is served."""
    from ciml.serving import push

    def make(write: Any) -> Any:
        def in_place(registry: Any, number: int, candidate: Any) -> Any:
            champion = registry.state.champion
            if champion is not None:
                for path, data in push.read_files(push.open_store(candidate.folder)):
                    registry.folder(champion).replace(path, data)
            return write(registry, number, candidate)

        return in_place

    _patch(push, "_write_version", make)


@_defect(30, "I5")
def _names_a_version_before_its_files() -> None:
    """A push records a version, then copies its files."""
    from ciml.serving import push

    def make(write: Any) -> Any:
        def recorded_first(registry: Any, number: int, candidate: Any) -> Any:
            push._commit(registry, number, "stable")
            push.write_config(registry.data)
            return write(registry, number, candidate)

        return recorded_first

    _patch(push, "_write_version", make)


@_defect(31, "lease", seed=3, tries=4)
def _checks_no_lease() -> None:
    """A trainer writes without a look at its lease."""
    from ciml.serving.registry import Registry

    def make(commit: Any) -> Any:
        def unchecked(self: Any, build: Any) -> Any:
            lease, self.lease = self.lease, ""
            try:
                return commit(self, build)
            finally:
                self.lease = lease

        return unchecked

    _patch(Registry, "commit", make)


@_defect(32, "purge")
def _withdraws_last() -> None:
    """A purge trains again while the versions that learned from the runs still serve."""
    from ciml.training import purge

    def make(purge_model: Any) -> Any:
        def late(registry: Any, versions: Any, signed: Any, retrain: Any) -> Any:
            retrain(registry.model, "providers")
            return purge_model(registry, versions, signed, None)

        return late

    _patch(purge, "_purge_model", make)


@_defect(33, "left", seed=3, tries=4)
def _forgets_its_plan() -> None:
    """An erasure does not look for the plan of one that was killed, and makes its own."""
    from ciml.services.stored import erase

    def make(read_plan: Any) -> Any:
        def forget(data: Any) -> None:
            if read_plan(data) is not None:
                data.erasures.delete(erase.PLAN)

        return forget

    _patch(erase, "read_plan", make)


if __name__ == "__main__":
    ciml(sys.argv[1], sys.argv[2:])
