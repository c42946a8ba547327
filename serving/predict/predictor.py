"""Predicts announced runs: prepares them by the model's data set definition, and queries the model.

An announcement is a message of the topic `runs`, which names a run of the raw store. A run becomes a prediction record,
or an ``unpredictable`` record with a ``reason``.
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

import msgspec
import numpy as np

from ciml.data_root import DataRoot
from ciml.errors import EngineError, IntegrityError, RejectedInput
from ciml.events.fields import kind_of, parse_json, text_field
from ciml.events.records import Batch, Message, OutcomeWord, OutputFile, Phase, RawFile, RunFacts
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
from ciml.runs.outputs import output_path
from ciml.runs.reader import read_run, read_runs
from ciml.serving.client import ClientPolicy, FailedCallError, NotServedError
from ciml.serving.predict.answers import (
    MODEL_ERROR,
    StoredNeighbours,
    check_answers,
    class_of,
    probabilities_of,
    recorded_verdict,
)
from ciml.serving.predict.log import Predicted, prediction_id
from ciml.serving.predict.prepared import MAX_CALL_ROWS, Prepared, prepare_runs
from ciml.serving.predict.sources import Answers, ModelSource, SourceModel
from ciml.serving.registry import STABLE
from ciml.telemetry import BOOT, TIME
from ciml.transforms.guard import attempt, bisect
from ciml.transforms.logs.run_outputs import StoredOutputs

if TYPE_CHECKING:
    import pyarrow as pa

    from ciml.datasets.definition import ResolvedDefinition

_DIGEST = re.compile(r"[0-9a-f]{64}")
#: The folders of `ciml.runs.writer.run_path`; the job's name is percent-encoded.
_FOLDER = re.compile(r"runs/job=[A-Za-z0-9_.~%-]{1,200}/date=[0-9]{4}-[0-9]{2}-[0-9]{2}")
#: The fields of `RunFacts` that hold any text.
_TEXTS = tuple(name for name, kind in get_type_hints(RunFacts).items() if kind is str)
_ADDRESSES = frozenset({"log_url", "url", "output_url"})
#: A model may be replaced while runs are prepared for it. Tries of a batch until it fails.
_MODEL_TRIES = 10
#: Longest detail of a record: enough for a traceback.
_DETAIL_CHARACTERS = 2 * MAX_TRACEBACK_BYTES
#: Timeout of the calls that locate the runs for which a model fails; `ciml.serving.contract` allows a second a run.
_DIVIDED_TIMEOUT_S = 2.0


@dataclass(frozen=True)
class PredictPolicy:
    """Configuration of a `Predictor`.

    Attributes:
      model: the model's name.
      label: version label to query.
      rows: most runs in one call.
      client: timeouts and retries of the client.
      canary_share: share of the changes whose runs the version with the label ``canary`` predicts, while there is one.
    """

    model: str
    label: str = STABLE
    rows: int = MAX_CALL_ROWS
    client: ClientPolicy = field(default_factory=ClientPolicy)
    canary_share: float = 0.0


_LOG = logging.getLogger(__name__)


class Predictor:
    """Predicts announced runs. Thread-safe; create it after a fork.

    Args:
      data: the data root, for raw objects.
      source: supplies the model.
      policy: the model, and how to query it.
      clock: epoch seconds.
      explain: returns further fields of the record of a prediction with a verdict.
      canary: supplies the model for ``canary_share`` of the changes; None for none.
    """

    def __init__(
        self,
        data: DataRoot,
        source: ModelSource,
        policy: PredictPolicy,
        clock: Callable[[], float] = time.time,
        explain: Callable[[Announcement], Mapping[str, Any]] = lambda run: {},
        canary: ModelSource | None = None,
    ) -> None:
        self.source = source
        self._canary = canary
        self._raw = data.raw
        self._policy = policy
        self._clock = clock
        self._explain = explain
        self._neighbours = StoredNeighbours(data, saves_bookmark=True)

    def predict(self, batch: Batch) -> Predicted:
        """Predict the announced runs of a batch, all by one model.

        An announcement that cannot be predicted becomes an ``unpredictable`` record; the rest of the batch is
        predicted.

        Raises:
          NotServedError: if the source has no model.
          EngineError: if the server or the store does not answer within the client's budget, the model fails for all
            input, or the model keeps changing.
        """
        if batch.covers is None:
            raise IntegrityError("the batch of announcements has no offset range")
        records: list[dict[str, Any]] = []
        runs = []
        for message in batch.messages:
            if message.value is None:
                continue  # the tombstone of an erased run
            announcement = attempt("announcement", read_announcement, message)
            if isinstance(announcement, RejectedInput):
                records.append(_unpredictable(message.offset, "", announcement))
            else:
                runs.append(announcement)
        canary_runs, runs = self._split(runs)
        try:
            records += self._predict_by_one_model(canary_runs, self._canary or self.source)
        except NotServedError:  # there is no canary now
            runs = canary_runs + runs
        except (FailedCallError, IntegrityError) as error:  # it must not stop the predictions of the other runs
            _LOG.warning("the canary is broken, so the stable version predicts its runs: %s", error)
            runs = canary_runs + runs
        records += self._predict_by_one_model(runs, self.source)
        return Predicted(
            batch.covers,
            predictions=[record for record in records if "reason" not in record],
            unpredictable=[record for record in records if "reason" in record],
        )

    def _split(self, runs: list[Announcement]) -> tuple[list[Announcement], list[Announcement]]:
        """Return the runs that the canary predicts, and the others."""
        if self._canary is None:
            return [], runs
        canary_runs = [run for run in runs if place_of(run) < self._policy.canary_share]
        return canary_runs, [run for run in runs if place_of(run) >= self._policy.canary_share]

    def _predict_by_one_model(self, runs: Sequence[Announcement], source: ModelSource) -> list[dict[str, Any]]:
        """Return a record for each run. If the model is replaced meanwhile, predict all runs by its successor."""
        if not runs:
            return []
        for _ in range(_MODEL_TRIES):
            model = source.current()  # outside of the guard: an error here is not that of a run
            predict = partial(self._predict, model=model)
            records: list[dict[str, Any]] = []
            try:
                for part, result in bisect("predict", runs, predict):
                    records += [self._reject(part[0], model, result)] if isinstance(result, RejectedInput) else result
            except NotServedError:  # it was replaced; its successor may prepare runs differently
                continue
            return records
        raise EngineError(
            f"model {self._policy.model}: the served version kept changing; gave up after {_MODEL_TRIES} tries"
        )

    def _reject(self, run: Announcement, model: SourceModel, rejected: RejectedInput) -> dict[str, Any]:
        return {**_unpredictable(run.offset, run.run_id, rejected), "model": self._policy.model, **model.fields}

    def _predict(self, runs: Sequence[Announcement], model: SourceModel) -> list[dict[str, Any]]:
        """Return a record for each run. An error of a run raises; `bisect` then finds the run."""
        assets = model.assets
        definition = assets.definition
        rejections: list[tuple[Announcement, RejectedInput]] = []
        selected = []
        for run in runs:
            if definition.definition.selects(run.build_name):
                selected.append(run)
            else:
                rejections.append((run, RejectedInput("job_not_selected")))
        started_s = time.perf_counter()
        readable = []
        tables = []
        for run, table in zip(selected, self._read(selected, definition), strict=True):
            if isinstance(table, RejectedInput):
                rejections.append((run, table))
            else:
                readable.append(run)
                tables.append(table)
        neighbours = self._neighbours.of([run.run_id for run in readable]) if assets.takes("neighbours") else ()
        outputs = StoredOutputs(self._raw, {run.run_id: run.output for run in readable}, skips_damaged=True)
        prepared = prepare_runs(
            tables, definition, [_facts_of(run) for run in readable], neighbours, outputs, assets.rules
        )
        rejections += [(readable[row], rejected) for row, rejected in prepared.rejected.items()]
        prepare_ms = (time.perf_counter() - started_s) * 1e3
        records = [self._reject(run, model, rejected) for run, rejected in rejections]
        for rows, answer in self._answers(prepared, model):
            if isinstance(answer, FailedCallError):
                rejected = RejectedInput(MODEL_ERROR, str(answer))
                records += [self._reject(readable[row], model, rejected) for row in rows]
                continue
            check_answers(answer.probabilities, definition, f"model {self._policy.model}, {model}")
            now_s = self._clock()
            timing = {
                "prepare_ms": round(prepare_ms, 3),
                "server_ms": round(answer.seconds * 1e3, 3),
                "batch": len(rows),
                "time_us": int(now_s * 1e6),
            }
            for row, probabilities in zip(rows, answer.probabilities, strict=True):
                run = readable[row]
                windows = prepared.inputs[row, : prepared.n_windows[row]]
                lacks = row in prepared.without_telemetry
                try:
                    record = self._record(run, model, probabilities, windows, lacks)
                except RejectedInput as rejected:
                    records.append(self._reject(run, model, rejected))
                    continue
                latency_ms = round(max(now_s * 1e3 - run.timestamp_ms, 0.0), 1)
                used = 0 if lacks else len(windows)
                records.append({**record, "n_windows": used, **timing, "latency_ms": latency_ms})
        return records

    def _answers(self, prepared: Prepared, model: SourceModel) -> Iterator[tuple[list[int], Answers | FailedCallError]]:
        """Query the model call by call. Halve the rows of a call that fails, down to the failing runs.

        After the first failure, calls have a shorter timeout. After half of the client's budget, no call is halved any
        more: a model that hangs for many runs would delay the others for hours. The total stays below the watchdog's
        limit for a batch.

        Yields:
          The rows of a call, and its answer or error.

        Raises:
          FailedCallError: if the model also fails for zeros, which every pushed model answers.
        """
        inputs = prepared.inputs
        n_windows = prepared.n_windows
        halve_until_s: float | None = None  # set at the first failure
        pending = prepared.calls(self._policy.rows)[::-1]
        while pending:
            rows = pending.pop()
            timeout_s = None if halve_until_s is None else _DIVIDED_TIMEOUT_S
            try:
                answer = model.predict(inputs[rows], n_windows[rows], timeout_s)
            except FailedCallError as error:
                if halve_until_s is None:
                    model.predict(np.zeros_like(inputs[:1]), np.ones(1, np.int32))
                    halve_until_s = time.monotonic() + self._policy.client.budget_s / 2
                if len(rows) == 1 or time.monotonic() > halve_until_s:
                    yield rows, error
                else:
                    half = len(rows) // 2
                    pending += [rows[half:], rows[:half]]
            else:
                yield rows, answer

    def _record(
        self,
        run: Announcement,
        model: SourceModel,
        probabilities: np.ndarray,
        windows: np.ndarray,
        without_telemetry: bool,
    ) -> dict[str, Any]:
        """Return the record of a prediction, without its times."""
        definition = model.assets.definition
        shares = probabilities_of(probabilities, definition)
        rules = model.assets.rules
        verdict = recorded_verdict(run.facts, shares, rules, windows, without_telemetry=without_telemetry)
        return {
            "id": prediction_id(run.run_id, self._policy.model, model.key, run.reclaim),
            "offset": run.offset,
            "run_id": run.run_id,
            "build_name": run.build_name,
            "model": self._policy.model,
            **model.fields,
            **model.assets.learned,
            "label": definition.definition.class_label,
            "class": class_of(probabilities, definition),
            "probabilities": shares,
            **(verdict and {**verdict, "path": run.path, **self._explain(run)}),  # evidence reads the run again
        }

    def _read(self, runs: Sequence[Announcement], definition: ResolvedDefinition) -> Sequence[pa.Table | RejectedInput]:
        """Return the telemetry of each run, or its rejection."""
        columns = [TIME, BOOT, *definition.columns]
        try:
            return read_runs(self._raw, [run.path for run in runs], columns=columns)
        except IntegrityError:
            pass  # the object of a run is missing or damaged: read them one by one
        results: list[pa.Table | RejectedInput] = []
        for run in runs:
            try:
                results.append(read_run(self._raw, run.path, columns=columns))
            except IntegrityError as error:
                results.append(RejectedInput("raw_unreadable", str(error)))
        return results

    def close(self) -> None:
        self.source.close()
        if self._canary is not None:
            self._canary.close()


def place_of(run: Announcement) -> float:
    """Return the place of a run's change in [0, 1): the same for all runs of a change, evenly spread over changes.

    A run without a change, or of an earlier version's announcement, has a place of its own.
    """
    facts = run.facts
    subject = f"{facts.project}\0{facts.change}" if facts is not None and facts.change else run.run_id
    return int.from_bytes(hashlib.blake2b(subject.encode(), digest_size=6).digest(), "big") / 2**48


def _facts_of(run: Announcement) -> RunFacts:
    """Return the announced facts of a run. An earlier version of ciml announces only its id and its job."""
    if run.facts is not None:
        return run.facts
    identity = RunId.decode(run.run_id)
    return RunFacts(run.run_id, identity.native_id, run.build_name, source=identity.source)


def _unpredictable(offset: int, run_id: str, rejected: RejectedInput) -> dict[str, Any]:
    record: dict[str, Any] = {"offset": offset, "run_id": run_id, "reason": rejected.reason}
    if rejected.detail:
        record["detail"] = rejected.detail[:_DETAIL_CHARACTERS].encode(errors="backslashreplace").decode()
    return record


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
      output: the stored output of the run; None without one.
    """

    offset: int
    timestamp_ms: int
    run_id: str
    build_name: str
    path: str
    reclaim: str = ""
    facts: RunFacts | None = None
    output: OutputFile | None = None


def read_announcement(message: Message) -> Announcement:
    """Read a message of the topic `runs`.

    Raises:
      RejectedInput: ``bad_announcement``, if it is malformed or its path is not that of its run.
    """
    try:
        return _parse_announcement(message)
    except RejectedInput as error:
        raise RejectedInput("bad_announcement", error.detail) from None


def _parse_announcement(message: Message) -> Announcement:
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
    facts = _parse_facts(value["facts"], run_id, build_name) if "facts" in value else None
    output = _parse_output(value["output"], path) if "output" in value else None
    return Announcement(message.offset, message.timestamp_ms, run_id, build_name, path, reclaim, facts, output)


def _parse_output(value: object, path: str) -> OutputFile:
    """Parse the announced output of the run whose raw object is ``path``."""
    try:
        output = msgspec.convert(value, OutputFile)
    except msgspec.ValidationError as error:
        raise RejectedInput("bad_announcement", f"output: {error!s:.200}") from None
    if not output.missing and output.path != output_path(RawFile(path, "", 0, 0), output.digest):
        raise RejectedInput("bad_announcement", f"output: path {output.path!r:.200} does not match the run")
    return output


def _text(value: dict[str, object], name: str) -> str:
    if not isinstance(value.get(name), str) or not value[name]:
        raise RejectedInput("bad_announcement", f"{name}: expected a text")
    return text_field(value, name)


def _parse_facts(value: object, run_id: str, build_name: str) -> RunFacts:
    """Parse announced facts; each field is checked as in an event. Unknown fields are ignored."""
    if not isinstance(value, dict):
        raise RejectedInput("bad_announcement", f"facts: want an object, not {kind_of(value)}")
    fields: dict[str, Any] = {"labels": check_labels(value.get("labels"), "facts.")}
    for name in _TEXTS:
        limit = MAX_URL_CHARACTERS if name in _ADDRESSES else MAX_TEXT_CHARACTERS
        fields[name] = text_field(value, name, "facts.", limit)
    for name, words in (("phase", get_args(Phase)), ("outcome", (None, *get_args(OutcomeWord)))):
        word = value.get(name)
        if word not in words:
            raise RejectedInput("bad_announcement", f"facts.{name}: unknown {word!r:.80}")
        fields[name] = word
    for name in ("start_us", "end_us"):
        time_us = value.get(name)
        if time_us is not None and (type(time_us) is not int or not EARLIEST_US <= time_us < LATEST_US):
            raise RejectedInput("bad_announcement", f"facts.{name}: want microseconds of 2000 to 2099")
        fields[name] = time_us
    subjects = value.get("subjects", [])
    if not isinstance(subjects, list) or len(subjects) > MAX_SUBJECTS:
        raise RejectedInput("bad_announcement", f"facts.subjects: want a list of at most {MAX_SUBJECTS} texts")
    fields["subjects"] = tuple(text_field({"subjects": subject}, "subjects", "facts.") for subject in subjects)
    if (fields["run_id"], fields["build_name"]) != (run_id, build_name):
        raise RejectedInput("bad_announcement", f"facts: of run {fields['run_id']!r:.80}, not of {run_id}")
    return RunFacts(**fields)
