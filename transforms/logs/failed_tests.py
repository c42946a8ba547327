"""Recognise which tests of a job failed, by the lines that test runners of many languages print.

`RecentTests` remembers on which changes a test failed recently: one that fails on several is hardly broken by each.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple

import msgspec
import numpy as np

from ciml.globs import linear_pattern
from ciml.limits import MAX_OUTPUT_FAILED_TESTS, MAX_RECENT_TESTS, MAX_RUN_RECENT_TESTS, MAX_TEST_CHANGES
from ciml.transforms.logs.ranking import ScannedOutput
from ciml.transforms.logs.signals import KINDS

#: Age up to which the failure of a test on another change is recent, microseconds.
RECENT_US = 7 * 86_400_000_000
_NAME_CHARACTERS = 200


class FailedTest(NamedTuple):
    """A test that failed.

    Attributes:
      runner: what ran it, as in `RUNNERS`.
      name: as the runner prints it, without its time.
      line: number of the first line that says so, counted from 1.
    """

    runner: str
    name: str
    line: int


_PROGRESS = r"(?:\[ *+\d++%\] )?+"
_TIME = r"(?: ?+\(\d[\d.]*+ ?+m?s\))?"
#: By runner, what a line says that one of its tests failed. The first group, or the groups joined, are the test's name.
RUNNERS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (runner, linear_pattern(pattern))
    for runner, pattern in (
        ("pytest", rf"{_PROGRESS}(?:FAILED|ERROR) ([^\s:]++::.+?)(?: - .*+)?$"),
        ("pytest", r"([^\s:]++::\S++) ++(?:FAILED|ERROR)\b"),
        ("pytest", r"ERROR ([^\s:]+\.py)(?: - .*+)?$"),
        ("unittest", r"(?:FAIL|ERROR): (\w++ \([\w.]++\))"),
        ("go test", r"\s*+--- FAIL: (\S++) \("),
        ("go test", r"=== FAIL: (\S++ \S++)"),
        ("go test", r"FAIL ([^\s.]++(?:\.(?!Test)[^\s.]*+)*+\.Test\S*+) \("),
        ("cargo", r"\s*+test (.+?) \.\.\. FAILED$"),
        ("nextest", r"\s*+FAIL \[ *+[\d.]++s\](?: \( *+\d++/\d++\))? (\S++ \S++)"),
        ("jest", r"\s*+● ([^›]++›.++)$"),
        ("jest", rf"\s*+(?:✕|✗|×) (.+?){_TIME}$"),
        ("jest", r"FAIL (\S*?\.(?:test|spec)\.\w++)"),
        ("TAP", r"not ok \d++(?: -)? ([^#]++)(?:# time.*+)?$"),
        ("JUnit", r"\[ERROR\] ++([\w.$]++(?:\([\w.$]++\))?+) {1,4}Time elapsed: .*<<< (?:FAILURE|ERROR)!"),
        ("JUnit", r"\[ERROR\] ++([\w$]++(?:\.[\w$]++)++):\d++ "),
        ("JUnit", r"([\w.$]++(?: [\w.$]++)*+ > .+?) FAILED$"),
        ("CTest", r"\s*+\d++ - (\S++) \((?:Failed|Timeout|SEGFAULT|Not Run|Child aborted)\)"),
        ("RSpec", r"rspec (\S++ # .++)$"),
        ("PHPUnit", r"\d++\) ([\w\\]++::\w++.*+)$"),
    )
)


def failed_tests(output: ScannedOutput) -> tuple[FailedTest, ...]:
    """Return the tests of an output that failed, in order of their lines; at most `MAX_OUTPUT_FAILED_TESTS`.

    Example:
      >>> failed_tests(scan(b"FAILED tests/test_io.py::test_read[csv] - OSError: no\\n"))
      (FailedTest(runner='pytest', name='tests/test_io.py::test_read[csv]', line=1),)
    """
    of_tests = output.signals.kinds[:, KINDS.index("test")][output.codes]
    indices = np.flatnonzero(of_tests)[: 4 * MAX_OUTPUT_FAILED_TESTS]
    failed: dict[str, FailedTest] = {}
    for index, text in zip(indices.tolist(), output.text_of(indices), strict=True):
        for runner, pattern in RUNNERS:
            match = pattern.match(text)
            if match is not None:
                name = match[1].strip()
                failed.setdefault(name, FailedTest(runner, name, index + 1))
                break
    return tuple(failed.values())[:MAX_OUTPUT_FAILED_TESTS]


class OtherChanges(NamedTuple):
    """Other changes on which a test failed.

    Attributes:
      changes: their number.
      since_us: the earliest of their last failures, epoch microseconds; 0 without one.
    """

    changes: int
    since_us: int


class RecentTests:
    """The changes on which tests of a project failed of late.

    Example:
      >>> recent = RecentTests()
      >>> for change in ("12", "13"):
      ...     recent.add("project", ("test_a",), change, 1_000)
      >>> recent.others("project", "test_a", "13", 2_000)
      OtherChanges(changes=1, since_us=1000)
    """

    def __init__(self) -> None:
        self._changes: OrderedDict[str, dict[str, int]] = OrderedDict()  # by project and test: time by change

    def add(self, project: str, names: Iterable[str], change: str, time_us: int) -> None:
        """Add the tests that failed in a run of a change, in order of their lines; the first `MAX_RUN_RECENT_TESTS`."""
        for _, name in zip(range(MAX_RUN_RECENT_TESTS), names, strict=False):
            key = _key(project, name)
            changes = self._changes.setdefault(key, {})
            self._changes.move_to_end(key)
            changes[change] = max(changes.pop(change, 0), time_us)
            if len(changes) > MAX_TEST_CHANGES:
                del changes[next(iter(changes))]
            if len(self._changes) > MAX_RECENT_TESTS:
                self._changes.popitem(last=False)

    def others(self, project: str, name: str, change: str, time_us: int) -> OtherChanges:
        """Return the other changes on which a test failed, at most `RECENT_US` before a time."""
        changes = self._changes.get(_key(project, name), {})
        times = [last_us for key, last_us in changes.items() if key != change and last_us >= time_us - RECENT_US]
        return OtherChanges(len(times), min(times, default=0))

    def encode(self) -> bytes:
        """Return the state, for `restore`."""
        return msgspec.msgpack.encode(list(self._changes.items()))

    def restore(self, state: bytes) -> None:
        """Continue after the runs that were added before `encode`. Raises `msgspec.DecodeError` for other bytes."""
        self._changes = OrderedDict(msgspec.msgpack.decode(state, type=list[tuple[str, dict[str, int]]]))


def _key(project: str, name: str) -> str:
    return f"{project}\0{name[:_NAME_CHARACTERS]}"
