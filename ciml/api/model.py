"""A pushed model and its predictions."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, starmap
from operator import attrgetter
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self, overload

from ciml.api.telemetry import is_table, parse_runs
from ciml.api.types import Run
from ciml.data_root import DataRoot
from ciml.errors import CimlError, RejectedInput, UnknownRunError, UnusableRunError

if TYPE_CHECKING:
    import pyarrow as pa

    from ciml.events.records import OutcomeWord, RunFacts
    from ciml.serving.predict.answers import Answer
    from ciml.verdict_rules import Verdict

#: Limits of the telemetry in one call of the model: number of runs, and bytes.
_RUNS_PER_CALL = 256
_BYTES_PER_CALL = 64 << 20
#: Number of stored runs that are read together.
_RUNS_PER_READ = 256
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
    """

    run: str
    class_name: str | None
    probability: float | None
    probabilities: Mapping[str, float]
    n_windows: int
    reason: str = ""
    detail: str = ""
    verdict: Verdict | None = None

    @property
    def remark(self) -> str:
        """The reason why the run is unusable, as text; "" for a prediction."""
        return ": ".join(part for part in (self.reason.replace("_", " "), self.detail) if part)

    def to_json(self) -> dict[str, Any]:
        """Return the keys of a published prediction as JSON; for an unusable run ``reason`` and ``detail``."""
        if self.class_name is None:
            return {"run": self.run, "reason": self.reason, "detail": self.detail}
        return {
            "run": self.run,
            "class": self.class_name,
            "probability": self.probability,
            "probabilities": dict(self.probabilities),
            "n_windows": self.n_windows,
            **({} if self.verdict is None else {"verdict": self.verdict.to_json()}),
        }


class _UnknownRun(RejectedInput):
    """No stored run has an id."""


class _Request(NamedTuple):
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


class Model:
    """A pushed version of a model: `ciml.Data.model` opens one.

    Only a version that the gate blessed is loaded, and its files are verified by their digests in the registry, as the
    model server does. TensorFlow runs in a process of its own. The model prepares runs by the data set definition that
    it contains, with the functions of the predict service. Used in a ``with`` statement, it closes itself.

    Attributes:
      name: name of the model.
      version: version number in the registry.
      classes: names of the classes, in order.
      features: names of the features, in order.
    """

    def __init__(self, data: DataRoot, name: str, version: int | None = None, label: str = "stable") -> None:
        from ciml.extras import require

        require("tensorflow", "train")
        from ciml.serving.predict.answers import LocalModel

        self._data = data
        self._local = LocalModel(data, name, version, label)
        self._compares_runs = bool(self._local.definition.definition.context)
        self.name = name
        self.version = self._local.version
        self.classes: tuple[str, ...] = self._local.definition.classes
        self.features: tuple[str, ...] = self._local.definition.features

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
          >>> model = data.model("status")
          >>> model.predict("logs/unit-001.csv").class_name in model.classes
          True
          >>> [prediction.reason for prediction in model.predict(["logs/unit-001.csv", "no-such-file"])]
          ['', 'log_not_found']
        """
        if isinstance(run, list | tuple):
            return list(self.each(run, zone=zone, job=job, outcome=outcome, labels=labels))
        ((name, answer),) = self._answers([run], zone, job, outcome, labels or {})
        prediction = _prediction(name, answer)
        if isinstance(answer, _UnknownRun):
            raise UnknownRunError(f"{name}: {prediction.remark}")
        if isinstance(answer, RejectedInput):
            raise UnusableRunError(f"{name}: {prediction.remark}", answer.reason)
        return prediction

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
        yield from starmap(_prediction, self._answers(runs, zone, job, outcome, labels or {}))

    def _answers(
        self, runs: Iterable[Run], zone: str | None, job: str, outcome: OutcomeWord | None, labels: Mapping[str, str]
    ) -> Iterator[tuple[str, Answer | RejectedInput]]:
        """Yield the name of each run, and its answer or why it is unusable. Arguments as for `predict`."""
        requests = [_request(number, run) for number, run in enumerate(runs, 1)]
        names = [request.name for request in requests]
        facts = self._facts(requests, job, outcome, labels)
        for batch in _batches(map(_Input, names, facts, self._telemetry(requests, zone))):
            self._check_context(batch)
            usable = [item for item in batch if item.rejected is None]
            answers = iter(self._local.predict([item.telemetry for item in usable], [item.facts for item in usable]))
            for item in batch:
                yield item.name, next(answers) if item.rejected is None else item.rejected

    def _facts(
        self, requests: Sequence[_Request], job: str, outcome: OutcomeWord | None, labels: Mapping[str, str]
    ) -> list[RunFacts]:
        """Return the facts of each run: of a stored run from the raw manifest, of any other run as given."""
        from ciml.events.outcomes import OUTCOMES
        from ciml.events.records import RunFacts
        from ciml.manifest.log import ManifestLog
        from ciml.runs.run_log import find_facts

        if outcome is not None and outcome not in OUTCOMES:
            raise CimlError(f"unknown outcome {outcome!r:.80}; choose from {', '.join(sorted(OUTCOMES))}")
        argument_facts = RunFacts("", "", job, outcome=outcome, labels=labels)
        if not self._compares_runs and self._local.rules is None:
            return [argument_facts] * len(requests)  # the model needs no facts
        run_ids = [request.name for request in requests if request.is_stored]
        stored_facts = find_facts(ManifestLog(self._data.raw), run_ids) if run_ids else {}
        return [
            stored_facts.get(request.name, argument_facts) if request.is_stored else argument_facts
            for request in requests
        ]

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

    def _telemetry(self, requests: Iterable[_Request], zone: str | None) -> Iterator[pa.Table | RejectedInput]:
        """Yield the telemetry of each run, or why it has none: from the raw store, from files and from tables."""
        for are_stored, group in groupby(requests, attrgetter("is_stored")):
            if are_stored:
                yield from self._stored_telemetry([request.name for request in group])
            else:
                yield from parse_runs([request.run for request in group], zone)

    def _stored_telemetry(self, run_ids: Sequence[str]) -> Iterator[pa.Table | RejectedInput]:
        from ciml.manifest.log import ManifestLog
        from ciml.runs.reader import read_runs
        from ciml.runs.run_log import find_files
        from ciml.telemetry import OWN_COLUMNS

        raw = self._data.raw
        columns = [*OWN_COLUMNS, *self._local.definition.columns]
        files = find_files(ManifestLog(raw), run_ids)
        for start in range(0, len(run_ids), _RUNS_PER_READ):
            batch = run_ids[start : start + _RUNS_PER_READ]
            tables = iter(read_runs(raw, [files[run_id] for run_id in batch if run_id in files], columns=columns))
            for run_id in batch:
                if run_id in files:
                    yield next(tables)
                else:
                    yield _UnknownRun("unknown_run", f"no file, and no run in {raw.url()}, has this name")

    def close(self) -> None:
        """Free the memory of the model. It cannot predict any more."""
        self._local.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Model({self.name!r}, version {self.version}: {', '.join(self.classes)})"


def _request(number: int, run: Run) -> _Request:
    """Classify a run of a caller. A text is a run id if it has the form of one and no file has this name."""
    from ciml.events.run_id import RunId

    if is_table(run):
        return _Request(f"table {number}", run, is_stored=False)
    if not isinstance(run, str | os.PathLike):
        raise CimlError(f"cannot predict a {type(run).__name__}: expected a path, a run id or a table")
    if not isinstance(run, str) or os.path.exists(run):
        return _Request(os.fspath(run), run, is_stored=False)
    try:
        RunId.decode(run)
    except RejectedInput:
        return _Request(run, run, is_stored=False)
    return _Request(run, run, is_stored=True)


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


def _prediction(run: str, answer: Answer | RejectedInput) -> Prediction:
    if isinstance(answer, RejectedInput):
        return Prediction(run, None, None, {}, 0, answer.reason, answer.detail)
    probability = answer.probabilities[answer.class_name]
    windows = answer.n_windows
    return Prediction(run, answer.class_name, probability, answer.probabilities, windows, verdict=answer.verdict)
