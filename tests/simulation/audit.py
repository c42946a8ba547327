"""Checks by readers, during the run and at its end."""

from __future__ import annotations

from collections import Counter
from typing import Any, cast

from ciml.datasets.state import DatasetState, SpanVersion
from ciml.digest import sha256_json
from ciml.events.records import OutcomeWord, RawFile, RunFacts, rows_of
from ciml.manifest.log import ManifestLog
from ciml.pipelines.datasets.update import update_dataset
from ciml.runs.latest_runs import latest_runs
from ciml.runs.reader import verify_run
from ciml.runs.state import open_raw
from ciml.transforms.examples.spans import verify_span
from tests.simulation.model import facts_of, is_trusted
from tests.simulation.scenes import telemetry
from tests.simulation.scheduler import Violation
from tests.simulation.world import INGEST, Process, World
from tests.transforms.samples import make_examples


class Poller:
    """A reader that remembers: no delta, row or span that it has read may change or vanish.

    Attributes:
      deltas: digest of each delta, by folder and version.
      runs: the file of each row.
      states: state of each data set.
    """

    def __init__(self, process: Process) -> None:
        self.process, self.raw = process, process.data.raw
        self.deltas: dict[str, list[str]] = {}
        self.runs: dict[str, RawFile] = {}
        self.states: dict[str, DatasetState] = {}

    def check(self, *, full: bool = False) -> None:
        """Read all new objects, and some (or all) of the old ones."""
        rng = self.process.world.random
        fresh = self._read("", self.raw, full or rng.random() < 0.3)
        new = [record for delta in fresh for record in rows_of(delta)]
        files = {record["mention"]["run_id"]: RawFile.from_json(record["file"]) for record in new}
        for record in new:
            run_id, file = record["mention"]["run_id"], RawFile.from_json(record["file"])
            if record["kind"] == "reclaim":
                self.runs[run_id] = file
            elif self.runs.setdefault(run_id, file) != file:
                raise Violation(f"the row of {run_id} has changed")
        old = list(self.runs) if full else rng.sample(list(self.runs), min(2, len(self.runs)))
        for run_id in dict.fromkeys([*files, *old]):
            file = self.runs[run_id]
            if self._is_new(f"raw/{file.path}") and (wrong := verify_run(self.raw, run_id, file)):
                raise Violation(wrong)
        for name in self.process.data.dataset_names():
            self._dataset(name, full)

    def _read(self, name: str, store: Any, from_start: bool) -> list[dict[str, Any]]:
        seen = self.deltas.setdefault(name, [])
        begin, out, end = (0 if from_start else len(seen)), [], 0
        for end, delta in ManifestLog(store).since(begin):
            digest = sha256_json(delta)
            if end > len(seen):
                seen.append(digest)
                out.append(delta)
            elif seen[end - 1] != digest:
                raise Violation(f"{name or 'raw'}: version {end} has changed")
        if from_start and end < len(seen):
            raise Violation(f"{name or 'raw'}: the manifest ended at {len(seen)}, and now ends at {end}")
        return out

    def _dataset(self, name: str, full: bool) -> None:
        root = self.process.data.dataset(name).store
        state = self.states.setdefault(name, DatasetState())
        new: list[SpanVersion] = []
        for delta in self._read(name, root, full or self.process.world.random.random() < 0.3):
            state.apply(state.version + 1, delta)
            new += [SpanVersion.from_json(span) for span in delta.get("spans", ())]
        if full:
            if self.process.data.dataset(name).state().spans != state.spans:
                raise Violation(f"{name}: the spans have changed")
            new = [span for versions in state.spans.values() for span in versions.values()]
        for span in new:
            unknown = [self._is_new(f"datasets/{name}/{path}") for path in sorted(span.paths)]
            for wrong in verify_span(root, span, state.resolved) if state.resolved and any(unknown) else ():
                raise Violation(wrong)

    def _is_new(self, path: str) -> bool:
        """Return whether an object was not verified before."""
        data = self.process.world.disk.objects.get(path, (None, 0))[0]
        known = self.process.world.verified.get(path) is data
        self.process.world.verified[path] = data
        return data is None or not known


def poller(process: Process) -> None:
    """Read from time to time."""
    mine = Poller(process)

    def work() -> bool:
        mine.check()
        return False

    process.cycle(work, once_s=10.0)


def auditor(process: Process) -> None:
    """Check at the end that all messages are settled, and that the data sets equal a direct computation."""
    world = process.world
    lost = world.lost()
    if lost or (world.fated and world.fate == "recreated"):
        silent = [role for role in INGEST if role in world.roles and role not in world.alarms]
        if silent:
            raise Violation(f"{lost[:3]} are lost, and {silent} did not stop")
    else:
        world.model.finish(ends={number: part.end for number, part in enumerate(world.broker.partitions)})
    for name in process.data.dataset_names():
        before = process.data.dataset(name).state()
        state = update_dataset(process.data.dataset(name), seal=bool(before.spans), now_us=process.now_us()).state
        if not world.model.disabled:
            _check_dataset(world, process, state)
    mine = Poller(process)
    mine.check(full=True)
    if not world.model.disabled and set(mine.runs) != set(world.model.rows):
        raise Violation(f"readers see other rows: {set(mine.runs) ^ set(world.model.rows)}")
    if not world.model.disabled:
        _check_facts(world, process)


def _check_facts(world: World, process: Process) -> None:
    """Compare the facts and the trust of all runs, as a reader sees them, with all updates."""
    log, state = open_raw(process.data.raw)
    for run in latest_runs(log, state):
        row = world.model.rows[run.own.run_id]
        want = facts_of(row.expected, world.model.said)
        found = {name: getattr(run.facts, name) for name in want}
        if found != want or run.trust.trusted != is_trusted(want):
            raise Violation(f"{run.own.run_id}: its facts are {found} and {run.trust}, want {want}")


def _check_dataset(world: World, process: Process, state: DatasetState) -> None:
    definition, resolved = state.definition, state.resolved
    if definition is None or resolved is None:
        return
    selected = [run_id for run_id in world.model.order if definition.selects(world.model.rows[run_id].expected.job)]
    firsts = [span[1] for _, span in sorted(state.spans.items())]
    found = [run_id for span in state.latest() for run_id in span.run_ids()]
    if Counter(found) != Counter(selected):
        raise Violation(f"{definition.name}: holds {sorted(found)}, want {sorted(selected)}")
    at = 0
    for span in firsts:
        part = set(span.run_ids())
        if len(part) > definition.span_runs or part != set(selected[at : at + len(part)]):
            raise Violation(f"{definition.name}: span {span.span} holds {part}, not the next of {selected[at:]}")
        at += len(part)
    examples = {run.run_id: run for span in state.latest() for run in span.runs}
    excluded = {each["run_id"]: each["reason"] for span in state.latest() for each in span.excluded}
    for run_id in selected:
        row = world.model.rows[run_id]
        outcome = cast("OutcomeWord", row.outcome)
        facts = RunFacts(run_id, run_id, row.expected.job, outcome=outcome, project="p", change=row.change)
        made = make_examples([facts], [telemetry(row.content)], resolved)
        if made.excluded:
            if excluded.get(run_id) != made.excluded[0].reason:
                raise Violation(f"{definition.name}: {run_id} should be excluded: {made.excluded}")
            continue
        want = made.table.select(["label", "label_name", "split", "n_windows", "digest"]).to_pylist()[0]
        mine = examples[run_id].to_json() if run_id in examples else {}
        if {key: mine.get(key) for key in want} != want:
            raise Violation(f"{definition.name}: the example of {run_id} is {mine}, want {want}")
