"""Signals: words by which tools of many languages say that something failed, and the marks of a CI system's steps.

A signal has a kind, which a verdict counts, and a strength, by which lines are ranked. Strengths are a person's; they
were compared on failures of other projects (docs/job-output.md).
"""

from __future__ import annotations

from functools import reduce
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ciml.transforms.logs.text_arrays import RowOfText, flags_of


class Signal(NamedTuple):
    """A signal.

    Attributes:
      kind: what it says; several signals may have one kind.
      strength: of a line that has it.
      pattern: a regular expression of RE2, over templates.
    """

    kind: str
    strength: float
    pattern: str


#: What surrounds the tested code fails: the families of their words, of tools of many languages.
_MEMORY = (
    r"\bOOM|[Oo]ut[ -]?[Oo]f[ -]?[Mm]emory|[Cc]annot allocate memory|[Uu]nable to allocate|\w*MemoryError\b"
    r"|std::bad_alloc"
    r"|can't start new thread|unable to create (?:new )?(?:native )?thread|heap (?:space|limit|out of memory)"
    r"|[Ii]nsufficient memory|failed to map segment|killed by the OOM|\bENOMEM\b|virtual memory exhausted"
)
_DISK = (
    r"(?i:no space left)|[Rr]ead-only file system|[Qq]uota exceeded on|Disk quota exceeded|\bENOSPC\b|\bEDQUOT\b"
    r"|\bEROFS\b"
    r"|Input/output error|\bI/O error\b|(?i:more space needed)|low on resource|[Dd]isk (?:is )?full"
    r"|not enough (?:disk )?space"
    r"|Stale file handle"
)
_NETWORK = (
    # names
    r"[Cc]ould(?:n't| not) resolve (?:host|proxy)|[Tt]emporary failure (?:in name resolution|resolving)"
    r"|Name or service not known|[Uu]nknown ?[Hh]ost(?:Exception)?\b|getaddrinfo|\bEAI_AGAIN\b|\bENOTFOUND\b"
    r"|[Nn]o such host"
    r"|server misbehaving|nodename nor servname|NameResolutionError"
    # connections
    r"|(?i:connection) (?:was )?(?:refused|reset|timed out|aborted|closed by|broken|lost)|[Ff]ailed to connect\b"
    r"|[Ff]ailed to establish a (?:new )?connection|(?:[Cc]ould(?:n't| not)|[Uu]nable to|[Cc]annot) (?:connect"
    r"|contact)\b"
    r"|[Nn]etwork is unreachable|[Nn]o route to host|\bE(?:CONN(?:REFUSED|RESET|ABORTED)|TIMEDOUT|(?:HOST"
    r"|NET)UNREACH|PIPE)\b"
    r"|[Bb]roken pipe|RemoteDisconnected|hung up unexpectedly|network (?:error|connectivity|connection\b)"
    r"|Max retries exceeded|[Cc]hannel is clos|[Cc]hannelClosed|channel .{0,40}is disconnected"
    # transfers
    r"|IncompleteRead|[Uu]nexpected (?:EOF|eof)|early EOF|transfer closed|Hash Sum mismatch|[Cc]hecksum doesn't match"
    r"|unexpected size|[Mm]irror sync|[Mm]irrors? (?:was|were) (?:tried|unavailable)|Failed to download metadata"
    # time, and encryption
    r"|(?:[Cc]onnect|[Rr]ead|i/o|handshake|[Gg]ateway|[Cc]lient|BYTE)[. ]?[Tt][Ii][Mm][Ee]-?[Oo][Uu][Tt]|TLS handshake"
    r"|(?:Read|Connect)Timeout(?:Error)?\b|[Dd]eadline exceeded|[Tt]imeout was reached"
    r"|SSL(?:_\w+)?[: ].{0,30}(?:reset|eof)"
    r"|certificate (?:verify failed|has expired)|[Uu]nable to establish SSL"
    # answers of servers
    r"|Bad Gateway|(?i:service unavailable)|(?i:internal server error)|Gateway Time-?out|\bInternalError\b"
    r"|server error \(|SERVICE UNAVAILABLE"
)
_SERVICE = (
    # limits of a service
    r"(?i:rate.?limit|too ?many ?requests|\bquota exceeded|limit ?exceeded\b|exceeded (?:your|the) .{0,30}quota)"
    # what runs the job has gone, or is gone
    r"|lost communication|shutdown signal|runner .{0,60}(?:disconnected|went away)|system failure|[Ee]victed\b"
    r"|[Pp]reempted\b"
    r"|node .{0,40}unreachable|host unreachable|UNREACHABLE!|daemon (?:running\?|disappeared)|BrokenProcessPool"
    r"|nodes are available|\bSIGKILL\b|\bKilled\b"
    # time is over
    r"|exceeded the maximum (?:execution )?time|took longer than|(?i:\btimed out\b|timeout (?:exceeded|expired"
    r"|when waiting))"
    r"|result 'timeout'|\b\w*Timeout(?:Error|Exception|Expired)\b"
    # another holds it, or there are too many
    r"|[Cc]ould not get lock|(?:[Ff]ailed to|[Uu]nable to|[Ee]rror) acquir(?:e|ing) .{0,40}\block|[Ff]ailed to lock\b"
    r"|[Dd]evice or resource busy|[Rr]esource temporarily unavailable|[Tt]oo many open files"
)
#: Something is asked for, by its name or version, that does not exist.
_MISSING = (
    r"No solution found|[Nn]o match(?:ing)? (?:for argument|distribution|version|package)|Could not find a version"
    r"|[Cc]ould(?:n't| not) find (?:artifact|gem|a package configuration|any versions|remote ref|<\*>)"
    r"|[Cc]ouldn't find any versions|Could NOT find |[Uu]nable to (?:locate package|find a match|find version"
    r"|resolve action)"
    r"|[Vv]ersion .{1,40} for .{1,40} was not found|has no installation candidate|\bERESOLVE\b|\bETARGET\b"
    r"|ResolutionImpossible"
    r"|conflicting (?:dependencies|requests)|(?:resolve|resolving) (?:\w+ )?dependenc|cannot be satisfied"
    r"|[Uu]nsatisfiable"
    r"|nothing provides|not (?:found )?in (?:\w+ ){0,3}registry|no required module provides|[Uu]nknown revision"
    r"|manifest unknown|manifest for .{1,80} not found|failed to select a version|PackagesNotFound"
    r"|not available from current channels|does not have a (?:provider|package|version)|did not match any file"
    r"|Unit .{1,60} not found|ErrImagePull|<\*>: not found|package matching .{1,60} is available|\bNot Found\b"
)

SIGNALS = (
    Signal(
        "exception",
        8,
        r"^(?:E\s+)?[A-Za-z_][\w.]*(?:Error|Exception|Failure|Timeout)(?:: \S|$)",  # as a traceback ends
    ),
    Signal(
        "exception",
        6,
        r"(?:^|[\s:(])[A-Za-z_][\w.]*(?:Error|Exception|Failure|Warning|Timeout|Interrupt|Exit)\b(?:\s*[:(\[]|$)",
    ),
    Signal("fatal", 6, r"(?:^|[^\w-])(?:fatal|FATAL|Fatal)(?: [\w ]{0,30})?:"),
    Signal("error", 6, r"(?i)\berror(?:\[<\*>\]|:|\s+<\*>)"),
    Signal(
        "crash",
        6,
        r"\bpanicked at\b|^panic:|\bSegmentation fault\b|\bsegfault\b|\bSIG(?:SEGV|ABRT|BUS|ILL)\b|core dumped"
        r"|stack overflow|DATA RACE|race detected|AddressSanitizer",
    ),
    Signal("memory", 6, _MEMORY),
    Signal("disk", 6, _DISK),
    Signal("network", 6, _NETWORK),
    Signal("service", 6, _SERVICE),
    Signal("missing", 6, _MISSING),
    Signal("status", 6, r"\bHTTP(?:/<\*>)?[ :]+<\*>|returned error(?::| =) <\*>|[Ss]tatus(?: ?code|_code)?:? <\*>"),
    Signal("timeout", 6, r"[Tt]imed? ?out"),
    Signal(
        "denied",
        6,
        r"[Pp]ermission denied|command not found|No such file or directory|not accessible"
        r"|[Uu]nauthorized|Forbidden",
    ),
    Signal("test", 5, r"(?:^|\s|\.)(?:FAILED|FAIL|ERROR|Failed|ERRORS?)\b"),
    Signal(
        "test",
        5,
        r"^\s*(?:---\s*FAIL|not ok <\*>|✕|✗|✘|×|●|FAIL:|\[FAIL\]|\[ERROR\]|<\*>\) |rspec )"
        r"|\((?:Failed|Timeout|SEGFAULT|Not Run|Child aborted)\)",
    ),
    Signal(
        "summary",
        6,
        r"(?i)(?:^|[\s=(])<\*>\s+(?:tests? |examples? |specs? |checks? |of <\*> tests? )?"
        r"(?:failed|failures?|errors?|broken)\b",
    ),
    Signal("summary", 5, r"(?i)\b(?:failures?|failed|errors?)\s*[=:]\s*<\*>"),
    Signal(
        "refusal",
        5,
        r"(?i)No tests (?:found|ran)|did not complete successfully|returned (?:a )?non-zero|unsuccessful|could not "
        r"|cannot |can't |unable to |failed to|not found\b|does not exist|is not (?:defined|allowed|supported)"
        r"|undefined (?:reference|symbol|name)|unexpected|mismatch|invalid ",
    ),
    Signal(
        "exit",
        5,
        r"(?i)exit(?:ed)?(?: with)?(?: status| code)? ?:?=? ?<\*>|\bError <\*>$|returned code: <\*>|rc=<\*>"
        r"|\"rc\": -?<\*>|\bcode <\*>",
    ),
    Signal("detail", 4, r"^\s*E\s+\S"),
    Signal("error", 4, r"^##\[error\]|^::error|^npm (?:ERR!|error)\b|^error\b|^ERROR\b|\*\*\* "),
    Signal("trace", 3, r"Traceback \(most recent call last\)|^\s*[Cc]aused by|stack backtrace"),
    Signal("detail", 3, r"\bassert\b|AssertionError|[Ee]xpected|Received|Actual|!=|left:|right:"),
)
#: The kinds of `SIGNALS`, in their order.
KINDS = tuple(dict.fromkeys(signal.kind for signal in SIGNALS))

#: What each further signal adds to the strongest, at most four times.
_FURTHER = 0.5
#: What the place of an error in a file adds.
_PLACE = r"<\*><\*>|\.[A-Za-z]{1,5}:<\*>|, line <\*>|\.[a-z]{1,5}\(<\*>\)|^\s*(?:--> |at )?<\*>(?: - |: )|\(<\*>\)$"
_PLACE_ADDS = 1.5
#: Lines of tools that work: they name errors, or count none.
_BENIGN = (
    r"(?i)\bno (?:tests? )?(?:failed|failures?|errors?)\b|\bPASS(?:ED)?\b|\.\.\. (?:ok|ignored|skipped)\b|^\s*(?:✓"
    r"|ok )|warning(?::| \S)|\[warn"
    r"|deprecat|lib\w*-?error|--[a-z-]*(?:fail|error)|-W[a-z-]*error|^\s*Downloading |^go: downloading "
    r"|^\s*Collecting |Requirement already"
    r"|Get:<\*>|Setting up |Unpacking |Selecting previously|added <\*> packages|^\s*Compiling |if-no-files-found"
    r"|continue-on-error|fail-fast|fail_ci|^\s*>?\s+(?:raise|return|except|def|if|with|for|assert) |^\s+[\^~]+$"
)
_BENIGN_KEEPS = 0.3
#: A mark without a word of explanation says that something failed, and not what.
_BARE = r"^\s*(?i:errors?|fail(?:ed|ure)?)[.:!]?\s*$"
_BARE_STRENGTH = 4.0

#: Marks of steps: where one begins, where its command has been printed, where it failed, and where the job cleans up.
MARKS = {
    "step": r"^##\[group\]|^TASK \[|^PLAY \[|^(?:section_end:\S+ )?section_start:|^\[Pipeline\] \{",
    "echo": r"^##\[group\]Run ",
    "echoed": r"^##\[endgroup\]",
    "failed": r"^##\[error\]|^ERROR: Job failed|^fatal: \[",
    "cleanup": r"^Post job cleanup|^Cleaning up orphan|^Cleaning up project directory",
}

#: All by which a template has signals, marks and a strength.
WORDS = (SIGNALS, _FURTHER, _PLACE, _PLACE_ADDS, _BENIGN, _BENIGN_KEEPS, _BARE, _BARE_STRENGTH, MARKS)


class Signals(NamedTuple):
    """The signals of n templates.

    Attributes:
      kinds: bool [n, len(KINDS)].
      strength: float64 [n], 0 if a template has none.
      marks: by name of `MARKS`, bool [n].
    """

    kinds: npt.NDArray[np.bool_]
    strength: npt.NDArray[np.float64]
    marks: dict[str, npt.NDArray[np.bool_]]


#: What has any signal or mark. Few templates do, and only these are searched for each of them. All patterns in one
#: would need more states than RE2's automaton may have, which takes five times as long.
_PATTERNS = (*(signal.pattern for signal in SIGNALS), *MARKS.values(), _PLACE)
_TOGETHER = 4
_ANY = tuple(
    "|".join(f"(?:{pattern})" for pattern in _PATTERNS[begin : begin + _TOGETHER])
    for begin in range(0, len(_PATTERNS), _TOGETHER)
)


def signals_of(templates: pa.StringArray) -> Signals:
    """Find the signals of templates of `ciml.transforms.logs.templates.templates_of`."""
    rows = _rows_of(templates)
    return Signals(rows["kinds"], rows["strength"], {name: rows["marks"][:, index] for index, name in enumerate(MARKS)})


#: The signals of a template.
_ROW = np.dtype([("kinds", bool, len(KINDS)), ("strength", float), ("marks", bool, len(MARKS))])


def _find_signals(templates: pa.StringArray) -> npt.NDArray[np.void]:
    """Return the signals of n templates, as `_ROW` [n]."""
    any_signal = reduce(pc.or_, (pc.match_substring_regex(templates, pattern) for pattern in _ANY))
    rows = np.zeros(len(templates), _ROW)
    rows[flags_of(any_signal)] = _find_signals_of_some(templates.filter(any_signal))
    return rows


def _find_signals_of_some(templates: pa.StringArray) -> npt.NDArray[np.void]:
    rows = np.zeros(len(templates), _ROW)
    strongest = np.zeros(len(templates))
    number = np.zeros(len(templates))
    for signal in SIGNALS:
        has = matches(templates, signal.pattern)
        rows["kinds"][:, KINDS.index(signal.kind)] |= has
        strongest = np.maximum(strongest, signal.strength * has)
        number += has
    rows["strength"] = strongest + _FURTHER * np.clip(number - 1, 0, 4) + _PLACE_ADDS * matches(templates, _PLACE)
    rows["strength"][matches(templates, _BENIGN)] *= _BENIGN_KEEPS
    is_bare = matches(templates, _BARE)
    rows["strength"][is_bare] = np.minimum(rows["strength"][is_bare], _BARE_STRENGTH)
    for index, pattern in enumerate(MARKS.values()):
        rows["marks"][:, index] = matches(templates, pattern)
    return rows


def have_kind(templates: pa.StringArray, kind: str) -> bool:
    """Return whether any template has a signal of a kind. Only its own signals are searched."""
    return any(matches(templates, signal.pattern).any() for signal in SIGNALS if signal.kind == kind)


def matches(templates: pa.StringArray, pattern: str) -> npt.NDArray[np.bool_]:
    """Return which templates have a match of a regular expression of RE2, bool [t]."""
    return flags_of(pc.match_substring_regex(templates, pattern))


_rows_of = RowOfText(_find_signals)
