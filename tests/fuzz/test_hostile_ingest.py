"""Hostile input through the real ingest: a short form of ``python -m tests.fuzz.hostile_ingest``."""

from __future__ import annotations

import pytest

from tests.fuzz.hostile_ingest import play


@pytest.mark.engines
def test_every_good_run_is_committed_and_every_hostile_input_is_accounted_for(kafka: str) -> None:
    found, figures = play(7, logs=72, events=60, good=20, broker=kafka)
    assert found.faults == []
    assert figures["became"]["run"] >= 20
    assert "dead_letter internal_error" not in figures["became"]
