"""Predict: from announcements of runs to predictions, by the definition that the served version carries."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ciml.errors import CimlError, EngineError, IntegrityError, Refused
from ciml.limits import MAX_TRACEBACK_BYTES
from ciml.records import Batch, Message
from ciml.storage import Store
from ciml.telemetry import BOOT, TIME
from serving.client import ClientPolicy, ModelClient, NotServedError
from serving.contract import DEFINITION, read_definition
from serving.predictions import Predicted, prediction_id
from serving.registry import STABLE, Registry
from transforms.examples import prepare_many
from transforms.guard import attempt, bisect
from transforms.store import read_run, read_runs

if TYPE_CHECKING:
    import pyarrow as pa

    from ciml.definitions import ResolvedDefinition

#: A call takes no more than this: the server's own limit is 16 MiB.
_MAX_CALL_BYTES = 8 << 20
_RELOADS = 10
_DETAIL_CHARACTERS = 2 * MAX_TRACEBACK_BYTES  # of why there is no prediction: also with a traceback
_FIELDS = ("run_id", "build_name", "path", "digest")


@dataclass(frozen=True)
class PredictPolicy:
    """How runs are predicted.

    Attributes:
      model: the model's name.
      label: which of its versions is asked.
      rows: the most runs of one call.
      client: how patient the client is while the server is away.
    """

    model: str
    label: str = STABLE
    rows: int = 256
    client: ClientPolicy = field(default_factory=ClientPolicy)


@dataclass(frozen=True)
class _Run:
    """An announcement: a run whose raw object is ``path`` below the raw store."""

    offset: int
    timestamp_ms: int
    run_id: str
    build_name: str
    path: str


class Predictor:
    """Predicts for announced runs. Safe to use from threads; make it after a fork.

    Args:
      data: the data root: raw objects, and the definition in the served version's assets.
      address: ``host:port`` of the model server's gRPC.
      policy: which model, and how.
      clock: epoch seconds.
    """

    def __init__(
        self, data: Store, address: str, policy: PredictPolicy, clock: Callable[[], float] = time.time
    ) -> None:
        self._raw = data.child("raw")
        self._registry = Registry(data, policy.model)
        self._policy, self._clock = policy, clock
        self.client = ModelClient(address, policy.model, policy.client)
        self._definitions: dict[int, ResolvedDefinition] = {}
        self._lock = threading.Lock()

    def definition(self, version: int) -> ResolvedDefinition:
        """The definition in the assets of a pushed version, checked against the registry."""
        with self._lock:
            if version not in self._definitions:
                where = f"model {self._policy.model}, version {version}: {DEFINITION}"
                self._definitions[version] = read_definition(self._registry.read_asset(version, DEFINITION), where)
            return self._definitions[version]

    def predict(self, batch: Batch) -> Predicted:
        """Predicts for the announcements of a batch, all by one version.

        Raises:
          NotServedError: when no version is served under the policy's label.
          EngineError: when the server or the store does not answer within the client's budget.
        """
        if batch.covers is None:
            raise IntegrityError("announcements without the range that they come from")
        result = Predicted(batch.covers)
        runs = []
        for message in batch.messages:
            run = attempt("announcement", _announced, message)
            if isinstance(run, Refused):
                result.unpredictable.append(_unpredictable(message.offset, "", run.reason, run.detail))
            else:
                runs.append(run)
        for _ in range(_RELOADS if runs else 0):
            version = self.client.served_version(self._policy.label)
            try:
                predictions, unpredictable = self._predict_guarded(runs, version)
            except NotServedError:
                continue  # it was replaced since: its successor may prepare runs in another way
            result.predictions += predictions
            result.unpredictable += unpredictable
            return result
        if runs:
            raise EngineError(f"model {self._policy.model}: versions change faster than they answer")
        return result

    def _predict_guarded(self, runs: list[_Run], version: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """`_predict`, where a run that it fails for costs itself alone (`transforms.guard`)."""
        definition = self.definition(version)  # no run's fault, if it fails
        predictions, unpredictable = list[dict[str, Any]](), list[dict[str, Any]]()
        for some, made in bisect("predict", runs, lambda some: self._predict(some, version, definition)):
            if isinstance(made, Refused):
                run, model = some[0], self._policy.model
                unpredictable.append(_unpredictable(run.offset, run.run_id, made.reason, made.detail, model, version))
            else:
                predictions += made[0]
                unpredictable += made[1]
        return predictions, unpredictable

    def _predict(
        self, runs: Sequence[_Run], version: int, definition: ResolvedDefinition
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        unpredictable: list[dict[str, Any]] = []

        def refuse(run: _Run, reason: str, detail: str = "") -> None:
            unpredictable.append(_unpredictable(run.offset, run.run_id, reason, detail, self._policy.model, version))

        selected = []
        for run in runs:
            if definition.definition.selects(run.build_name):
                selected.append(run)
            else:
                refuse(run, "job_not_selected")
        began = time.perf_counter()
        kept, tables = self._read(selected, definition, refuse)
        inputs, n_windows, refused = prepare_many(tables, definition)
        reasons = dict(refused)
        rows = []
        for row, run in enumerate(kept):
            if row in reasons:
                refuse(run, reasons[row].reason, reasons[row].detail)
            elif n_windows[row] == 0:
                refuse(run, "empty")
            else:
                rows.append(row)
        prepare_ms = (time.perf_counter() - began) * 1e3
        predictions = []
        for part in self._parts(rows, inputs):
            answer = self.client.predict(inputs[part], n_windows[part].astype(np.int32, copy=False), version=version)
            if answer.probabilities.shape[1:] != (len(definition.classes),):
                raise IntegrityError(
                    f"model {self._policy.model}, version {version}: answers of shape {answer.probabilities.shape[1:]} "
                    f"for {len(definition.classes)} classes"
                )
            now = self._clock()
            for row, probabilities in zip(part, answer.probabilities, strict=True):
                predictions.append(
                    self._record(kept[row], answer.version, definition, probabilities)
                    | {
                        "n_windows": int(n_windows[row]),
                        "prepare_ms": round(prepare_ms, 3),
                        "server_ms": round(answer.seconds * 1e3, 3),
                        "batch": len(part),
                        "time_us": int(now * 1e6),
                        "latency_ms": round(max(now * 1e3 - kept[row].timestamp_ms, 0.0), 1),
                    }
                )
        return predictions, unpredictable

    def _record(
        self, run: _Run, version: int, definition: ResolvedDefinition, probabilities: np.ndarray
    ) -> dict[str, Any]:
        # The shortest decimals that read back as the same float32: a tenth of the bytes of the exact ones.
        values = [float(str(value)) for value in probabilities]
        return {
            "id": prediction_id(run.run_id, self._policy.model, version),
            "offset": run.offset,
            "run_id": run.run_id,
            "build_name": run.build_name,
            "model": self._policy.model,
            "version": version,
            "label": definition.definition.class_label,
            "class": definition.classes[int(np.argmax(probabilities))],
            "probabilities": dict(zip(definition.classes, values, strict=True)),
        }

    def _read(
        self, runs: list[_Run], definition: ResolvedDefinition, refuse: Callable[[_Run, str, str], None]
    ) -> tuple[list[_Run], list[pa.Table]]:
        columns = [TIME, BOOT, *definition.columns]
        try:
            return runs, read_runs(self._raw, [run.path for run in runs], columns=columns)
        except IntegrityError:
            pass  # one of them: find out which, and go on with the others
        kept, tables = [], []
        for run in runs:
            try:
                tables.append(read_run(self._raw, run.path, columns=columns))
                kept.append(run)
            except IntegrityError as error:
                refuse(run, "raw_unreadable", str(error))
        return kept, tables

    def _parts(self, rows: Sequence[int], inputs: np.ndarray) -> list[list[int]]:
        each = max(int(inputs[0].nbytes), 1) if len(inputs) else 1
        size = max(1, min(self._policy.rows, _MAX_CALL_BYTES // each))
        return [list(rows[at : at + size]) for at in range(0, len(rows), size)]

    def close(self) -> None:
        self.client.close()


def _announced(message: Message) -> _Run:
    try:
        value = json.loads(message.value or b"")
        texts = [value[name] for name in _FIELDS]
    except (ValueError, KeyError, TypeError) as error:
        raise Refused("bad_announcement", f"{type(error).__name__}: {error}") from None
    if not all(isinstance(text, str) and text for text in texts):
        raise Refused("bad_announcement", f"want texts in {', '.join(_FIELDS)}")
    run_id, build_name, path, _ = texts
    try:
        _below(path)
    except CimlError as error:
        raise Refused("bad_announcement", str(error)) from None
    return _Run(message.offset, message.timestamp_ms, run_id, build_name, path)


def _below(path: str) -> None:
    if path.startswith("/") or ".." in path.split("/") or "\x00" in path:
        raise CimlError(f"{path!r:.200} is no path below the raw store")


def _unpredictable(
    offset: int, run_id: str, reason: str, detail: str = "", model: str = "", version: int = 0
) -> dict[str, Any]:
    record: dict[str, Any] = {"offset": offset, "run_id": run_id, "reason": reason}
    if detail:
        record["detail"] = detail[:_DETAIL_CHARACTERS]
    if model:
        record |= {"model": model, "version": version}
    return record
