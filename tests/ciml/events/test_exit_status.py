"""What CI systems, recorders and listings report as an exit status, and what it says."""

from __future__ import annotations

import signal

import pytest

from ciml.events.outcomes import exit_status_of, signal_of


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("0", 0), ("2", 2), ("137", 137), ("255", 255), ("-9", -9), ("-64", -64),
        ("-1", None),  # Buildkite lost the agent, Jenkins the process
        ("-65", None), ("256", None), ("999", None), ("", None), ("9a", None), ("--9", None), ("9" * 400, None),
        ("1; rm -rf", None), ("\u0661\u0663\u0667", None),  # digits, but no ASCII
    ],
)  # fmt: skip
def test_the_label_exit_code(text: str, status: int | None) -> None:
    assert exit_status_of({"exit_code": text}) == status


@pytest.mark.parametrize(
    ("text", "status"),
    [("SIGKILL", 137), ("SIGHUP", 129), ("34", 162), ("0", None), ("65", None), ("", None), ("KILL", None)],
)
def test_the_label_signal_of_the_recorder(text: str, status: int | None) -> None:
    assert exit_status_of({"signal": text}) == status


def test_a_reported_status_comes_before_a_signal_and_no_label_is_unknown() -> None:
    assert exit_status_of({"exit_code": "1", "signal": "SIGKILL"}) == 1
    assert exit_status_of({"exit_code": "-1", "signal": "SIGKILL"}) is None
    assert exit_status_of({}) is None


@pytest.mark.parametrize(
    ("status", "number"),
    [(-9, 9), (137, 9), (129, 1), (192, 64), (193, None), (128, None), (255, None), (0, None), (1, None), (None, None)],
)
def test_the_signal_of_a_status(status: int | None, number: int | None) -> None:
    assert signal_of(status) == number


@pytest.mark.parametrize("one", list(signal.Signals))
def test_every_signal_that_the_recorder_names_is_found_again(one: signal.Signals) -> None:
    assert signal_of(exit_status_of({"signal": one.name})) == one
