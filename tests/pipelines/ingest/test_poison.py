"""One poisoned input costs only itself, in each stage: the others are what they are without it.

An inner function of a stage is made to fail for one input, which it knows by its contents.
"""

from __future__ import annotations

import gzip
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest

import ciml.integrations.registry
import ciml.runs.writer
import ciml.transforms.fetch.fetch
import ciml.transforms.ingest.decode
import ciml.transforms.parse.logs
import ciml.trust
from ciml.digest import telemetry_digest
from ciml.events.cloudevents import finished_event
from ciml.events.listing import open_listing
from ciml.events.records import UNJUDGED, Batch, Message, OffsetRange, Origin, Outcome, RunFacts
from ciml.metrics import Board
from ciml.pipelines.backfill.backfill import backfill
from ciml.pipelines.ingest.committer import seal, seal_guarded, unseal
from ciml.pipelines.ingest.replay import replay
from ciml.runs.accounting import reconcile
from ciml.runs.state import RawState
from ciml.services.ingest import raw_families
from ciml.storage import LocalStore, Store
from ciml.transforms.beam import run_here
from ciml.transforms.fetch.policy import FetchPolicy
from ciml.transforms.ingest.beam import Decode, Judge, TakeLogs
from ciml.transforms.ingest.decode import decode
from ciml.transforms.parse.logs import Log, parse_logs
from ciml.trust import TrustPolicy
from tests.corpus import CORPUS
from tests.pipelines.backfill.backfilling import listed
from tests.pipelines.ingest.ingesting import Place, account
from tests.pipelines.ingest.scenario import corpus_facts
from tests.pipelines.poison import check_detail, fail_for
from tests.scraping import collected

Patch = pytest.MonkeyPatch
POISON = "poison"
#: A function of each stage, and the input that it fails for, known by its contents.
STAGES: dict[str, tuple[Any, str, Callable[..., bool]]] = {
    "decode": (
        ciml.integrations.registry, "decode_message", lambda message, *_: b"poison-decode" in (message.value or b""),
    ),
    "trust": (ciml.trust, "evaluate", lambda _, facts: "poison-trust" in facts.run_id),
    "fetch": (ciml.transforms.fetch.fetch.Fetcher, "read", lambda _, address, *__: "poison-fetch" in address.path),
    # All logs of the batch with the same columns are parsed at once.
    "parse": (
        ciml.transforms.parse.logs, "read_rows", lambda bodies, *_: any(b"poison-parse" in body for body in bodies),
    ),
    "store": (ciml.runs.writer, "run_path", lambda facts, *_: "poison-store" in facts.run_id),
}  # fmt: skip


def runs(folder: Path) -> list[RunFacts]:
    """Runs with logs in a folder: ten good ones, and between them one for each stage, poisoned for it."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    names = ["0", "1", *(f"poison-{stage}" for stage in STAGES), *map(str, range(2, 10))]
    for name, (facts, log) in zip(names, corpus_facts(len(names)), strict=True):
        path = folder / f"{name}.csv.gz"
        data = gzip.decompress(log.read_bytes()).rstrip(b"\n")
        path.write_bytes(gzip.compress(data + (b"\npoison-parse\n" if name == "poison-parse" else b"\n")))
        found.append(facts.replace(run_id=f"zuul~{name}~1", build_uuid=name, log_url=path.as_uri()))
    return found


def direct(facts: RunFacts) -> str:
    """The digest of a run by one call on its log alone."""
    path = Path(facts.log_url.removeprefix("file://"))
    (table,) = parse_logs([Log(path.read_bytes(), facts.start_us, facts.end_us)])
    return telemetry_digest(facts.run_id, table)


def check_dead_letters(dead_letters: Iterable[Outcome], first: int) -> None:
    """Check the one dead letter of each poisoned input; the first has an offset."""
    for offset, stage, dead_letter in zip(itertools.count(first), STAGES, dead_letters, strict=False):
        assert (dead_letter.kind, dead_letter.reason) == ("dead_letter", "internal_error")
        assert dead_letter.origin.offset == offset
        check_detail(dead_letter.detail, f"{stage}: IndexError: ")
        assert (dead_letter.trust == UNJUDGED) == (dead_letter.mention is None)
        assert "value" in (dead_letter.payload or {})


@pytest.fixture
def poisoned() -> Iterator[Patch]:
    """Functions of all stages fail for their poison."""
    with pytest.MonkeyPatch.context() as patch:
        for poison in STAGES.values():
            fail_for(patch, *poison)
        fail_for(patch, ciml.transforms.ingest.decode, "decode_line", lambda data, *_: b"poison-decode" in data)
        yield patch


def test_a_poisoned_input_of_a_batch_is_one_dead_letter(tmp_path: Path, poisoned: Patch) -> None:
    found = runs(tmp_path / "logs")
    wanted = {each.run_id: direct(each) for each in found if POISON not in each.run_id}
    covers = OffsetRange("events", "id", 0, 0, len(found))
    events = map(finished_event, found)
    messages = [Message(offset, value, tuple(headers)) for offset, (value, headers) in enumerate(events)]
    policy = FetchPolicy(file_roots=(str(tmp_path / "logs"),))

    def build(pipeline: beam.Pipeline) -> None:
        events = pipeline | beam.Create([Batch(covers, messages)], reshuffle=False).with_output_types(Batch)
        judged = events | Decode(read_event=ciml.integrations.registry.read_event) | Judge(TrustPolicy.load())
        stored = judged | TakeLogs(policy, LocalStore(str(tmp_path / "raw")))
        _ = stored | beam.Map(lambda batch: (tmp_path / "sealed").write_bytes(seal(batch))).with_output_types(Any)

    run_here(build)
    batch = unseal((tmp_path / "sealed").read_bytes())
    assert batch.covers == covers
    assert {each.run_id: each.file.digest for each in batch.settled if each.file} == wanted
    dead_letters = [each for each in batch.settled if not each.file]
    assert len(dead_letters) == len(STAGES)
    check_dead_letters(sorted(dead_letters, key=lambda each: each.origin.offset), 2)


def test_an_outcome_that_is_no_text_costs_itself() -> None:
    found = [Message(0, b"{}"), Message(1, b"{}", (("ce_\ud800", b""),)), Message(2, b"{}")]
    covers = OffsetRange("events", "id", 0, 0, 3)
    batch = unseal(seal_guarded(decode(Batch(covers, found))))
    assert batch.covers == covers
    assert [(each.kind, each.origin.offset, each.payload is None) for each in batch.settled] == [
        ("dead_letter", 0, False), ("dead_letter", 1, True), ("dead_letter", 2, False),
    ]  # fmt: skip
    assert batch.settled[1].reason == "internal_error"
    assert batch.settled[1].detail.startswith("seal: UnicodeEncodeError: ")


def test_each_run_of_an_event_that_is_no_text_is_a_dead_letter() -> None:
    facts = [RunFacts(run_id, "u", labels={"x": "\ud800"}) for run_id in ("zuul~a~1", "zuul~b~1", "zuul~\ud800~1")]
    settled = [Outcome("ignored", Origin("events", 0, 0), "e", each, "cancelled") for each in facts]
    batch = unseal(seal_guarded(Batch(OffsetRange("events", "id", 0, 0, 1), settled=settled)))
    assert [each.run_id for each in batch.settled] == ["zuul~a~1", "zuul~b~1", ""]
    delta = reconcile(RawState(), [batch], 0)
    assert delta is not None
    assert len(delta["dead_letters"]) == 3


def digests(raw: Store) -> dict[str, str]:
    """The digests of a raw manifest's rows."""
    return {run["mention"]["run_id"]: run["file"]["digest"] for delta in account(raw)[1] for run in delta["runs"]}


def test_other_inputs_pass_beside_a_poisoned_one_of_each_stage_and_a_replay_takes_it(
    tmp_path: Path, poisoned: Patch
) -> None:
    place = Place(tmp_path)
    found = runs(place.logs)
    wanted = {each.run_id: direct(each) for each in found if POISON not in each.run_id}
    place.take_runs(*found)
    state, _ = account(place.raw)
    assert list(state.covered("ci-events", 0)) == [(0, len(found))]
    assert digests(place.raw) == wanted
    assert len(place.dead_letters) == len(STAGES)
    check_dead_letters(place.dead_letters, 2)
    board = Board()
    board.put_observed(raw_families(state))
    assert collected(board)["ciml_dead_letter_total"]["internal_error",] == len(STAGES)
    # A replay by the same program comes to the same, and takes nothing with it.
    replayed = replay(place.replay_config())
    assert (replayed.closed, dict(replayed.still)) == (0, {"internal_error": len(STAGES)})
    poisoned.undo()  # one that is repaired
    replayed = replay(place.replay_config())
    assert (replayed.closed, dict(replayed.became)) == (len(STAGES), {("run", ""): len(STAGES)})
    assert digests(place.raw) == {each.run_id: direct(each) for each in found}
    assert dict(account(place.raw)[0].index.dead_letters()) == {}


@pytest.mark.parametrize("runner", [None, "fnapi"])
def test_a_poisoned_line_of_a_listing_is_one_dead_letter(runner: str | None, tmp_path: Path, poisoned: Patch) -> None:
    made = listed(tmp_path / "logs", 8, tricks=False)
    line = json.loads(made.lines[3])
    text = gzip.decompress((CORPUS / line["log_path"]).read_bytes()).rstrip(b"\n")
    for number, stage in enumerate(STAGES, 4):
        log = tmp_path / "logs" / f"poison-{stage}.csv.gz"
        log.write_bytes(gzip.compress(text + (b"\npoison-parse\n" if stage == "parse" else b"\n")))
        poison = {**line, "build_uuid": f"poison-{stage}", "log_path": log.name}
        made.lines.insert(number, json.dumps(poison).encode())
    config = made.config(tmp_path / "data")
    with closing(open_listing(str(made.path))) as listing:
        assert backfill(config, listing, runner=runner).complete
    state, deltas = account(config.raw)
    assert digests(config.raw).keys() == made.runs
    dead_letters = [Outcome.from_json(each) for delta in deltas for each in delta["dead_letters"]]
    assert len(dead_letters) == len(STAGES)
    check_dead_letters(sorted(dead_letters, key=lambda each: each.origin.offset), 4)
    ((_, _, ranges),) = state.partitions()
    assert list(ranges) == [(0, len(made.lines))]
