"""The session with an MQTT broker, by a client of paho-mqtt whose memory is bounded whatever the broker sends.

One thread reads, produces and acknowledges, so nothing is shared. The broker keeps the session while the receiver is
away (fixed client id, no clean start), and repeats messages that were not acknowledged. Acknowledgements keep the order
of the messages, as MQTT requires.
"""

from __future__ import annotations

import logging
import ssl
import struct
import threading
import time
from functools import partial
from typing import Any

from paho.mqtt import MQTTException
from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from ciml.events.redaction import shown
from ciml.integrations.config import MqttSource, Receivers
from ciml.integrations.registry import delivered
from ciml.integrations.sessions import Inbox, Lost, Session, invalid
from ciml.secrets import Secrets

_READ_BYTES = 1 << 16
_KEPT_BYTES = 66 << 10  # of a packet over the limit: topic, packet id and properties
_MAX_ANSWERS = 10_000  # packets that wait for a broker that does not read
_BUSY_S = 0.01  # longest wait for a message while others wait for Kafka
_IDLE_S = 0.5  # and while none does
_DRAIN_S = 2.0
_QUIET_S = 0.1
_FRAME_BYTES = 66 << 10  # of a message's topic and properties
_CONNECT_S = 10.0
_log = logging.getLogger(__name__)


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
        self._most = most
        self.oversized = False
        # shift: of the next byte of a length; -1 before a frame
        self._left = 0
        self._length = 0
        self._shift = -1

    def see(self, data: bytes) -> None:
        """Follow further bytes.

        Raises:
          HostileBroker: a message of QoS 2, which was not subscribed to, or a large packet that is no message.
        """
        while data:
            if self._left:
                size = min(self._left, len(data))
                self._left = self._left - size
                data = data[size:]
                continue
            first = data[0]
            data = data[1:]
            if self._shift < 0:
                self._kind = first
                self._length = 0
                self._shift = 0
                continue
            self._length |= (first & 0x7F) << self._shift
            self._shift += 7
            if first & 0x80 and self._shift < 28:
                continue
            self._begin()

    def _begin(self) -> None:
        self._left = self._length
        self._shift = -1
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
        if len(self._out_packet) > _MAX_ANSWERS:
            raise HostileBroker("more packets than it reads answers")

    def _sock_recv(self, bufsize: int) -> bytes:  # the one place where paho reads
        data = super()._sock_recv(min(bufsize, _READ_BYTES))
        self._frames.see(data)
        if self._frames.oversized:
            del self._in_packet["packet"][_KEPT_BYTES:]
        return data


class MqttSession(Session):
    """The session of a source.

    Args:
      receivers: the configuration.
      source: of it.

    Raises:
      CimlError: a secret or a certificate is missing or invalid.
    """

    def __init__(self, receivers: Receivers, source: MqttSource) -> None:
        super().__init__(source.name, source.broker)
        self._source = source
        self._adapter = source.found_adapter()
        self._where = receivers.where(source)
        self._secrets = Secrets(
            self._where, source.secret_file, source.secret_env, key=_utf8, folder=receivers.file.parent
        )
        self._tls = _context(receivers, source) if source.address[2] else None
        self._refusals = 0
        self._warned = self._short = False
        proof = "mqtt-certificate" if source.certificate_file else "mqtt-user" if source.user else ""
        self.auth = proof if self._tls else ""  # without TLS the broker is not proved, and so no message is

    def serve(self, inbox: Inbox, stop: threading.Event) -> None:
        inbox.drop()
        link = _Link(self, inbox)
        try:
            link.connect()
            while not self.may_end(inbox, stop):
                link.drops = stop.is_set()
                link.step(reads=link.drops or not inbox.is_full)
                inbox.settle()
            link.drain()
        finally:
            link.close()

    def made_client(self) -> BoundedClient:
        """Return a client that is not connected."""
        source = self._source
        old = source.version == "3.1.1"
        client = BoundedClient(
            source.max_bytes + _FRAME_BYTES,
            CallbackAPIVersion.VERSION2,
            source.client_id or f"ciml-{source.name}",
            clean_session=False if old else None,
            protocol=MQTTProtocolVersion.MQTTv311 if old else MQTTProtocolVersion.MQTTv5,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        client.connect_timeout = _CONNECT_S
        if self._tls is not None:
            client.tls_set_context(self._tls)
        if source.user:
            keys = self._secrets.keys()  # while a password is replaced: the other one after a refusal
            client.username_pw_set(source.user, keys[self._refusals % len(keys)].decode())
        return client

    def connect(self, client: mqtt.Client) -> None:
        """Connect, and go on with the session."""
        source = self._source
        host, port, _ = source.address
        if source.version == "3.1.1":
            client.connect(host, port, source.keepalive_s)
            return
        properties: Any = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = source.session_s
        properties.ReceiveMaximum = source.in_flight
        properties.MaximumPacketSize = source.max_bytes + _FRAME_BYTES
        client.connect(host, port, source.keepalive_s, clean_start=False, properties=properties)

    def subscribe(self, client: mqtt.Client) -> None:
        """Subscribe to the topics: again on each connection, in case the broker has lost the session."""
        if self._source.version == "3.1.1":
            client.subscribe([(topic, 1) for topic in self._source.topics])
            return
        handling = SubscribeOptions.RETAIN_DO_NOT_SEND
        if self._source.retained == "accept":
            handling = SubscribeOptions.RETAIN_SEND_IF_NEW_SUB
        client.subscribe([(topic, SubscribeOptions(qos=1, retainHandling=handling)) for topic in self._source.topics])

    def refused(self, reason: ReasonCode) -> str:
        """Return why the broker refused the connection, and take the other password, if there is one, next."""
        self._refusals += 1
        source = self._source
        who = f"user {source.user}" if source.user else f"client {source.client_id or f'ciml-{source.name}'}"
        hint = ""
        if reason.getName() in ("Not authorized", "Bad user name or password"):
            hint = "; check user and password, or the certificate, and the broker's access list"
        return f"{source.broker} refuses {who}: {reason.getName()}{hint}"

    def check_kept(self, properties: Any) -> None:
        """Warn once where the broker keeps messages for a shorter time than was asked for (version 5)."""
        kept_s = getattr(properties, "SessionExpiryInterval", None)
        if kept_s is not None and kept_s < self._source.session_s and not self._short:
            self._short = True
            _log.warning(
                "source %s: %s keeps messages for %d s, not session_s = %d: a longer absence loses messages",
                self.name,
                self._source.broker,
                kept_s,
                self._source.session_s,
            )

    def subscribed(self, reasons: list[ReasonCode]) -> str:
        """Return why a subscription is of no use; "" if each is."""
        for topic, reason in zip(self._source.topics, reasons, strict=False):
            if reason.is_failure:
                return (
                    f"{self._source.broker} refuses the subscription to {topic}: {reason.getName()}; grant read access "
                    "in the broker's access list"
                )
            if reason.value == 0:
                return f"{self._source.broker} grants QoS 0 only for {topic}, which loses messages; allow QoS 1"
        return ""

    def receive(self, inbox: Inbox, message: mqtt.MQTTMessage, client: BoundedClient) -> None:
        """Produce a message; it is acknowledged when Kafka has it, or at once where it is no delivery."""
        mid = message.mid
        qos = message.qos
        body = bytes(message.payload)
        try:
            topic = message.topic
        except UnicodeDecodeError:
            topic = ""
        outcome = why = ""
        if message.retain and self._source.retained == "ignore":
            outcome = "retained"
            why = "the broker had retained it"
        elif not body or not topic:
            outcome = "rejected"
            why = "it is empty, or its topic is not UTF-8"
        elif client.oversized or len(body) > self._source.max_bytes:
            outcome = "too_large"
            why = f"it has more than {self._source.max_bytes} bytes (max_bytes)"
        if outcome:
            inbox.reject(outcome, why, partial(client.ack, mid, qos))
            return
        if not qos and not self._warned:
            self._warned = True
            _log.warning(
                "source %s: %r is published with QoS 0, which loses messages; use QoS 1", self.name, topic[:80]
            )
        value, headers = delivered(self._adapter, self.name, body, {"topic": topic}, self.auth)
        inbox.put(value, headers, partial(client.ack, mid, qos))


class _Link:
    """A connection of the session, from its attempt to its loss.

    Attributes:
      drops: whether further messages are neither produced nor acknowledged: the broker keeps them.
    """

    def __init__(self, session: MqttSession, inbox: Inbox) -> None:
        self._session = session
        self._inbox = inbox
        self.drops = self._began = False
        self._dropped = 0
        self._why = ""
        self._client = client = session.made_client()
        client.on_connect = self._connected
        client.on_subscribe = self._subscribed
        client.on_message = self._message
        client.on_disconnect = self._disconnected

    def connect(self) -> None:
        try:
            self._session.connect(self._client)
        except ssl.SSLError as error:
            why = getattr(error, "verify_message", "") or error.reason or error
            raise Lost(f"{self._session.shown}: TLS: {why}") from None
        except OSError as error:
            raise Lost(f"{self._session.shown} does not answer: {error.strerror or error}") from None

    def step(self, *, reads: bool) -> None:
        """Wait for a message, or only write and keep the connection alive. Raises `Lost`."""
        client = self._client
        try:
            if reads:
                code = client.loop(_BUSY_S if len(self._inbox) else _IDLE_S)
            else:
                time.sleep(_BUSY_S)
                code = client.loop_write() or client.loop_misc()
            client.check_answers()
        except HostileBroker as error:
            raise Lost(f"{self._session.shown} sends {error}") from error
        except (MQTTException, ValueError, LookupError, AssertionError, struct.error) as error:
            raise Lost(f"{self._session.shown} sends what is not MQTT: {shown(str(error))}") from error
        if self._why or code != MQTTErrorCode.MQTT_ERR_SUCCESS:
            raise Lost(self._why or f"{self._session.shown}: {mqtt.error_string(code)}")

    def drain(self) -> None:
        """Read until the broker waits for acknowledgements: closing with unread data would discard those just sent."""
        deadline = time.monotonic() + _DRAIN_S
        before = -1
        while before != self._dropped and time.monotonic() < deadline:
            before = self._dropped
            self._client.loop(_QUIET_S)

    def close(self) -> None:
        """Disconnect. The broker keeps the session."""
        self._client.on_disconnect = None
        self._client.disconnect()

    def _connected(self, client: mqtt.Client, _: Any, __: Any, reason: ReasonCode, properties: Any) -> None:
        if reason.is_failure:
            self._why = self._session.refused(reason)
        elif self._began:
            self._why = f"{self._session.shown} acknowledges the connection twice"
        else:
            self._began = True
            self._session.check_kept(properties)
            self._session.subscribe(client)

    def _subscribed(self, _: Any, __: Any, ___: int, reasons: list[ReasonCode], ____: Any) -> None:
        self._why = self._session.subscribed(reasons)
        self._session.problem = self._why
        self._inbox.connected(not self._why)

    def _message(self, _: mqtt.Client, __: Any, message: mqtt.MQTTMessage) -> None:
        if self.drops:
            self._dropped += 1
            return
        self._session.receive(self._inbox, message, self._client)

    def _disconnected(self, _: Any, __: Any, ___: Any, reason: ReasonCode, ____: Any) -> None:
        self._why = self._why or f"{self._session.shown} ended the connection: {reason.getName()}"


def _context(receivers: Receivers, source: MqttSource) -> ssl.SSLContext:
    """Return the TLS settings. Raises `CimlError` for a missing or invalid file."""
    where = receivers.where(source)

    def path(name: str) -> str:
        return str(receivers.path(name))

    try:
        context = ssl.create_default_context(cafile=path(source.ca_file) if source.ca_file else None)
    except (OSError, ValueError) as error:
        raise invalid(where, f"ca_file {path(source.ca_file)}", error) from None
    if source.certificate_file:
        try:
            context.load_cert_chain(path(source.certificate_file), path(source.key_file), _no_password)
        except (OSError, ValueError) as error:
            raise invalid(where, f"certificate_file {path(source.certificate_file)}, key_file", error) from None
    return context


def _no_password() -> str:
    raise ValueError("the key has a password; remove it")


def _utf8(secret: bytes) -> bytes:
    try:
        return secret.decode().encode()
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8") from None
