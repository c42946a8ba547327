"""Reads reactions to our messages back: as a metric, and as corrections of labels by the reviewers of the policy.

A reaction is to the text that the message had when it was made, and not to a later one. A change has one message for
all its patch sets where the system can edit, so the texts of all these entries are compared with its time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from ciml.errors import EngineError
from ciml.integrations.http import UNAUTHORIZED, Busy, Refused
from ciml.integrations.review import Reactions, ReviewClient
from ciml.limits import MAX_RETRY_AFTER_S
from ciml.manifest.replica import LogReplica
from ciml.verdicts.feedback.config import Cause
from ciml.verdicts.feedback.state import REACTIONS, Entry, FeedbackState, Text
from ciml.verdicts.feedback.truths import Correction

_log = logging.getLogger(__name__)
_ACCOUNT_CHARACTERS = 200
_PAUSE_S = 60.0  # after an error of the system

#: Age of a message at its first reading; each next one follows at the double age, whenever a process began.
FIRST_S = 300.0
#: Time before and after the beginning of an edit in which a reaction may be to either text: the edit itself takes up to
#: 45 s, clocks differ, and pages are not loaded again.
UNCERTAIN_US = 120_000_000
_OTHER_CAUSE: dict[str, Cause] = {"code": "machine", "machine": "code"}


def next_reading_s(posted_s: float, read_s: float) -> float:
    """Return the time of the next reading of a message's reactions, epoch seconds: ten readings in three days.

    Args:
      posted_s: when it was posted or edited.
      read_s: when they were read last, or may have been.
    """
    age_s = FIRST_S
    while posted_s + age_s <= read_s:
        age_s *= 2
    return posted_s + age_s


def text_at(entries: Iterable[Entry], time_us: int) -> Text | None:
    """Return the text to which a reaction at a time is; None if it is unknown, or an edit was too near.

    Args:
      entries: all of a change.
      time_us: of the reaction, epoch microseconds.
    """
    current = None
    for text in sorted((text for entry in entries for text in _texts(entry)), key=lambda text: text.time_us):
        if time_us < text.time_us - UNCERTAIN_US:
            break
        is_certain = not text.is_edit or time_us >= text.time_us + UNCERTAIN_US
        current = text if is_certain else None
    return current


def _texts(entry: Entry) -> list[Text]:
    """Return the texts of an entry. A call of unknown outcome may have written one, of which nothing is certain."""
    intent = entry.intent
    return entry.texts if intent is None else [*entry.texts, Text(intent.time_us, "")]


def new_reactions(entry: Entry, entries: Sequence[Entry], reactions: Reactions) -> list[dict[str, object]]:
    """Return the records of the reactions that are not counted yet, one for each patch set that they are to.

    Args:
      entry: of the message that was read.
      entries: all of its change.
      reactions: those that the system reports now.
    """
    records: dict[str, dict[str, list[str]]] = {}
    for kind in REACTIONS:
        for reaction in getattr(reactions, kind):
            account = reaction.account[:_ACCOUNT_CHARACTERS]
            target = _entry_at(entry, entries, reaction.time_us)
            if target is None:
                continue
            counted_in = [target] if reaction.time_us and target.texts else entries
            if not any(account in other.reactions.get(kind, ()) for other in counted_in):
                records.setdefault(target.key, {name: [] for name in REACTIONS})[kind].append(account)
    return [{"entry": key, **by_kind} for key, by_kind in records.items()]


def _entry_at(entry: Entry, entries: Iterable[Entry], time_us: int) -> Entry | None:
    """Return the entry that had the last text at a time; None if it is forgotten, and ``entry`` if no time is known."""
    starts = sorted(((text.time_us, other) for other in entries for text in other.texts), key=lambda start: start[0])
    if not starts or not time_us:
        return entry
    before = [other for start_us, other in starts if start_us <= time_us]
    if before:
        return before[-1]
    first_us, first = starts[0]
    return first if time_us >= first_us - UNCERTAIN_US else None


def derive_corrections(
    system: str, entries: Sequence[Entry], reactions: Reactions, reviewers: Iterable[str]
) -> list[Correction]:
    """Return the corrections of the causes of runs that follow from the reactions to a message.

    A thumb up confirms the cause that the text stated of its runs, a thumb down names the other cause. A text with both
    causes corrects nothing, since a thumb does not say which one it means; neither does "not helpful", which is a
    metric alone. An account with both thumbs says nothing.

    Args:
      system: name of the review system.
      entries: all of the message's change.
      reactions: those that the system reports now.
      reviewers: accounts, ``SYSTEM:ACCOUNT``, that may correct labels; upper and lower case of accounts are equal.
    """
    parts = (reviewer.partition(":") for reviewer in reviewers)
    trusted = {account.casefold() for name, _, account in parts if name == system}
    undecided = {reaction.account for reaction in reactions.up} & {reaction.account for reaction in reactions.down}
    corrections = []
    for is_up, thumbs in ((True, reactions.up), (False, reactions.down)):
        for account, time_us in thumbs:
            if account.casefold() not in trusted or account in undecided:
                continue
            text = text_at(entries, time_us)
            if text is None or text.causes not in _OTHER_CAUSE:
                continue
            opposite = _OTHER_CAUSE[text.causes]
            cause = _OTHER_CAUSE[opposite] if is_up else opposite
            corrections += [Correction(run_id, cause, f"{system}:{account}", time_us) for run_id in text.runs]
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
    _causes: dict[str, dict[tuple[str, str], Cause]] = field(default_factory=dict)  # by entry: the last corrections
    _paused_until_s: float = 0.0
    _began_s: float = 0.0

    def __post_init__(self) -> None:
        self._began_s = self.clock()

    def due(self) -> list[str]:
        """Return the keys of the entries whose reactions are to be read now, the latest messages first.

        A message on several patch sets is read as that of the last one.
        """
        now_s = self.clock()
        if self.client is None or now_s < self._paused_until_s:
            return []
        with self.replica.state() as state:
            if state.paused.get(self.name, 0) / 1e6 > now_s:
                return []
            last: dict[str, tuple[int, str]] = {}
            for key, entry in state.entries.items():
                if entry.posted and entry.system == self.name:
                    last[entry.posted.id] = max(last.get(entry.posted.id, (0, "")), (entry.posted_us, key))
            self._read_s = {key: read_s for key, read_s in self._read_s.items() if key in state.entries}
            self._causes = {key: causes for key, causes in self._causes.items() if key in state.entries}
        ordered = sorted(last.values(), reverse=True)
        return [key for posted_us, key in ordered if self._next_s(key, posted_us / 1e6) <= now_s]

    def _next_s(self, key: str, posted_s: float) -> float:
        # An earlier process has read the older ones, perhaps: they are not all read now, but at their next age.
        return next_reading_s(posted_s, self._read_s.get(key, self._began_s))

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
        try:
            reactions = self.client.reactions(posted)
        except Refused as refused:
            if refused.reason == UNAUTHORIZED:
                return self._pause(refused, _PAUSE_S)
            if refused.reason != "not_found":  # otherwise the message was deleted
                _log.warning("%s: reactions to a message cannot be read: %s; retrying later", self.name, refused)
            self._read_s[key] = self.clock()
            return True
        except EngineError as error:
            wait_s = min(error.retry_after_s, MAX_RETRY_AFTER_S) if isinstance(error, Busy) else _PAUSE_S
            return self._pause(error, wait_s)
        except Exception:  # noqa: BLE001 - of a client; it concerns this message alone, which is read again later
            _log.exception("%s: the reactions to a message were not read", self.name)
            self._read_s[key] = self.clock()
            return True
        now_us = int(self.clock() * 1e6)
        with self.replica.state() as state:
            entries = _entries_of_change(state, entry)
            corrections = derive_corrections(self.name, entries, reactions, self.reviewers)
            records = new_reactions(entry, entries, reactions)
        # Corrections first: a repetition after a crash does not store them twice.
        causes = {(correction.run_id, correction.by): correction.cause for correction in corrections}
        if causes != self._causes.get(key, {}):
            self.correct(corrections)
            self._causes[key] = causes
        if records:
            self.replica.append(lambda state: {"time_us": now_us, "reactions": records})
        self._read_s[key] = self.clock()
        return True

    def _pause(self, error: Exception, wait_s: float) -> bool:
        """Pause all readings after an error of the system; return False."""
        self._paused_until_s = self.clock() + wait_s
        _log.warning("%s: reactions are read in %.0f s: %s", self.name, wait_s, error)
        return False


def _entries_of_change(state: FeedbackState, entry: Entry) -> list[Entry]:
    """Return the entries of all patch sets of an entry's change."""
    identity = (entry.system, entry.change.project, entry.change.change)
    return [
        other
        for other in state.entries.values()
        if (other.system, other.change.project, other.change.change) == identity
    ]
