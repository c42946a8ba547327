"""The order in which an erasure rewrites a log: whatever dies between two steps, readers find a chain that holds."""

from __future__ import annotations

import time
from unittest.mock import Mock

import pytest

from ciml.manifest import rewrite
from ciml.manifest.log import Delta, ManifestLog
from ciml.manifest.rewrite import rewrite_log
from ciml.runs.state import RAW
from tests.ciml.manifest.test_checkpoint_steps import brief
from tests.ciml.manifest.test_checkpoints import actor_of_20, plain, world
from tests.durable import Steps
from tests.raw_manifest import verify_manifest
from tests.runs.raw_world import World, content_of

__all__ = ["world"]


def noted(delta: Delta) -> Delta | None:
    return None if "note" in delta else {**delta, "note": 1}


def test_steps_of_a_rewriting(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits after the mark, for segments in progress. What is last comes first, so that a delta that is not
    rewritten never follows one that is. Stale checkpoints are gone before others may be made."""
    actor_of_20(world)
    log = ManifestLog(world.store())
    before = content_of(plain(world, dict(log.since(0))))
    steps = Steps(world.store().root)
    monkeypatch.setattr(rewrite, "time", Mock(wraps=time, sleep=lambda seconds: steps.step(f"wait {seconds:g} s")))
    with steps.recording():
        rewrite_log(log, noted, RAW)
    expected = [
        *("replace rewritten", "wait 15 s"),
        *(f"replace {version}.json" for version in range(20, 0, -1)),
        *("replace segments/14.jsonl.zst", "replace segments/7.jsonl.zst"),
        *("delete checkpoints/14.json", "delete checkpoints/7.json", *7 * ["delete index/*.arrow"]),
        *("replace rewritten", "create segments/7.jsonl.zst"),
    ]
    assert [*map(brief, steps.steps)][: len(expected)] == expected
    deltas = dict(ManifestLog(world.store()).since(0))
    assert all("note" in delta for delta in deltas.values())
    assert content_of(plain(world, deltas)) == before
    assert list(verify_manifest(world.store())) == []
    steps.steps.clear()
    with steps.recording():
        assert rewrite_log(log, noted, RAW) == 0
        assert steps.steps == []
        # A delta after the segments is in no checkpoint, so these stay.
        assert rewrite_log(log, lambda delta: {**delta, "note": 2} if delta["version"] == 17 else None, RAW) == 1
    assert [*map(brief, steps.steps)] == ["replace rewritten", "wait 15 s", "replace 17.json", "replace rewritten"]
