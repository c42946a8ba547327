"""The exceptions that all rooms share: `CimlError` is shown to a user, `RejectedInput` makes an input a dead letter,
and `LogUnavailableError` defers a run.

Processes send each other exceptions by pickle, which calls the class with ``args``. So a class that has further
arguments passes them to `Exception`, or gives them defaults: pickle restores attributes too.
"""

from __future__ import annotations


class CimlError(Exception):
    """An error for the user: one clear line with the cause and, if there is one, the remedy.

    The command line prints the message alone, without a traceback, and exits with ``exit_code``.
    """

    exit_code = 2


class NotFoundError(CimlError):
    """Nothing is stored under a name. The subclasses name the kind of object."""


class NoDataError(NotFoundError):
    """Nothing is stored at a data path."""


class UnknownDatasetError(NotFoundError):
    """No data set has this name."""


class UnknownModelError(NotFoundError):
    """No model has this name, or the model has no such version or label."""


class UnknownRunError(NotFoundError):
    """No stored run has this id."""


class UnknownExperimentError(NotFoundError):
    """No experiment has this name, or it has no result on a data set."""


class UnknownExclusionError(NotFoundError):
    """No exclusion in force has this number."""


class UnknownEstimatorError(CimlError):
    """No estimator has this name. Estimators are code, not stored, so this is no `NotFoundError`."""


class NoTrainingDataError(CimlError):
    """A data set has too few trusted runs, classes or dev runs for its training."""


class InvalidSettingError(CimlError):
    """A definition, an experiment or a configuration file has an unknown key or an invalid value."""


class MissingExtraError(CimlError):
    """An optional library is not installed. The message names the extra of ciml that installs it.

    Attributes:
      extra: its name, such as ``train``.
    """

    def __init__(self, extra: str) -> None:
        super().__init__(extra)
        self.extra = extra

    def __str__(self) -> str:
        return f"this needs ciml[{self.extra}]: pip install 'ciml[{self.extra}]'"


class UnusableRunError(CimlError):
    """A log or a table cannot be used as the telemetry of a run.

    Attributes:
      reason: a short word from a closed set, such as ``not_telemetry``; "" if none applies.
    """

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


class EngineError(CimlError):
    """A broker, a runner, a store or a model server is unavailable or answers with an error."""

    exit_code = 3


class IntegrityError(CimlError):
    """Stored data contradicts itself: a digest, a count, a version. Never repaired silently."""

    exit_code = 4


class RejectedInput(Exception):
    """An input that is rejected. It becomes a dead letter with ``reason`` and ``detail``.

    Attributes:
      reason: a short word from a closed set, usable as a metric label, such as ``broken_json``.
      detail: one line for people: the field or line, and its fault.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


class LogUnavailableError(Exception):
    """A log is unavailable now, but perhaps not later.

    Attributes:
      reason: one of `ciml.transforms.fetch.fetch.DEFERRED`.
      detail: one line for people.
      retry_now: whether the fetch is worth one immediate retry.
      retry_after_s: how long the host asked to wait, seconds; 0 if it did not ask.
    """

    def __init__(self, reason: str, detail: str = "", retry_now: bool = False, retry_after_s: float = 0.0) -> None:
        super().__init__(reason, detail, retry_now, retry_after_s)
        self.reason = reason
        self.detail = detail
        self.retry_now = retry_now
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


def drop_frames(error: Exception) -> None:
    """Drop the traceback and the causes of an exception that is stored, and with them the input's buffers.

    Without this, a frame that stores the exception forms a cycle, which is in memory until the garbage collector runs.
    """
    error.__traceback__ = error.__context__ = error.__cause__ = None
