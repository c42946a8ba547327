"""Messages without sending them: what the policy, the evidence and the text make of predictions."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ciml.data_root import DataRoot
from services.feedback.config import Feedback
from services.feedback.evidence import find_evidence
from services.feedback.outbox import Outbox
from services.feedback.policy import Item, judge
from services.feedback.service import markup_of, replica
from services.feedback.state import Entry, entry_key


@dataclass(frozen=True)
class Trial:
    """A message, or the reason for silence.

    Attributes:
      runs: run ids.
      reason: one of `services.feedback.policy.SILENT`; "" for a message.
      system, project, change: of the message.
      message: its text; None for silence.
    """

    runs: tuple[str, ...]
    reason: str = ""
    system: str = ""
    project: str = ""
    change: str = ""
    message: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value not in ("", None)}


def try_messages(data: DataRoot, feedback: Feedback, records: Iterable[Mapping[str, Any]]) -> Iterator[Trial]:
    """Yield the silent predictions in order, then one message for each patch set. Old predictions count as new.

    Args:
      data: with the runs, for their evidence, and the projects that were muted.
      feedback: the configuration.
      records: predictions as on the topic; of several of a job the last counts.

    Raises:
      EngineError: the store does not answer.
    """
    committing = replica(data)
    with committing.state() as state:
        muted = sorted(state.muted)
    entries: dict[str, Entry] = {}
    for record in records:
        found = judge(record, feedback, muted, 0)
        if not isinstance(found, Item):
            yield Trial((str(record.get("run_id", "?"))[:200],), found)
            continue
        key = entry_key(found.system, found.ref)
        entry = entries.setdefault(key, Entry(key, found.system, found.ref))
        entry.items[found.job] = found
    policy = feedback.policy
    for entry in entries.values():
        system = next(each for each in feedback.systems if each.name == entry.system)
        outbox = Outbox(
            system.name, committing, policy, lambda item: find_evidence(data, item, policy.base_url), None,
            markup=markup_of(system), clock=time.time,
        )  # fmt: skip
        runs = tuple(item.run_id for item in entry.items.values())
        change = entry.change.change or entry.change.head
        yield Trial(runs, "", system.name, entry.change.project, change, outbox.message(entry).body)
