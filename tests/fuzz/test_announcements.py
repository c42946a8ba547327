"""Any message names an object of the raw store or is refused; a store is never asked for anything else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import example, given

from ciml.digest import canonical_json
from ciml.errors import RejectedInput
from ciml.events.records import Message
from ciml.events.run_id import RunId
from ciml.serving.predict.predictor import _unpredictable, read_announcement
from ciml.storage import LocalStore
from ciml.transforms.guard import attempt
from tests.fuzz.frame import fuzz
from tests.fuzz.strategies.announcements import GOOD, messages


@fuzz
@given(messages())
@example(json.dumps(GOOD).encode())
@example(json.dumps({**GOOD, "path": "a\ud800"}).encode())
@example(json.dumps({**GOOD, "path": "x" * 300}).encode())
@example(b"[" * 100_000)
def test_an_announcement_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, value: bytes) -> None:
    read = attempt("announcement", read_announcement, Message(7, value, timestamp_ms=5))
    if isinstance(read, RejectedInput):
        assert read.reason == "bad_announcement"  # and not the guard's internal_error
        assert len(canonical_json(_unpredictable(7, "", read))) < 8000
        return
    told = json.loads(value)
    assert (read.run_id, read.build_name, read.path) == (told["run_id"], told["build_name"], told["path"])
    assert (read.offset, read.timestamp_ms) == (7, 5)
    assert RunId.decode(read.run_id).encode() == read.run_id
    assert read.facts is None or (read.facts.run_id, read.facts.build_name) == (read.run_id, read.build_name)
    canonical_json([read.run_id, read.build_name, read.path, read.facts and read.facts.to_json()])
    root = Path(tmp_path_factory.getbasetemp())
    assert (root / read.path).resolve().relative_to(root.resolve()).parts[0] == "runs"
    with pytest.raises(FileNotFoundError):
        LocalStore(root).read(read.path)
