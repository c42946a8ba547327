"""Predict: announcements on the topic `runs` to predictions, their manifest and the topic `predictions`.

runs ─► predict (raw objects, the definition of the served version, the model server) ─► commit ─► publish

Offsets are committed with the predictions, as everywhere: a batch that is read again changes nothing. While no model
is served nothing is read, and the lag says so.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import apache_beam as beam

from ciml.digest import canonical_json
from ciml.errors import EngineError
from ciml.manifests import Delta, catch_up, commit
from ciml.records import Batch
from ciml.storage import Store
from pipelines.engines import FlinkJob, flink_options, run_here
from pipelines.ingest import Gather
from pipelines.kafka import PartitionRead, ReadFromKafka, ReadOptions, bases, plan
from pipelines.kafka_client import KafkaOptions, close_readers, list_topic, make_topic
from pipelines.publish import Announcement, Projection, projection
from pipelines.run_ingest import Until, lag
from serving.client import NotServedError
from serving.predict import Predictor, PredictPolicy
from serving.predictions import Predicted, PredictionState, predictions_log, reconcile
from transforms.beam import keep_error

Report = Callable[[PredictionState, int, str], None]
_KEY = "predictions"
_PAUSE_S = 0.5


@dataclass(frozen=True)
class PredictConfig:
    """What a predict is made of.

    Attributes:
      data: the data root.
      kafka: how to reach the broker.
      server: ``host:port`` of the model server's gRPC.
      policy: which model is asked, and how.
      runs_topic: where runs are announced.
      predictions_topic: where predictions are published; "" for nowhere.
      read: how partitions are read; a batch is one look for the served version, and as many calls as it needs.
      cycle_messages: the most announcements that one micro-batch takes: what a kill costs at most.
      commit_s: the longest that a batch of predictions waits for others before it is committed, on Flink.
      commit_batches: how many do not wait any longer.
    """

    data: Store
    kafka: KafkaOptions
    server: str
    policy: PredictPolicy
    runs_topic: str = "runs"
    predictions_topic: str = "predictions"
    read: ReadOptions = field(default_factory=ReadOptions)
    cycle_messages: int = 2000
    commit_s: float = 1.0
    commit_batches: int = 20

    def projection(self) -> Projection | None:
        """What publishes predictions, in this process."""
        if not self.predictions_topic:
            return None
        return projection(predictions_log(self.data), self.predictions_topic, render_predictions, self.kafka)


class PredictionCommitter:
    """The predictions' manifest and what its deltas add up to. Safe to use from threads."""

    def __init__(self, data: Store, clock: Callable[[], float] = time.time) -> None:
        self._log = predictions_log(data)
        self._state = PredictionState()
        self._lock = threading.RLock()
        self._clock = clock

    def commit(self, ranges: Iterable[Predicted]) -> int | None:
        """Commits what of ``ranges`` is not covered yet; returns the version, or None where nothing was left."""
        whole = list(ranges)
        with self._lock:
            return commit(self._log, self._state, lambda: reconcile(self._state, whole, int(self._clock() * 1e6)))

    @contextmanager
    def state(self) -> Iterator[PredictionState]:
        """The state after the last delta there is. To be looked at only, and only within the ``with``."""
        with self._lock:
            catch_up(self._log, self._state)
            yield self._state


_committers: dict[tuple[int, str], PredictionCommitter] = {}
_predictors: dict[tuple[int, int, str, str, PredictPolicy], Predictor] = {}
_lock = threading.Lock()


def committer(data: Store) -> PredictionCommitter:
    """The process's committer of predictions for a data root."""
    with _lock:
        return _committers.setdefault((os.getpid(), data.root), PredictionCommitter(data))


def predictor(config: PredictConfig) -> Predictor:
    """The thread's predictor: a connection and the definitions are kept."""
    key = (os.getpid(), threading.get_ident(), config.data.root, config.server, config.policy)
    with _lock:
        if key not in _predictors:
            _predictors[key] = Predictor(config.data, config.server, config.policy)
        return _predictors[key]


def render_predictions(delta: Delta) -> Iterable[Announcement]:
    """The messages of a delta: CloudEvents in binary mode, whose id is the prediction's."""
    for one in delta["predictions"]:
        headers = [
            ("ce_specversion", b"1.0"),
            ("ce_id", one["id"].encode()),
            ("ce_source", f"/ciml/models/{one['model']}".encode()),
            ("ce_type", b"dev.ciml.prediction.v1"),
            ("content-type", b"application/json"),
        ]
        value = {name: item for name, item in one.items() if name != "offset"}
        yield one["run_id"].encode(), canonical_json(value), headers


class Predict(beam.DoFn):
    """Batches of announcements -> (key, what became of them, sealed)."""

    def __init__(self, config: PredictConfig) -> None:
        self._config = config

    def process(self, batch: Batch) -> Iterator[tuple[str, bytes]]:
        with keep_error():
            yield _KEY, canonical_json(predictor(self._config).predict(batch).to_json())


class CommitPredictions(beam.DoFn):
    """(key, sealed ranges) -> the version that holds them; nothing where all of it was committed before."""

    def __init__(self, config: PredictConfig) -> None:
        self._config = config

    def process(self, element: tuple[str, Iterable[bytes]]) -> Iterator[int]:
        with keep_error():
            version = committer(self._config.data).commit(Predicted.from_json(json.loads(one)) for one in element[1])
        if version is not None:
            yield version


class PublishPredictions(beam.DoFn):
    """Publishes what is committed and was not published. The version that comes in is only the occasion."""

    def __init__(self, config: PredictConfig) -> None:
        self._config = config

    def process(self, version: int) -> Iterator[int]:
        with keep_error():
            publisher = self._config.projection()
            if publisher is not None:
                publisher.announce()
        yield version


def build_predict(
    pipeline: beam.Pipeline, config: PredictConfig, reads: Sequence[PartitionRead]
) -> beam.PCollection[int]:
    """Wires a predict: bounded where the ``reads`` are, else for ever. Returns the versions that were committed."""
    bounded = all(read.end is not None for read in reads)
    predicted = (
        pipeline
        | "Runs" >> ReadFromKafka(config.kafka, reads, config.read)
        | "Predict" >> beam.ParDo(Predict(config)).with_output_types(tuple[str, bytes])
    )
    gathered = predicted | (
        beam.GroupByKey() if bounded else "Gather" >> beam.ParDo(Gather(config.commit_s, config.commit_batches))
    )
    return (
        gathered
        | "Commit" >> beam.ParDo(CommitPredictions(config))
        | "Publish" >> beam.ParDo(PublishPredictions(config))
    )


class _Watch:
    """What both ways of running look at: the topic's listing, the lag, and whether a model is served."""

    def __init__(self, config: PredictConfig, until: Until, stop: threading.Event, report: Report | None) -> None:
        self._config, self._until, self._stop, self._report = config, until, stop, report
        # As ingest's announcer makes it: whichever of the two is started first.
        make_topic(config.kafka, config.runs_topic, 1, {"retention.ms": "-1", "cleanup.policy": "delete"})
        self.listing = self.first = list_topic(config.kafka, config.runs_topic)
        self.committing = committer(config.data)
        with self.committing.state() as state:
            gone = [Predicted(batch.covers) for batch in bases(state, self.listing) if batch.covers]
        if gone:
            self.committing.commit(gone)
        self._moved, self._seen = time.monotonic(), -1

    def look(self) -> None:
        self.listing = list_topic(self._config.kafka, self._config.runs_topic)

    def model_is_served(self) -> bool:
        """Waits for a model; False when it is time to end instead. Nothing is read meanwhile.

        Raises:
          EngineError: with an end in sight (``until``) and no model; or the server does not answer within the budget.
        """
        while not self._stop.is_set():
            try:
                version = predictor(self._config).client.served_version(self._config.policy.label)
            except NotServedError as error:
                if self._until is not None:
                    raise EngineError(f"{error}; push a model first (ciml train)") from None
                self.tell(f"waits: no version of {self._config.policy.model} is served")
                self._stop.wait(_PAUSE_S)
                self.look()
                continue
            except EngineError as error:
                if self._until is not None:
                    raise
                self.tell(f"waits: {error}")
                self._stop.wait(_PAUSE_S)
                continue
            self.tell(f"version {version}")
            return True
        return False

    def tell(self, word: str) -> None:
        if self._report is not None:
            with self.committing.state() as state:
                self._report(state, lag(state, self.listing), word)

    def done(self) -> bool:
        """Whether what ``until`` says has come."""
        with self.committing.state() as state:
            behind = lag(state, self.first if self._until == "end" else self.listing)
            if state.version != self._seen or behind:
                self._moved, self._seen = time.monotonic(), state.version
        if behind or self._until is None:
            return False
        over = self._until == "end" or time.monotonic() - self._moved >= float(self._until)
        if over:
            self.tell("done")
        return over


def predict_micro_batches(
    config: PredictConfig, *, until: Until = None, stop: threading.Event | None = None, report: Report | None = None
) -> None:
    """Predicts by bounded pipelines, one after the other, each from the committed offsets to the present end.

    Args:
      config: what to predict, and how.
      until: when to end; see `pipelines.run_ingest`.
      stop: ends it, when set, after the pipeline that runs.
      report: told the state, the lag and a word about the model before each pipeline.

    Raises:
      EngineError: the broker, a store or the model server does not answer; with ``until``, also without a model.
      IntegrityError: what is stored contradicts itself.
    """
    stop = stop or threading.Event()
    watch, publisher = _Watch(config, until, stop, report), config.projection()
    if publisher is not None:
        publisher.announce()
    try:
        while not stop.is_set():
            with watch.committing.state() as state:
                target = watch.first if until == "end" else watch.listing
                reads = plan(state, target, bounded=True, most=config.cycle_messages)
            if reads:
                if not watch.model_is_served():
                    return
                run_here(lambda pipeline, reads=reads: build_predict(pipeline, config, reads))  # type: ignore[misc]
            if watch.done():
                return
            if not reads:
                watch.tell("idle")
                stop.wait(_PAUSE_S if until is None else min(_PAUSE_S, 0.05))
            watch.look()
    finally:
        close_readers()
        if publisher is not None:
            publisher.close()


def predict_on_flink(
    config: PredictConfig,
    endpoint: str,
    *,
    until: Until = None,
    stop: threading.Event | None = None,
    report: Report | None = None,
    extra: tuple[str, ...] = (),
) -> None:
    """Predicts by one job on Flink, submitted once a model is served, and cancelled at the end.

    Args and errors are as for `predict_micro_batches`; ``endpoint`` is ``host:port`` of Beam's job server, ``extra``
    holds further options of Beam.
    """
    stop = stop or threading.Event()
    watch, publisher = _Watch(config, until, stop, report), config.projection()
    if publisher is not None:
        publisher.announce()
    if not watch.model_is_served():
        return
    with watch.committing.state() as state:
        reads = plan(state, watch.listing, bounded=False)
    job = FlinkJob(
        lambda pipeline: build_predict(pipeline, config, reads),
        flink_options(endpoint, f"ciml-predict-{config.policy.model}", extra=extra),
    )
    try:
        while not stop.wait(_PAUSE_S):
            job.check()
            if job.over:
                raise EngineError(f"the Flink job ended by itself: {job.state}")
            watch.look()
            watch.tell(job.state.lower())
            if watch.done():
                return
    finally:
        job.cancel()
        close_readers()
        if publisher is not None:
            publisher.announce()  # the job may have been cancelled between a commit and its publication
            publisher.close()
