"""Predicts announced runs by the data set definition of the served version.

An announcement is a message of the topic `runs`, which names a run of the raw store.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, get_args, get_type_hints

import numpy as np

from ciml.data_root import DataRoot
from ciml.errors import EngineError, IntegrityError, RejectedInput
from ciml.events.fields import kind_of, text_field
from ciml.events.json_input import parse_json
from ciml.events.records import Batch, Message, OutcomeWord, Phase, RunFacts
from ciml.events.run_facts import check_labels
from ciml.events.run_id import RunId
from ciml.limits import (
    EARLIEST_US,
    LATEST_US,
    MAX_SUBJECTS,
    MAX_TEXT_CHARACTERS,
    MAX_TRACEBACK_BYTES,
    MAX_URL_CHARACTERS,
)
from ciml.runs.reader import read_run, read_runs
from ciml.serving.client import ClientPolicy, FailedCallError, ModelClient, NotServedError, Prediction
from ciml.serving.contract import DEFINITION, read_definition
from ciml.serving.predict.answers import (
    MAX_CALL_ROWS,
    MODEL_ERROR,
    Prepared,
    StoredNeighbours,
    check_answers,
    class_of,
    prepare_runs,
    probabilities_of,
    recorded_verdict,
    rules_of,
)
from ciml.serving.predict.log import Predicted, prediction_id
from ciml.serving.registry import STABLE, Registry
from ciml.telemetry import BOOT, TIME
from ciml.transforms.guard import attempt, bisect

if TYPE_CHECKING:
    import pyarrow as pa

    from ciml.datasets.definition import ResolvedDefinition
    from ciml.verdict_rules import VerdictRules

_DIGEST = re.compile(r"[0-9a-f]{64}")
#: The folders of `ciml.runs.writer.run_path`; the job's name is percent-encoded.
_FOLDER = re.compile(r"runs/job=[A-Za-z0-9_.~%-]{1,200}/date=[0-9]{4}-[0-9]{2}-[0-9]{2}")
#: The fields of `RunFacts` that hold any text.
_TEXTS = tuple(name for name, kind in get_type_hints(RunFacts).items() if kind is str)
_ADDRESSES = frozenset({"log_url", "url"})

_RELOADS = 10
_DETAIL_CHARACTERS = 2 * MAX_TRACEBACK_BYTES  # enough for a traceback
#: Timeout of the calls that locate the runs for which a model fails; `ciml.serving.contract` allows a second a run.
_DIVIDED_TIMEOUT_S = 2.0


@dataclass(frozen=True)
class Announcement:
    """A run whose raw object is ``path`` below the raw store.

    Attributes:
      offset: of the message.
      timestamp_ms: when it was announced, epoch milliseconds.
      run_id: the encoded run id.
      build_name: the job.
      path: the raw object's path; its file name consists of run id and digest.
      reclaim: the row's digest if the row is a reclaim; "" for the first row of a run.
      facts: the run's facts when its row was stored; None in announcements of earlier versions.
    """

    offset: int
    timestamp_ms: int
    run_id: str
    build_name: str
    path: str
    reclaim: str = ""
    facts: RunFacts | None = None


def read_announcement(message: Message) -> Announcement:
    """Read a message of the topic `runs`.

    Raises:
      RejectedInput: ``bad_announcement``, if it is malformed or its path is not that of its run.
    """
    try:
        return _read(message)
    except RejectedInput as error:
        raise RejectedInput("bad_announcement", error.detail) from None


def _read(message: Message) -> Announcement:
    value = parse_json(message.value or b"")
    if not isinstance(value, dict):
        raise RejectedInput("bad_announcement", "not a JSON object")
    run_id, build_name, path, digest = (_text(value, name) for name in ("run_id", "build_name", "path", "digest"))
    RunId.decode(run_id)
    if not _DIGEST.fullmatch(digest):
        raise RejectedInput("bad_announcement", f"invalid digest {digest!r:.80}: expected 64 hexadecimal digits")
    folder, _, name = path.rpartition("/")
    if not _FOLDER.fullmatch(folder) or name != f"{run_id}.{digest[:16]}.parquet":
        raise RejectedInput("bad_announcement", f"path {path!r:.200} does not match run {run_id} and its digest")
    reclaim = digest if value.get("reclaim") is True else ""
    facts = _facts(value["facts"], run_id, build_name) if "facts" in value else None
    return Announcement(message.offset, message.timestamp_ms, run_id, build_name, path, reclaim, facts)


def _facts(value: object, run_id: str, build_name: str) -> RunFacts:
    """Return announced facts, each field checked as in an event. Unknown fields are ignored."""
    if not isinstance(value, dict):
        raise RejectedInput("bad_announcement", f"facts: want an object, not {kind_of(value)}")
    fields: dict[str, Any] = {"labels": check_labels(value.get("labels"), "facts.")}
    for name in _TEXTS:
        limit = MAX_URL_CHARACTERS if name in _ADDRESSES else MAX_TEXT_CHARACTERS
        fields[name] = text_field(value, name, "facts.", limit)
    for name, words in (("phase", get_args(Phase)), ("outcome", (None, *get_args(OutcomeWord)))):
        if (word := value.get(name)) not in words:
            raise RejectedInput("bad_announcement", f"facts.{name}: unknown {word!r:.80}")
        fields[name] = word
    for name in ("start_us", "end_us"):
        time = value.get(name)
        if time is not None and (type(time) is not int or not EARLIEST_US <= time < LATEST_US):
            raise RejectedInput("bad_announcement", f"facts.{name}: want microseconds of 2000 to 2099")
        fields[name] = time
    subjects = value.get("subjects", [])
    if not isinstance(subjects, list) or len(subjects) > MAX_SUBJECTS:
        raise RejectedInput("bad_announcement", f"facts.subjects: want a list of at most {MAX_SUBJECTS} texts")
    fields["subjects"] = tuple(text_field({"subjects": subject}, "subjects", "facts.") for subject in subjects)
    if (fields["run_id"], fields["build_name"]) != (run_id, build_name):
        raise RejectedInput("bad_announcement", f"facts: of run {fields['run_id']!r:.80}, not of {run_id}")
    return RunFacts(**fields)


def _text(value: dict[str, object], name: str) -> str:
    if not isinstance(value.get(name), str) or not value[name]:
        raise RejectedInput("bad_announcement", f"{name}: expected a text")
    return text_field(value, name)


@dataclass(frozen=True)
class PredictPolicy:
    """Configuration of a `Predictor`.

    Attributes:
      model: the model's name.
      label: version label to query.
      rows: most runs in one call.
      client: timeouts and retries of the client.
    """

    model: str
    label: str = STABLE
    rows: int = MAX_CALL_ROWS
    client: ClientPolicy = field(default_factory=ClientPolicy)


class Served(NamedTuple):
    """What the assets of a version say.

    Attributes:
      definition: the data set definition by which runs are prepared.
      rules: of verdicts; None for a model that gives none.
      neighbours: whether its definition asks for the neighbours of runs.
    """

    definition: ResolvedDefinition
    rules: VerdictRules | None
    neighbours: bool


class Predictor:
    """Predicts announced runs. Thread-safe; create it after a fork.

    Args:
      data: the data root, for raw objects and the definition in the served version's assets.
      address: ``host:port`` of the model server's gRPC.
      policy: the model, and how to query it.
      clock: epoch seconds.
    """

    def __init__(
        self, data: DataRoot, address: str, policy: PredictPolicy, clock: Callable[[], float] = time.time
    ) -> None:
        self._raw = data.raw
        self._registry = Registry(data, policy.model)
        self._policy = policy
        self._clock = clock
        self.client = ModelClient(address, policy.model, policy.client)
        self._served: dict[int, Served] = {}
        self._near = StoredNeighbours(data, keep=True)
        self._lock = threading.Lock()

    def served(self, version: int) -> Served:
        """Return what the assets of a pushed version say, verified against the registry."""
        with self._lock:
            if version not in self._served:
                where = f"model {self._policy.model}, version {version}: {DEFINITION}"
                definition = read_definition(self._registry.read_asset(version, DEFINITION), where)
                rules = rules_of(self._registry, version, definition)
                neighbours = "neighbours" in (definition.definition.context or ())
                self._served[version] = Served(definition, rules, neighbours)
            return self._served[version]

    def predict(self, batch: Batch) -> Predicted:
        """Predict the announced runs of a batch, all by one version.

        An announcement that cannot be predicted becomes an ``unpredictable`` record; the rest of the batch is
        predicted.

        Raises:
          NotServedError: if no version is served under the policy's label.
          EngineError: if the server or the store does not answer within the client's budget, the model fails for all
            input, or the served version keeps changing.
        """
        if batch.covers is None:
            raise IntegrityError("the batch of announcements has no offset range")
        records: list[dict[str, Any]] = []
        runs = []
        for message in batch.messages:
            read = attempt("announcement", read_announcement, message)
            if isinstance(read, RejectedInput):
                records.append(_unpredictable(message.offset, "", read))
            else:
                runs.append(read)
        for _ in range(_RELOADS if runs else 0):
            version = self.client.served_version(self._policy.label)
            with contextlib.suppress(NotServedError):  # it was replaced; its successor may prepare runs differently
                records += self._predict_guarded(runs, version)
                break
        else:
            if runs:
                raise EngineError(
                    f"model {self._policy.model}: the served version kept changing; gave up after {_RELOADS} tries"
                )
        return Predicted(
            batch.covers,
            predictions=[record for record in records if "reason" not in record],
            unpredictable=[record for record in records if "reason" in record],
        )

    def _predict_guarded(self, runs: list[Announcement], version: int) -> list[dict[str, Any]]:
        """Call `_predict` guarded: a run that raises becomes unpredictable, alone (`ciml.transforms.guard`)."""
        served = self.served(version)  # outside of the guard: an error here is not a run's
        records: list[dict[str, Any]] = []
        for part, result in bisect("predict", runs, lambda part: self._predict(part, version, served)):
            records += [self._reject(part[0], version, result)] if isinstance(result, RejectedInput) else result
        return records

    def _reject(self, run: Announcement, version: int, why: RejectedInput) -> dict[str, Any]:
        return _unpredictable(run.offset, run.run_id, why) | {"model": self._policy.model, "version": version}

    def _predict(self, runs: Sequence[Announcement], version: int, served: Served) -> list[dict[str, Any]]:
        """Return a record for each run; a rejected one has a ``reason``."""
        definition = served.definition
        records: list[dict[str, Any]] = []

        def reject(run: Announcement, why: RejectedInput) -> None:
            records.append(self._reject(run, version, why))

        selected = []
        for run in runs:
            if definition.definition.selects(run.build_name):
                selected.append(run)
            else:
                reject(run, RejectedInput("job_not_selected"))
        started_s = time.perf_counter()
        readable, tables = self._read(selected, definition, reject)
        neighbours = self._near.of([run.run_id for run in readable]) if served.neighbours else ()
        prepared = prepare_runs(tables, definition, [_facts_of(run) for run in readable], neighbours)
        for row, why in prepared.rejected.items():
            reject(readable[row], why)
        prepare_ms = (time.perf_counter() - started_s) * 1e3
        for part, answer in self._answers(prepared, version):
            if isinstance(answer, FailedCallError):
                for row in part:
                    reject(readable[row], RejectedInput(MODEL_ERROR, str(answer)))
                continue
            check_answers(answer.probabilities, definition, f"model {self._policy.model}, version {version}")
            now = self._clock()
            for row, probabilities in zip(part, answer.probabilities, strict=True):
                windows = prepared.inputs[row, : prepared.n_windows[row]]
                try:
                    record = self._record(readable[row], answer.version, served, probabilities, windows)
                except RejectedInput as rejected:
                    reject(readable[row], rejected)
                    continue
                records.append(
                    record
                    | {
                        "n_windows": len(windows),
                        "prepare_ms": round(prepare_ms, 3),
                        "server_ms": round(answer.seconds * 1e3, 3),
                        "batch": len(part),
                        "time_us": int(now * 1e6),
                        "latency_ms": round(max(now * 1e3 - readable[row].timestamp_ms, 0.0), 1),
                    }
                )
        return records

    def _answers(self, prepared: Prepared, version: int) -> Iterator[tuple[list[int], Prediction | FailedCallError]]:
        """Query the model call by call; halve a part that fails, down to the failing runs.

        After the first failure, calls have a shorter timeout. After half of the client's budget, no part is divided
        further: a model that hangs for many runs would delay the others for hours. The total stays below the watchdog's
        limit for a batch.

        Raises:
          FailedCallError: if the model also fails for zeros, which every pushed model answers.
        """
        inputs = prepared.inputs
        counts = prepared.n_windows
        until = 0.0
        pending = prepared.calls(self._policy.rows)[::-1]
        while pending:
            part = pending.pop()
            timeout_s = _DIVIDED_TIMEOUT_S if until else None
            try:
                answer = self.client.predict(inputs[part], counts[part], version=version, timeout_s=timeout_s)
            except FailedCallError as error:
                if not until:
                    self.client.predict(np.zeros_like(inputs[:1]), np.ones(1, np.int32), version=version)
                    until = time.monotonic() + self._policy.client.budget_s / 2
                if len(part) == 1 or time.monotonic() > until:
                    yield part, error
                else:
                    half = len(part) // 2
                    pending += [part[half:], part[:half]]
            else:
                yield part, answer

    def _record(
        self, run: Announcement, version: int, served: Served, probabilities: np.ndarray, windows: np.ndarray
    ) -> dict[str, Any]:
        definition = served.definition
        shares = probabilities_of(probabilities, definition)
        verdict = recorded_verdict(run.facts, shares, served.rules, windows)
        return {
            "id": prediction_id(run.run_id, self._policy.model, version, run.reclaim),
            "offset": run.offset,
            "run_id": run.run_id,
            "build_name": run.build_name,
            "model": self._policy.model,
            "version": version,
            "label": definition.definition.class_label,
            "class": class_of(probabilities, definition),
            "probabilities": shares,
            **(verdict and {**verdict, "path": run.path}),  # evidence reads the run again
        }

    def _read(
        self,
        runs: Sequence[Announcement],
        definition: ResolvedDefinition,
        reject: Callable[[Announcement, RejectedInput], None],
    ) -> tuple[Sequence[Announcement], list[pa.Table]]:
        columns = [TIME, BOOT, *definition.columns]
        try:
            return runs, read_runs(self._raw, [run.path for run in runs], columns=columns)
        except IntegrityError:
            pass  # a run failed: read them one by one
        readable = []
        tables = []
        for run in runs:
            try:
                tables.append(read_run(self._raw, run.path, columns=columns))
                readable.append(run)
            except IntegrityError as error:
                reject(run, RejectedInput("raw_unreadable", str(error)))
        return readable, tables

    def close(self) -> None:
        self.client.close()


def _facts_of(run: Announcement) -> RunFacts:
    """Return the facts of a run; of an announcement without them what it names, and the others are unknown."""
    if run.facts is not None:
        return run.facts
    identity = RunId.decode(run.run_id)
    return RunFacts(run.run_id, identity.native_id, run.build_name, source=identity.source)


def _unpredictable(offset: int, run_id: str, why: RejectedInput) -> dict[str, Any]:
    record: dict[str, Any] = {"offset": offset, "run_id": run_id, "reason": why.reason}
    if why.detail:
        record["detail"] = why.detail[:_DETAIL_CHARACTERS].encode(errors="backslashreplace").decode()
    return record
