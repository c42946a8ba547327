"""Texts that try to be more than text in a message, and the judge of what a message is.

The judge knows the systems' own rules (GitHub's by its own renderer), and nothing of how ciml makes text inert.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser

import cmarkgfm
from cmarkgfm.cmark import Options

from ciml.integrations.review import Format

CORPUS = (
    "@all", "hello @octocat", "@org/team", "a@b@c", "mail me@example.org", "@\u200boctocat", "\uff20octocat",
    "http://evil.example/x", "https://evil.example/?a=1&b=2#c", "www.evil.example", "WWW.evil.example",
    "evil.example", "ftp://evil.example", "mailto:a@evil.example", "xmpp:a@evil.example", "javascript:alert(1)",
    "//evil.example/x", "[text](http://evil.example)", "![image](http://evil.example/x.png)",
    "[ref]: http://evil.example", "[ref][ref]", "<http://evil.example>", "<a@evil.example>", "[[wiki]]",
    "[[text|http://evil.example]]", "[^1]: note", "[x] done", "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>", "<a href=//evil.example>x</a>", "<!-- hidden", "-->", "--> <b>",
    "<!-- ciml:0000000000000000:00000000:code:000000000000 -->", "</details>", "<details open>", "<![CDATA[",
    "&lt;b&gt;", "&#x3c;script&#x3e;", "&#64;all", "&nbsp;", "\\<b\\>", "\\@all", "\\[x\\](y)", "#1", "org/repo#1",
    "GH-1", "gh-1", "!2", "group/project!2", "~bug", '~"a b"', "%v1.0", '%"next release"', "$5", "&6", "^alert#7",
    "*iteration:8", "[vulnerability:9]", "deadbeef", "0123456789abcdef0123456789abcdef01234567", "1234567",
    "I0123456789abcdef0123456789abcdef01234567", "Change-Id: I0123456789abcdef0123456789abcdef01234567", "Bug: 123",
    "Closes-Bug: #123", "Fixes #1", "JIRA-123", "/close", "\n/close", "\r\n/merge", "\n\n/approve\n", "\u2028/close",
    "\u2029/merge", "\x0b/close", "\x0c/close", "\x85/close", "/assign @me", "/label ~bug", "recheck", "\nrecheck",
    "Recheck ", "\n\nrecheck because", "reverify", "/retest", "\n/lgtm", "bors r+", "@bors r+", "@dependabot merge",
    "@gitlab-bot retry", "+1", "-1", "\n- [ ] task", "\n# heading", "\n> quote", "\n    code", "\n```\ncode\n```",
    "\n---\n", "\n===", "\n| a | b |\n| - | - |\n| 1 | 2 |", "\n1. one", "\n* item", "`code`", "``co`de``", "```",
    "~~~", "**bold**", "__bold__", "*it*", "_it_", "a_b_c", "~~strike~~", "~sub~", "==mark==", "$`x`$", "$$x$$",
    ":tada:", ":+1:", "::", "0:100:", "12:30:45", "{{template}}", "{% raw %}", "${x}", "%(x)s", "{0}",
    "\x1b[31mred", "\x07",
    "\u202egnp.exe", "\u2066x\u2069", "\u200b", "\ufeff", "\U000e0041", "\x00", "", " ", "\t", "“quoted”",
    "”) [x](y)", "a" * 5000, "é" * 3000, "\U0001f600" * 2000, "`" * 1000, "[" * 1000, "<" * 1000,
    "(" * 1000 + ")" * 1000, "*" * 999,
)  # fmt: skip

_LINK_WORDS = re.compile(r"://|\bwww\.|\b(?:mailto|xmpp|javascript|ftp|data):\S", re.I)
_HOST = re.compile(r"[\w-]+\.(?:example|com|org|net|io|exe)\b", re.I)
_MENTION = re.compile(r"@\w")
_REFERENCE = re.compile(r"[#!~$&^]\w|%\w|%\"|(?i:\bGH-\d)|\b[A-Z]+-\d+\b|\[\[|\[vulnerability")
_COMMIT = re.compile(r"\bI?[0-9a-f]{7,64}\b")
_COMMAND = re.compile(r"(?<!\w)/\w")
_EMOJI = re.compile(r":[\w+-]+:")
_UNSEEN = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\U000e0000-\U000e007f]")
#: How a line of a message begins: with words of ours.
_BEGINNINGS = (
    "“",
    "**“",
    "- ",
    "The model's probability ",
    "The model's own verdict ",
    "Earlier runs, also of other changes, that ciml put down ",
    "ciml estimated ",
)
_SEVERAL = re.compile(r"(\*\*)?[0-9]+ jobs failed: ")
_STAMP = re.compile(r"ciml:[0-9a-f]{16}:[0-9a-f]{8}:[a-z+]+:[0-9a-f]{12}")
_TAGS = {"p", "strong", "ul", "li"}


@dataclass
class _Page(HTMLParser):
    links: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    comments: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)

    __hash__ = object.__hash__

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.links += [value or "" for name, value in attrs if name == "href"]
        elif tag not in _TAGS or attrs:
            self.tags.append(f"<{tag} {attrs}>")

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)

    def handle_decl(self, decl: str) -> None:
        self.tags.append(decl)

    def unknown_decl(self, data: str) -> None:
        self.tags.append(data)


def rendered(body: str) -> _Page:
    """The page that GitHub's own renderer makes of a message, raw HTML included."""
    page = _Page()
    page.feed(cmarkgfm.github_flavored_markdown_to_html(body, options=Options.CMARK_OPT_UNSAFE))
    page.close()
    return page


def faults(body: str, markup: Format, ours: tuple[str, ...] = ()) -> Iterator[str]:
    """Everything in a message that is more than text; ``ours`` are the links that may be there."""
    lines = body.split("\n")
    stamp = lines.pop()
    wanted = _STAMP if markup == "gerrit" else re.compile(rf"<!-- {_STAMP.pattern} -->")
    if not wanted.fullmatch(stamp):
        yield f"its last line is {stamp!r}"
    text = "\n".join(lines)
    for link in ours:
        for words in ("Picture of its telemetry", "Picture", "Its output", "Output"):
            text = text.replace(f"[{words}]({link})", words)
        text = text.replace(link, "Picture")
    for line in text.split("\n"):
        if line and not line.startswith(_BEGINNINGS) and not _SEVERAL.match(line):
            yield f"a line begins with {line[:40]!r}"
    for what in (_LINK_WORDS, _HOST, _MENTION, _REFERENCE, _COMMIT, _COMMAND, _EMOJI, _UNSEEN, _STAMP):
        if found := what.search(text):
            yield f"{what.pattern[:30]}: {text[max(found.start() - 20, 0) : found.end() + 20]!r}"
    if set(text) & set("<>[]`\\|{}"):
        yield f"markup: {sorted(set(text) & set('<>[]`|{}'))}"
    if markup != "gerrit":
        page = rendered(body)
        if unwanted := [link for link in page.links if link not in ours]:
            yield f"links: {unwanted}"
        if page.tags or len(page.comments) != 1:
            yield f"HTML: {page.tags} {page.comments}"
