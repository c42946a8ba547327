"""Counts the inputs of each fuzz test; a long run adds them to the results."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.fuzz import frame, results

_results: list[results.Result] = []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    before = frame.tried()
    try:
        return (yield)
    finally:
        item.user_properties.append(("inputs", frame.tried() - before))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    if report.when == "call" and report.failed and frame.PROFILE == "fuzz" and isinstance(item, pytest.Function):
        frame.keep_failures(item.function)
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    inputs = dict(report.user_properties).get("inputs", 0)
    if report.when == "call" and inputs and frame.PROFILE == "fuzz":
        _results.append(results.Result.of(report.nodeid, int(str(inputs)), report.failed, report.duration))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not _results or "PYTEST_XDIST_WORKER" in os.environ:  # the process that started the workers has all results
        return
    results.add(_results)
    results.write(results.load())
    terminalreporter.section("inputs tried")
    for each in _results:
        terminalreporter.line(f"{each.inputs:>9,}  {'FAILED' if each.failures else 'passed'}  {each.test}")
