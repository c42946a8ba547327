"""Renders messages (pure): the verdict, what supports it, evidence, measured reruns, and how to object."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ciml.digest import sha256_json
from ciml.integrations.markup import cut, inert, name
from ciml.integrations.review import ChangeRef, Format, Rendered
from ciml.verdict_rules import UNKNOWN
from ciml.verdicts.feedback.config import Policy
from ciml.verdicts.feedback.judgement import Item
from ciml.verdicts.signatures.notes import Note

_NAME_BYTES = 120
_SENTENCE_BYTES = 1000
_TITLE_BYTES = 200
#: Most observations of the only run of a message, and of each of several runs, besides an operator's note.
_MOST_OBSERVATIONS = 4
_MOST_OBSERVATIONS_EACH = 1
_CAUSE_WORDS = {"code": "this change", "machine": "the machine"}
#: The cause that an operator named: that of all runs which failed alike, not of this change alone.
_NAMED_CAUSES = {"code": "the code", "machine": "the machine"}
_NO_VERDICT = "The model gives no verdict: it is not certain enough of a cause."
_COMMIT = re.compile(r"[0-9a-f]{7,64}")
_NUMBER = re.compile(r"[0-9]{1,6}")
_STAMP = re.compile(r"ciml:[0-9a-f]{16}:(?P<patchset>[0-9a-f]{8}):(?P<causes>[a-z+]{1,20}):[0-9a-f]{12}")


@dataclass(frozen=True)
class Finding:
    """A verdict with its evidence.

    Attributes:
      item: the verdict; its cause is `UNKNOWN` if only the note is sent.
      observations: checked sentences, the strongest first; they may hold hostile names. The note's comes first.
      picture: address of the picture below our own base URL; "" for none.
      output: address of the output at a host of the policy; "" for none.
      note: what an operator says about the failure; its texts are hostile. Its cause counts more than the verdict's.
    """

    item: Item
    observations: tuple[str, ...] = ()
    picture: str = ""
    output: str = ""
    note: Note | None = None

    @property
    def named_cause(self) -> str:
        """The cause that an operator named; "" without one."""
        return "" if self.note is None else self.note.cause

    @property
    def is_worth_sending(self) -> bool:
        """Whether there is a verdict, or a note in place of it."""
        return self.item.cause != UNKNOWN or self.note is not None

    @property
    def cause(self) -> str:
        """The cause that the message states."""
        return self.named_cause or self.item.cause

    def sentences(self, most: int) -> list[str]:
        """Return the operator's note and at most ``most`` other observations, as text; none for 0."""
        shown = most + (self.note is not None) if most else 0
        return [inert(text, _SENTENCE_BYTES) for text in self.observations[:shown]]


@dataclass(frozen=True)
class Style:
    """The form of a message.

    Attributes:
      format: markup of the system.
      most_bytes: most bytes of a message.
      can_react: whether reviewers can react to the message with an emoji.
      policy: how many jobs have a line of their own, the word that mutes a change, and how many reruns are needed to
        report how many passed.
    """

    format: Format
    most_bytes: int
    can_react: bool
    policy: Policy


def marker_of(system: str, project: str, change: str) -> str:
    """Return the marker in all our messages on a change. The change is its number, as the system has it."""
    return f"ciml:{sha256_json([system, project, change])[:16]}"


def patchset_key(change: ChangeRef) -> str:
    """Return the part of a stamp that identifies the patch set."""
    return sha256_json(change.head or change.patchset)[:8]


def causes_of(findings: Iterable[Finding]) -> str:
    """Return the causes that a message states as one word: ``code``, ``code+machine``, …; ``unknown`` for a note."""
    return "+".join(sorted({finding.cause for finding in findings}))


def causes_in(message: Rendered) -> str:
    """Return the causes that a message states, by its stamp."""
    return message.stamp.split(":")[3]


def stamped(body: str, marker: str) -> tuple[str, str] | None:
    """Return patch set key and verdicts of a message of ours by its stamp; None without a stamp."""
    for match in _STAMP.finditer(body):
        if match[0].startswith(f"{marker}:"):
            return match["patchset"], match["causes"]
    return None


def render(findings: Sequence[Finding], marker: str, change: ChangeRef, style: Style) -> Rendered:
    """Render the message on a patch set.

    The same findings give the same bytes. A message longer than `Style.most_bytes` loses whole lines: observations
    first, then jobs. The first line and the marker are always kept.

    Args:
      findings: at least one, in any order.
      marker: from `marker_of`.
      change: the patch set.
      style: form and limits.
    """
    ordered = sorted(findings, key=_order)
    title = _title(ordered)
    prefix = f"{marker}:{patchset_key(change)}:{causes_of(ordered)}:"
    jobs = min(len(ordered), style.policy.max_jobs)
    observations = _MOST_OBSERVATIONS if len(ordered) == 1 else _MOST_OBSERVATIONS_EACH
    while True:
        if len(ordered) == 1:
            details = _blocks_of_run(ordered[0], observations, style)
        else:
            details = _blocks_of_runs(ordered, jobs, observations, style)
        blocks = [f"{_bold(title, style.format)}.", *details, *_rerun_lines(ordered, style)]
        blocks.append(_footer(change, style, is_note=all(finding.item.cause == UNKNOWN for finding in ordered)))
        text = "\n\n".join(blocks)
        stamp = prefix + hashlib.sha256(text.encode()).hexdigest()[:12]
        body = f"{text}\n\n{stamp if style.format == 'gerrit' else f'<!-- {stamp} -->'}"
        if len(body.encode()) <= style.most_bytes or not (jobs or observations):
            return Rendered(cut(title, _TITLE_BYTES), body, marker, stamp)
        if observations:
            observations -= 1
        else:
            jobs -= 1


def _order(finding: Finding) -> tuple[str, float, str, str]:
    item = finding.item
    return item.cause, -item.probability, item.job, item.run_id


def _title(ordered: Sequence[Finding]) -> str:
    """Return the first line, without its full stop."""
    if len(ordered) == 1:
        finding = ordered[0]
        job = name(finding.item.job, _NAME_BYTES)
        if finding.named_cause:
            return f"{job} failed; {_named(finding)}"
        if finding.cause == UNKNOWN:
            return f"{job} failed; {_author(finding)} has a note on it"
        return f"{job} failed, probably because of {_CAUSE_WORDS[finding.cause]}"
    parts = []
    for cause, words in _CAUSE_WORDS.items():
        count = sum(finding.cause == cause and not finding.named_cause for finding in ordered)
        if count:
            parts.append(f"{count} probably because of {words}")
    if named := sum(bool(finding.named_cause) for finding in ordered):
        parts.append(f"{named} for a cause that was named by hand")
    if noted := sum(finding.cause == UNKNOWN for finding in ordered):
        parts.append(f"{noted} with a note by hand")
    return f"{len(ordered)} jobs failed: {', '.join(parts)}"


def _named(finding: Finding) -> str:
    """Return the cause that an operator named, and who it was."""
    return f"{_author(finding)} named the cause: {_NAMED_CAUSES[finding.named_cause]}"


def _author(finding: Finding) -> str:
    return name("" if finding.note is None else finding.note.author, _NAME_BYTES)


def _blocks_of_run(finding: Finding, observations: int, style: Style) -> list[str]:
    """Return the blocks of the only run: the support of its verdict, then a list of evidence."""
    item = finding.item
    lines = [f"- {text}" for text in finding.sentences(observations)]
    if finding.output and observations:
        lines.append(f"- {_link('Its output', finding.output, style.format)}")
    if finding.picture and observations:
        lines.append(f"- {_link('Picture of its telemetry', finding.picture, style.format)}")
    if item.cause == UNKNOWN:
        return [_NO_VERDICT, "\n".join(lines)] if lines else [_NO_VERDICT]
    whose = f"The model's own verdict is {_CAUSE_WORDS[item.cause]}. Its" if finding.named_cause else "The model's"
    support = f"{whose} probability is {_probability_text(item)}. {_track_record(item)}"
    return [support, "\n".join(lines)] if lines else [support]


def _blocks_of_runs(ordered: Sequence[Finding], jobs: int, observations: int, style: Style) -> list[str]:
    """Return one block: a line for each job, and one for the others."""
    lines = []
    for finding in ordered[:jobs]:
        item = finding.item
        job = name(item.job, _NAME_BYTES)
        sentences = finding.sentences(observations)
        lines.append(" ".join([f"- {job}: {_verdict_of_job(finding)}", *sentences]))
        if finding.output and observations:
            lines.append(f"- {_link('Output', finding.output, style.format)} of {job}")
        if finding.picture and observations:
            lines.append(f"- {_link('Picture', finding.picture, style.format)} of {job}")
    if len(ordered) > jobs:
        lines.append(f"- and {len(ordered) - jobs} more")
    return ["\n".join(lines)]


def _verdict_of_job(finding: Finding) -> str:
    """Return the verdict on one of several jobs, and its support."""
    item = finding.item
    named = f"{_named(finding)}; " if finding.named_cause else ""
    if item.cause == UNKNOWN:
        return f"{named or f'{_author(finding)} has a note on it; '}the model gives no verdict."
    whose = "the model's own verdict is " if named else ""
    return f"{named}{whose}{_CAUSE_WORDS[item.cause]} ({_probability_text(item)}). {_track_record(item)}"


def _probability_text(item: Item) -> str:
    """Return probability and base rate: ``91 %; base rate 63 % of 214 failed runs``. It is never 100 %."""
    verdict = item.verdict
    probability = _percent(item.probability)
    if verdict.without_telemetry:
        probability += " by its outcome and its output, without telemetry"
    base_rate = verdict.base_rate.get(item.cause)
    if base_rate is None or not verdict.runs:
        return probability
    whose = " of this job" if verdict.group and verdict.group == item.job else ""
    return f"{probability}; base rate {_percent(base_rate)} of {verdict.runs} failed runs{whose}"


def _track_record(item: Item) -> str:
    """Return a sentence on how often such verdicts were right."""
    if not item.settled:
        return "No rerun or reviewer has checked such a verdict yet."
    return f"Checked by reruns or reviewers: {item.right} of the last {item.settled} such verdicts were right."


def _percent(share: float) -> str:
    return "under 1 %" if share < 0.01 else f"{min(round(100 * share), 99)} %"


def _rerun_lines(ordered: Sequence[Finding], style: Style) -> list[str]:
    """Return the numbers of runs with each verdict that ran again and passed; nothing for a cause with too few."""
    lines = []
    for cause, words in _CAUSE_WORDS.items():
        item = next((finding.item for finding in ordered if finding.item.cause == cause), None)
        if item is None or item.reruns < style.policy.min_reruns:
            continue
        lines.append(
            f"Runs that ciml put down to {words}: {item.reruns} ran again unchanged, and {item.passed} of these passed."
        )
    return ["\n".join(lines)] if lines else []


def _footer(change: ChangeRef, style: Style, *, is_note: bool) -> str:
    objection = "react with 👎, or reply “not helpful”" if style.can_react else "reply “not helpful”"
    source = "found this note by" if is_note else "estimated this from"
    return (
        f"ciml {source} the runs of {_patchset(change)}. Wrong: {objection}. "
        f"No messages on this change: put {name(style.policy.mute_word)} into its title."
    )


def _patchset(change: ChangeRef) -> str:
    # Six characters of a commit do not become a link.
    if change.patchset and _NUMBER.fullmatch(change.patchset):
        return f"patch set {change.patchset}"
    commit = change.head or change.patchset
    return f"commit {commit[:6]}" if _COMMIT.fullmatch(commit) else "this patch set"


def _bold(line: str, markup: Format) -> str:
    return line if markup == "gerrit" else f"**{line}**"


def _link(words: str, url: str, markup: Format) -> str:
    return f"{words}: {url}" if markup == "gerrit" else f"[{words}]({url})"
