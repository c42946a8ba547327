"""A client of paho-mqtt whose memory is bounded, whatever the broker sends."""

from __future__ import annotations

from typing import Any

from paho.mqtt import client as mqtt

_READ_BYTES = 1 << 16
_KEPT_BYTES = 66 << 10  # of a packet over the limit: topic, packet id and properties
_MOST_ANSWERS = 10_000  # packets that wait for a broker that does not read


class HostileBroker(ValueError):
    """The broker sends what no broker may send to this client."""


class Frames:
    """Follows the frames of MQTT in a stream of bytes, before they are collected.

    Args:
      most: bytes of a frame.

    Attributes:
      oversized: whether the present frame, or the last one if it is complete, has more.
    """

    def __init__(self, most: int) -> None:
        self._most, self.oversized = most, False
        self._left, self._length, self._shift = 0, 0, -1  # shift: of the next byte of a length; -1 before a frame

    def see(self, data: bytes) -> None:
        """Follow further bytes.

        Raises:
          HostileBroker: a message of QoS 2, which was not subscribed to, or a large packet that is no message.
        """
        while data:
            if self._left:
                taken = min(self._left, len(data))
                self._left, data = self._left - taken, data[taken:]
                continue
            first, data = data[0], data[1:]
            if self._shift < 0:
                self._kind, self._length, self._shift = first, 0, 0
                continue
            self._length |= (first & 0x7F) << self._shift
            self._shift += 7
            if first & 0x80 and self._shift < 28:
                continue
            self._begin()

    def _begin(self) -> None:
        self._left, self._shift = self._length, -1
        self.oversized = self._length > self._most
        is_message = self._kind >> 4 == 3
        if is_message and self._kind & 0x04:
            raise HostileBroker("a message of QoS 2, though QoS 1 was subscribed to")
        if self.oversized and not is_message:
            raise HostileBroker(f"a packet of {self._length} bytes that is no message")


class BoundedClient(mqtt.Client):
    """A client that keeps the beginning alone of a packet over the limit, and ends where it cannot.

    Args:
      most: bytes of a packet.
      args, options: of paho's client.
    """

    def __init__(self, most: int, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._frames = Frames(most)

    @property
    def oversized(self) -> bool:
        """Whether the packet that is handled now is over the limit, so that its end is missing."""
        return self._frames.oversized

    def check_answers(self) -> None:
        """Raise `HostileBroker` where too many answers wait: each packet may need one."""
        if len(self._out_packet) > _MOST_ANSWERS:
            raise HostileBroker("more packets than it reads answers")

    def _sock_recv(self, bufsize: int) -> bytes:  # the one place where paho reads
        data = super()._sock_recv(min(bufsize, _READ_BYTES))
        self._frames.see(data)
        if self._frames.oversized:
            del self._in_packet["packet"][_KEPT_BYTES:]
        return data
