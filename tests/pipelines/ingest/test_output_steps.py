"""An ingest with outputs dies between any two steps: an output is whole, and each row names one that is stored."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import pytest

from ciml.data_root import DataRoot
from ciml.events.records import RunFacts
from ciml.runs.outputs import TEMPLATES, TEXTS
from ciml.runs.verify import verify_raw
from ciml.storage import LocalStore
from tests.durable import Steps, each_step
from tests.pipelines.ingest.ingesting import Place, account, outputs_of

SMALL = b"collecting\n1 failed"
LARGE = b"\n".join(b"line %d of many, 0x%x" % (number % 50, number) for number in range(4_000))
#: Telemetry first; of an output the templates first; the row last.
STEPS = [
    "create raw/runs/*",
    "create raw/runs/*",
    f"create raw/{TEMPLATES}/*",
    f"create raw/{TEMPLATES}/*",
    f"create raw/{TEXTS}/*",
    f"create raw/{TEXTS}/*",
    "append raw: offsets runs",
]


def runs(place: Place) -> list[RunFacts]:
    """Two runs with an output: a small one, and one that is read, prepared and stored as a stream."""
    named = []
    for number, output in enumerate((SMALL, LARGE)):
        path = place.logs / f"{number}.output.gz"
        path.write_bytes(gzip.compress(output))
        named.append(place.facts(number, output_url=path.as_uri()))
    return named


def kind_of(step: str) -> str:
    return re.sub(r"/job=.*", "/*", step)


def check(place: Place) -> None:
    """Whatever happened: what the manifest names is there, and is what it was."""
    assert verify_raw(place.raw).findings == []
    _, deltas = account(place.raw)
    assert set(outputs_of(place.raw, deltas).values()) <= {SMALL, LARGE}


def test_a_row_comes_after_its_output(anywhere: DataRoot, tmp_path: Path) -> None:
    place = Place(tmp_path, anywhere)
    facts = runs(place)
    with Steps(anywhere.url).recording() as steps:
        place.take_runs(*facts)
    kinds = [kind_of(step) for step in steps.steps]
    assert sorted(kinds) == sorted(STEPS)
    assert kinds[:2] == STEPS[:2]  # each run has a thread
    assert kinds[-1] == STEPS[-1]
    for end in range(len(kinds)):
        assert kinds[:end].count(STEPS[2]) >= kinds[:end].count(STEPS[4])
    check(place)


@pytest.mark.parametrize("late", [False, True], ids=["the same output", "another output"])
def test_killed_before_each_step(anywhere: DataRoot, tmp_path: Path, late: bool) -> None:
    """The next worker reads the output again; if it has grown meanwhile, the former object is never named."""
    for index in each_step(len(STEPS), few=not isinstance(anywhere.store, LocalStore)):
        place = Place(tmp_path / str(index), DataRoot(anywhere.store.child(str(index))))
        facts = runs(place)
        with Steps(place.data.url, index).recording() as steps:
            place.take_runs(*facts)
        assert steps.is_dead == (index < len(STEPS))
        check(place)
        if late:
            (place.logs / "0.output.gz").write_bytes(gzip.compress(LARGE))
        place.end = 0
        place.take_runs(*facts)
        check(place)
        _, deltas = account(place.raw)
        first = LARGE if late and index < len(STEPS) else SMALL
        assert list(outputs_of(place.raw, deltas).values()) == [first, LARGE]
