"""Messages without sending them: what the policy, the evidence and the text make of predictions."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from ciml.data_root import DataRoot
from ciml.manifest.replica import LogReplica
from ciml.services.feedback.config import Feedback
from ciml.services.feedback.evidence import compare_run, find_evidence
from ciml.services.feedback.history.standing import Standings
from ciml.services.feedback.outbox import Outbox
from ciml.services.feedback.policy import Silence, judge
from ciml.services.feedback.reading import heard
from ciml.services.feedback.service import markup_of, replica
from ciml.services.feedback.state import Entry, FeedbackState, entry_key


@dataclass(frozen=True)
class Trial:
    """A message, or the reason for silence.

    Attributes:
      runs: run ids.
      reason: one of `ciml.services.feedback.policy.SILENT`; "" for a message.
      detail: of the reason, for people.
      system, project, change: of the message.
      message: its text; with the reason ``shadow`` or ``precision`` the one that is not sent; None else.
    """

    runs: tuple[str, ...]
    reason: str = ""
    detail: str = ""
    system: str = ""
    project: str = ""
    change: str = ""
    message: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value not in ("", None)}


def try_messages(data: DataRoot, feedback: Feedback, records: Iterable[Mapping[str, Any]]) -> Iterator[Trial]:
    """Yield the silent predictions in order, then one message for each patch set. Old predictions count as new.

    Args:
      data: with the runs, for their evidence, the history of verdicts, and the projects that were muted.
      feedback: the configuration.
      records: predictions as on the topic; of several of a job the last counts.

    Raises:
      EngineError: the store does not answer.
    """
    committing, policy = replica(data), feedback.policy
    with committing.state() as state:
        muted = sorted(state.muted)
        standings = Standings(list(state.history), policy, int(time.time() * 1e6))
    compare = partial(compare_run, data, policy)
    entries: dict[str, Entry] = {}
    for record in records:
        judgement = judge(record, feedback, muted, 0, compare)
        item, silence = heard(judgement, standings)
        if item is not None:
            key = entry_key(item.system, item.ref)
            entry = entries.setdefault(key, Entry(key, item.system, item.ref))
            entry.items[item.job] = item
            continue
        reason, detail = silence or Silence("bad_record")
        run_id = str(record.get("run_id", "?"))[:200]
        withheld = judgement.item
        if withheld is None:
            yield Trial((run_id,), reason, detail)
        else:
            entry = Entry(entry_key(withheld.system, withheld.ref), withheld.system, withheld.ref)
            entry.items[withheld.job] = withheld
            yield replace(_message(data, feedback, committing, entry), reason=reason, detail=detail)
    for entry in entries.values():
        yield _message(data, feedback, committing, entry)


def _message(data: DataRoot, feedback: Feedback, committing: LogReplica[FeedbackState], entry: Entry) -> Trial:
    policy = feedback.policy
    system = next(system for system in feedback.systems if system.name == entry.system)
    outbox = Outbox(
        system.name, committing, policy, lambda item: find_evidence(data, item, policy.base_url), None,
        markup=markup_of(system), clock=time.time,
    )  # fmt: skip
    runs = tuple(item.run_id for item in entry.items.values())
    change = entry.change.change or entry.change.head
    return Trial(runs, "", "", system.name, entry.change.project, change, outbox.message(entry).body)
