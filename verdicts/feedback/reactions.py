"""Reads reactions to our messages back: as a metric, and as corrections of labels by the reviewers of the policy."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from ciml.errors import EngineError
from ciml.integrations.http import Busy, Refused
from ciml.integrations.review import Posted, Reactions, ReviewClient
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
_OTHER_CAUSE: dict[str, Cause] = {"code": "machine", "machine": "code"}


def next_reading_s(posted_s: float, read_s: float | None) -> float:
    """Return the time of the next reading of a message's reactions, epoch seconds: ten readings in three days.

    Args:
      posted_s: when it was posted or edited.
      read_s: when they were read last; None if they were not.
    """
    if read_s is None or read_s <= posted_s:
        return posted_s + FIRST_S
    return posted_s + max(2 * (read_s - posted_s), FIRST_S)


def new_reactions(entry: Entry, reactions: Reactions, counted_elsewhere: Iterable[str]) -> dict[str, list[str]]:
    """Return the accounts by kind that are not yet counted for a message, with those that are; {} without new ones.

    Args:
      entry: of the message.
      reactions: those that the system reports now.
      counted_elsewhere: accounts that reacted to the same message when it was about another patch set.
    """
    excluded = set(counted_elsewhere)
    by_kind: dict[str, list[str]] = {}
    for kind in REACTIONS:
        accounts = [account[:_ACCOUNT_CHARACTERS] for account in getattr(reactions, kind)]
        by_kind[kind] = [account for account in accounts if account not in excluded]
    has_new = any(set(accounts) - set(entry.reactions.get(kind, ())) for kind, accounts in by_kind.items())
    return by_kind if has_new else {}


def derive_corrections(
    entry: Entry, by_kind: dict[str, list[str]], reviewers: Iterable[str], now_us: int
) -> list[Correction]:
    """Return the corrections of the causes of a message's runs that follow from reactions.

    A thumb up confirms the verdict, a thumb down names the other cause. A message with both verdicts corrects nothing,
    since a thumb does not say which one it means; neither does "not helpful", which is a metric alone. An account with
    both thumbs says nothing.

    Args:
      entry: of the message.
      by_kind: accounts, from `new_reactions`.
      reviewers: accounts, ``SYSTEM:ACCOUNT``, that may correct labels.
      now_us: the present, epoch microseconds.
    """
    if entry.causes not in _OTHER_CAUSE:
        return []
    opposite = _OTHER_CAUSE[entry.causes]
    meanings = {"up": _OTHER_CAUSE[opposite], "down": opposite}  # up: the verdict itself
    trusted = set(reviewers)
    undecided = set(by_kind.get("up", ())) & set(by_kind.get("down", ()))
    corrections = []
    for kind, cause in meanings.items():
        for account in by_kind.get(kind, ()):
            by = f"{entry.system}:{account}"
            if by in trusted and account not in undecided:
                corrections += [Correction(item.run_id, cause, by, now_us) for item in entry.items.values()]
    return corrections


@dataclass
class Reader:
    """Reads the reactions to the messages of one system.

    Args:
      name: of the system.
      replica: the manifest.
      client: of the system; None for a dry run.
      reviewers: see `derive_corrections`.
      correct: stores corrections.
      clock: epoch seconds.
    """

    name: str
    replica: LogReplica[FeedbackState]
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
        with self.replica.state() as state:
            if state.paused.get(self.name, 0) / 1e6 > now_s:
                return []
            posted = [
                (entry.posted_us, key)
                for key, entry in state.entries.items()
                if entry.posted and entry.system == self.name
            ]
            self._read_s = {key: read_s for key, read_s in self._read_s.items() if key in state.entries}
        return [key for posted_us, key in reversed(posted) if self._next_s(key, posted_us / 1e6) <= now_s]

    def _next_s(self, key: str, posted_s: float) -> float:
        # An earlier process has read the older ones, perhaps just now: spread them, so that they are not all read now.
        before = self._began_s if posted_s < self._began_s else None
        return next_reading_s(posted_s, self._read_s.get(key, before))

    def read(self, key: str) -> bool:
        """Read the reactions to a message and store the new ones. Return whether the system may be called again now.

        Raises:
          EngineError: the store does not answer.
        """
        with self.replica.state() as state:
            entry = state.entries.get(key)
            if self.client is None or entry is None or entry.posted is None:
                return True
            posted = entry.posted
            counted_elsewhere = _accounts_elsewhere(state, entry, posted)
            entry = Entry.from_json(entry.to_json())  # a copy: the state changes during the call
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
        except Exception:  # noqa: BLE001 - of a client; it concerns this message alone, which is read again later
            _log.exception("%s: the reactions to a message were not read", self.name)
            self._read_s[key] = self.clock()
            return True
        now_us = int(self.clock() * 1e6)
        by_kind = new_reactions(entry, reactions, counted_elsewhere)
        if by_kind:
            # Corrections first: a repetition after a crash does not store them twice.
            self.correct(derive_corrections(entry, by_kind, self.reviewers, now_us))
            record = {"entry": key, **by_kind}
            self.replica.append(lambda state: {"time_us": now_us, "reactions": [record]})
        self._read_s[key] = self.clock()
        return True


def _accounts_elsewhere(state: FeedbackState, entry: Entry, posted: Posted) -> set[str]:
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
