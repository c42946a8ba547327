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


def outcome_of(word: str) -> OutcomeWord | None:
    """Return the outcome that a producer's word means, or None for an unknown word (such as a job's own message).

    Upper and lower case, blanks and dashes make no difference: ``Timed out`` is ``TIMED_OUT``.
    """
    return _WORDS.get(word) or TASK_RUN_REASONS.get(word) or _WORDS.get(normal_word(word))


def normal_word(word: str) -> str:
    """Return a producer's word in the form of this module's tables."""
    return word.strip().upper().replace(" ", "_").replace("-", "_")
