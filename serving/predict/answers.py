"""Predictions by a model in this process (`LocalModel`), and the steps that they share with the predict service.

The steps are the preparation of runs, their division into calls, the check of the answers, the neighbours of failed
runs from the raw manifest, and the verdict, which states why a run failed. A `LocalModel` is loaded and verified as the
model server does, and needs no server.
"""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from ciml.data_root import DataRoot
from ciml.errors import IntegrityError, RejectedInput
from ciml.events.outcomes import EXIT_LABEL, FAILED, SIGNAL_LABEL
from ciml.http.intake import RequestError
from ciml.manifest.bookmarks import Bookmarks
from ciml.manifest.log import ManifestLog
from ciml.runs.neighbours import NEIGHBOURS_KIND, NearbyRuns, Neighbours
from ciml.runs.run_log import StoredRunLog
from ciml.serving.decimals import shortest_decimals
from ciml.serving.description import CLASSIFY
from ciml.serving.predict.assets import ModelAssets, read_assets
from ciml.serving.predict.prepared import MAX_CALL_ROWS, prepare_runs
from ciml.serving.registries import RegistryVerifier, known_registries
from ciml.serving.registry import STABLE, CandidateNotice
from ciml.serving.server.model.loaded_model import load_model
from ciml.transforms.examples.changes import digest_of
from ciml.transforms.examples.context import OutputOf
from ciml.transforms.examples.prepare import run_means
from ciml.transforms.guard import bisect
from ciml.transforms.logs.run_outputs import outputs_of_stored
from ciml.trust import evaluate, former_policy
from ciml.verdict_rules import Verdict, VerdictRules, make_verdict

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    from ciml.datasets.definition import ResolvedDefinition
    from ciml.events.records import RunFacts


_LOG = logging.getLogger(__name__)
#: The reason of a run for which the model answers with an error, a value that is not finite, or too late.
MODEL_ERROR = "model_error"
#: Facts that the record of a prediction omits: they are large, or of no use for a message. Of the labels, the record
#: has the exit status and the signal.
_NOT_RECORDED = ("log_url", "subjects", "labels")
#: The bookmark of `StoredNeighbours`, next to the manifest of predictions.
BOOKMARK = "_neighbours"
#: The bookmark is replaced after so many runs. To read as many again takes half a second.
_BOOKMARK_RUNS = 10_000


class Answer(NamedTuple):
    """A model's answer for one run.

    Attributes:
      class_name: the class with the highest probability.
      probabilities: by class, in the definition's order.
      n_windows: number of the run's windows.
      verdict: on a failed run, by a model that gives verdicts; else None.
    """

    class_name: str
    probabilities: dict[str, float]
    n_windows: int
    verdict: Verdict | None = None


class PreparedModel(ABC):
    """A model, and the preparation of runs for it by its definition.

    Attributes:
      model: the model's name.
      version: its version; None for a candidate.
      candidate: marks the answers of a candidate; None for a served model.
      definition: the data set definition by which runs are prepared.
      rules: of verdicts; None for a model that gives none.
    """

    model: str
    version: int | None
    definition: ResolvedDefinition
    rules: VerdictRules | None = None
    candidate: CandidateNotice | None = None

    @property
    def where(self) -> str:
        """The model and its version, for errors."""
        return f"model {self.model}, {self.candidate or f'version {self.version}'}"

    def predict(
        self,
        tables: Sequence[pa.Table],
        runs: Sequence[RunFacts] | None = None,
    ) -> list[Answer | RejectedInput]:
        """Predict the runs of some telemetry, by the preparation and the reasons of the predict service.

        Args:
          tables: telemetry as from `ciml.transforms.parse.logs.parse_logs`, one table a run.
          runs: the facts of each run, for a verdict and for a definition with context. Stored runs have
            neighbours and outputs too.

        Returns:
          For each run its answer, or its rejection.
        """
        if not tables:  # `bisect` would raise if the definition needs facts
            return []
        answers: list[Answer | RejectedInput] = []
        facts: Sequence[RunFacts | None] = [None] * len(tables) if runs is None else runs
        inputs = list(zip(tables, facts, strict=True))
        for _, result in bisect("predict", inputs, self._predict):
            answers += [result] if isinstance(result, RejectedInput) else result
        return answers

    def requests(self, tables: Sequence[pa.Table], runs: Sequence[RunFacts]) -> list[dict[str, Any] | RejectedInput]:
        """Return the JSON body of TensorFlow Serving's REST request for each run. Arguments as for `predict`."""
        prepared = prepare_runs(
            tables, self.definition, runs, self._neighbours_of(runs), self._output_of(runs), self.rules
        )
        signature = {"signature_name": CLASSIFY} if self.names_classes else {}
        bodies: list[dict[str, Any] | RejectedInput] = []
        for row, (inputs, n_windows) in enumerate(zip(prepared.inputs, prepared.n_windows, strict=True)):
            instance = {"inputs": shortest_decimals(inputs).tolist(), "n_windows": int(n_windows)}
            bodies.append(prepared.rejected.get(row) or {**signature, "instances": [instance]})
        return bodies

    @property
    @abstractmethod
    def names_classes(self) -> bool:
        """Whether the model has the signature ``classify``."""

    def _predict(self, inputs: Sequence[tuple[pa.Table, RunFacts | None]]) -> list[Answer | RejectedInput]:
        """Predict runs together. Raise `RejectedInput` if the model fails for any; `bisect` then finds the run."""
        tables = [table for table, _ in inputs]
        facts = [run for _, run in inputs if run is not None]
        prepared = prepare_runs(
            tables, self.definition, facts or None, self._neighbours_of(facts), self._output_of(facts), self.rules
        )
        results: dict[int, Answer | RejectedInput] = dict(prepared.rejected)
        for rows in prepared.calls(self._max_rows()):
            answers = self._query(prepared.inputs[rows], prepared.n_windows[rows])
            check_answers(answers, self.definition, self.where)
            for row, answer in zip(rows, answers, strict=True):
                windows = prepared.inputs[row, : prepared.n_windows[row]]
                results[row] = self._answer(answer, windows, inputs[row][1], row in prepared.without_telemetry)
        return [results[row] for row in range(len(tables))]

    def _answer(
        self, answer: NDArray[np.float32], windows: NDArray[np.float32], run: RunFacts | None, without_telemetry: bool
    ) -> Answer | RejectedInput:
        try:
            probabilities = probabilities_of(answer, self.definition)
        except RejectedInput as rejected:
            return rejected
        verdict = verdict_of(run, probabilities, self.rules, windows, without_telemetry=without_telemetry)
        n_windows = 0 if without_telemetry else len(windows)
        return Answer(class_of(answer, self.definition), probabilities, n_windows, verdict)

    def _neighbours_of(self, runs: Sequence[RunFacts]) -> Sequence[Neighbours | None]:
        """Return the neighbours of each run; empty if they are unknown."""
        return ()

    def _output_of(self, runs: Sequence[RunFacts]) -> OutputOf | None:
        """Return the function that reads the outputs of these runs; None if outputs are unavailable."""
        return None

    def _max_rows(self) -> int:
        """Return the number of runs in one call of the model."""
        return MAX_CALL_ROWS

    @abstractmethod
    def _query(self, inputs: NDArray[np.float32], n_windows: NDArray[np.int32]) -> NDArray[np.float32]:
        """Return the probabilities [rows, C] of inputs [rows, L, F] and n_windows [rows].

        Raises:
          RejectedInput: ``model_error``, if the model fails for one of these runs.
        """

    @abstractmethod
    def close(self) -> None:
        """Free the model's memory, or its connections."""


class Loaded(Protocol):
    """A loaded model: `ciml.serving.server.model.loaded_model.LoadedModel`, or an estimator in this process."""

    @property
    def signatures(self) -> Collection[str]:
        """The names of the signatures."""

    @property
    def ended(self) -> bool:
        """Whether its process has ended: it must be loaded again."""

    def predict(
        self, signature_name: str, inputs: Mapping[str, NDArray[Any]], *, timeout_s: float | None = None
    ) -> Mapping[str, NDArray[Any]]:
        """Run a signature; see `LoadedModel.predict`. An estimator in this process has no time limit."""

    def close(self) -> None:
        """Free its memory."""


class RunningModel:
    """A loaded model, which is loaded again if its process has ended. Thread-safe.

    A call may have killed the process, or the system, which lacked memory.

    Args:
      load: loads the model.

    Attributes:
      closed: whether it was closed; from then on, it is not loaded again.
    """

    def __init__(self, load: Callable[[], Loaded]) -> None:
        self._load = load
        self._loaded = load()
        self._lock = threading.Lock()
        self.closed = False

    def loaded(self) -> Loaded:
        """Return the model. Raises what loading raises."""
        with self._lock:
            if self._loaded.ended and not self.closed:
                self._loaded.close()
                self._loaded = self._load()
            return self._loaded

    def close(self) -> None:
        """Free its memory. A call that runs now fails."""
        with self._lock:
            self.closed = True
            self._loaded.close()


class ModelInProcess(PreparedModel):
    """A model of a data root that is loaded here. Thread-safe until `close`.

    Args:
      data: the data root.
      model: the model's name.
      version: its version; None for a candidate.
      assets: its assets.
      load: loads the model.
    """

    def __init__(
        self, data: DataRoot, model: str, version: int | None, assets: ModelAssets, load: Callable[[], Loaded]
    ) -> None:
        self.model = model
        self.version = version
        self.definition = assets.definition
        self.rules = assets.rules
        self._neighbours = StoredNeighbours(data) if assets.takes("neighbours") else None
        self._raw = data.raw if assets.takes("log") else None
        self._model = RunningModel(load)

    @property
    def names_classes(self) -> bool:
        return CLASSIFY in self._model.loaded().signatures

    def _neighbours_of(self, runs: Sequence[RunFacts]) -> Sequence[Neighbours | None]:
        return self._neighbours.of([run.run_id for run in runs]) if self._neighbours else ()

    def _output_of(self, runs: Sequence[RunFacts]) -> OutputOf | None:
        return outputs_of_stored(self._raw, [run.run_id for run in runs]) if self._raw is not None else None

    def _query(self, inputs: NDArray[np.float32], n_windows: NDArray[np.int32]) -> NDArray[np.float32]:
        try:
            return self._model.loaded().predict("", {"inputs": inputs, "n_windows": n_windows})["probabilities"]
        except RequestError as error:
            raise RejectedInput(MODEL_ERROR, str(error)) from None

    def close(self) -> None:
        self._model.close()


class LocalModel(ModelInProcess):
    """A pushed version of a model in this process.

    Args:
      data: the data root.
      model: the model's name.
      version: the version to load; by default the one that ``label`` names.
      label: a label of the registry.

    Raises:
      CimlError: there is no such model, version or label.
      IntegrityError: a file differs from its digest in the registry, or the version was not blessed.
    """

    def __init__(self, data: DataRoot, model: str, version: int | None = None, label: str = STABLE) -> None:
        registry = known_registries(data, model)[model]
        version = registry.labelled(label) if version is None else version
        assets = read_assets(registry, version)
        verify = partial(RegistryVerifier(data.registry.root), model, version)
        folder = registry.folder(version)

        def load() -> Loaded:
            try:
                return load_model(folder, verify)
            except FileNotFoundError:
                raise IntegrityError(f"{folder.root} is missing; run ciml models verify") from None

        super().__init__(data, model, version, assets, load)


def check_answers(answers: NDArray[np.float32], definition: ResolvedDefinition, where: str) -> None:
    """Raise `IntegrityError` unless a model's answers have a column for each class of its definition."""
    if answers.shape[1:] != (len(definition.classes),):
        raise IntegrityError(f"{where}: answer of shape {answers.shape[1:]} for {len(definition.classes)} classes")


def probabilities_of(answer: NDArray[np.float32], definition: ResolvedDefinition) -> dict[str, float]:
    """Return a model's answer for one run as probabilities by class, in the definition's order.

    They are the shortest decimals that read back as the same float32: as JSON they take a tenth of the bytes.

    Raises:
      RejectedInput: ``model_error``, for a value that is not finite.
    """
    if not np.isfinite(answer).all():
        raise RejectedInput(MODEL_ERROR, "the model's probabilities are not finite")
    return dict(zip(definition.classes, shortest_decimals(answer).tolist(), strict=True))


def class_of(answer: NDArray[np.float32], definition: ResolvedDefinition) -> str:
    """Return the class with the highest probability, the first one if several are equal."""
    return definition.classes[int(np.argmax(answer))]


def verdict_of(
    facts: RunFacts | None,
    probabilities: Mapping[str, float],
    rules: VerdictRules | None,
    windows: NDArray[np.float32],
    *,
    without_telemetry: bool = False,
) -> Verdict | None:
    """Return the verdict on a run; None for one that did not fail, or without facts or rules.

    Args:
      facts: of the run; None if they are unknown.
      probabilities: by class, as recorded.
      rules: those of the model; None for a model that gives no verdicts.
      windows: float32 [n, F], those of the run, not normalised.
      without_telemetry: whether they have its context alone.
    """
    if facts is None or rules is None or facts.outcome not in FAILED:
        return None
    (means,) = run_means(windows[None], np.array([len(windows)]))
    return make_verdict(facts.build_name, probabilities, rules, means, without_telemetry=without_telemetry)


def recorded_verdict(
    facts: RunFacts | None,
    probabilities: Mapping[str, float],
    rules: VerdictRules | None,
    windows: NDArray[np.float32],
    *,
    without_telemetry: bool = False,
) -> dict[str, Any]:
    """Return ``run`` and ``verdict`` of a prediction's record as JSON; nothing where `verdict_of` has no verdict."""
    verdict = verdict_of(facts, probabilities, rules, windows, without_telemetry=without_telemetry)
    if facts is None or verdict is None:
        return {}
    return {"run": recorded_facts(facts), "verdict": verdict.to_json()}


def recorded_facts(facts: RunFacts) -> dict[str, Any]:
    """Return the facts of a run that the record of a prediction has, as JSON."""
    run = {name: value for name, value in facts.to_json().items() if name not in _NOT_RECORDED}
    # Evidence names the signal that ended the run.
    labels = {name: facts.labels[name] for name in (EXIT_LABEL, SIGNAL_LABEL) if name in facts.labels}
    if labels:
        run["labels"] = labels
    return run


class StoredNeighbours:
    """Neighbours of the runs of a raw store. Thread-safe. The first call reads the manifest from a bookmark on.

    Args:
      data: the data root. Its folder of predictions has the bookmark.
      saves_bookmark: whether to replace the bookmark as the manifest grows.
    """

    def __init__(self, data: DataRoot, *, saves_bookmark: bool = False) -> None:
        self._saves_bookmark = saves_bookmark
        self._log = StoredRunLog(ManifestLog(data.raw), partial(evaluate, former_policy()))
        self._bookmarks = Bookmarks(data.predictions, BOOKMARK, NEIGHBOURS_KIND, partial(digest_of, self._log))
        self._nearby: NearbyRuns | None = None
        self._version = 0
        self._unsaved_runs = 0
        self._lock = threading.Lock()

    def of(self, run_ids: Sequence[str]) -> list[Neighbours | None]:
        """Return the neighbours of each run; None for a run that did not fail, or ran at an unknown place.

        Raises:
          IntegrityError: the manifest is damaged.
        """
        with self._lock:
            if self._nearby is None:
                self._nearby, self._version = self._bookmarks.resume(lambda: NearbyRuns(lambda job: True))
            nearby = self._nearby
            for version, delta in self._log.since(self._version):
                nearby.add(delta)
                self._version = version
                self._unsaved_runs += len(delta.rows)
            if self._saves_bookmark and self._unsaved_runs >= _BOOKMARK_RUNS:
                self._bookmarks.save(self._version, nearby.encode())
                self._unsaved_runs = 0
            return [nearby.of(run_id) for run_id in run_ids]
