"""What a real Gerrit sent of a change makes no run trusted that executed more than what was reviewed.

``stories`` has the events of a Gerrit 3.10 of ours. The owner of a change is Eve; Cleo or the administrator votes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from ciml.integrations.registry import read_event
from ciml.runs.known_subjects import Subjects
from ciml.trust import TrustPolicy, evaluate
from tests.integrations.deliveries import message_of
from tests.integrations.samples import delivery, zuul_build, zuul_message

POLICY = Path(__file__).parents[3] / "integrations/trust_zuul.toml"
#: Story -> the change, and by the number of events the rules that decide about runs of check of its patch sets.
STORIES: dict[str, tuple[str, dict[int, list[str]]]] = {
    # A change is stacked on unreviewed code, approved, rebased without it, and merged.
    "rebase-by-a-person": ("app-4~7", {25: ["no rule", "no rule", "reviewed"]}),
    # Another change was merged before it.
    "rebase-at-submit": ("app-3~5", {26: ["no rule", "reviewed", "reviewed"]}),
    # A change is approved, then its parent is merged.
    "stacked": ("app-6~11", {17: ["no rule", "no rule"], 24: ["no rule", "reviewed"]}),
    # A change is stacked on unreviewed code; its submit leaves that out.
    "cherry-pick": ("app-2~3", {21: ["no rule", "no rule", "reviewed"]}),
    # A change that depends on unreviewed code is approved, its message edited, and merged.
    "edited-message": ("app-7~13", {25: ["no rule", "no rule", "reviewed"]}),
    # The author's own branch has code that nobody read; a change that was made there is moved to main, and approved.
    "move": ("app-5~9", {23: ["no rule", "no rule"]}),
    # The administrator blocks a change, Cleo approves it, the block is taken back, and the change merged.
    "block": ("app-1~1", {8: ["no rule", "no rule"], 15: ["no rule", "reviewed"]}),
}


def rules(events: Iterable[dict[str, Any]], change: str, patchsets: int) -> list[str]:
    """Return the rules that decide about runs of check of each patch set of a change, as Zuul reports them."""
    subjects = Subjects()
    for event in events:
        read = read_event(message_of("gerrit", delivery(event), "zuul", "ssh"))
        for update in read.updates:
            subjects.add_update(update, read.key)
    project, _, number = change.partition("~")
    decided = []
    for patchset in range(1, patchsets + 1):
        item = {"project": project, "branch": "main", "change": number, "patchset": str(patchset)}
        message = message_of("zuul", delivery(zuul_message(zuul_build(change=item))), "zuul", "mqtt-user")
        (run,) = read_event(message).run_facts
        decided.append(evaluate(TrustPolicy.load(POLICY), subjects.join(run)).rule)
    return decided


@pytest.mark.parametrize("story", STORIES)
def test_a_run_is_trusted_where_all_that_it_executed_was_reviewed(story: str) -> None:
    change, expected = STORIES[story]
    lines = (Path(__file__).parent / "stories" / f"{story}.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    for count, decided in expected.items():
        assert rules(events[:count], change, len(decided)) == decided


def test_a_merge_counts_without_the_votes_before_it() -> None:
    lines = (Path(__file__).parent / "stories/rebase-at-submit.jsonl").read_text().splitlines()
    events = [event for event in map(json.loads, lines) if event["type"] != "comment-added"]
    assert rules(events, "app-3~5", 3) == ["no rule", "reviewed", "reviewed"]
