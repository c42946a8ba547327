"""How a run ended: the outcome that a producer's own word means, and the exit status in the labels of a run.

Recorders, listings and adapters write the exit status of the run's command. The label ``exit_code`` has it as a system
reports it. A signal that ended the command is a negative status (Python, Ansible) or one above 128 (shells, Buildkite).
-1 is not a signal: Buildkite and Jenkins report it for an agent or process that they lost, so the status is unknown.
`ciml record` names a signal by the label ``signal`` instead.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping

from ciml.events.records import OutcomeWord

#: The classes of the label ``cause``, and its name among a run's labels, which a run's own event may set.
CAUSES = CODE, MACHINE = "code", "machine"
CAUSE = "cause"
#: Outcomes of a run that failed; only these have a cause.
FAILED = frozenset({"failure", "timeout"})

OUTCOMES: frozenset[str] = frozenset({"success", "failure", "error", "timeout", "cancellation", "skip"})

#: Words of Zuul, GitHub, GitLab, Jenkins, Tekton, CDEvents and listings, in upper case with underscores.
_WORDS_OF: dict[OutcomeWord, str] = {
    "success": "SUCCESS SUCCESSFUL SUCCEEDED PASSED PASS",
    "failure": "FAILURE FAILED FAIL UNSTABLE",
    "timeout": "TIMED_OUT TIMEOUT",
    # Caused by the system, not the change: Zuul's further results, GitHub's startup_failure.
    "error": "ERROR POST_FAILURE RETRY RETRY_LIMIT NODE_FAILURE DISK_FULL SECRET_EXPOSURE SNAPSHOT_FAILURE "
    "MERGE_CONFLICT MERGER_FAILURE CONFIG_ERROR STARTUP_FAILURE",
    "cancellation": "ABORTED CANCEL CANCELED CANCELLED CANCELLATION DEQUEUED STALE",
    "skip": "SKIP SKIPPED NEUTRAL NOT_BUILT ACTION_REQUIRED",
}
_WORDS = {word: outcome for outcome, words in _WORDS_OF.items() for word in words.split()}

#: Reasons of Tekton's TaskRuns whose pod did not run, in Tekton's spelling.
_NO_POD = (
    "CouldntGetTask CreateContainerConfigError ExceededNodeResources ExceededResourceQuota InvalidParamValue "
    "PodAdmissionFailed PodCreationFailed PullImageFailed ResourceVerificationFailed TaskRunImagePullFailed "
    "TaskRunResolutionFailed TaskRunValidationFailed TaskValidationFailed"
).split()
#: Results of runs that never began and have no telemetry: the reason why each is ignored.
NEVER_RAN: dict[str, str] = {
    "NODE_FAILURE": "node_lost",
    **dict.fromkeys(("MERGE_CONFLICT", "MERGER_FAILURE", "CONFIG_ERROR", "STARTUP_FAILURE"), "never_started"),
    **dict.fromkeys(map(str.upper, _NO_POD), "never_started"),
}

#: All reasons of Tekton's TaskRuns that end one, other than the words above.
TASK_RUN_REASONS: dict[str, OutcomeWord] = {
    "FailureIgnored": "failure",
    "TaskRunResultLargerThanAllowedLimit": "failure",
    "TaskRunTimeout": "timeout",
    "TaskRunCancelled": "cancellation",
    "PodEvicted": "error",
    "TaskRunStopSidecarFailed": "error",
    **dict.fromkeys(_NO_POD, "error"),
}

#: The labels of a run with the exit status of its command, and with the signal that ended it.
EXIT_LABEL = "exit_code"
SIGNAL_LABEL = "signal"
_STATUS = re.compile("-?[0-9]{1,3}")
_SIGNAL_NUMBER = re.compile("[0-9]{1,2}")
#: A shell adds it to the number of the signal that ended a command.
_SHELL = 128
_MAX_STATUS = 255
_MAX_SIGNAL = 64
_UNKNOWN_STATUS = -1


def outcome_of(word: str) -> OutcomeWord | None:
    """Return the outcome that a producer's word means, or None for an unknown word (such as a job's own message).

    Upper and lower case, spaces and dashes make no difference: ``Timed out`` is ``TIMED_OUT``.
    """
    return _WORDS.get(word) or TASK_RUN_REASONS.get(word) or _WORDS.get(normal_word(word))


def normal_word(word: str) -> str:
    """Return a producer's word in the form of this module's tables."""
    return word.strip().upper().replace(" ", "_").replace("-", "_")


def exit_status_of(labels: Mapping[str, str]) -> int | None:
    """Return the exit status in a run's labels: from -64 to -2 or from 0 to 255; None if it is unknown.

    A run that has only a signal gets the status that a shell reports.

    Example:
      exit_status_of({"exit_code": "-9"})    # -9
      exit_status_of({"signal": "SIGKILL"})  # 137
      exit_status_of({"exit_code": "-1"})    # None
    """
    exit_code = labels.get(EXIT_LABEL, "")
    if not exit_code:
        number = _signal_number(labels.get(SIGNAL_LABEL, ""))
        return _SHELL + number if number else None
    if not _STATUS.fullmatch(exit_code):
        return None
    status = int(exit_code)
    return status if -_MAX_SIGNAL <= status <= _MAX_STATUS and status != _UNKNOWN_STATUS else None


def signal_of(status: int | None) -> int | None:
    """Return the number of the signal that ended a command with this exit status; None for any other status."""
    if status is None:
        return None
    number = -status if status < 0 else status - _SHELL
    return number if 0 < number <= _MAX_SIGNAL else None


def _signal_number(text: str) -> int:
    """Return the number of a signal from its name or number, as the recorder writes it; 0 for any other text."""
    if text in signal.Signals.__members__:
        return int(signal.Signals[text])
    return int(text) if _SIGNAL_NUMBER.fullmatch(text) and int(text) <= _MAX_SIGNAL else 0
