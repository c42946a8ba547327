"""The exit status of a run's command, from the labels that recorders, listings and adapters write.

``exit_code`` is the status as a system reports it. A signal that ended the command is a negative one (Python, Ansible)
or one above 128 (shells, Buildkite). -1 is no signal: Buildkite and Jenkins report it for an agent or process that they
lost, so the status is unknown. `ciml record` names a signal by the label ``signal`` instead.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping

#: The labels of a run with the exit status of its command, and with the signal that ended it.
EXIT_LABEL, SIGNAL_LABEL = "exit_code", "signal"

_STATUS = re.compile("-?[0-9]{1,3}")
_NUMBER = re.compile("[0-9]{1,2}")
#: A shell adds it to the signal that ended a command.
_SHELL = 128
_MAX_STATUS, _MAX_SIGNAL = 255, 64
_UNKNOWN = -1


def exit_status_of(labels: Mapping[str, str]) -> int | None:
    """Return the exit status in a run's labels: from -64 to -2 or from 0 to 255; None where it is not known.

    A run with a signal alone has the status that a shell reports.

    Example:
      exit_status_of({"exit_code": "-9"})    # -9
      exit_status_of({"signal": "SIGKILL"})  # 137
      exit_status_of({"exit_code": "-1"})    # None
    """
    if text := labels.get(EXIT_LABEL, ""):
        status = int(text) if _STATUS.fullmatch(text) else _UNKNOWN
    else:
        named = _signal_named(labels.get(SIGNAL_LABEL, ""))
        status = _SHELL + named if named else _UNKNOWN
    return status if -_MAX_SIGNAL <= status <= _MAX_STATUS and status != _UNKNOWN else None


def signal_of(status: int | None) -> int | None:
    """Return the number of the signal that ended a command with this exit status; None for any other one."""
    if status is None:
        return None
    number = -status if status < 0 else status - _SHELL
    return number if 0 < number <= _MAX_SIGNAL else None


def _signal_named(text: str) -> int:
    """Return the number of a signal as the recorder writes it, its name or its number; 0 for any other text."""
    if text in signal.Signals.__members__:
        return int(signal.Signals[text])
    return int(text) if _NUMBER.fullmatch(text) and int(text) <= _MAX_SIGNAL else 0
