"""How a predict is run: as micro-batches in this process, or as one job on Flink. Both commit by the same committer."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial

from ciml.errors import EngineError
from pipelines.flink.submit import FlinkJob, flink_options, run_here
from pipelines.kafka.client import Listing, close_readers, list_topic, make_topic
from pipelines.kafka.plan import is_older
from pipelines.kafka.source import Coverage, bases, plan
from pipelines.predict.pipeline import PredictConfig, build_predict, committer, predictor
from services.metrics import PredictBoard
from services.progress import Outage, Progress, Seen, Until, lag, watch_job
from serving.client import NotServedError
from serving.predict.log import Predicted, PredictionState

#: Told the state, the lag in announcements, and a word about what is being done.
Report = Callable[[PredictionState, int, str], None]

_PAUSE_S = 0.5
_STALL_S = 180.0  # more than the client's budget for a model server that is away
_log = logging.getLogger(__name__)


def predict_micro_batches(
    config: PredictConfig,
    *,
    until: Until = None,
    stop: threading.Event | None = None,
    report: Report | None = None,
    board: PredictBoard | None = None,
) -> None:
    """Predicts by bounded pipelines, one after the other, each from the committed offsets to the present end.

    Args:
      config: what to predict, and how.
      until: when to end; see `services.ingest`.
      stop: ends it, when set, after the pipeline that runs.
      report: told before each pipeline, and while there is something to wait for.
      board: shown the state and the topic at the same times.

    Raises:
      EngineError: the broker or a store does not answer: at the start, or for five minutes later on; with ``until``,
        also when no model is served, or the model server does not answer.
      IntegrityError: what is stored contradicts itself.
    """
    stop = stop or threading.Event()
    watch, publisher, outage = _Watch(config, until, stop, report, board), config.projection(), Outage()
    try:
        while not stop.is_set():
            try:
                if publisher is not None:
                    publisher.announce()  # what was committed, and its process died or the broker was away
                with watch.committing.state() as state:
                    listing = watch.listing_for(state)
                    target = watch.first if until == "end" else listing
                    reads = plan(state, listing, bounded=True, most=config.cycle_messages, until=target)
                if reads:
                    if not watch.model_is_served():
                        return
                    run_here(partial(build_predict, config=config, reads=reads))
                if watch.done():
                    return
                if not reads:
                    watch.tell("idle")
                    stop.wait(_PAUSE_S if until is None else 0.05)
                watch.look()
                outage.is_over()
            except NotServedError as error:
                if until is not None:
                    raise
                _log.warning("%s; trying again", error)  # it was, a moment ago: that ends as it began, by waiting
                stop.wait(_PAUSE_S)
            except EngineError as error:
                if until is not None:
                    raise
                outage.goes_on(error)
                stop.wait(_PAUSE_S)
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
    board: PredictBoard | None = None,
) -> None:
    """Predicts by one job on Flink, submitted once a model is served, and cancelled at the end.

    Args:
      config: what to predict, and how.
      endpoint: ``host:port`` of Beam's job server.
      until: when to end.
      stop: ends it, when set.
      report: told twice a second.
      extra: further options of Beam.
      board: shown the state and the topic twice a second.

    Raises:
      EngineError: as for micro-batches; or Flink does not answer, the job failed, or it commits nothing.
      IntegrityError: as for micro-batches; the job is cancelled.
    """
    stop = stop or threading.Event()
    watch, publisher = _Watch(config, until, stop, report, board), config.projection()
    if publisher is not None:
        publisher.announce()

    def submit() -> FlinkJob | None:
        if not watch.model_is_served():
            return None
        with watch.committing.state() as state:
            reads = plan(state, watch.listing_for(state), bounded=False)
        options = flink_options(endpoint, f"ciml-predict-{config.policy.model}", extra=extra)
        return FlinkJob(partial(build_predict, config=config, reads=reads), options)

    def look(state: str) -> Seen:
        watch.look()
        watch.tell(state)
        return watch.seen()

    try:
        watch_job(submit, look, until=until, stop=stop, stall_s=_STALL_S, pause_s=_PAUSE_S)
        if not stop.is_set():
            watch.tell("done")
    finally:
        close_readers()
        if publisher is not None:
            publisher.announce()  # the job may have been cancelled between a commit and its publication
            publisher.close()


class _Watch:
    """What both ways of running look at: the topic's listing, the lag, and whether a model is served.

    Attributes:
      first, listing: the topic at the start, and when it was last looked at.
      committing: the committer.
    """

    def __init__(
        self,
        config: PredictConfig,
        until: Until,
        stop: threading.Event,
        report: Report | None,
        board: PredictBoard | None,
    ) -> None:
        self._config, self._until, self._stop, self._report, self._board = config, until, stop, report, board
        # As ingest's announcer makes it: whichever of the two is started first.
        make_topic(config.kafka, config.runs_topic, 1, {"retention.ms": "-1", "cleanup.policy": "delete"})
        self.listing = self.first = list_topic(config.kafka, config.runs_topic)
        self.committing = committer(config.data.predictions)
        with self.committing.state() as state:
            gone = [Predicted(batch.covers) for batch in bases(state, self.listing) if batch.covers]
        if gone:
            self.committing.commit(gone)
        self._progress = Progress(until)

    def look(self) -> None:
        """Looks at the topic again, and after the manifest."""
        self.committing.maintain()
        self.listing = list_topic(self._config.kafka, self._config.runs_topic)

    def listing_for(self, state: Coverage) -> Listing:
        """The topic as it was last looked at; looked at again where another has read on since."""
        if is_older(self.listing, state):
            self.listing = list_topic(self._config.kafka, self._config.runs_topic)
        return self.listing

    def model_is_served(self) -> bool:
        """Waits for a model; False when it is time to end instead. Nothing is read meanwhile.

        Raises:
          EngineError: with an end in sight (``until``): no model is served, or the server does not answer.
        """
        while not self._stop.is_set():
            try:
                version = predictor(self._config).client.served_version(self._config.policy.label)
            except NotServedError as error:
                if self._until is not None:
                    raise EngineError(f"{error}; push a model first (ciml refresh)") from None
                self._wait(f"waits: no version of {self._config.policy.model} is served")
            except EngineError as error:
                if self._until is not None:
                    raise
                self._wait(f"waits: {error}")
            else:
                self.tell(f"version {version}")
                return True
        return False

    def _wait(self, word: str) -> None:
        self.tell(word)
        self._stop.wait(_PAUSE_S)
        self.look()

    def tell(self, word: str) -> None:
        """Reports."""
        if self._report is None and self._board is None:
            return
        with self.committing.state() as state:
            if self._report is not None:
                self._report(state, lag(state, self.listing), word)
            if self._board is not None:
                self._board.see(state, self.listing)

    def seen(self) -> Seen:
        """The manifest's version, and how many announcements are to be covered before ``until``."""
        with self.committing.state() as state:
            return Seen(state.version, lag(state, self.first if self._until == "end" else self.listing))

    def done(self) -> bool:
        """Whether what ``until`` says has come."""
        done = self._progress.see(*self.seen())
        if done:
            self.tell("done")
        return done
