"""The manifest of feedback: covered predictions, the verdicts to say on each patch set, and the outcomes of messages.

An `Entry` is the outbox of a patch set. A call that changes something is stored as an intent before it is sent, and
closed by its outcome; an intent without outcome is settled by reading our marker (`ciml.verdicts.feedback.outbox`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from ciml.digest import sha256_json
from ciml.errors import IntegrityError
from ciml.integrations.review import ChangeRef, Posted
from ciml.limits import MAX_FEEDBACK_ENTRIES, MAX_FEEDBACK_JOBS, MAX_FEEDBACK_TEXTS
from ciml.manifest.checkpoints import Checkpointed
from ciml.manifest.coverage import TopicState
from ciml.manifest.id_index import IdTable, Rows
from ciml.manifest.log import Delta
from ciml.verdicts.feedback.judgement import Item, recorded_claim
from ciml.verdicts.feedback.standing import RecordedVerdict, Records

#: For how long an entry is kept after its last event: later verdicts on its patch set begin a new one.
KEEP_US = 3 * 86_400_000_000
#: Bounds of the histogram from a run's end to its message, seconds. Checkpoints store counts by them.
SECONDS = (5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 21600.0)

Action = Literal["post", "edit"]
#: Outcomes of a message that leave an entry without a pending verdict. After the others, ``not_sent`` and
#: ``not_found``, the message is tried again.
FINAL = frozenset(
    "posted edited unchanged said dry_run no_note outdated merged abandoned missing muted late refused".split()
)
_OF_MESSAGES = frozenset({"posted", "edited"})
REACTIONS = ("up", "down", "not_helpful")


@dataclass(slots=True)
class Intent:
    """A call that is about to be sent, or was.

    Attributes:
      number: of the entry's intents, from 1.
      action: the call of the review client.
      stamp, marker: of the message, to settle the call.
      change: the number of the change, as the system has it.
      changes: `Entry.changes` that the message is about.
      causes: its verdicts.
      time_us: when it was stored, epoch microseconds; 0 before.
      runs: see `Rendered.runs`.
    """

    number: int
    action: Action
    stamp: str
    marker: str
    change: str
    changes: int
    causes: str
    time_us: int = 0
    runs: tuple[str, ...] = ()


@dataclass(slots=True)
class Text:
    """A text of a message on a change.

    Attributes:
      time_us: when the call that wrote it began, epoch microseconds.
      causes: the stated causes (`Stamp.causes`).
      runs: see `Rendered.runs`; empty if they are unknown.
      is_edit: whether the message had another text before.
    """

    time_us: int
    causes: str
    runs: tuple[str, ...] = ()
    is_edit: bool = True


@dataclass(slots=True)
class Entry:
    """The verdicts and the message of a patch set, pending or sent.

    Attributes:
      key: see `entry_key`.
      system: name of the review system.
      change: the patch set.
      items: the last verdict of each job.
      changes: number of changes of ``items``; ``done`` of them are sent, or will not be.
      since_us, last_us: time of the first and the last verdict after ``done``.
      number: of its intents.
      intent: the one whose outcome is unknown.
      outcome: the last final one; "" before it.
      detail: of the outcome, for people.
      posted: our message.
      posted_us: when it was posted or last edited.
      texts: its last texts on this patch set, in order; none of earlier versions.
      reactions: accounts by `REACTIONS`.
      touched_us: time of its last event.
    """

    key: str
    system: str
    change: ChangeRef
    items: dict[str, Item] = field(default_factory=dict)
    changes: int = 0
    done: int = 0
    since_us: int = 0
    last_us: int = 0
    number: int = 0
    intent: Intent | None = None
    outcome: str = ""
    detail: str = ""
    posted: Posted | None = None
    posted_us: int = 0
    texts: list[Text] = field(default_factory=list)
    reactions: dict[str, list[str]] = field(default_factory=dict)
    touched_us: int = 0

    @property
    def is_open(self) -> bool:
        """Whether there is something to say, or to settle."""
        return self.changes > self.done or self.intent is not None

    def to_json(self) -> dict[str, Any]:
        return {**msgspec.to_builtins(self), "items": [item.to_json() for item in self.items.values()]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Entry:
        return msgspec.convert({**value, "items": {item["job"]: item for item in value["items"]}}, cls)


def entry_key(system: str, change: ChangeRef) -> str:
    """Return the key of a patch set's entry. Without a number, the commit and its branch stand for the change."""
    identity = change.change or f"@{change.head or change.patchset}"
    parts = [system, change.project, identity, change.head or change.patchset]
    if not change.change and change.head_project:
        parts += [change.head_project, change.head_branch]
    return sha256_json(parts)[:32]


def _add_text(entry: Entry, record: Mapping[str, Any], intent: Intent | None, now_us: int) -> None:
    """Add the text of a message to its entry: that of an intent, or of a message that was there already."""
    if intent is not None:
        text = Text(intent.time_us, intent.causes, intent.runs, intent.action == "edit")
    else:
        text = Text(now_us, record["causes"], tuple(record.get("runs", ())))
        last = entry.texts[-1] if entry.texts else None
        if last is not None and (record["outcome"] == "said" or (last.causes, last.runs) == (text.causes, text.runs)):
            return
    entry.texts = [*entry.texts, text][-MAX_FEEDBACK_TEXTS:]


def _is_proved(item: Item) -> bool:
    """Return whether a receiver proved who sent the event of the item's run."""
    return bool(item.prediction["run"].get("auth"))


def _identity(item: Item) -> tuple[str, str]:
    """Return what two copies of a prediction share. One of another producer may have no id."""
    return item.run_id, item.prediction.get("id", "")


def _precedence(item: Item) -> tuple[bool, int]:
    """Return the sort key of a job's runs: anybody may claim a run of a change, so a proof counts before the end."""
    return _is_proved(item), item.end_us


def _put(entry: Entry, item: Item) -> str:
    """Add a verdict to an entry, unless it repeats one, ranks below one of its job, or is one too many."""
    previous = entry.items.get(item.job)
    if previous is not None and _identity(previous) == _identity(item):
        return "repeat"
    if previous is not None and _precedence(previous) > _precedence(item):
        return "superseded"
    if previous is None and len(entry.items) >= MAX_FEEDBACK_JOBS and not _make_room(entry, item):
        return "too_many"
    entry.items[item.job] = item
    return "taken"


def _make_room(entry: Entry, item: Item) -> bool:
    """Remove a verdict on a run without a proof, for one with a proof; return whether there was one."""
    weaker = next((job for job, rival in entry.items.items() if not _is_proved(rival)), None)
    if weaker is None or not _is_proved(item):
        return False
    del entry.items[weaker]
    return True


class FeedbackState(TopicState):
    """The state of the manifest after its deltas.

    Attributes:
      entries: by key, the one touched last at the end.
      opened: keys of those that are open (`Entry.is_open`).
      moved: keys of entries whose change was found by its commit, and their present keys.
      verdicts: predictions by what became of them: ``taken``, ``repeat``, ``superseded``, ``too_many``, or a reason of
        `ciml.verdicts.feedback.judgement.SILENT`.
      messages: by (system, outcome).
      reacted: reactions by (system, kind).
      paused: until when a system may not be called, epoch microseconds.
      muted: globs of projects that get no messages.
      history: recorded verdicts, sent or not, and their settled causes.
      seconds, seconds_us: histogram of `SECONDS` by (system, bucket), and the sum by system, microseconds.
    """

    counters = ("messages", "reacted", "seconds")
    mappings = ("moved", "verdicts", "paused", "seconds_us")

    def __init__(self) -> None:
        super().__init__()
        self.entries: dict[str, Entry] = {}
        self.opened: dict[str, None] = {}
        self.moved: dict[str, str] = {}
        self.verdicts: Counter[str] = Counter()
        self.messages: Counter[tuple[str, str]] = Counter()
        self.reacted: Counter[tuple[str, str]] = Counter()
        self.paused: dict[str, int] = {}
        self.muted: set[str] = set()
        self.history = Records()
        self.seconds: Counter[tuple[str, int]] = Counter()
        self.seconds_us: Counter[str] = Counter()

    def find(self, system: str, change: ChangeRef) -> Entry | None:
        """Return the entry of a patch set."""
        key = entry_key(system, change)
        return self.entries.get(self.moved.get(key, key))

    def apply(self, version: int, delta: Delta) -> None:
        """Apply the next delta. Raises `IntegrityError` if it is not the next, or contradicts earlier ones."""
        if version != self.version + 1:
            raise IntegrityError(f"feedback manifest: version {version} follows {self.version}")
        self.torn = True
        now_us = delta["time_us"]
        self.cover(delta.get("offsets", {}))
        self.verdicts.update(delta.get("silent", {}))
        for record in delta.get("verdicts", ()):
            self.verdicts[self._take(Item.from_json(record), now_us)] += 1
        for value in self._recorded_of(delta):
            self.history.put(value)
        for name, apply_record in (
            ("settled", self._settle_verdict),
            ("moves", self._move),
            ("intents", self._intend),
            ("outcomes", self._close),
            ("reactions", self._react),
        ):
            for record in delta.get(name, ()):
                apply_record(record, now_us)
        self.paused.update(delta.get("paused", {}))
        self.muted |= set(delta.get("muted", ()))
        self.muted -= set(delta.get("unmuted", ()))
        self._prune(now_us)
        self.records += sum(len(value) for value in delta.values() if isinstance(value, list)) + 1
        self.torn = False
        self.version = version
        self.time_us = now_us

    def _recorded_of(self, delta: Delta) -> Iterable[RecordedVerdict]:
        """Return the verdicts that a delta records. Earlier versions recorded only those to be sent."""
        if "recorded" not in delta:
            return [recorded_claim(record["prediction"], delta["time_us"]) for record in delta.get("verdicts", ())]
        return map(RecordedVerdict.from_json, delta["recorded"])

    def _settle_verdict(self, record: Mapping[str, Any], now_us: int) -> None:
        verdict = self.history.find(record["id"])
        if verdict is not None:
            settled_us = now_us if record["cause"] else 0
            self.history.put(
                verdict.replace(
                    settled=record["cause"], by=record["by"], settled_us=settled_us, trusted=record["trusted"]
                )
            )

    def _touch(self, entry: Entry, now_us: int) -> None:
        entry.touched_us = now_us
        self._drop(entry.key)
        self.entries[entry.key] = entry
        if entry.is_open:
            self.opened[entry.key] = None

    def _drop(self, key: str) -> None:
        self.entries.pop(key, None)
        self.opened.pop(key, None)

    def _take(self, item: Item, now_us: int) -> str:
        entry = self.find(item.system, item.ref)
        if entry is None:
            key = entry_key(item.system, item.ref)
            entry = Entry(key, item.system, item.ref)
        outcome = _put(entry, item)
        if outcome != "taken":
            return outcome
        if entry.changes == entry.done:
            entry.since_us = now_us
        entry.changes += 1
        entry.last_us = now_us
        self._touch(entry, now_us)
        return outcome

    def _move(self, record: Mapping[str, Any], now_us: int) -> None:
        """Give an entry the number of its change; one that is there already takes its verdicts."""
        entry = self._entry(record["entry"])
        self._drop(entry.key)
        entry.change = ChangeRef(**record["change"])
        key = entry_key(entry.system, entry.change)
        self.moved[entry.key] = key
        target = self.entries.get(key)
        if target is None:
            entry.key = key
            self._touch(entry, now_us)
            return
        for item in entry.items.values():
            _put(target, item)
        if target.changes == target.done:
            target.since_us = entry.since_us
        target.changes += 1
        target.last_us = max(target.last_us, entry.last_us)
        self._touch(target, now_us)

    def _intend(self, record: Mapping[str, Any], now_us: int) -> None:
        entry = self._entry(record["entry"])
        values = {name: value for name, value in record.items() if name != "entry"}
        intent = msgspec.convert({**values, "time_us": now_us}, Intent)
        if entry.intent is not None or intent.number != entry.number + 1:
            raise self._contradiction(f"{entry.key} has an intent that is not settled")
        entry.number = intent.number
        entry.intent = intent
        self._touch(entry, now_us)

    def _close(self, record: Mapping[str, Any], now_us: int) -> None:
        entry = self._entry(record["entry"])
        outcome = record["outcome"]
        intent = None
        if record["number"]:
            intent = entry.intent
            if intent is None or intent.number != record["number"]:
                raise self._contradiction(f"{entry.key} has no intent {record['number']}")
            entry.intent = None
        self.messages[entry.system, outcome] += 1
        entry.detail = record.get("detail", "")
        if outcome in FINAL:
            entry.outcome = outcome
            entry.done = max(entry.done, record["changes"])
            if entry.changes > entry.done:
                entry.since_us = now_us
        if record.get("posted"):
            entry.posted = msgspec.convert(record["posted"], Posted)
            entry.posted_us = now_us
            _add_text(entry, record, intent, now_us)
        if outcome in _OF_MESSAGES:
            self._measure(entry, now_us)
        self._touch(entry, now_us)

    def _measure(self, entry: Entry, now_us: int) -> None:
        took_us = max(now_us - max(item.end_us for item in entry.items.values()), 0)
        self.seconds[entry.system, bisect_left(SECONDS, took_us / 1e6)] += 1
        self.seconds_us[entry.system] += took_us

    def _react(self, record: Mapping[str, Any], now_us: int) -> None:
        entry = self.entries.get(record["entry"])
        if entry is None:
            return
        for kind in REACTIONS:
            accounts = entry.reactions.get(kind, [])
            new = [account for account in record[kind] if account not in accounts]
            self.reacted[entry.system, kind] += len(new)
            entry.reactions[kind] = [*accounts, *new]

    def _entry(self, key: str) -> Entry:
        if key not in self.entries:
            raise self._contradiction(f"there is no entry {key}")
        return self.entries[key]

    def _contradiction(self, problem: str) -> IntegrityError:
        return IntegrityError(f"feedback manifest: version {self.version + 1}: {problem}")

    def _prune(self, now_us: int) -> None:
        """Forget entries that have nothing to say and were not touched for `KEEP_US`.

        Beyond the limit, forget the oldest; entries of runs without a proof first.
        """
        old = {}
        for key, entry in self.entries.items():  # the one touched longest ago first
            if now_us - entry.touched_us <= KEEP_US:
                break
            if not entry.is_open:
                old[key] = entry
        too_many = len(self.entries) - len(old) - MAX_FEEDBACK_ENTRIES
        if too_many > 0:
            candidates = [entry for key, entry in self.entries.items() if entry.intent is None and key not in old]
            candidates.sort(key=lambda entry: any(map(_is_proved, entry.items.values())))
            old |= {entry.key: entry for entry in candidates[:too_many]}
        for key, entry in old.items():
            self._drop(key)
            if entry.is_open:
                self.messages[entry.system, "overflow"] += 1
        if old or len(self.moved) > MAX_FEEDBACK_ENTRIES:
            self.moved = {key: present for key, present in self.moved.items() if present in self.entries}

    def snapshot(self) -> dict[str, Any]:
        """Return the state as JSON."""
        return {
            **self.coverage(),
            "entries": [entry.to_json() for entry in self.entries.values()],
            "muted": sorted(self.muted),
            "recorded": [verdict.to_json() for verdict in self.history],
        }

    @classmethod
    def restored_from(cls, version: int, value: Mapping[str, Any], tables: Mapping[str, IdTable]) -> FeedbackState:
        """Return the state at a checkpoint; see `ciml.manifest.checkpoints.Checkpointed`."""
        state = cls()
        state.restore_coverage(version, value)
        state.entries = {entry_value["key"]: Entry.from_json(entry_value) for entry_value in value.get("entries", ())}
        state.opened = {key: None for key, entry in state.entries.items() if entry.is_open}
        state.muted = set(value.get("muted", ()))
        if "recorded" in value:
            state.history = Records(map(RecordedVerdict.from_json, value["recorded"]))
        else:  # of an earlier version: its messages of the last three days
            items = [item for entry in state.entries.values() for item in entry.items.values()]
            state.history = Records(recorded_claim(item.prediction, state.time_us) for item in items)
        return state

    def recent(self) -> dict[str, Rows]:
        """Return nothing: it has no table of ids."""
        return {}


#: Checkpoint format of a feedback manifest.
FEEDBACK = Checkpointed({}, FeedbackState.restored_from)
