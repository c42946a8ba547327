"""Defects, planted into an ingest to see whether the harness finds them. A harness that stays green proves nothing.

``python -m tests.faults.planted DEFECT ARGUMENTS`` is ``ciml ARGUMENTS`` with a defect. Each patch goes where a
careless change could have made the same mistake, and fails when what it patches is not there any more.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Plant = Callable[[], None]
DEFECTS: dict[str, Plant] = {}


def _defect(name: str) -> Callable[[Plant], Plant]:
    def keep(function: Plant) -> Plant:
        DEFECTS[name] = function
        return function

    return keep


#: How many messages of a partition a micro-batch takes at most: few, so that a short trial has many commits.
CYCLE = "CIML_FAULTS_CYCLE"


#: The age at which feedback settles a call of unknown outcome, seconds.
SETTLE = "CIML_FAULTS_SETTLE"


def plant(name: str) -> None:
    """Plants a defect ("" for none) into this process, and what the environment says of the size of batches."""
    if most := int(os.environ.get(CYCLE, "0")):
        from ciml.pipelines.ingest.committer import IngestConfig

        def make(init: Any) -> Any:
            return lambda self, *arguments, **named: init(self, *arguments, **{"cycle_messages": most, **named})

        _patch(IngestConfig, "__init__", make)
    if settle_s := float(os.environ.get(SETTLE, "0")):
        from ciml.pipelines.feedback import FeedbackConfig

        def soon(init: Any) -> Any:
            return lambda self, *arguments, **named: init(self, *arguments, **{"settle_s": settle_s, **named})

        _patch(FeedbackConfig, "__init__", soon)
    if name:
        DEFECTS[name]()


def _patch(owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    before = getattr(owner, name)  # an AttributeError says that the patch needs to follow a change
    setattr(owner, name, make(before))


def _twice_is_fine() -> None:
    """The state takes a run a second time: it would refuse to start again on what the defect wrote."""
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


@_defect("stock-sink")
def _stock_sink() -> None:
    """Rows are written by ``fileio.WriteToFiles`` into a file for each job and day, as one would at first.

    Each pane (here: each micro-batch) overwrites what the one before wrote.
    """
    import apache_beam as beam
    import pyarrow as pa
    import pyarrow.parquet as pq
    from apache_beam.io import fileio

    from ciml.digest import telemetry_digest
    from ciml.events.records import Batch, Outcome, RawFile
    from ciml.pipelines.ingest import pipeline as ingest
    from ciml.transforms.fetch.fetch import fetch_in_parts
    from ciml.transforms.parse.logs import parse

    class Sink(fileio.FileSink):
        def open(self, handle: Any) -> None:
            self._handle = handle
            self._writer: Any = None

        def write(self, record: Any) -> None:
            _, table = record
            if self._writer is None:
                self._writer = pq.ParquetWriter(self._handle, table.schema)
            self._writer.write_table(table.cast(self._writer.schema))

        def flush(self) -> None:
            if self._writer is not None:
                self._writer.close()

    class TakeLogs(beam.PTransform):
        def __init__(self, policy: Any, raw: Any) -> None:
            super().__init__()
            self._policy, self._raw = policy, raw

        def expand(self, judged: Any) -> Any:
            policy = self._policy

            def read(batch: Any) -> Batch:
                parts = [parse(part) for part in fetch_in_parts(batch, policy, int(time.time() * 1e6))]
                pending_runs = [each for part in parts for each in part.pending_runs]
                return Batch(
                    batch.covers, [], pending_runs, batch.settled + [one for part in parts for one in part.settled]
                )

            def name(pending: Any) -> str:
                return f"job={pending.mention.build_name}.parquet"

            def rows(batch: Any) -> Any:
                for each in batch.pending_runs:
                    table = each.telemetry.replace_schema_metadata(None)
                    ids = pa.array([each.mention.run_id] * table.num_rows, pa.string())
                    yield name(each), table.append_column("run_id", ids)

            def settle(batch: Any) -> Batch:
                done = []
                for each in batch.pending_runs:
                    digest = telemetry_digest(each.mention.run_id, each.telemetry)
                    file = RawFile(f"runs/{name(each)}", digest, each.telemetry.num_rows, 1)
                    done.append(
                        Outcome("run", each.origin, each.event_key, each.mention, trust=each.trust, file=file)
                    )  # fmt: skip
                return Batch(batch.covers, [], [], batch.settled + done)

            batches = judged | beam.Map(read).with_output_types(Batch)
            _ = (
                batches
                | beam.FlatMap(rows)
                | fileio.WriteToFiles(
                    self._raw.url("runs"),
                    destination=lambda row: row[0],
                    sink=lambda _: Sink(),
                    shards=1,
                    file_naming=lambda *names: names[-1],
                )
            )
            return batches | beam.Map(settle).with_output_types(Batch)

    _patch(ingest, "TakeLogs", lambda _: TakeLogs)


@_defect("no-deduplication")
def _no_deduplication() -> None:
    from ciml.runs import accounting

    def as_it_comes(outcome: Any, run: Any, *, repeated: bool) -> Any:
        return outcome

    _patch(accounting, "_classify", lambda _: as_it_comes)
    _twice_is_fine()


@_defect("offsets-first")
def _offsets_first() -> None:
    """What is covered is committed, and then the data; the process dies between the two, once."""
    from ciml.pipelines.ingest.committer import Committer

    def make(append: Any) -> Any:
        def two_steps(self: Any, build: Any) -> int | None:
            mark = Path(self.log.store.root, "died-once")
            with self.state() as state:
                delta = build(state)
                if delta is None:
                    return None
                nothing: dict[str, list[Any]] = {name: [] for name, value in delta.items() if isinstance(value, list)}
                if delta["offsets"]:
                    version = state.version + 1
                    if not self.log.try_append(version, {**delta, **nothing}):
                        return int(append(self, build) or 0)
                    state.apply(version, {**delta, **nothing, "version": version})
                if version > 1 and not mark.exists() and any(delta[name] for name in nothing):
                    mark.parent.mkdir(parents=True, exist_ok=True)
                    mark.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                rest = {**delta, "offsets": {}}
                self.log.try_append(state.version + 1, rest)
                state.apply(state.version + 1, {**rest, "version": state.version + 1})
                return int(state.version)

        return two_steps

    _patch(Committer, "append", make)


@_defect("overwriting-create")
def _overwriting_create() -> None:
    """A create that looks first and writes then, as on an S3 without conditions."""
    from ciml.storage import LocalStore

    def create(self: Any, path: str, data: bytes) -> bool:
        if self.exists(path):
            return False
        if "_manifest" in path:
            time.sleep(0.3)
        self.replace(path, data)
        return True

    _patch(LocalStore, "create", lambda _: create)
    _twice_is_fine()


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


@_defect("row-twice")
def _row_twice() -> None:
    _in_delta(lambda delta: delta["runs"].extend(delta["runs"][:1]))
    _twice_is_fine()


@_defect("dropped-repeat")
def _dropped_repeat() -> None:
    _in_delta(lambda delta: delta["repeats"].clear())


@_defect("named-too-early")
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


@_defect("other-values")
def _other_values() -> None:
    """One value of each twentieth object is not what was measured."""
    from ciml.runs import writer as store

    def make(write_run: Any) -> Any:
        count = 0

        def write(table: Any, path: str) -> bytes:
            nonlocal count
            count += 1
            if count % 20 == 10:
                import pyarrow.compute as pc

                name = table.column_names[2]
                table = table.set_column(2, name, pc.add(table.column(name), 1e-9))
            return bytes(write_run(table, path))

        return write

    _patch(store, "write_run", make)


@_defect("hangs-after-outage")
def _hangs_after_outage() -> None:
    """A question to the broker that is answered late, or not at all, is never over."""
    from ciml.pipelines.kafka import broker as kafka_broker

    def make(topic_of: Any) -> Any:
        def hang(*arguments: Any) -> Any:
            began = time.monotonic()
            try:
                return topic_of(*arguments)
            finally:
                if time.monotonic() - began > 3:
                    time.sleep(600)

        return hang

    _patch(kafka_broker, "topic_of", make)


@_defect("skips-what-is-gone")
def _skips_what_is_gone() -> None:
    """As ``auto.offset.reset=earliest`` would: what retention took is passed over."""
    from ciml.manifest.coverage import RangeSet
    from ciml.runs.state import RawState
    from ciml.services import service

    def make(plan: Any) -> Any:
        def forgiving(state: Any, listing: Any, **options: Any) -> Any:
            class Forgiving:
                topic_ids: dict[str, str] = {}  # noqa: RUF012

                def covered(self, topic: str, partition: int) -> RangeSet:
                    ranges = RangeSet(state.covered(topic, partition))
                    first, end = listing.bounds[partition]
                    return RangeSet([(0, first), *(part for part in ranges if part[1] <= end)])

            return plan(Forgiving(), listing, **options)

        return forgiving

    _patch(service, "plan", make)
    _patch(RawState, "apply", lambda apply: lambda self, version, delta: apply(self, version, _unnamed(delta)))
    _in_delta(lambda delta: None)


def _unnamed(delta: dict[str, Any]) -> dict[str, Any]:
    offsets = {topic: {**entry, "id": ""} for topic, entry in delta["offsets"].items()}
    return {**delta, "offsets": offsets}


@_defect("leak")
def _leak() -> None:
    kept: list[bytearray] = []
    _in_delta(lambda delta: kept.append(bytearray(os.urandom(1 << 20) * 250)) if len(kept) < 5 else None)


@_defect("drops-late-events")
def _drops_late_events() -> None:
    """As Beam's default ``allowed_lateness=0``: what is an hour late is gone without a word."""
    from ciml.transforms.ingest import beam

    def make(decode: Any) -> Any:
        def timely(batch: Any, *arguments: Any) -> Any:
            least = (time.time() - 3600) * 1000
            batch.messages[:] = [message for message in batch.messages if message.timestamp_ms >= least]
            return decode(batch, *arguments)

        return timely

    _patch(beam, "decode", make)


@_defect("no-limits")
def _no_limits() -> None:
    """Logs are unpacked however large they are."""
    from ciml.transforms.fetch import http as fetch_http

    def make(init: Any) -> Any:
        def unlimited(self: Any, policy: Any, *arguments: Any) -> None:
            init(self, policy.replace(max_bytes=1 << 40, max_wire_bytes=1 << 40, max_batch_bytes=1 << 40), *arguments)

        return unlimited

    _patch(fetch_http.HttpLogs, "__init__", make)


@_defect("stores-infinity")
def _stores_infinity() -> None:
    """What is no number becomes infinite, not null."""
    from ciml.transforms.parse import logs as stage

    def make(parse_logs: Any) -> Any:
        def parsed(logs: Any, *arguments: Any) -> Any:
            import pyarrow as pa
            import pyarrow.compute as pc

            results = parse_logs(logs, *arguments)
            for place, table in enumerate(results):
                if isinstance(table, pa.Table):
                    for at, name in enumerate(table.column_names[2:], 2):
                        table = table.set_column(at, name, pc.fill_null(table.column(name), float("inf")))
                    results[place] = table
            return results

        return parsed

    _patch(stage, "parse_logs", make)


@_defect("this-year")
def _this_year() -> None:
    """The event's times do not settle the year."""
    from ciml.transforms.parse import logs as stage

    def make(log: Any) -> Any:
        return lambda data, start_us=None, end_us=None: log(data, None, None)

    _patch(stage, "Log", make)


@_defect("never-reads-its-message")
def _never_reads_its_message() -> None:
    """The outbox sends what it has no outcome for, as a retry would, and does not read what is there."""
    from ciml.verdicts.feedback.outbox import Outbox

    _patch(Outbox, "_find", lambda find: lambda self, client, change, marker: None)


@_defect("forgets-while-it-says")
def _forgets_while_it_says() -> None:
    """A message closes its patch set with what came meanwhile."""
    from ciml.verdicts.feedback.state import FeedbackState

    def make(settle: Any) -> Any:
        def forgetful(self: Any, version: int, record: dict[str, Any], now_us: int) -> None:
            settle(self, version, record, now_us)
            entry = self.entries[record["entry"]]
            entry.done = entry.changes
            self._touch(entry, now_us)

        return forgetful

    _patch(FeedbackState, "_settle", make)


@_defect("shows-names-as-they-are")
def _shows_names_as_they_are() -> None:
    """Names stand in messages as they came."""
    from ciml.verdicts.feedback import text

    _patch(text, "name", lambda name: lambda value, most_bytes=120: value)


if __name__ == "__main__":
    plant(sys.argv[1])
    from ciml.cli import main

    sys.argv = ["ciml", *sys.argv[2:]]
    main.main()
