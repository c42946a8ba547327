"""Reads reactions to our messages back: as a metric, and as corrections of labels by the reviewers of the policy."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from ciml.errors import EngineError
from ciml.integrations.review import Busy, Posted, Reactions, Refused, ReviewClient
from ciml.limits import MAX_RETRY_AFTER_S
from ciml.manifest.replica import LogReplica
from ciml.verdicts.feedback.config import Cause
from ciml.verdicts.feedback.state import REACTIONS, Entry, FeedbackState
from ciml.verdicts.feedback.truths import Correction

_log = logging.getLogger(__name__)
_ACCOUNT_CHARACTERS = 200
_PAUSE_S = 60.0  # after an error of the system

#: Age of a message at its first reading; each next one follows at the double age.
FIRST_S = 300.0
_OTHER: dict[str, Cause] = {"code": "machine", "machine": "code"}


def next_reading_s(posted_s: float, read_s: float | None) -> float:
    """Return when the reactions to a message are read next, epoch seconds: ten times in three days.

    Args:
      posted_s: when it was posted or edited.
      read_s: when they were read last; None if they were not.
    """
    if read_s is None or read_s <= posted_s:
        return posted_s + FIRST_S
    return posted_s + max(2 * (read_s - posted_s), FIRST_S)


def news(entry: Entry, seen: Reactions, known: Iterable[str]) -> dict[str, list[str]]:
    """Return the accounts by kind that are not yet counted for a message; {} without any.

    Args:
      entry: of the message.
      seen: what the system says now.
      known: accounts that reacted to the same message when it was about another patch set.
    """
    before = set(known)
    named = {kind: [account[:_ACCOUNT_CHARACTERS] for account in getattr(seen, kind)] for kind in REACTIONS}
    fresh = {kind: [account for account in accounts if account not in before] for kind, accounts in named.items()}
    new = any(account not in entry.reactions.get(kind, ()) for kind, accounts in fresh.items() for account in accounts)
    return fresh if new else {}


def corrections(entry: Entry, new: dict[str, list[str]], reviewers: Iterable[str], now_us: int) -> list[Correction]:
    """Return what reactions say of the causes of a message's runs.

    A thumb up confirms the verdict, a thumb down names the other cause. A message with both verdicts corrects nothing,
    since a thumb does not say which one it means; neither does "not helpful", which is a metric alone. An account with
    both thumbs says nothing.

    Args:
      entry: of the message.
      new: from `news`.
      reviewers: accounts, ``SYSTEM:ACCOUNT``, that may correct labels.
      now_us: the present, epoch microseconds.
    """
    cause = entry.causes
    trusted = set(reviewers)
    if cause not in _OTHER:
        return []
    confirmed: Cause = "code" if cause == "code" else "machine"
    both = set(new.get("up", ())) & set(new.get("down", ()))
    corrections_found = []
    for kind, meant in (("up", confirmed), ("down", _OTHER[cause])):
        for account in new.get(kind, ()):
            by = f"{entry.system}:{account}"
            if by in trusted and account not in both:
                corrections_found += [Correction(item.run_id, meant, by, now_us) for item in entry.items.values()]
    return corrections_found


@dataclass
class Reader:
    """Reads the reactions to the messages of one system.

    Args:
      name: of the system.
      committing: the manifest.
      client: of the system; None for a dry run.
      reviewers: see `corrections`.
      correct: stores corrections.
      clock: epoch seconds.
    """

    name: str
    committing: LogReplica[FeedbackState]
    client: ReviewClient | None
    reviewers: Sequence[str]
    correct: Callable[[Iterable[Correction]], object]
    clock: Callable[[], float] = time.time
    _read_s: dict[str, float] = field(default_factory=dict)
    _paused_until_s: float = 0.0
    _began_s: float = 0.0

    def __post_init__(self) -> None:
        self._began_s = self.clock()

    def due(self) -> list[str]:
        """Return the keys of the entries whose reactions are to be read now, the latest messages first."""
        now_s = self.clock()
        if self.client is None or now_s < self._paused_until_s:
            return []
        with self.committing.state() as state:
            if state.paused.get(self.name, 0) / 1e6 > now_s:
                return []
            posted = [
                (entry.posted_us, key)
                for key, entry in state.entries.items()
                if entry.posted and entry.system == self.name
            ]
            self._read_s = {key: at_s for key, at_s in self._read_s.items() if key in state.entries}
        return [key for at_us, key in reversed(posted) if self._next_s(key, at_us / 1e6) <= now_s]

    def _next_s(self, key: str, posted_s: float) -> float:
        # An earlier process has read the older ones, perhaps just now: they are not all read again at once.
        before = self._began_s if posted_s < self._began_s else None
        return next_reading_s(posted_s, self._read_s.get(key, before))

    def read(self, key: str) -> bool:
        """Read the reactions to a message, store what is new. Return whether the system may be called again now.

        Raises:
          EngineError: the store does not answer.
        """
        with self.committing.state() as state:
            entry = state.entries.get(key)
            if self.client is None or entry is None or entry.posted is None:
                return True
            posted = entry.posted
            counted = _of_others(state, entry, entry.posted)
            entry = Entry.from_json(entry.to_json())
        try:
            reactions = self.client.reactions(posted)
        except Refused:  # the message was deleted, perhaps
            self._read_s[key] = self.clock()
            return True
        except EngineError as error:
            wait_s = min(error.retry_after_s, MAX_RETRY_AFTER_S) if isinstance(error, Busy) else _PAUSE_S
            self._paused_until_s = self.clock() + wait_s
            _log.info("%s: reactions are read in %.0f s: %s", self.name, wait_s, error)
            return False
        now_us = int(self.clock() * 1e6)
        if new := news(entry, reactions, counted):
            # corrections first: they are stored once, also if this is repeated after a crash
            self.correct(corrections(entry, new, self.reviewers, now_us))
            record = {"entry": key, **new}
            self.committing.append(lambda state: {"time_us": now_us, "reactions": [record]})
        self._read_s[key] = self.clock()
        return True


def _of_others(state: FeedbackState, entry: Entry, posted: Posted) -> set[str]:
    """Return the accounts that reacted to the same message when it was about another patch set."""
    return {
        account
        for other_entry in state.entries.values()
        if other_entry.key != entry.key
        and other_entry.posted
        and other_entry.system == entry.system
        and other_entry.posted.id == posted.id
        for accounts in other_entry.reactions.values()
        for account in accounts
    }
