"""The services of receivers, which work in threads of their own between `open` and `close` and plan no work items.

`SessionReceiver` connects to its sources by MQTT or by Gerrit's SSH. `WebhooksService` has an HTTP server in a
thread of its own; the service itself only checks the broker.
"""

from __future__ import annotations

import logging
import threading
import time
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from ciml.errors import EngineError
from ciml.http.intake import ConnectionLimiter, Intake, check_open_files
from ciml.http.server import listen, serve_in_thread
from ciml.integrations.config import GerritSource, MqttSource, Receivers, WebhookSource
from ciml.integrations.producer import DeliveryProducer, ReceiverMetrics
from ciml.integrations.sessions import ANSWER_S, Inbox, Session
from ciml.integrations.webhooks.app import Answers, make_endpoints
from ciml.kafka import KafkaOptions
from ciml.limits import MAX_DELIVERY_BYTES
from ciml.pipelines.kafka.broker import topic_of
from ciml.services.decide import ServiceProgress
from ciml.services.service import NotReadyError, Service

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

_END_S = 20.0  # for all sessions to end
_BROKER_S = 5.0  # longest wait for the broker's answer
_LAST_ANSWERS_S = 2.0  # at the end, in addition to the time for an acknowledgement
_log = logging.getLogger(__name__)


class Receiver(Service):
    """Receives deliveries in threads of its own. While its broker does not answer, it asks senders to try again.

    In the foreground it also starts without its broker; a supervisor waits for the broker before it starts a worker.

    Args:
      receivers: the configuration.
      kafka: connection to the broker.
      topic: where deliveries go.

    Raises:
      CimlError: the configuration of a source is invalid.

    Attributes:
      receiver: its kind, as in `ciml.services.options.KINDS` and in the configuration.
      metrics: of its deliveries.
      broker_error: why the broker cannot be used at present; "" if it can.
    """

    receiver: ClassVar[str]
    poll_s = 2.0
    retry_s = (1.0, 5.0)

    def __init__(self, receivers: Receivers, kafka: KafkaOptions, topic: str) -> None:
        super().__init__(f"ciml-{self.receiver}-{topic}")
        self.receivers = receivers
        self.topic = topic
        self.kafka = replace(kafka, timeout_s=min(kafka.timeout_s, _BROKER_S))
        self.metrics = ReceiverMetrics(self.receiver)
        self.broker_error = "it was not asked yet"
        self._producer: DeliveryProducer | None = None

    @abstractmethod
    def open(self) -> None:
        """Begin to receive. Raises `CimlError` where that is impossible."""

    def close(self) -> None:
        """Finish what has been received, and end. Nothing is done before `open`, as in a supervisor."""
        if self._producer is not None:
            self._producer.close()

    def timings(self) -> Sequence[Collector]:
        return self.metrics.collectors

    def observe(self) -> ServiceProgress:
        """Check that the broker has the topic."""
        try:
            topic_of(self.kafka, self.topic)
        except EngineError as error:
            self.broker_error = str(error)
            raise
        self.broker_error = ""
        self.board.put_observed(())
        return ServiceProgress(0)


class SessionReceiver(Receiver):
    """Receives from sources that it connects to, each in a thread.

    Args:
      receivers, kafka, topic: see `Receiver`.

    Attributes:
      sessions: its sources, each with the number of deliveries that may wait for Kafka.
    """

    def __init__(self, receivers: Receivers, kafka: KafkaOptions, topic: str) -> None:
        super().__init__(receivers, kafka, topic)
        self.sessions = self.connections()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._failure: BaseException | None = None

    @abstractmethod
    def connections(self) -> Sequence[tuple[Session, int]]:
        """Return a session for each of its sources, and how many deliveries of it may wait for Kafka."""

    @property
    def shown(self) -> str:
        """The sources and where they are, for people."""
        return ", ".join(f"{session.name} at {session.shown}" for session, _ in self.sessions)

    def open(self) -> None:
        self._producer = DeliveryProducer(self.kafka, self.topic, ANSWER_S)
        for session, max_waiting in self.sessions:
            inbox = Inbox(session.name, self._producer, self.metrics, max_waiting)
            inbox.set_connected(False)
            thread = threading.Thread(target=self._receive, args=(session, inbox), name=session.name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def _receive(self, session: Session, inbox: Inbox) -> None:
        try:
            session.run(inbox, self._stop)
        except BaseException as error:  # noqa: BLE001 - `observe`, in another thread, raises it
            self._failure = error

    def close(self) -> None:
        self._stop.set()
        until_s = time.monotonic() + _END_S
        for thread in self._threads:
            thread.join(max(0.0, until_s - time.monotonic()))
            if thread.is_alive():  # a sender keeps it waiting, in a handshake for example; it sends its delivery again
                _log.warning("source %s does not end within %.0f s", thread.name, _END_S)
        super().close()

    def observe(self) -> ServiceProgress:
        """Check that it still receives, and that the broker has the topic.

        Raises:
          RuntimeError: a thread has ended by itself; its cause is the error that ended it.
        """
        if self._failure is not None:
            raise RuntimeError(f"a thread of the receiver {self.receiver} ended by itself") from self._failure
        progress = super().observe()
        problems = [f"source {session.name}: {session.problem}" for session, _ in self.sessions if session.problem]
        if self._threads and problems:
            raise NotReadyError("; ".join(problems))
        return progress


class MqttService(SessionReceiver):
    """Receives MQTT messages."""

    receiver = MqttSource.receiver

    def connections(self) -> Sequence[tuple[Session, int]]:
        from ciml.integrations.mqtt import MqttSession

        # A broker of version 5 obeys in_flight; as many again are for messages of QoS 0, which it does not limit. A
        # broker of 3.1.1 knows no limit: the session stops reading, and loses its connection if Kafka does not answer
        # for keepalive_s.
        return [
            (MqttSession(self.receivers, source), source.in_flight * (2 if source.version == "5" else 1))
            for source in self.receivers.of(MqttSource)
        ]


class GerritService(SessionReceiver):
    """Receives Gerrit's events."""

    receiver = GerritSource.receiver

    def connections(self) -> Sequence[tuple[Session, int]]:
        from ciml.integrations.gerrit.session import GerritSession

        sources = self.receivers.of(GerritSource)
        return [(GerritSession(self.receivers, source), source.in_flight) for source in sources]


class WebhooksService(Receiver):
    """Receives webhooks.

    Args:
      receivers, kafka, topic: see `Receiver`.

    Attributes:
      port: that it listens on, once it is open.
    """

    receiver = WebhookSource.receiver

    def __init__(self, receivers: Receivers, kafka: KafkaOptions, topic: str) -> None:
        super().__init__(receivers, kafka, topic)
        self.settings = receivers.webhooks
        self.port = receivers.webhooks.port
        self._endpoints = make_endpoints(receivers)
        self._serving = ExitStack()

    @property
    def url(self) -> str:
        """The address that it listens on."""
        host = self.settings.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    def open(self) -> None:
        settings = self.settings
        check_open_files({"webhook": settings.connections}, "connections of [webhooks]")
        try:
            listener = listen(settings.host, self.port)
        except EngineError as error:
            raise EngineError(f"{error}; set another port in [webhooks]") from None
        self.port = listener.getsockname()[1]
        self._producer = DeliveryProducer(self.kafka, self.topic, settings.answer_s)
        limiter = ConnectionLimiter(
            settings.connections, settings.header_s, settings.body_s, settings.answer_s, "MAX_HOOK_CONNECTIONS"
        )
        intake = Intake(
            body_s=settings.body_s,
            max_bytes=MAX_DELIVERY_BYTES,
            max_reading=settings.connections,
            limit="MAX_DELIVERY_BYTES",
        )
        answers = Answers(self._producer, intake, self.metrics, lambda: self.broker_error)
        grace_s = round(settings.answer_s + _LAST_ANSWERS_S)
        app = answers.application(self._endpoints)
        self._serving.enter_context(serve_in_thread(app, listener, limiter, "webhooks", grace_s))

    def close(self) -> None:
        self._serving.close()
        super().close()
