"""Render messages on changes (pure): the verdict, its support, evidence, measured reruns, and how to object."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ciml.digest import sha256_json
from ciml.integrations.markup import cut, inert, quoted_name
from ciml.integrations.review import ChangeRef, Format, Rendered
from ciml.verdict_rules import UNKNOWN
from ciml.verdicts.feedback.config import Policy
from ciml.verdicts.feedback.judgement import Item
from ciml.verdicts.signatures.notes import Note

_NAME_BYTES = 120
_SENTENCE_BYTES = 1000
_TITLE_BYTES = 200
#: Most observations of a run, besides an operator's note: if it is the only one, and if there are several.
_MOST_OBSERVATIONS = 4
_MOST_OBSERVATIONS_EACH = 1
_CAUSE_WORDS = {"code": "this change", "machine": "the machine"}
#: The same in a sentence about runs of any change.
_CAUSE_WORDS_OF_ALL = {"code": "their change", "machine": "the machine"}
#: Wording for a cause named by an operator: it applies to all runs with the same failure, not only to this change.
_NAMED_CAUSES = {"code": "the code", "machine": "the machine"}
_NO_VERDICT = "The model gives no verdict: it is not certain enough of a cause."
_COMMIT = re.compile(r"[0-9a-f]{7,64}")
_NUMBER = re.compile(r"[0-9]{1,6}")
_STAMP = re.compile(
    r"(?P<marker>ciml:[0-9a-f]{16}):(?P<patchset>[0-9a-f]{8}):(?P<causes>[a-z]+(?:\+[a-z]+)*):(?P<digest>[0-9a-f]{12})"
)


@dataclass(frozen=True)
class Finding:
    """A verdict with its evidence.

    Attributes:
      item: the verdict; the cause is `UNKNOWN` if only the note is sent.
      observations: checked sentences, the strongest first, but an operator's note before all. They may contain hostile
        names.
      picture: URL of the picture below our own base URL; "" for none.
      output: URL of the output on a host that the policy allows; "" for none.
      note: an operator's note on the failure, with hostile texts. A cause that it names overrides the verdict.
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
        """Whether there is a verdict or a note to send."""
        return self.item.cause != UNKNOWN or self.note is not None

    @property
    def cause(self) -> str:
        """The cause that the message states."""
        return self.named_cause or self.item.cause

    def sentences(self, most: int) -> list[str]:
        """Return the operator's note and at most ``most`` other observations, as inert text; nothing for 0."""
        if not most:
            return []
        shown = most if self.note is None else most + 1
        return [inert(text, _SENTENCE_BYTES) for text in self.observations[:shown]]


@dataclass(frozen=True)
class Style:
    """The form of a message.

    Attributes:
      format: markup of the review system.
      most_bytes: largest size of a message in bytes.
      can_react: whether reviewers can react to the message with an emoji.
      policy: how many jobs have a line of their own, the word that mutes a change, and how many reruns are needed to
        report how many passed.
    """

    format: Format
    most_bytes: int
    can_react: bool
    policy: Policy

    @classmethod
    def of_dry_run(cls, markup: Format, policy: Policy) -> Style:
        """Return the form of a message that is only printed."""
        return cls(markup, policy.max_bytes, markup != "gerrit", policy)


class Stamp(NamedTuple):
    """The last line of our messages, by which `Outbox` recognises a message that it has sent.

    Attributes:
      marker: from `marker_of`.
      patchset: key of the patch set.
      causes: the stated causes as one word: ``code``, ``code+machine``, …; ``unknown`` for a note without a cause.
      digest: of the text.
    """

    marker: str
    patchset: str
    causes: str
    digest: str

    def __str__(self) -> str:
        return ":".join(self)

    @classmethod
    def find(cls, text: str, marker: str) -> Stamp | None:
        """Return the first stamp with a marker in a text; None if there is none."""
        stamps = (cls(**match.groupdict()) for match in _STAMP.finditer(text))
        return next((stamp for stamp in stamps if stamp.marker == marker), None)

    @classmethod
    def of(cls, message: Rendered) -> Stamp:
        """Return the stamp of a message from `render`."""
        return cls(message.marker, *message.stamp.removeprefix(f"{message.marker}:").split(":"))

    def states_the_same_as(self, other: Stamp | None) -> bool:
        """Return whether another message states the same causes on the same patch set."""
        return other is not None and (self.patchset, self.causes) == (other.patchset, other.causes)


def marker_of(system: str, project: str, change: str) -> str:
    """Return the marker of all our messages on a change. ``change`` is the number in the review system."""
    return f"ciml:{sha256_json([system, project, change])[:16]}"


def render(findings: Sequence[Finding], marker: str, change: ChangeRef, style: Style) -> Rendered:
    """Render the message on a patch set.

    The same findings give the same bytes. A message longer than `Style.most_bytes` loses whole lines: observations
    first, then jobs. The first line and the stamp are always kept.

    Args:
      findings: at least one, in any order; each `Finding.is_worth_sending`.
      marker: from `marker_of`.
      change: the patch set.
      style: form and limits.
    """
    ordered = sorted(findings, key=_order)
    title = _title(ordered)
    patchset = sha256_json(change.head or change.patchset)[:8]
    causes = "+".join(sorted({finding.cause for finding in ordered}))
    for size in _sizes(len(ordered), style.policy.max_jobs):
        text = "\n\n".join(_blocks(title, ordered, size, change, style))
        stamp = Stamp(marker, patchset, causes, hashlib.sha256(text.encode()).hexdigest()[:12])
        body = f"{text}\n\n{stamp if style.format == 'gerrit' else f'<!-- {stamp} -->'}"
        if len(body.encode()) <= style.most_bytes:
            break
    runs = tuple(finding.item.run_id for finding in ordered[: size.jobs])
    return Rendered(cut(title, _TITLE_BYTES), body, marker, str(stamp), runs)


class _Size(NamedTuple):
    """Limits on the parts of a message: jobs with a line of their own, and observations of each job."""

    jobs: int
    observations: int


def _sizes(findings: int, max_jobs: int) -> Iterator[_Size]:
    """Yield sizes of a message, the largest first."""
    jobs = min(findings, max_jobs)
    most = _MOST_OBSERVATIONS if findings == 1 else _MOST_OBSERVATIONS_EACH
    for observations in range(most, -1, -1):
        yield _Size(jobs, observations)
    if findings > 1:
        for fewer_jobs in range(jobs - 1, -1, -1):
            yield _Size(fewer_jobs, 0)


def _blocks(title: str, ordered: Sequence[Finding], size: _Size, change: ChangeRef, style: Style) -> list[str]:
    if len(ordered) == 1:
        details = _blocks_of_run(ordered[0], size.observations, style)
    else:
        details = _blocks_of_runs(ordered, size, style)
    is_note = all(finding.item.cause == UNKNOWN for finding in ordered)
    footer = _footer(change, style, is_note=is_note)
    return [f"{_bold(title, style.format)}.", *details, *_rerun_lines(ordered, style), footer]


def _order(finding: Finding) -> tuple[str, float, str, str]:
    item = finding.item
    return item.cause, -item.probability, item.job, item.run_id


def _title(ordered: Sequence[Finding]) -> str:
    """Return the first line, without its full stop."""
    if len(ordered) == 1:
        finding = ordered[0]
        job = quoted_name(finding.item.job, _NAME_BYTES)
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
    return quoted_name("" if finding.note is None else finding.note.author, _NAME_BYTES)


def _blocks_of_run(finding: Finding, observations: int, style: Style) -> list[str]:
    """Return the blocks of the only run: the support for the verdict, then a list of evidence."""
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


def _blocks_of_runs(ordered: Sequence[Finding], size: _Size, style: Style) -> list[str]:
    """Return one block: a line for each job, and a line that counts the other jobs."""
    lines = []
    for finding in ordered[: size.jobs]:
        job = quoted_name(finding.item.job, _NAME_BYTES)
        sentences = finding.sentences(size.observations)
        lines.append(" ".join([f"- {job}: {_verdict_of_job(finding)}", *sentences]))
        if finding.output and size.observations:
            lines.append(f"- {_link('Output', finding.output, style.format)} of {job}")
        if finding.picture and size.observations:
            lines.append(f"- {_link('Picture', finding.picture, style.format)} of {job}")
    if len(ordered) > size.jobs:
        lines.append(f"- and {len(ordered) - size.jobs} more")
    return ["\n".join(lines)]


def _verdict_of_job(finding: Finding) -> str:
    """Return the verdict on one of several jobs, and the support for it."""
    item = finding.item
    named = f"{_named(finding)}; " if finding.named_cause else ""
    if item.cause == UNKNOWN:
        return f"{named or f'{_author(finding)} has a note on it; '}the model gives no verdict."
    whose = "the model's own verdict is " if named else ""
    return f"{named}{whose}{_CAUSE_WORDS[item.cause]} ({_probability_text(item)}). {_track_record(item)}"


def _probability_text(item: Item) -> str:
    """Return probability and base rate: ``91 %; base rate 63 % of 214 failed runs``."""
    verdict = item.verdict
    probability = _percent(min(item.probability, 0.99))  # a model is never certain
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
    """Return a share in per cent; only exact shares are 0 % and 100 %."""
    if share in (0, 1):
        return f"{100 * share:.0f} %"
    return "under 1 %" if share < 0.01 else f"{min(round(100 * share), 99)} %"


def _rerun_lines(ordered: Sequence[Finding], style: Style) -> list[str]:
    """Return how many earlier runs with each verdict passed when they ran again; nothing for too few reruns."""
    lines = []
    for cause, words in _CAUSE_WORDS_OF_ALL.items():
        item = next((finding.item for finding in ordered if finding.item.cause == cause), None)
        if item is None or item.reruns < style.policy.min_reruns:
            continue
        lines.append(
            f"Earlier runs, also of other changes, that ciml put down to {words}: {item.reruns} ran again unchanged, "
            f"and {item.passed} of these passed."
        )
    return ["\n".join(lines)] if lines else []


def _footer(change: ChangeRef, style: Style, *, is_note: bool) -> str:
    objection = "react with 👎, or reply “not helpful”" if style.can_react else "reply “not helpful”"
    source = "found this note by" if is_note else "estimated this from"
    return (
        f"ciml {source} the runs of {_patchset(change)}. Wrong: {objection}. "
        f"No messages on this change: put {quoted_name(style.policy.mute_word)} into its title."
    )


def _patchset(change: ChangeRef) -> str:
    # Review systems do not turn a six-character commit id into a link.
    if change.patchset and _NUMBER.fullmatch(change.patchset):
        return f"patch set {change.patchset}"
    commit = change.head or change.patchset
    return f"commit {commit[:6]}" if _COMMIT.fullmatch(commit) else "this patch set"


def _bold(line: str, markup: Format) -> str:
    return line if markup == "gerrit" else f"**{line}**"


def _link(words: str, url: str, markup: Format) -> str:
    return f"{words}: {url}" if markup == "gerrit" else f"[{words}]({url})"
