"""The session with an MQTT broker, by a client of paho-mqtt with limits on packets and pending answers.

One thread reads, produces and acknowledges, so nothing is shared. The broker keeps the session while the receiver is
away (fixed client id, no clean start), and repeats messages that were not acknowledged. Messages are acknowledged in
their order, as MQTT requires.
"""

from __future__ import annotations

import logging
import selectors
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
from ciml.integrations.registry import delivered, find_adapter
from ciml.integrations.secrets import Secrets
from ciml.integrations.sessions import Inbox, Lost, Session

_READ_BYTES = 1 << 16
_KEPT_BYTES = 66 << 10  # of a packet over the limit: topic, packet id and properties
_MAX_ANSWERS = 10_000  # pending packets to a broker that does not read
_BUSY_S = 0.01  # longest wait for a message while others wait for Kafka
_IDLE_S = 0.5  # longest wait for a message while none waits for Kafka
_DRAIN_S = 2.0  # longest time to read at the end of a session
_QUIET_S = 0.1  # time without a message after which that reading ends
_FRAME_BYTES = 66 << 10  # of a message's topic and properties
_CONNECT_S = 10.0
_log = logging.getLogger(__name__)


class HostileBroker(ValueError):
    """The broker sends what no broker may send to this client."""


class BoundedClient(mqtt.Client):
    """A client that keeps only the beginning of a message over the limit, and rejects other packets over it.

    Args:
      most: bytes of a packet.
      args, options: of paho's client.

    Attributes:
      oversized: whether the present packet is over the limit, so that its end is missing.
    """

    def __init__(self, most: int, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._most = most
        self.oversized = False

    def check_answers(self) -> None:
        """Raise `HostileBroker` if too many answers are pending: each packet may need one."""
        if len(self._out_packet) > _MAX_ANSWERS:
            raise HostileBroker("more packets than it reads answers")

    def wait(self, most_s: float) -> MQTTErrorCode:
        """Wait for a packet, then read, write and keep the connection alive.

        paho's own `loop` waits by select(2): it takes a connection for lost whose descriptor is above 1,023.
        """
        connection = self.socket()
        if connection is None:
            return MQTTErrorCode.MQTT_ERR_NO_CONN
        has_more = isinstance(connection, ssl.SSLSocket) and connection.pending() > 0  # decrypted already
        with selectors.PollSelector() as selector:
            wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self.want_write() else 0)
            selector.register(connection, wanted)
            events = sum(event for _, event in selector.select(0 if has_more else most_s))  # of one descriptor
        code = MQTTErrorCode.MQTT_ERR_SUCCESS
        if has_more or events & selectors.EVENT_READ:
            code = self.loop_read()
        if not code and events & selectors.EVENT_WRITE:
            code = self.loop_write()
        return code or self.loop_misc()

    def _sock_recv(self, bufsize: int) -> bytes:  # the one place where paho reads
        packet = self._in_packet
        if packet["have_remaining"]:  # paho knows the packet's type and length before it reads the rest
            self._check(packet["command"], packet["remaining_length"])
        data = super()._sock_recv(min(bufsize, _READ_BYTES))
        if self.oversized:
            del packet["packet"][_KEPT_BYTES:]
        return data

    def _check(self, header: int, length: int) -> None:
        """Raise `HostileBroker` for a message of QoS 2, never subscribed to, or another packet over the limit."""
        self.oversized = length > self._most
        is_message = header >> 4 == 3
        if is_message and header & 0x04:
            raise HostileBroker("a message of QoS 2, though QoS 1 was subscribed to")
        if self.oversized and not is_message:
            raise HostileBroker(f"a packet of {length} bytes that is not a message")


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
        self._adapter = find_adapter(source.adapter)
        self._secrets = Secrets(receivers.where(source), source, receivers.file.parent, _utf8)
        self._tls = _context(receivers, source) if source.address[2] else None
        self._refusals = 0  # refused connections, which alternate between the two passwords of a rotation
        self._has_warned_of_qos = self._has_warned_of_expiry = False
        self._is_connected = False  # whether the broker has accepted the connection
        self._is_ending = False  # whether messages are dropped, which the broker keeps for the next session
        self._dropped_count = 0
        self._lost_why = ""  # why the connection is lost, set by paho's callbacks; "" while it is not
        proof = "mqtt-certificate" if source.certificate_file else "mqtt-user" if source.user else ""
        self.auth = proof if self._tls else ""  # without TLS the broker is not proved, and so no message is

    def serve(self, inbox: Inbox, stop: threading.Event) -> None:
        inbox.drop()
        self._is_connected = self._is_ending = False
        self._lost_why = ""
        client = self.made_client()
        client.on_connect = self._connected
        client.on_subscribe = partial(self._subscribed, inbox)
        client.on_message = partial(self._received, client, inbox)
        client.on_disconnect = self._disconnected
        try:
            self._connect(client)
            while not self.may_end(inbox, stop):
                self._is_ending = stop.is_set()  # further messages stay with the broker
                self._step(client, inbox)
                inbox.settle()
            self._drain(client)
        finally:
            client.on_disconnect = None
            client.disconnect()  # the broker keeps the session

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

    def _connect(self, client: mqtt.Client) -> None:
        """Connect, and continue the session that the broker keeps. Raises `Lost`."""
        source = self._source
        host, port, _ = source.address
        options: dict[str, Any] = {}
        if source.version == "5":
            properties: Any = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.SessionExpiryInterval = source.session_s
            properties.ReceiveMaximum = source.in_flight
            properties.MaximumPacketSize = source.max_bytes + _FRAME_BYTES
            options = {"clean_start": False, "properties": properties}
        try:
            client.connect(host, port, source.keepalive_s, **options)
        except ssl.SSLError as error:
            why = getattr(error, "verify_message", "") or error.reason or error
            raise Lost(f"{self.shown}: TLS: {why}") from None
        except OSError as error:
            raise Lost(f"{self.shown} does not answer: {error.strerror or error}") from None

    def _step(self, client: BoundedClient, inbox: Inbox) -> None:
        """Wait for a message, or only write and keep the connection alive. Raises `Lost`."""
        try:
            if self._is_ending or not inbox.is_full:
                code = client.wait(_BUSY_S if len(inbox) else _IDLE_S)
            else:
                time.sleep(_BUSY_S)
                code = client.loop_write() or client.loop_misc()
            client.check_answers()
        except HostileBroker as error:
            raise Lost(f"{self.shown} sends {error}") from error
        except (MQTTException, ValueError, LookupError, AssertionError, struct.error) as error:
            raise Lost(f"{self.shown} sends what is not MQTT: {shown(str(error))}") from error
        if self._lost_why or code != MQTTErrorCode.MQTT_ERR_SUCCESS:
            raise Lost(self._lost_why or f"{self.shown}: {mqtt.error_string(code)}")

    def _drain(self, client: BoundedClient) -> None:
        """Read until the broker waits for acknowledgements: closing with unread data would discard those just sent."""
        deadline = time.monotonic() + _DRAIN_S
        before = -1
        while before != self._dropped_count and time.monotonic() < deadline:
            before = self._dropped_count
            client.wait(_QUIET_S)

    def _connected(self, client: mqtt.Client, _: Any, __: Any, reason: ReasonCode, properties: Any) -> None:
        if reason.is_failure:
            self._lost_why = self._refused(reason)
        elif self._is_connected:
            self._lost_why = f"{self.shown} acknowledges the connection twice"
        else:
            self._is_connected = True
            self._check_kept(properties)
            self._subscribe(client)

    def _subscribe(self, client: mqtt.Client) -> None:
        """Subscribe to the topics: again on each connection, in case the broker has lost the session."""
        if self._source.version == "3.1.1":
            client.subscribe([(topic, 1) for topic in self._source.topics])
            return
        handling = SubscribeOptions.RETAIN_DO_NOT_SEND
        if self._source.retained == "accept":
            handling = SubscribeOptions.RETAIN_SEND_IF_NEW_SUB
        client.subscribe([(topic, SubscribeOptions(qos=1, retainHandling=handling)) for topic in self._source.topics])

    def _refused(self, reason: ReasonCode) -> str:
        """Return why the broker refused the connection; the next one uses the other password, if there are two."""
        self._refusals += 1
        source = self._source
        who = f"user {source.user}" if source.user else f"client {source.client_id or f'ciml-{source.name}'}"
        hint = ""
        if reason.getName() in ("Not authorized", "Bad user name or password"):
            hint = "; check user and password, or the certificate, and the broker's access list"
        return f"{source.broker} refuses {who}: {reason.getName()}{hint}"

    def _check_kept(self, properties: Any) -> None:
        """Warn once if the broker keeps messages for a shorter time than requested (version 5)."""
        kept_s = getattr(properties, "SessionExpiryInterval", None)
        if kept_s is not None and kept_s < self._source.session_s and not self._has_warned_of_expiry:
            self._has_warned_of_expiry = True
            _log.warning(
                "source %s: %s keeps messages for %d s, not session_s = %d: a longer absence loses messages",
                self.name,
                self._source.broker,
                kept_s,
                self._source.session_s,
            )

    def _subscribed(self, inbox: Inbox, _: Any, __: Any, ___: int, reasons: list[ReasonCode], ____: Any) -> None:
        self._lost_why = self.problem = self.subscribed(reasons)
        inbox.set_connected(not self._lost_why)

    def subscribed(self, reasons: list[ReasonCode]) -> str:
        """Return why a subscription does not work; "" if all work."""
        for topic, reason in zip(self._source.topics, reasons, strict=False):
            if reason.is_failure:
                return (
                    f"{self._source.broker} refuses the subscription to {topic}: {reason.getName()}; grant read access "
                    "in the broker's access list"
                )
            if reason.value == 0:
                return f"{self._source.broker} grants QoS 0 only for {topic}, which loses messages; allow QoS 1"
        return ""

    def _received(self, client: BoundedClient, inbox: Inbox, _: Any, __: Any, message: mqtt.MQTTMessage) -> None:
        """Produce a message, or reject one that is not a delivery. The inbox acknowledges it when it is settled."""
        if self._is_ending:
            self._dropped_count += 1
            return
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
        if not qos and not self._has_warned_of_qos:
            self._has_warned_of_qos = True
            _log.warning(
                "source %s: %r is published with QoS 0, which loses messages; use QoS 1", self.name, topic[:80]
            )
        value, headers = delivered(self._adapter, self.name, body, {"topic": topic}, self.auth)
        inbox.put(value, headers, partial(client.ack, mid, qos))

    def _disconnected(self, _: Any, __: Any, ___: Any, reason: ReasonCode, ____: Any) -> None:
        self._lost_why = self._lost_why or f"{self.shown} ended the connection: {reason.getName()}"


def _context(receivers: Receivers, source: MqttSource) -> ssl.SSLContext:
    """Return the TLS settings. Raises `CimlError` for a missing or invalid file."""
    context = receivers.loaded(source, "ca_file", lambda path: ssl.create_default_context(cafile=path))
    if source.certificate_file:
        load = partial(context.load_cert_chain, password=_no_password)
        receivers.loaded(source, "certificate_file key_file", load)
    return context


def _no_password() -> str:
    raise ValueError("the key has a password; remove it")


def _utf8(secret: bytes) -> bytes:
    try:
        return secret.decode().encode()
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8") from None
