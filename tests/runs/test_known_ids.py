"""The ids of a raw manifest: an index over tables on disk equals one in memory."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ciml.errors import IntegrityError
from ciml.events.records import Origin
from ciml.manifest.id_index import IdTable, PartFiles
from ciml.runs.known_ids import TABLES, Index, KnownRun, OpenDeadLetter
from ciml.storage import LocalStore
from tests.tier import tries

_NAMES = [f"r{number}" for number in range(6)]
_KEYS: list[tuple[Origin, str]] = [(Origin("t", 0, number), name) for number in range(3) for name in ("", "r1")]
_OUTCOMES = ["", "success", "failure", "error", "timeout", "cancellation", "skip"]
_DIGESTS = st.one_of(st.binary(max_size=33).map(bytes.hex), st.text(max_size=5), st.sampled_from(["AB", "ab cd", "a"]))
_STEPS = st.one_of(
    st.tuples(st.just("event"), st.sampled_from(_NAMES), st.sampled_from(_NAMES)),
    st.tuples(
        st.just("run"),
        st.sampled_from(_NAMES),
        st.builds(KnownRun, st.sampled_from(_OUTCOMES), _DIGESTS, st.booleans()),
    ),
    st.tuples(
        st.just("letter"),
        st.sampled_from(_KEYS),
        st.none() | st.builds(OpenDeadLetter, st.integers(1, 1 << 40), st.sampled_from(["why", "broken_json"])),
    ),
    st.tuples(st.just("flush"), st.none(), st.none()),
    st.tuples(st.just("prefetch"), st.none(), st.none()),
)


def content_of(index: Index) -> Any:
    return (
        [index.has_event(one, two) for one in _NAMES for two in _NAMES],
        [index.run(name) for name in _NAMES],
        [index.dead_letter(key) for key in _KEYS],
        sorted(index.dead_letters(), key=str),
        index.run_count(),
    )


def flushed(index: Index, tables: dict[str, IdTable]) -> Index:
    recent = index.recent()
    for name in tables:
        steps = tables[name].with_rows(recent[name]).merged()
        while True:
            try:
                next(steps)
            except StopIteration as end:
                tables[name] = end.value
                break
    return Index(tables, index.run_count())


@settings(max_examples=tries(60))
@given(st.lists(_STEPS, max_size=40))
def test_ids_over_tables_are_as_in_memory(tmp_path_factory: pytest.TempPathFactory, steps: list[Any]) -> None:
    files = PartFiles(LocalStore(tmp_path_factory.mktemp("ids")), "index")
    tables = {name: IdTable(kind, (), files) for name, kind in TABLES.items()}
    memory, layered = Index(), Index(tables, 0)
    for verb, one, two in steps:
        if verb == "flush":
            layered = flushed(layered, tables)
        elif verb == "prefetch":
            layered.prefetch([(name, name) for name in _NAMES], _NAMES[1:], _KEYS[:3])
        else:
            for index in (memory, layered):
                if verb == "event":
                    index.add_event(one, two)
                elif verb == "run":
                    index.put_run(one, two)
                else:
                    index.put_dead_letter(one, two)
    assert content_of(layered) == content_of(memory)
    assert content_of(flushed(layered, tables)) == content_of(memory)


@pytest.mark.parametrize(
    ("decisions", "lowered"),
    [([False], True), ([False, False], True), ([False, True], False), ([True], False), ([True, False], True)],
)
def test_a_run_stays_lowered_until_it_is_trusted_again(decisions: list[bool], lowered: bool) -> None:
    run = KnownRun("success", "d", True)
    for trusted in decisions:
        run = run.judged(trusted)
    assert run.lowered is lowered


def test_an_unknown_outcome_is_reported(tmp_path_factory: pytest.TempPathFactory) -> None:
    files = PartFiles(LocalStore(tmp_path_factory.mktemp("ids")), "index")
    index = Index({name: IdTable(kind, (), files) for name, kind in TABLES.items()}, 0)
    index.put_run("r", KnownRun("exploded", "d", True))
    with pytest.raises(IntegrityError, match="'exploded' is not an outcome"):
        index.recent()
