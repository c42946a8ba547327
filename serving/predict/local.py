"""A pushed model in this process, loaded and verified as the model server does, for predictions without a server."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import repeat
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ciml.data_root import DataRoot
from ciml.errors import IntegrityError, RejectedInput
from ciml.http.intake import RequestError
from ciml.serving.contract import DEFINITION, read_definition
from ciml.serving.predict.answers import (
    MODEL_ERROR,
    check_answers,
    class_of,
    neighbours_of,
    prepare_runs,
    probabilities_of,
    rules_of,
    verdict_of,
)
from ciml.serving.registry import STABLE, RegistryVerifier, known_registries
from ciml.serving.server.model.loaded_model import load_model
from ciml.transforms.guard import bisect

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    from ciml.events.records import RunFacts
    from ciml.verdict_rules import Verdict


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


class LocalModel:
    """A pushed version of a model in this process. Thread-safe until `close`.

    Args:
      data: the data root.
      model: the model's name.
      version: the version to load; by default the one that ``label`` names.
      label: a label of the registry.

    Attributes:
      model, version: what is loaded.
      definition: the data set definition in its assets.
      rules: those of verdicts in its assets; None for a model that gives none.

    Raises:
      CimlError: there is no such model, version or label.
      IntegrityError: a file differs from its digest in the registry, or the version was not blessed.
    """

    def __init__(self, data: DataRoot, model: str, version: int | None = None, label: str = STABLE) -> None:
        registry = known_registries(data, model)[model]
        self.model = model
        self.version = registry.labelled(label) if version is None else version
        where = f"model {model}, version {self.version}: {DEFINITION}"
        self.definition = read_definition(registry.read_asset(self.version, DEFINITION), where)
        self.rules = rules_of(registry, self.version, self.definition)
        self._near = neighbours_of(data, self.definition)
        verify = partial(RegistryVerifier(data.registry.root), model, self.version)
        folder = registry.folder(self.version)
        try:
            self._loaded = load_model(folder, verify)
        except FileNotFoundError:
            raise IntegrityError(f"{folder.root} is missing; run ciml models verify") from None

    def predict(
        self,
        tables: Sequence[pa.Table],
        runs: Sequence[RunFacts] | None = None,
    ) -> list[Answer | RejectedInput]:
        """Predict the runs of some telemetry, by the preparation and the reasons of the predict service.

        Args:
          tables: telemetry as from `ciml.transforms.parse.logs.parse_logs`, one table a run.
          runs: the facts of each run, for a verdict and for a definition with context. Stored runs have neighbours too.

        Returns:
          For each run its answer, or its rejection.
        """
        answers: list[Answer | RejectedInput] = []
        inputs: list[tuple[pa.Table, RunFacts | None]] = list(zip(tables, runs or repeat(None), strict=False))
        if not inputs:  # all of them are unusable: the facts that the model needs do not matter
            return []
        for _, result in bisect("predict", inputs, self._predict):
            answers += [result] if isinstance(result, RejectedInput) else result
        return answers

    def _predict(self, given_runs: Sequence[tuple[pa.Table, RunFacts | None]]) -> list[Answer | RejectedInput]:
        """Raises `RejectedInput` if the model fails for a run; `bisect` finds it."""
        tables = [table for table, _ in given_runs]
        facts = [run for _, run in given_runs if run is not None]
        neighbours = self._near.of([run.run_id for run in facts]) if self._near else ()
        prepared = prepare_runs(tables, self.definition, facts or None, neighbours)
        results: dict[int, Answer | RejectedInput] = dict(prepared.rejected)
        for rows in prepared.calls():
            inputs = {"inputs": prepared.inputs[rows], "n_windows": prepared.n_windows[rows]}
            try:
                answers = self._loaded.predict("", inputs)["probabilities"]
            except RequestError as error:
                raise RejectedInput(MODEL_ERROR, str(error)) from None
            check_answers(answers, self.definition, f"model {self.model}, version {self.version}")
            for row, answer in zip(rows, answers, strict=True):
                windows = prepared.inputs[row, : prepared.n_windows[row]]
                results[row] = self._read(answer, windows, given_runs[row][1])
        return [results[row] for row in range(len(tables))]

    def _read(
        self, answer: NDArray[np.float32], windows: NDArray[np.float32], run: RunFacts | None
    ) -> Answer | RejectedInput:
        try:
            probabilities = probabilities_of(answer, self.definition)
        except RejectedInput as rejected:
            return rejected
        verdict = verdict_of(run, probabilities, self.rules, windows)
        return Answer(class_of(answer, self.definition), probabilities, len(windows), verdict)

    def close(self) -> None:
        """Free the model's memory."""
        self._loaded.close()
