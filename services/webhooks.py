"""The service `webhooks`: an HTTP server in its own thread. The service itself only checks the broker."""

from __future__ import annotations

import asyncio
import socket
from concurrent.futures import Future

from ciml.http.intake import Intake
from ciml.http.server import Connections, HttpServer, check_open_files, listen
from ciml.integrations.config import Receivers, WebhookSource
from ciml.integrations.producer import DeliveryProducer
from ciml.integrations.webhooks.app import endpoints, make_app
from ciml.kafka.options import KafkaOptions
from ciml.limits import MAX_DELIVERY_BYTES
from ciml.services.receivers import Receiver

_LAST_ANSWERS_S = 2.0  # at the end, in addition to the time for an acknowledgement


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
        self.end_s += self.settings.answer_s
        self._endpoints = endpoints(receivers)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()

    @property
    def url(self) -> str:
        """The address that it listens on."""
        host = self.settings.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    def open(self) -> None:
        check_open_files({"webhook": self.settings.connections}, "connections of [webhooks]")
        listener = listen(self.settings.host, self.port)
        self.port = listener.getsockname()[1]
        producer = self._producer = DeliveryProducer(self.kafka, self.topic, self.settings.answer_s)
        started: Future[None] = Future()
        self.begin("webhooks", lambda: asyncio.run(self._serve(listener, producer, started)))
        started.result()

    def close(self) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stop.set)
        super().close()

    async def _serve(self, listener: socket.socket, producer: DeliveryProducer, started: Future[None]) -> None:
        settings = self.settings
        self._loop = asyncio.get_running_loop()
        try:
            connections = Connections(
                settings.connections, settings.header_s, settings.body_s, settings.answer_s, "MAX_HOOK_CONNECTIONS"
            )
            intake = Intake(
                body_s=settings.body_s,
                max_bytes=MAX_DELIVERY_BYTES,
                max_reading=settings.connections,
                limit="MAX_DELIVERY_BYTES",
            )
            app = make_app(self._endpoints, producer, intake, self.metrics, lambda: self.broker_error)
            server = HttpServer(app, listener, connections, round(settings.answer_s + _LAST_ANSWERS_S))
            await server.start()
        except BaseException as error:
            started.set_exception(error)  # `open`, in another thread, raises it
            raise
        started.set_result(None)
        await self._stop.wait()
        await server.stop()
