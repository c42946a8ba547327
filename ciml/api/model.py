"""A pushed model in this process, and its predictions."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal, overload

from ciml.api.logs import is_frame, telemetry_of
from ciml.data_root import DataRoot
from ciml.errors import CimlError, RejectedInput

if TYPE_CHECKING:
    import pyarrow as pa

    from ciml.events.records import OutcomeWord, RunFacts
    from ciml.serving.predict.local import Answer
    from ciml.verdict_rules import Verdict


#: Telemetry that is predicted at once: number of runs, and bytes.
_MOST_RUNS = 256
_MOST_BYTES = 64 << 20
#: Unusable runs that an error names.
_MOST_FAULTS = 5

Kind = Literal["file", "run", "telemetry"]


@dataclass(frozen=True)
class Prediction:
    """What a model answers for a run; or, in a list, why it cannot answer.

    Attributes:
      run: the path or run id; ``table N`` for the Nth table of a list.
      class_name: the class with the highest probability; None for an unusable run.
      probability: of that class; None for an unusable run.
      probabilities: of all classes, in the order of the data set; empty for an unusable run.
      n_windows: number of the run's windows, without padding.
      reason: why the run cannot be used, such as ``not_telemetry`` or ``missing_column``; "" else.
      detail: one line about that reason.
      verdict: on a failed run, by a model of causes: see [verdicts](verdicts.md); else None.
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
        """Why the run cannot be used, as text; "" for a prediction."""
        return ": ".join(part for part in (self.reason.replace("_", " "), self.detail) if part)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON: the keys of a published prediction, or ``reason`` and ``detail``."""
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


class Model:
    """A pushed version of a model, loaded in this process: `ciml.Data.model` opens one.

    Its files are compared with their digests in the registry, as the model server does, and only a version that the
    gate blessed is loaded. Runs are prepared by the data set definition inside the model, by the functions that the
    predict service uses.

    Attributes:
      name: of the model.
      version: its number in the registry.
      classes: names of the classes, in order.
      features: names of the features that it takes, in order.
    """

    def __init__(self, data: DataRoot, name: str, version: int | None = None, label: str = "stable") -> None:
        from ciml.extras import require

        require("tensorflow")
        from ciml.serving.predict.local import LocalModel
        from ciml.training.runtime import tensorflow

        tensorflow()  # with the settings of training, which cannot be changed later
        self._data = data
        self._local = LocalModel(data, name, version, label)
        self.name = name
        self.version = self._local.version
        self.classes: tuple[str, ...] = self._local.definition.classes
        self.features: tuple[str, ...] = self._local.definition.features

    @overload
    def predict(
        self,
        run: list[Any],
        *,
        zone: str | None = None,
        job: str = "",
        outcome: OutcomeWord | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> list[Prediction]: ...

    @overload
    def predict(
        self,
        run: str | os.PathLike[str] | pa.Table | Any,
        *,
        zone: str | None = None,
        job: str = "",
        outcome: OutcomeWord | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Prediction: ...

    def predict(
        self,
        run: Any,
        *,
        zone: str | None = None,
        job: str = "",
        outcome: OutcomeWord | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Prediction | list[Prediction]:
        """Predict the class of a run, or of each run of a list.

        Args:
          run: the path of a log, the id of a stored run, telemetry as `ciml.parse_log` returns it, such a DataFrame,
            or a list of these.
          zone: zone of logs that name none.
          job: of the run, which a log does not name. It selects the passing runs and the calibration of a verdict.
          outcome: of the run: ``failure``, ``timeout``, ``success``, … A verdict is on a ``failure`` or a ``timeout``.
          labels: further facts that a model takes, such as ``{"exit_code": "137"}``. A stored run has facts of its own.

        Returns:
          For a list a prediction for each of its runs, in order; an unusable run affects only itself.

        Raises:
          CimlError: for a single run that cannot be used, with the reason; for a model that takes job and outcome,
            without these; for an unknown outcome.
          IntegrityError: stored telemetry differs from its digest.

        Example:
          >>> model = data.model("status")
          >>> model.predict("logs/unit-001.csv").class_name in model.classes
          True
          >>> [one.reason for one in model.predict(["logs/unit-001.csv", "no-such-file"])]
          ['', 'log_not_found']
        """
        each = self.each(
            run if isinstance(run, list | tuple) else [run], zone=zone, job=job, outcome=outcome, labels=labels
        )
        if isinstance(run, list | tuple):
            return list(each)
        (found,) = each
        if found.class_name is None:
            raise CimlError(f"{found.run}: {found.remark}")
        return found

    def each(
        self,
        runs: Iterable[Any],
        *,
        zone: str | None = None,
        job: str = "",
        outcome: OutcomeWord | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Iterator[Prediction]:
        """Yield the predictions of many runs in order, part by part: as `predict` for a list, in bounded memory.

        Example:
          >>> from pathlib import Path
          >>> sum(one.probability is not None for one in model.each(sorted(Path("logs").iterdir()))) > 50
          True
        """
        listed = [(_name(number, run), run) for number, run in enumerate(runs, 1)]
        facts = self._facts([run for _, run in listed], job, outcome, labels or {})
        rows = iter(zip((name for name, _ in listed), facts, strict=True))
        for part in _parts(self._tables([run for _, run in listed], zone)):
            its = [next(rows) for _ in part]
            self._check_context(its, part)
            usable = [at for at, each in enumerate(part) if not isinstance(each, RejectedInput)]
            answers = iter(self._local.predict([part[at] for at in usable], [its[at][1] for at in usable]))
            for (name, _), each in zip(its, part, strict=True):
                yield _prediction(name, each if isinstance(each, RejectedInput) else next(answers))

    def _facts(
        self, runs: Sequence[Any], job: str, outcome: OutcomeWord | None, labels: Mapping[str, str]
    ) -> list[RunFacts]:
        """Return the facts of each run: those of a stored run from the raw manifest, of others as given."""
        from ciml.events.outcomes import OUTCOMES
        from ciml.events.records import RunFacts
        from ciml.manifest.log import ManifestLog
        from ciml.runs.run_log import find_facts

        if outcome is not None and outcome not in OUTCOMES:
            raise CimlError(f"unknown outcome {outcome!r:.80}; choose from {', '.join(sorted(OUTCOMES))}")
        context = bool(self._local.definition.definition.context)
        stored = [run for run in runs if _kind(run) == "run"] if context or self._local.rules is not None else []
        known = find_facts(ManifestLog(self._data.raw), stored) if stored else {}
        given = RunFacts("", "", job, outcome=outcome, labels=labels)
        return [known.get(run, given) if isinstance(run, str) else given for run in runs]

    def _check_context(self, runs: Sequence[tuple[str, RunFacts]], tables: Sequence[pa.Table | RejectedInput]) -> None:
        """Raise `CimlError` for a usable run without the facts that the model compares; it names the unusable runs."""
        if not self._local.definition.definition.context:
            return
        named = list(zip(runs, tables, strict=True))
        incomplete = any(
            not isinstance(table, RejectedInput) and not facts.run_id and not (facts.build_name and facts.outcome)
            for (_, facts), table in named
        )
        if incomplete:
            unusable = ((name, table) for (name, _), table in named if isinstance(table, RejectedInput))
            faults = [f"; {name} is unusable: {table}" for name, table in unusable]
            raise CimlError(
                f"model {self.name} compares a run with those of its job: give job and outcome, such as failure"
                + "".join(faults[:_MOST_FAULTS])
            )

    def _tables(self, runs: Sequence[Any], zone: str | None) -> Iterator[pa.Table | RejectedInput]:
        from ciml.transforms.parse.logs import parse_files

        for kind, some in groupby(runs, _kind):
            if kind == "file":
                yield from parse_files(some, zone=zone)
            elif kind == "run":
                yield from self._stored(list(some))
            else:
                yield from map(telemetry_of, some)

    def _stored(self, run_ids: Sequence[str]) -> Iterator[pa.Table | RejectedInput]:
        from ciml.manifest.log import ManifestLog
        from ciml.runs.reader import read_runs
        from ciml.runs.run_log import find_files
        from ciml.telemetry import OWN_COLUMNS

        raw = self._data.raw
        columns = [*OWN_COLUMNS, *self._local.definition.columns]
        files = find_files(ManifestLog(raw), run_ids)
        for start in range(0, len(run_ids), _MOST_RUNS):
            part = run_ids[start : start + _MOST_RUNS]
            tables = iter(read_runs(raw, [files[each] for each in part if each in files], columns=columns))
            for each in part:
                missing = RejectedInput("unknown_run", f"no file, and no run in {raw.url()}, has this name")
                yield next(tables) if each in files else missing

    def close(self) -> None:
        """Free the memory of the model; it cannot predict any more."""
        self._local.close()

    def __repr__(self) -> str:
        return f"Model({self.name!r}, version {self.version}: {', '.join(self.classes)})"


def _kind(run: Any) -> Kind:
    import pyarrow as pa

    from ciml.events.run_id import RunId

    if isinstance(run, pa.Table) or is_frame(run):
        return "telemetry"
    if isinstance(run, str) and not os.path.exists(run):
        try:
            RunId.decode(run)
        except RejectedInput:
            return "file"
        return "run"
    if isinstance(run, str | os.PathLike):
        return "file"
    raise CimlError(f"cannot predict a {type(run).__name__}: want a path, a run id, a DataFrame or a pyarrow Table")


def _name(number: int, run: Any) -> str:
    return os.fspath(run) if isinstance(run, str | os.PathLike) else f"table {number}"


def _parts(tables: Iterator[pa.Table | RejectedInput]) -> Iterator[list[pa.Table | RejectedInput]]:
    part: list[pa.Table | RejectedInput] = []
    size = 0
    for table in tables:
        part.append(table)
        size += 0 if isinstance(table, RejectedInput) else table.nbytes
        if len(part) >= _MOST_RUNS or size >= _MOST_BYTES:
            yield part
            part = []
            size = 0
    if part:
        yield part


def _prediction(run: str, answer: Answer | RejectedInput) -> Prediction:
    if isinstance(answer, RejectedInput):
        return Prediction(run, None, None, {}, 0, answer.reason, answer.detail)
    probability = answer.probabilities[answer.class_name]
    windows = answer.n_windows
    return Prediction(run, answer.class_name, probability, answer.probabilities, windows, verdict=answer.verdict)
