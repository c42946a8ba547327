"""Writes messages (pure): a line that answers, base rate, evidence, advice, and how to mute."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ciml.digest import sha256_json
from services.feedback.client import ChangeRef, Format, Rendered
from services.feedback.inert import cut, inert, name
from services.feedback.policy import Item

_NAME_BYTES = 120
_SENTENCE_BYTES = 400
_TITLE_BYTES = 200
#: Observations of a run that is alone in its message, and of one of several.
_MOST, _MOST_OF_SEVERAL = 3, 1
_BY = {"code": "this change", "machine": "the machine"}
_ADVICE = {"yes": "A retry is worth it.", "no": "A retry without a change is unlikely to pass."}
_COMMIT = re.compile(r"[0-9a-f]{7,64}")
_NUMBER = re.compile(r"[0-9]{1,6}")
_STAMP = re.compile(r"ciml:[0-9a-f]{16}:(?P<patchset>[0-9a-f]{8}):(?P<causes>[a-z+]{1,20}):[0-9a-f]{12}")


@dataclass(frozen=True)
class Finding:
    """A verdict with its evidence.

    Attributes:
      item: the verdict.
      observations: checked sentences, the strongest first; they may hold hostile names.
      picture: an address of ours; "" for none.
    """

    item: Item
    observations: tuple[str, ...] = ()
    picture: str = ""


@dataclass(frozen=True)
class Style:
    """What a message depends on beside its findings.

    Attributes:
      format: markup of the system.
      most_bytes: of a message.
      most_jobs: with a line of their own.
      mute_word: for the title of a change that wants no messages.
      can_react: whether reviewers can react to the message with an emoji.
    """

    format: Format
    most_bytes: int
    most_jobs: int
    mute_word: str
    can_react: bool


def marker_of(system: str, project: str, change: str) -> str:
    """Return what all our messages on a change contain. The change is its number, as the system has it."""
    return f"ciml:{sha256_json([system, project, change])[:16]}"


def patchset_key(change: ChangeRef) -> str:
    """Return what the stamp says of a patch set."""
    return sha256_json(change.head or change.patchset)[:8]


def causes_of(items: Iterable[Item]) -> str:
    """Return the verdicts of a message in a word: ``code``, ``machine`` or ``code+machine``."""
    return "+".join(sorted({item.cause for item in items}))


def stamped(body: str, marker: str) -> tuple[str, str] | None:
    """Return patch set key and verdicts of a message of ours by its stamp; None without one."""
    found = next((each for each in _STAMP.finditer(body) if each[0].startswith(f"{marker}:")), None)
    return (found["patchset"], found["causes"]) if found else None


def render(findings: Sequence[Finding], marker: str, change: ChangeRef, style: Style) -> Rendered:
    """Write the message on a patch set.

    The same findings give the same bytes. What does not fit into `Style.most_bytes` is left out in whole lines:
    observations first, then jobs; the first line and the marker always stay.

    Args:
      findings: at least one, in any order.
      marker: from `marker_of`.
      change: the patch set.
      style: see there.
    """
    ordered = sorted(findings, key=lambda one: (one.item.cause, -one.item.probability, one.item.job, one.item.run_id))
    head, title = _headline(ordered, style.format)
    foot = [_footer(change, style)]
    prefix = f"{marker}:{patchset_key(change)}:{causes_of(one.item for one in ordered)}:"
    jobs = min(len(ordered), style.most_jobs)
    most = _MOST if len(ordered) == 1 else _MOST_OF_SEVERAL
    while True:
        lines = [head, *_body(ordered, jobs, most, style.format), *foot]
        text = "\n".join(lines)
        stamp = prefix + hashlib.sha256(text.encode()).hexdigest()[:12]
        body = f"{text}\n\n{stamp if style.format == 'gerrit' else f'<!-- {stamp} -->'}"
        if len(body.encode()) <= style.most_bytes or not (jobs or most):
            return Rendered(title, body, marker, stamp)
        most, jobs = (most - 1, jobs) if most else (0, jobs - 1)


def _headline(ordered: Sequence[Finding], markup: Format) -> tuple[str, str]:
    """Return the first line, and the same as a title."""
    if len(ordered) == 1:
        item = ordered[0].item
        line = f"{name(item.job, _NAME_BYTES)} failed, probably because of {_BY[item.cause]}"
        return f"{_bold(line, markup)} ({_rates(item)}).", cut(line, _TITLE_BYTES)
    counts = {cause: sum(one.item.cause == cause for one in ordered) for cause in _BY}
    parts = [f"{number} probably because of {_BY[cause]}" for cause, number in counts.items() if number]
    line = f"{len(ordered)} jobs failed: {', '.join(parts)}"
    return f"{_bold(line, markup)}.", cut(line, _TITLE_BYTES)


def _body(ordered: Sequence[Finding], jobs: int, most: int, markup: Format) -> list[str]:
    """Return the lines between headline and footer: a list, and the advice."""
    alone = len(ordered) == 1
    lines = [""]
    for one in ordered[:jobs]:
        seen = [inert(text, _SENTENCE_BYTES) for text in one.observations[:most]]
        if alone:
            lines += [f"- {text}" for text in seen]
        else:
            because = f"{name(one.item.job, _NAME_BYTES)}: {_BY[one.item.cause]} ({_rates(one.item)})."
            lines.append(" ".join(["-", because, *seen]))
        if one.picture and most:
            lines.append(f"- {_link('Picture of its telemetry', one.picture, markup)}" if alone else
                         f"- {_link('Picture', one.picture, markup)} of {name(one.item.job, _NAME_BYTES)}")  # fmt: skip
    if len(ordered) > jobs and not alone:
        lines.append(f"- and {len(ordered) - jobs} more")
    advice = _advice([one.item for one in ordered])
    return [*lines, *([""] if len(lines) > 1 else []), *([advice, ""] if advice else [])]


def _rates(item: Item) -> str:
    """Return probability and base rate: ``91 %; base rate 63 % of 214 failed runs``. It never says 100 %."""
    verdict = item.verdict
    rate = verdict.base_rate.get(item.cause)
    if rate is None or not verdict.runs:
        return _percent(item.probability)
    of = " of this job" if verdict.group and verdict.group == item.job else ""
    return f"{_percent(item.probability)}; base rate {_percent(rate)} of {verdict.runs} failed runs{of}"


def _percent(share: float) -> str:
    return "under 1 %" if share < 0.01 else f"{min(round(100 * share), 99)} %"


def _advice(items: Sequence[Item]) -> str:
    """Return one piece of advice for all runs: a retry helps only if it helps each."""
    retries = {item.retry for item in items}
    if "no" in retries:
        return _ADVICE["no"]
    return _ADVICE["yes"] if retries == {"yes"} else ""


def _footer(change: ChangeRef, style: Style) -> str:
    wrong = "react with 👎, or reply “not helpful”" if style.can_react else "reply “not helpful”"
    return (
        f"ciml judged {_patchset(change)} by the telemetry of its runs. Wrong: {wrong}. "
        f"No messages on this change: put {name(style.mute_word)} into its title."
    )


def _patchset(change: ChangeRef) -> str:
    # six characters of a commit are no link
    if change.patchset and _NUMBER.fullmatch(change.patchset):
        return f"patch set {change.patchset}"
    commit = change.head or change.patchset
    return f"commit {commit[:6]}" if _COMMIT.fullmatch(commit) else "this patch set"


def _bold(line: str, markup: Format) -> str:
    return line if markup == "gerrit" else f"**{line}**"


def _link(words: str, url: str, markup: Format) -> str:
    return f"{words}: {url}" if markup == "gerrit" else f"[{words}]({url})"
