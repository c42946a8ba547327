"""One vocabulary for how a run ended; every producer's own words are mapped to it here."""

from __future__ import annotations

from ciml.events.records import OutcomeWord

#: The classes of the label ``cause``, and its name among a run's labels, which a run's own event may set.
CAUSES = CODE, MACHINE = "code", "machine"
CAUSE = "cause"
#: Outcomes of a run that failed; only these have a cause.
FAILED = frozenset({"failure", "timeout"})

OUTCOMES: frozenset[str] = frozenset({"success", "failure", "error", "timeout", "cancellation", "skip"})

#: Words of Zuul, GitHub, GitLab, Jenkins, Tekton, CDEvents and listings, in upper case with underscores.
_WORDS: dict[str, OutcomeWord] = {
    "SUCCESS": "success",
    "SUCCESSFUL": "success",
    "SUCCEEDED": "success",
    "PASSED": "success",
    "PASS": "success",
    "FAILURE": "failure",
    "FAILED": "failure",
    "FAIL": "failure",
    "UNSTABLE": "failure",
    "TIMED_OUT": "timeout",
    "TIMEOUT": "timeout",
    # Caused by the system, not the change: Zuul's further results, GitHub's startup_failure.
    "ERROR": "error",
    "POST_FAILURE": "error",
    "RETRY": "error",
    "RETRY_LIMIT": "error",
    "NODE_FAILURE": "error",
    "DISK_FULL": "error",
    "SECRET_EXPOSURE": "error",
    "SNAPSHOT_FAILURE": "error",
    "MERGE_CONFLICT": "error",
    "MERGER_FAILURE": "error",
    "CONFIG_ERROR": "error",
    "STARTUP_FAILURE": "error",
    "ABORTED": "cancellation",
    "CANCEL": "cancellation",
    "CANCELED": "cancellation",
    "CANCELLED": "cancellation",
    "CANCELLATION": "cancellation",
    "DEQUEUED": "cancellation",
    "STALE": "cancellation",
    "SKIP": "skip",
    "SKIPPED": "skip",
    "NEUTRAL": "skip",
    "NOT_BUILT": "skip",
    "ACTION_REQUIRED": "skip",
}

#: Reasons of Tekton's TaskRuns whose pod did not run, in Tekton's spelling.
_NO_POD = (
    "CouldntGetTask",
    "CreateContainerConfigError",
    "ExceededNodeResources",
    "ExceededResourceQuota",
    "InvalidParamValue",
    "PodAdmissionFailed",
    "PodCreationFailed",
    "PullImageFailed",
    "ResourceVerificationFailed",
    "TaskRunImagePullFailed",
    "TaskRunResolutionFailed",
    "TaskRunValidationFailed",
    "TaskValidationFailed",
)
#: Results of runs that never began and have no telemetry: the reason why each is ignored.
NEVER_RAN: dict[str, str] = {
    "NODE_FAILURE": "node_lost",
    "MERGE_CONFLICT": "never_started",
    "MERGER_FAILURE": "never_started",
    "CONFIG_ERROR": "never_started",
    "STARTUP_FAILURE": "never_started",
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


def outcome_of(word: str) -> OutcomeWord | None:
    """Return the outcome that a producer's word means, or None for an unknown word (such as a job's own message).

    Upper and lower case, blanks and dashes make no difference: ``Timed out`` is ``TIMED_OUT``.
    """
    return _WORDS.get(word) or TASK_RUN_REASONS.get(word) or _WORDS.get(normal_word(word))


def normal_word(word: str) -> str:
    """Return a producer's word in the form of this module's tables."""
    return word.strip().upper().replace(" ", "_").replace("-", "_")
