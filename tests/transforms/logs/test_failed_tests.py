"""Failed tests, as their runners print them."""

from __future__ import annotations

import pytest

from ciml.transforms.logs import failed_tests as module
from ciml.transforms.logs.failed_tests import RECENT_US, OtherChanges, RecentTests, failed_tests
from ciml.transforms.logs.ranking import scan
from tests.growth import assert_linear

LINES = [
    ("FAILED tests/test_io.py::test_read[csv] - OSError: no", "pytest", "tests/test_io.py::test_read[csv]"),
    ("[gw0] [ 50%] FAILED tests/test_io.py::Test::test_a", "pytest", "tests/test_io.py::Test::test_a"),
    ("tests/test_io.py::test_b FAILED                [ 12%]", "pytest", "tests/test_io.py::test_b"),
    ("ERROR tests/test_io.py - ModuleNotFoundError: No module named 'x'", "pytest", "tests/test_io.py"),
    ("FAIL: test_splitdict (test.test_tcl.TclTest)", "unittest", "test_splitdict (test.test_tcl.TclTest)"),
    ("    --- FAIL: TestParse/empty (0.03s)", "go test", "TestParse/empty"),
    ("FAIL server.TestOIDCRefresh (2.59s)", "go test", "server.TestOIDCRefresh"),
    ("test io::reads_csv ... FAILED", "cargo", "io::reads_csv"),
    ("        FAIL [   9.875s] (396/396) build::macros compile_fail", "nextest", "build::macros compile_fail"),
    ("  ● config get › reads npm options", "jest", "config get › reads npm options"),
    ("    ✕ renders a list (23 ms)", "jest", "renders a list"),
    ("FAIL packages/react/src/a.test.tsx", "jest", "packages/react/src/a.test.tsx"),
    ("not ok 12 - parses dates", "TAP", "parses dates"),
    ("[ERROR] testRead(org.x.IoTest)  Time elapsed: 0.1 s  <<< FAILURE!", "JUnit", "testRead(org.x.IoTest)"),
    ("[ERROR]   IoTest.testRead:42 expected:<1> but was:<2>", "JUnit", "IoTest.testRead"),
    ("com.example.IoTest > reads csv FAILED", "JUnit", "com.example.IoTest > reads csv"),
    ("\t  7 - unit-io (SEGFAULT)", "CTest", "unit-io"),
    ("rspec ./spec/io_spec.rb:12 # Io reads", "RSpec", "./spec/io_spec.rb:12 # Io reads"),
    (r"1) App\Tests\IoTest::testRead", "PHPUnit", r"App\Tests\IoTest::testRead"),
]


@pytest.mark.parametrize(("line", "runner", "name"), LINES)
def test_a_failed_test_is_recognised(line: str, runner: str, name: str) -> None:
    (found,) = failed_tests(scan(f"first\n{line}\n".encode()))
    assert found == (runner, name, 2)


@pytest.mark.parametrize(
    "line",
    [
        "PASSED tests/test_io.py::test_read",
        "not ok 3 - later # TODO is not done",
        "not ok 4 - windows # SKIP on Linux",
        "--- PASS: TestFAIL (0.00s)",
        "test io::reads ... ok",
        "ERROR: could not open the file",
        "FAILED",
    ],
)
def test_what_did_not_fail_or_is_no_test_is_not_recognised(line: str) -> None:
    assert failed_tests(scan(line.encode())) == ()


def test_a_test_is_named_once_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    data = "\n".join(["a/b.py::t1 FAILED", "a/b.py::t2 FAILED", "FAILED a/b.py::t1 - no", "FAILED a/b.py::t3 - no"])
    assert [test.name for test in failed_tests(scan(data.encode()))] == ["a/b.py::t1", "a/b.py::t2", "a/b.py::t3"]
    monkeypatch.setattr(module, "MAX_OUTPUT_FAILED_TESTS", 2)
    assert [test.line for test in failed_tests(scan(data.encode()))] == [1, 2]


@pytest.mark.parametrize(
    ("before", "repeated", "after"),
    [("FAILED ", "a/", ""), ("", "x > ", "FAILED"), ("[ERROR] ", "a.", ""), ("FAILED a/b.py::", "t -", "")],
)
def test_a_hostile_line_takes_linear_time(before: str, repeated: str, after: str) -> None:
    assert_linear(lambda size: scan("\n".join([before + repeated * size + after] * 50).encode()), failed_tests, 100)


def test_a_test_is_counted_by_the_recent_changes_of_its_project() -> None:
    recent = RecentTests()
    for change, time_us in (("1", 5), ("2", 7), ("2", 6), ("3", 9)):
        recent.add("p", ("a", "b"), change, time_us)
    recent.add("q", ("a",), "4", 1)
    assert recent.others("p", "a", "3", 10) == OtherChanges(2, 5)
    assert recent.others("p", "a", "3", RECENT_US + 6) == OtherChanges(1, 7)
    assert recent.others("p", "c", "3", 10) == OtherChanges(0, 0)
    restored = RecentTests()
    restored.restore(recent.encode())
    assert restored.others("p", "b", "1", 10) == OtherChanges(2, 7)
    assert restored.encode() == recent.encode()


def test_changes_tests_and_the_tests_of_a_run_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, limit in (("MAX_TEST_CHANGES", 2), ("MAX_RECENT_TESTS", 3), ("MAX_RUN_RECENT_TESTS", 2)):
        monkeypatch.setattr(module, name, limit)
    recent = RecentTests()
    for change in range(5):
        recent.add("p", ("a",), str(change), change + 1)
    assert recent.others("p", "a", "x", 0) == OtherChanges(2, 4)
    for run in range(3):
        recent.add("p", (f"{run} 1", f"{run} 2", f"{run} 3"), "5", 9)
    counts = {name: recent.others("p", name, "x", 0).changes for name in ("a", "1 1", "1 2", "2 1", "2 2", "2 3")}
    assert counts == {"a": 0, "1 1": 0, "1 2": 1, "2 1": 1, "2 2": 1, "2 3": 0}
