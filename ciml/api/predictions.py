"""Predictions for runs, by any model: `Predicts` is the common part of `ciml.Model` and `ciml.Client`.

A `Client` asks a model server about logs of this machine.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar, overload

from ciml.api.telemetry import is_table, parse_runs
from ciml.api.types import Run
from ciml.errors import CimlError, RejectedInput, UnknownRunError, UnusableRunError

if TYPE_CHECKING:
    import pyarrow as pa

    from ciml.events.records import OutcomeWord, RunFacts
    from ciml.serving.predict.answers import Answer, PreparedModel
    from ciml.serving.registry import CandidateNotice
    from ciml.verdict_rules import Verdict

T = TypeVar("T")

#: Limits of the telemetry in one call of the model: number of runs, and bytes.
_RUNS_PER_CALL = 256
_BYTES_PER_CALL = 64 << 20
#: Number of unusable runs that an error names.
_MAX_NAMED_FAULTS = 5


@dataclass(frozen=True)
class Prediction:
    """The prediction for a run, or the reason why the run is unusable.

    Attributes:
      run: the path or run id; ``table N`` for the Nth run of a list if it is a table.
      class_name: the class with the highest probability; None for an unusable run.
      probability: probability of that class; None for an unusable run.
      probabilities: the probability of each class, in the data set's order; empty for an unusable run.
      n_windows: number of the run's windows, without padding.
      reason: for an unusable run, a word such as ``not_telemetry`` or ``missing_column``; otherwise "".
      detail: one line about that reason.
      verdict: the [verdict](verdicts.md) of a model of causes on a failed run; otherwise None.
      candidate: the gate's decision on the candidate that answered; None for a served version.
    """

    run: str
    class_name: str | None
    probability: float | None
    probabilities: Mapping[str, float]
    n_windows: int
    reason: str = ""
    detail: str = ""
    verdict: Verdict | None = None
    candidate: CandidateNotice | None = None

    @property
    def remark(self) -> str:
        """The reason why the run is unusable, as text; "" for a prediction."""
        return _remark(RejectedInput(self.reason, self.detail))

    def to_json(self) -> dict[str, Any]:
        """Return the keys of a published prediction as JSON; for an unusable run ``reason`` and ``detail``.

        The key ``candidate`` is present only for the answer of a candidate.
        """
        candidate = {} if self.candidate is None else {"candidate": self.candidate.to_json()}
        if self.class_name is None:
            return {"run": self.run, "reason": self.reason, "detail": self.detail, **candidate}
        return {
            "run": self.run,
            "class": self.class_name,
            "probability": self.probability,
            "probabilities": dict(self.probabilities),
            "n_windows": self.n_windows,
            **({} if self.verdict is None else {"verdict": self.verdict.to_json()}),
            **candidate,
        }


class UnknownRun(RejectedInput):
    """No stored run has an id."""


class Request(NamedTuple):
    """A run of a caller.

    Attributes:
      name: the path or run id, or ``table N``.
      run: the run id of a stored run; otherwise a path or a table.
      is_stored: whether ``run`` is a run id.
    """

    name: str
    run: Run
    is_stored: bool


class _Input(NamedTuple):
    """A run to predict: its name, its facts, and its telemetry or why it has none."""

    name: str
    facts: RunFacts
    telemetry: pa.Table | RejectedInput

    @property
    def rejected(self) -> RejectedInput | None:
        """Why the run has no telemetry; None for a usable run."""
        return self.telemetry if isinstance(self.telemetry, RejectedInput) else None


class Predicts:
    """A model that predicts runs. Used in a ``with`` statement, it closes itself.

    Attributes:
      name: name of the model.
      version: version number in the registry; None for a candidate.
      candidate: the gate's decision on a candidate; None for a version.
      classes: names of the classes, in order.
      features: names of the features, in order.
    """

    name: str
    version: int | None
    candidate: CandidateNotice | None
    classes: tuple[str, ...]
    features: tuple[str, ...]

    def __init__(self, prepared: PreparedModel) -> None:
        self._prepared = prepared
        self._compares_runs = bool(prepared.definition.definition.context)
        self.name = prepared.model
        self.version = prepared.version
        self.candidate = prepared.candidate
        self.classes = prepared.definition.classes
        self.features = prepared.definition.features

    @overload
    def predict(
        self,
        run: list[Run] | tuple[Run, ...],
        *,
        zone: str | None = None,
        job: str = "",
        outcome: OutcomeWord | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> list[Prediction]: ...

    @overload
    def predict(
        self,
        run: Run,
        *,
        zone: str | None = None,
        job: str = "",
        outcome: OutcomeWord | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Prediction: ...

    def predict(
        self,
        run: Run | list[Run] | tuple[Run, ...],
        *,
        zone: str | None = None,
        job: str = "",
        outcome: OutcomeWord | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Prediction | list[Prediction]:
        """Predict the class of a run, or of each run of a list.

        Args:
          run: the path of a log, the id of a stored run, a table as `ciml.parse_log` returns it, or a list of these.
          zone: zone of logs that do not name one.
          job: job of the run, which a log does not contain. It selects the passing runs and the calibration of a
            verdict.
          outcome: outcome of the run: ``failure``, ``timeout``, ``success``, … Only a ``failure`` or a ``timeout`` gets
            a verdict.
          labels: further run facts that a model needs, such as ``{"exit_code": "137"}``. The facts of a stored run take
            precedence.

        Returns:
          A prediction; for a list, one prediction per run, in the same order. An unusable run does not affect the
          others.

        Raises:
          UnknownRunError: no stored run has the id ``run``.
          UnusableRunError: a single run is unusable; its ``reason`` says why.
          CimlError: the model needs job and outcome, or the outcome is unknown.
          IntegrityError: stored telemetry differs from its digest.

        Example:
          >>> model.predict("logs/unit-001.csv").class_name in model.classes
          True
          >>> [prediction.reason for prediction in model.predict(["logs/unit-001.csv", "no-such-file"])]
          ['', 'log_not_found']
        """
        if isinstance(run, list | tuple):
            return list(self.each(run, zone=zone, job=job, outcome=outcome, labels=labels))
        ((name, answer),) = self._per_run([run], zone, job, outcome, labels or {}, self._prepared.predict)
        if isinstance(answer, RejectedInput):
            raise _unusable(name, answer)
        return self._prediction(name, answer)

    def each(
        self,
        runs: Iterable[Run],
        *,
        zone: str | None = None,
        job: str = "",
        outcome: OutcomeWord | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Iterator[Prediction]:
        """Yield the predictions of many runs in order, like `predict` for a list.

        Telemetry is read and predicted in batches. The arguments, and the facts of all runs, are in memory meanwhile.

        Example:
          >>> from pathlib import Path
          >>> sum(prediction.probability is not None for prediction in model.each(sorted(Path("logs").iterdir()))) > 50
          True
        """
        for name, answer in self._per_run(runs, zone, job, outcome, labels or {}, self._prepared.predict):
            yield self._prediction(name, answer)

    def request(
        self,
        run: Run,
        *,
        zone: str | None = None,
        job: str = "",
        outcome: OutcomeWord | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """Return the JSON body of TensorFlow Serving's REST request (``POST …:predict``) for a run.

        Arguments and errors are those of `predict`.

        Returns:
          ``instances`` with one row, whose ``inputs`` are [L × features], not normalised, and whose ``n_windows`` is
          the number of the run's windows. ``signature_name`` is ``classify``, whose answer names the classes, if the
          model has it.

        Example:
          >>> body = model.request("logs/unit-001.csv")
          >>> body["signature_name"], body["instances"][0]["n_windows"]
          ('classify', 10)
        """
        ((name, body),) = self._per_run([run], zone, job, outcome, labels or {}, self._prepared.requests)
        if isinstance(body, RejectedInput):
            raise _unusable(name, body)
        return body

    def _per_run(
        self,
        runs: Iterable[Run],
        zone: str | None,
        job: str,
        outcome: OutcomeWord | None,
        labels: Mapping[str, str],
        work: Callable[[Sequence[pa.Table], Sequence[RunFacts]], Sequence[T | RejectedInput]],
    ) -> Iterator[tuple[str, T | RejectedInput]]:
        """Yield the name of each run, and the result of ``work`` for its telemetry and facts, or why it is unusable.

        The other arguments are those of `predict`.
        """
        from ciml.events.outcomes import OUTCOMES
        from ciml.events.records import RunFacts

        if outcome is not None and outcome not in OUTCOMES:
            raise CimlError(f"unknown outcome {outcome!r:.80}; choose from {', '.join(sorted(OUTCOMES))}")
        requests = [_request(number, run) for number, run in enumerate(runs, 1)]
        names = [request.name for request in requests]
        facts = self._facts(requests, RunFacts("", "", job, outcome=outcome, labels=labels))
        for batch in _batches(map(_Input, names, facts, self._telemetry(requests, zone))):
            self._check_context(batch)
            usable = [item for item in batch if item.rejected is None]
            results = iter(work([item.telemetry for item in usable], [item.facts for item in usable]))
            for item in batch:
                yield item.name, next(results) if item.rejected is None else item.rejected

    def _prediction(self, run: str, answer: Answer | RejectedInput) -> Prediction:
        if isinstance(answer, RejectedInput):
            return Prediction(run, None, None, {}, 0, answer.reason, answer.detail, candidate=self.candidate)
        probability = answer.probabilities[answer.class_name]
        return Prediction(
            run,
            answer.class_name,
            probability,
            answer.probabilities,
            answer.n_windows,
            verdict=answer.verdict,
            candidate=self.candidate,
        )

    def _facts(self, requests: Sequence[Request], argument_facts: RunFacts) -> list[RunFacts]:
        """Return the facts of each run: those of the arguments, unless the run is stored."""
        return [argument_facts] * len(requests)

    def _telemetry(self, requests: Sequence[Request], zone: str | None) -> Iterator[pa.Table | RejectedInput]:
        """Yield the telemetry of each run, or why it has none."""
        yield from parse_runs([request.run for request in requests], zone)

    def _check_context(self, batch: Sequence[_Input]) -> None:
        """Raise `CimlError`, with the unusable runs, if a usable run lacks facts that the model needs to compare it."""
        usable_facts = [item.facts for item in batch if item.rejected is None and self._compares_runs]
        if all(facts.run_id or (facts.build_name and facts.outcome) for facts in usable_facts):
            return
        unusable = [item for item in batch if item.rejected is not None]
        faults = [f"; {item.name} is unusable: {item.rejected}" for item in unusable[:_MAX_NAMED_FAULTS]]
        raise CimlError(
            f"model {self.name} compares a run with those of its job: give job and outcome, such as failure"
            + "".join(faults)
        )

    def close(self) -> None:
        """Free the memory and the connections of the model. It cannot predict any more."""
        self._prepared.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class Client(Predicts):
    """A model on a model server: ``ciml serve``, or any TensorFlow Serving.

    The model describes itself, so a client needs no data root. A log is parsed and prepared on this machine, and the
    server gets its windows alone. Models of earlier versions of ciml do not describe themselves. A model of causes
    gives no verdict here. Used in a ``with`` statement, it closes itself.

    Args:
      url: ``http://HOST:PORT``, ``https://…``, each optionally with ``/v1/models/NAME`` and ``/versions/N`` or
        ``/labels/LABEL``; or ``grpc://HOST:PORT`` or ``grpc://HOST:PORT/NAME``. Redirects are not followed.
      model: name of the model; not needed if the address names it, or if a ``ciml serve`` serves a single model.
      version: the version; by default that of ``label``.
      label: the label; by default ``stable``, or the latest version where there is no such label.
      timeout_s: limit of one request, seconds.

    Attributes:
      name: name of the model.
      version: number of the version that described itself last.
      classes: names of the classes, in order.
      features: names of the features, in order.

    Raises:
      CimlError: the address is malformed, there is no such model, or it does not describe itself, or it needs facts
        that no client has.
      EngineError: the server is unavailable.

    Example:
      >>> with ciml.Client("http://127.0.0.1:8501", "status") as client:
      ...     prediction = client.predict("logs/unit-001.csv")
      >>> prediction.class_name, client.classes
      ('failed', ('passed', 'failed'))
    """

    def __init__(
        self,
        url: str,
        model: str = "",
        *,
        version: int | None = None,
        label: str | None = None,
        timeout_s: float = 30.0,
    ) -> None:
        from ciml.extras import require

        require("grpc", "serve")
        from ciml.serving.predict.remote import RemoteModel
        from ciml.serving.remote import parse_url

        super().__init__(RemoteModel(parse_url(url, model, version, label), timeout_s))
        self.url = url

    def __repr__(self) -> str:
        return f"Client({self.url!r}: {self.name!r}, version {self.version}: {', '.join(self.classes)})"


def _request(number: int, run: Run) -> Request:
    """Classify a run of a caller. A text is a run id if it has the form of one and no file has this name."""
    from ciml.events.run_id import RunId

    if is_table(run):
        return Request(f"table {number}", run, is_stored=False)
    if not isinstance(run, str | os.PathLike):
        raise CimlError(f"cannot predict a {type(run).__name__}: expected a path, a run id or a table")
    if not isinstance(run, str) or os.path.exists(run):
        return Request(os.fspath(run), run, is_stored=False)
    try:
        RunId.decode(run)
    except RejectedInput:
        return Request(run, run, is_stored=False)
    return Request(run, run, is_stored=True)


def _batches(inputs: Iterable[_Input]) -> Iterator[list[_Input]]:
    """Group inputs by number and size, so that memory is bounded."""
    batch: list[_Input] = []
    size = 0
    for item in inputs:
        batch.append(item)
        size += 0 if isinstance(item.telemetry, RejectedInput) else item.telemetry.nbytes
        if len(batch) >= _RUNS_PER_CALL or size >= _BYTES_PER_CALL:
            yield batch
            batch = []
            size = 0
    if batch:
        yield batch


def _remark(rejected: RejectedInput) -> str:
    return ": ".join(part for part in (rejected.reason.replace("_", " "), rejected.detail) if part)


def _unusable(name: str, rejected: RejectedInput) -> CimlError:
    """Return the error for a single unusable run."""
    text = f"{name}: {_remark(rejected)}"
    return UnknownRunError(text) if isinstance(rejected, UnknownRun) else UnusableRunError(text, rejected.reason)
