"""What CI systems, recorders and listings report as an exit status, and what it says."""

from __future__ import annotations

import signal

import pytest

from ciml.events.outcomes import exit_status_of, signal_of


@pytest.mark.parametrize(
    ("label", "text", "status"),
    [
        *(("exit_code", str(status), status) for status in (0, 2, 137, 255, -9, -64)),
        ("exit_code", "-1", None),  # Buildkite lost the agent, Jenkins the process
        *(("exit_code", text, None) for text in ("-65", "256", "999", "", "9a", "--9", "9" * 400, "1; rm -rf")),
        ("exit_code", "\u0661\u0663\u0667", None),  # digits, but no ASCII
        *(("signal", text, status) for text, status in (("SIGKILL", 137), ("SIGHUP", 129), ("34", 162))),
        *(("signal", text, None) for text in ("0", "65", "", "KILL")),
    ],
)
def test_the_exit_status_of_a_label(label: str, text: str, status: int | None) -> None:
    assert exit_status_of({label: text}) == status


def test_a_reported_status_comes_before_a_signal_and_no_label_is_unknown() -> None:
    assert exit_status_of({"exit_code": "1", "signal": "SIGKILL"}) == 1
    assert exit_status_of({"exit_code": "-1", "signal": "SIGKILL"}) is None
    assert exit_status_of({}) is None


def test_the_signal_of_a_status() -> None:
    assert [signal_of(status) for status in (-9, 137, 129, 192)] == [9, 9, 1, 64]
    assert {signal_of(status) for status in (193, 128, 255, 0, 1, None)} == {None}
    names = [one.name for one in signal.Signals]
    assert [signal_of(exit_status_of({"signal": name})) for name in names] == [*signal.Signals]
