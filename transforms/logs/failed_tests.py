"""Recognise which tests of a job failed, by the lines that test runners of many languages print."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

from ciml.globs import linear_pattern
from ciml.limits import MAX_OUTPUT_FAILED_TESTS
from ciml.transforms.logs.ranking import ScannedOutput
from ciml.transforms.logs.signals import KINDS


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
