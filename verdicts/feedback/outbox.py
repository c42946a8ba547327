"""The outbox of one review system: sends the message that is due on each patch set, at most once.

For each entry, in this order: settle the call whose outcome is unknown; read the change; write the text; read our own
message; store the intent; call; store the outcome. A process that is killed in between leaves an intent, and the next
one reads our marker before anything is sent again. One outbox makes one call at a time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar

from ciml.errors import CimlError, EngineError
from ciml.integrations.http import CALL_S, UNAUTHORIZED, Busy, Refused, Unsettled
from ciml.integrations.review import ChangeRef, Format, Head, Posted, Rendered, ReviewClient
from ciml.limits import MAX_RETRY_AFTER_S
from ciml.manifest.log import Delta
from ciml.manifest.replica import LogReplica
from ciml.verdicts.feedback.config import Policy
from ciml.verdicts.feedback.judgement import Item, is_muted
from ciml.verdicts.feedback.state import Action, Entry, FeedbackState, Intent
from ciml.verdicts.feedback.text import Finding, Stamp, Style, marker_of, render

T = TypeVar("T")
_log = logging.getLogger(__name__)

#: A call of unknown outcome is settled after this time. A third of it is room for what lies between the intent and the
#: call, and for the server's own queues; the rest is the longest call.
SETTLE_S = 1.5 * CALL_S
#: The first and the longest pause after an error of the system, or of one entry.
_PAUSES_S = (2.0, 300.0)
_DETAIL_CHARACTERS = 300

#: Returns a verdict with its evidence. Raises `EngineError` while the store does not answer.
FindEvidence = Callable[[Item], Finding]


class _NotReachedError(Exception):
    """The system was not reached; nothing was changed."""


@dataclass
class Pause:
    """Pauses that double with each failure in succession."""

    failures: int = 0
    until_s: float = 0.0

    def failed(self, now_s: float) -> None:
        self.until_s = now_s + min(_PAUSES_S[0] * 2.0 ** min(self.failures, 30), _PAUSES_S[1])
        self.failures += 1


@dataclass
class Outbox:
    """Sends the messages that are due on the changes of one system.

    Args:
      name: of the system.
      replica: the manifest.
      policy: the conditions and the form of messages.
      evidence: see `FindEvidence`.
      client: of the system; None for a dry run.
      gap_s: least time between two calls that change something.
      show: called with (entry, message) in a dry run.
      timed: called with a call's name and duration.
      settle_s: age from which an intent without outcome is settled.
      markup: of a dry run.
      clock, sleep: epoch seconds, and a pause.
    """

    name: str
    replica: LogReplica[FeedbackState]
    policy: Policy
    evidence: FindEvidence
    client: ReviewClient | None
    gap_s: float = 1.0
    show: Callable[[Entry, Rendered], object] = lambda entry, message: None
    timed: Callable[[str, float], object] = lambda call, seconds: None
    settle_s: float = SETTLE_S
    markup: Format = "github"
    clock: Callable[[], float] = time.time
    sleep: Callable[[float], object] = time.sleep
    _system_pause: Pause = field(default_factory=Pause)
    _entry_pauses: dict[str, Pause] = field(default_factory=dict)
    _written_s: float = 0.0

    def __post_init__(self) -> None:
        self._written_s = self.clock()  # of an earlier process, perhaps

    def due(self) -> list[str]:
        """Return the keys of the entries that are due, the one that has been pending longest first."""
        now_s = self.clock()
        with self.replica.state() as state:
            if max(self._system_pause.until_s, state.paused.get(self.name, 0) / 1e6) > now_s:
                return []
            opened = [state.entries[key] for key in state.opened]
            due = sorted(
                (entry.since_us, entry.key)
                for entry in opened
                if entry.system == self.name and self._is_due(entry, now_s)
            )
            self._entry_pauses = {key: pause for key, pause in self._entry_pauses.items() if key in state.opened}
        return [key for _, key in due]

    def _is_due(self, entry: Entry, now_s: float) -> bool:
        pause = self._entry_pauses.get(entry.key)
        if pause is not None and pause.until_s > now_s:
            return False
        if entry.intent is not None:  # a dry run does not settle it
            return self.client is not None and now_s >= entry.intent.time_us / 1e6 + self.settle_s
        settled_s = min(entry.last_us / 1e6 + self.policy.settle_s, entry.since_us / 1e6 + self.policy.settle_most_s)
        return now_s >= settled_s

    def answer(self, key: str) -> bool:
        """Send the message that is due on a patch set. Return whether the system may be called again now.

        Raises:
          EngineError: if the store of the manifest or of the evidence does not answer.
          IntegrityError: the manifest contradicts itself.
        """
        with self.replica.state() as state:
            entry = state.entries.get(key)
            if entry is None or not entry.is_open:
                return True
            entry = Entry.from_json(entry.to_json())  # a copy: the state changes during the calls
            muted = is_muted(entry.change.project, (*self.policy.muted_projects, *state.muted))
        try:
            self._answer(entry, muted)
        except Busy as busy:
            wait_s = min(max(busy.retry_after_s, 1.0), MAX_RETRY_AFTER_S)
            self._commit({"paused": {self.name: int((self.clock() + wait_s) * 1e6)}})
            _log.warning("%s: %s; no call for %.0f s", self.name, busy, wait_s)
            return False
        except Refused as refused:
            if refused.reason == UNAUTHORIZED:
                return self._failed(entry, refused)
            self._close(entry, "refused", f"{refused.reason}: {refused}")
        except Unsettled as error:
            _log.warning("%s: %s; it is settled by reading our own message", self.name, error)
        except _NotReachedError as error:
            return self._failed(entry, error)
        except CimlError:
            raise
        except Exception:  # noqa: BLE001  # a client or a text that fails costs only its own message
            _log.exception("%s: the message on %s failed; other messages continue", self.name, entry.change)
            self._entry_pauses.setdefault(entry.key, Pause()).failed(self.clock())
        else:
            self._entry_pauses.pop(entry.key, None)
        self._system_pause = Pause()
        return True

    def _failed(self, entry: Entry, error: Exception) -> bool:
        """Pause system and entry after an error of the system; return False."""
        self._system_pause.failed(self.clock())
        self._entry_pauses.setdefault(entry.key, Pause()).failed(self.clock())
        _log.warning("%s: %s; retrying", self.name, error)
        return False

    def _answer(self, entry: Entry, muted: bool) -> None:
        if entry.intent is not None:
            self._settle(entry, entry.intent)
            return
        if muted:
            self._close(entry, "muted")
            return
        if self.clock() - entry.since_us / 1e6 > self.policy.max_age_s:
            self._close(entry, "late")
            return
        if self.client is None:
            message = write_message(entry, self.evidence, Style.of_dry_run(self.markup, self.policy))
            if message is not None:
                self.show(entry, message)
            self._close(entry, "dry_run" if message is not None else "no_note")
            return
        client = self.client
        head = self._timed("head", lambda: client.head(entry.change))
        outcome = silence(entry.change, head, self.policy.mute_word)
        if outcome is not None:
            self._close(entry, outcome)
            return
        if not entry.change.change:
            self._move(entry, replace(entry.change, change=head.change))  # the next call sends the message
            return
        self._send(client, entry)

    def _send(self, client: ReviewClient, entry: Entry) -> None:
        policy = self.policy
        style = Style(client.format, min(client.most_bytes, policy.max_bytes), client.can_react, policy)
        message = write_message(entry, self.evidence, style)
        if message is None:
            self._close(entry, "no_note")
            return
        previous = self._find(client, entry.change, message.marker)
        if previous is not None and message.stamp in previous.body:
            self._close(entry, "unchanged", posted=previous, message=message)
            return
        if previous is not None and not client.can_edit:
            if Stamp.of(message).states_the_same_as(Stamp.find(previous.body, message.marker)):
                self._close(entry, "said", posted=previous, message=replace(message, runs=()))
                return
            previous = None
        self._call(client, entry, message, previous)

    def _call(self, client: ReviewClient, entry: Entry, message: Rendered, previous: Posted | None) -> None:
        """Store the intent, call, and store the outcome."""
        self._wait()
        action: Action = "edit" if previous else "post"
        intent = Intent(
            number=entry.number + 1,
            action=action,
            stamp=message.stamp,
            marker=message.marker,
            change=entry.change.change,
            changes=entry.changes,
            causes=Stamp.of(message).causes,
            runs=message.runs,
        )
        record = {"entry": entry.key, **asdict(intent)}
        del record["time_us"]  # the time of the delta
        began_s = self.clock()
        if not self._commit({"intents": [record]}, lambda state: _is_same(state, entry)):
            return  # another process was first
        if self.clock() - began_s > self.settle_s / 3:
            return  # this process was suspended: another one may be settling the intent
        entry.intent = intent
        try:
            posted = self._timed(
                action,
                lambda: client.edit(previous, message) if previous else client.post(entry.change, message),
            )
        except (Busy, _NotReachedError) as error:
            self._close(entry, "not_sent", str(error))
            raise
        except Refused as refused:
            if refused.reason == UNAUTHORIZED:  # any other reason closes the entry in `answer`
                self._close(entry, "not_sent", str(refused))
            raise
        finally:
            self._written_s = self.clock()
        self._close(entry, "edited" if previous else "posted", posted=posted)

    def _settle(self, entry: Entry, intent: Intent) -> None:
        """Settle a call of unknown outcome: it has succeeded if our own message has its stamp."""
        if self.client is None:
            return  # a dry run calls nothing, not even to settle a call of an earlier run
        change = replace(entry.change, change=intent.change)
        own_message = self._find(self.client, change, intent.marker)
        if own_message is not None and intent.stamp in own_message.body:
            self._close(entry, "edited" if intent.action == "edit" else "posted", "settled", posted=own_message)
        else:
            self._close(entry, "not_found", "the call of unknown outcome has changed nothing")

    def _close(
        self,
        entry: Entry,
        outcome: str,
        detail: str = "",
        posted: Posted | None = None,
        message: Rendered | None = None,
    ) -> None:
        """Store an outcome, unless another process has stored one meanwhile.

        Args:
          entry: of the message.
          outcome: what became of it.
          detail: of the outcome, for people.
          posted: the message in the system.
          message: what it states if no call of ours wrote it now.
        """
        intent = entry.intent
        record: dict[str, Any] = {
            "entry": entry.key,
            "number": intent.number if intent else 0,
            "outcome": outcome,
            "changes": intent.changes if intent else entry.changes,
        }
        if detail:
            record["detail"] = detail[:_DETAIL_CHARACTERS]
        if posted is not None:
            record["posted"] = asdict(replace(posted, body=""))
        if message is not None:
            record |= {"causes": Stamp.of(message).causes, "runs": list(message.runs)}
        self._commit({"outcomes": [record]}, lambda state: _has_intent(state, entry.key, intent))

    def _move(self, entry: Entry, change: ChangeRef) -> None:
        record = {"entry": entry.key, "change": asdict(change)}
        self._commit({"moves": [record]}, lambda state: _has_intent(state, entry.key, None))

    def _commit(self, delta: Delta, may_commit: Callable[[FeedbackState], bool] = lambda state: True) -> bool:
        """Append a delta, where the state still permits it; return whether it was appended."""
        timed_delta = {**delta, "time_us": int(self.clock() * 1e6)}
        return self.replica.append(lambda state: timed_delta if may_commit(state) else None) is not None

    def _wait(self) -> None:
        left_s = self._written_s + self.gap_s - self.clock()
        if left_s > 0:
            self.sleep(min(left_s, self.gap_s))

    def _find(self, client: ReviewClient, change: ChangeRef, marker: str) -> Posted | None:
        return self._timed("find", lambda: client.find(change, marker))

    def _timed(self, call: str, function: Callable[[], T]) -> T:
        began_s = time.perf_counter()
        try:
            return function()
        except (Busy, Unsettled, Refused):
            raise
        except EngineError as error:
            raise _NotReachedError(str(error)) from None
        finally:
            self.timed(call, time.perf_counter() - began_s)


def write_message(entry: Entry, evidence: FindEvidence, style: Style) -> Rendered | None:
    """Write the message on a patch set; return None if it was to have notes alone, and they are gone."""
    marker = marker_of(entry.system, entry.change.project, entry.change.change)
    findings = [finding for item in entry.items.values() if (finding := evidence(item)).is_worth_sending]
    return render(findings, marker, entry.change, style) if findings else None


def silence(change: ChangeRef, head: Head, mute_word: str) -> str | None:
    """Return why a change gets no message, one of `ciml.verdicts.feedback.state.FINAL`; None if it gets one."""
    if head.state != "open":
        return head.state
    if not head.is_at(change):
        return "outdated"
    word = mute_word.casefold()
    if word in head.title.casefold() or any(label.strip().casefold() == word for label in head.labels):
        return "muted"
    return None


def _is_same(state: FeedbackState, entry: Entry) -> bool:
    """Return whether an entry is as it was read, so that an intent may follow."""
    now = state.entries.get(entry.key)
    return now is not None and now.intent is None and (now.number, now.done) == (entry.number, entry.done)


def _has_intent(state: FeedbackState, key: str, intent: Intent | None) -> bool:
    """Return whether an entry is there, with this intent; with none for None."""
    now = state.entries.get(key)
    if now is None or now.intent is None or intent is None:
        return now is not None and now.intent is intent
    return now.intent.number == intent.number
