"""A producer that sends any bytes as a header's name, as C and Java clients can and confluent-kafka's cannot."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

import confluent_kafka

_END, _TOPIC, _PARTITION, _VALUE, _KEY, _FLAGS, _TIMESTAMP, _HEADERS = 0, 1, 3, 4, 5, 7, 8, 10  # rd_kafka_vtype_t
_COPY = 2
_PRODUCER = 0
_QUEUE_FULL = -184
_PACKAGE = Path(confluent_kafka.__file__).parent

Header = tuple[str | bytes, bytes | None]


class RawProducer:
    """Sends messages through the librdkafka that confluent-kafka brings along.

    Args:
      bootstrap: ``host:port`` of a broker.
      settings: further properties of librdkafka.
    """

    def __init__(self, bootstrap: str, **settings: str) -> None:
        (library,) = _PACKAGE.with_name("confluent_kafka.libs").glob("librdkafka*.so*")
        self._library = ctypes.CDLL(str(library))
        for name in ("rd_kafka_conf_new", "rd_kafka_new", "rd_kafka_headers_new"):
            getattr(self._library, name).restype = ctypes.c_void_p
        conf = ctypes.c_void_p(self._library.rd_kafka_conf_new())
        fault = ctypes.create_string_buffer(512)
        for name, value in {"bootstrap.servers": bootstrap, **settings}.items():
            if self._library.rd_kafka_conf_set(conf, name.encode(), value.encode(), fault, len(fault)):
                raise ValueError(fault.value.decode())
        handle = self._library.rd_kafka_new(_PRODUCER, conf, fault, ctypes.c_size_t(len(fault)))
        if not handle:
            raise ValueError(fault.value.decode())
        self._handle = ctypes.c_void_p(handle)

    def send(
        self,
        topic: str,
        value: bytes | None,
        headers: Iterable[Header] = (),
        timestamp_ms: int = 0,
        key: bytes | None = None,
        partition: int = -1,
    ) -> None:
        """Queues a message. ``timestamp_ms`` 0 is the present time; a header's name is sent as its bytes are."""
        parts: list[object] = [_TOPIC, ctypes.c_char_p(topic.encode()), _PARTITION, ctypes.c_int32(partition)]
        parts += [_FLAGS, _COPY, _VALUE, *_sized(value), _KEY, *_sized(key)]
        parts += [_TIMESTAMP, ctypes.c_int64(timestamp_ms)]
        made = ctypes.c_void_p(self._library.rd_kafka_headers_new(ctypes.c_size_t(0)))  # librdkafka's once it is sent
        for name, content in headers:
            raw = name.encode() if isinstance(name, str) else name
            size = ctypes.c_ssize_t(-1 if content is None else len(content))
            self._library.rd_kafka_header_add(made, raw, ctypes.c_ssize_t(len(raw)), content, size)
        parts += [_HEADERS, made]
        while fault := self._library.rd_kafka_producev(self._handle, *parts, _END):
            if fault != _QUEUE_FULL:
                raise ValueError(f"librdkafka refuses the message: error {fault}")
            self._library.rd_kafka_poll(self._handle, 100)

    def flush(self, timeout_s: float = 30.0) -> None:
        """Waits until all messages are delivered."""
        if fault := self._library.rd_kafka_flush(self._handle, int(timeout_s * 1000)):
            raise ValueError(f"librdkafka did not deliver: error {fault}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.flush()
        self._library.rd_kafka_destroy(self._handle)


def _sized(data: bytes | None) -> tuple[ctypes.c_void_p | ctypes.c_char_p, ctypes.c_size_t]:
    if data is None:
        return ctypes.c_void_p(), ctypes.c_size_t(0)
    return ctypes.c_char_p(data), ctypes.c_size_t(len(data))
