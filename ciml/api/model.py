"""A pushed model and its predictions."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING

from ciml.api.predictions import Prediction, Predicts, Request, UnknownRun
from ciml.api.telemetry import parse_runs
from ciml.data_root import DataRoot
from ciml.errors import CimlError, RejectedInput

if TYPE_CHECKING:
    import pyarrow as pa

    from ciml.events.records import RunFacts
    from ciml.serving.predict.answers import PreparedModel

__all__ = ["Model", "Prediction"]

#: Number of stored runs that are read together.
_RUNS_PER_READ = 256


class Model(Predicts):
    """A pushed version of a model, or its last candidate: `ciml.Data.model` opens one.

    A version is loaded only if the gate blessed it. All files are verified by their digests in the registry, as the
    model server does. TensorFlow runs in a process of its own. The model prepares runs by the data set definition that
    it contains, with the functions of the predict service. Used in a ``with`` statement, it closes itself.

    Attributes:
      name: name of the model.
      version: version number in the registry; None for a candidate.
      candidate: the gate's decision on a candidate; None for a version. Every `Prediction` has it too.
      classes: names of the classes, in order.
      features: names of the features, in order.
    """

    def __init__(
        self,
        data: DataRoot,
        name: str,
        version: int | None = None,
        label: str | None = None,
        *,
        candidate: bool = False,
        allow_modules: Collection[str] = (),
    ) -> None:
        from ciml.extras import require

        require("tensorflow", "train")
        super().__init__(_load(data, name, version, label, allow_modules if candidate else None))
        self._data = data

    def _facts(self, requests: Sequence[Request], argument_facts: RunFacts) -> list[RunFacts]:
        """Return the facts of each run: of a stored run from the raw manifest, of any other run as given."""
        from ciml.manifest.log import ManifestLog
        from ciml.runs.run_log import find_rows

        if not self._compares_runs and self._prepared.rules is None:
            return [argument_facts] * len(requests)  # the model needs no facts
        run_ids = [request.name for request in requests if request.is_stored]
        rows = find_rows(ManifestLog(self._data.raw), run_ids) if run_ids else {}
        return [
            rows[request.name].mention if request.is_stored and request.name in rows else argument_facts
            for request in requests
        ]

    def _telemetry(self, requests: Sequence[Request], zone: str | None) -> Iterator[pa.Table | RejectedInput]:
        """Yield the telemetry of each run, or why it has none: from the raw store, from files and from tables."""
        for are_stored, group in groupby(requests, attrgetter("is_stored")):
            if are_stored:
                yield from self._stored_telemetry([request.name for request in group])
            else:
                yield from parse_runs([request.run for request in group], zone)

    def _stored_telemetry(self, run_ids: Sequence[str]) -> Iterator[pa.Table | RejectedInput]:
        from ciml.manifest.log import ManifestLog
        from ciml.runs.reader import read_runs
        from ciml.runs.run_log import find_rows
        from ciml.telemetry import OWN_COLUMNS

        raw = self._data.raw
        columns = [*OWN_COLUMNS, *self._prepared.definition.columns]
        rows = find_rows(ManifestLog(raw), run_ids)
        for start in range(0, len(run_ids), _RUNS_PER_READ):
            batch = run_ids[start : start + _RUNS_PER_READ]
            tables = iter(read_runs(raw, [rows[run_id].file for run_id in batch if run_id in rows], columns=columns))
            for run_id in batch:
                if run_id in rows:
                    yield next(tables)
                else:
                    yield UnknownRun("unknown_run", f"no file, and no run in {raw.url()}, has this name")

    def __repr__(self) -> str:
        version = str(self.candidate) if self.candidate else f"version {self.version}"
        return f"Model({self.name!r}, {version}: {', '.join(self.classes)})"


def _load(
    data: DataRoot, name: str, version: int | None, label: str | None, allow_modules: Collection[str] | None
) -> PreparedModel:
    """Load a version; or the last candidate, if ``allow_modules`` is not None."""
    if allow_modules is None:
        from ciml.serving.predict.answers import LocalModel

        return LocalModel(data, name, version, label or "stable")
    if version is not None or label is not None:
        raise CimlError("candidate: excludes version and label")
    from ciml.training.candidate_model import CandidateModel

    return CandidateModel(data, name, allow_modules)
