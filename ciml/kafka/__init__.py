"""Options of a Kafka broker: librdkafka's properties for TLS, SASL and others, and for reading a partition.

`ciml.kafka.connect` makes clients with them. `ciml.pipelines.kafka` reads partitions and tracks offsets.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ciml.errors import CimlError
from ciml.secret_manager import read_secret

#: Properties that decide which messages are read, and where: reserved for ciml.
RESERVED = (
    "allow.auto.create.topics auto.offset.reset bootstrap.servers enable.auto.commit enable.auto.offset.store "
    "enable.partition.eof isolation.level transactional.id"
).split()
#: Names of properties whose values are hidden in messages.
_SECRET = re.compile(r"password|secret|token|jaas|\.pem$|\.key$|oauthbearer\.config")
#: Names of properties whose value, or whose file's content, is a credential. `_SECRET` matches more.
_CREDENTIAL = re.compile(r"(password|passphrase|secret|key\.pem|oauthbearer\.config)$")
_CREDENTIAL_FILE = re.compile(r"(key\.location|keystore\.location|key\.file|keytab|assertion\.file)$")
_MAX_CREDENTIAL_BYTES = 1 << 20
_RESERVED_REASON = "is reserved: ciml stores offsets with the data"
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")
#: The properties in each secret as this process read them last, to hide their values in messages.
_secret_properties: dict[str, Mapping[str, str]] = {}


@dataclass(frozen=True)
class KafkaOptions:
    """Connection options for a broker.

    Attributes:
      bootstrap: ``host:port``, or several with commas.
      extra: further librdkafka properties for every client, such as those of TLS and SASL. They may contain a
        password, so they are never printed.
      queue_kib: limit of a reader's prefetch per partition, KiB. librdkafka's own default is 64 MiB.
      timeout_s: timeout of a request to the broker, s.
      secret: name of a secret (`ciml.secret_manager`) with further properties, in the form of a properties file. Each
        process reads it for itself when it makes a client, so options that are sent to workers contain only its name.
    """

    bootstrap: str
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)
    queue_kib: int = 16 * 1024
    timeout_s: float = 15.0
    secret: str = ""

    def __post_init__(self) -> None:
        _check_reserved(self.extra)

    @classmethod
    def of(cls, bootstrap: str, properties: Iterable[tuple[str, str]] = (), file: str | None = None) -> KafkaOptions:
        """Build options from a file (`read_properties`) and from single properties, which take precedence.

        Raises:
          CimlError: as `read_properties`, or a property is reserved.
        """
        return cls(bootstrap, {**(read_properties(file) if file else {}), **dict(properties)})

    def common(self) -> dict[str, Any]:
        """Return the properties of every client.

        librdkafka reconnects by itself, so connection errors are not logged.
        """
        return {
            "socket.keepalive.enable": True,
            "reconnect.backoff.max.ms": 2000,
            "log.connection.close": False,
            "log_level": 2,
            **self.extra,
            **_properties_of(self.secret),
            "bootstrap.servers": self.bootstrap,
        }

    def consumer(self) -> dict[str, Any]:
        """Return the properties of a consumer: it commits no offset, and a lost offset is an error, never a reset."""
        return {
            "fetch.queue.backoff.ms": 10,  # retry soon after a full queue: the default is a second
            "fetch.wait.max.ms": 100,
            "fetch.error.backoff.ms": 100,
            "max.poll.interval.ms": 86_400_000,  # stages may be slow: there is no consumer group
            "queued.max.messages.kbytes": self.queue_kib,
            **self.common(),
            "group.id": "ciml",  # required by librdkafka, unused: partitions are assigned
            "allow.auto.create.topics": False,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "error",
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
        }

    def hide(self, text: str) -> str:
        """Return ``text`` without the values of secret properties."""
        for name, value in {**self.extra, **_secret_properties.get(self.secret, {})}.items():
            if _SECRET.search(name) and isinstance(value, str) and value:
                text = text.replace(value, "***")
        return text

    def secret_names(self) -> list[str]:
        """Return the names of the properties whose value, or whose file's content, is secret."""
        return sorted(name for name in self.extra if _SECRET.search(name) or _CREDENTIAL_FILE.search(name))

    def credentials(self) -> dict[str, bytes]:
        """Return the credentials by property: passwords, and the content of key files."""
        contents = {name: str(value).encode() for name, value in self.extra.items() if _CREDENTIAL.search(name)}
        for name, path in self.extra.items():
            if name not in contents and _CREDENTIAL_FILE.search(name):
                contents[name] = b""
                with suppress(OSError), open(str(path), "rb") as file:
                    contents[name] = file.read(_MAX_CREDENTIAL_BYTES)
        return contents

    def __hash__(self) -> int:
        return hash((self.bootstrap, tuple(sorted(self.extra.items())), self.queue_kib, self.timeout_s, self.secret))


def _properties_of(secret: str) -> Mapping[str, str]:
    """Return the properties in a secret, as they are now; none for ""."""
    if not secret:
        return {}
    _secret_properties[secret] = properties = parse_properties(read_secret(secret), secret)
    _check_reserved(properties)
    return properties


def _check_reserved(properties: Iterable[str]) -> None:
    for name in RESERVED:
        if name in properties:
            reason = "is set by --kafka" if name == "bootstrap.servers" else _RESERVED_REASON
            raise CimlError(f"the Kafka property {name} {reason}; remove it")


def read_properties(path: str | Path) -> dict[str, str]:
    """Read a properties file: one ``name=value`` per line; empty lines and lines that start with ``#`` are ignored.

    Raises:
      CimlError: the file cannot be read, or a line is not a property. The message names the line but no value.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CimlError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or 'not UTF-8'}") from None
    return parse_properties(text, path)


def parse_properties(text: str, path: str | Path) -> dict[str, str]:
    """Parse the text of a properties file; ``path`` names it in messages. Raises as `read_properties`."""
    properties: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, sign, value = line.partition("=")
        name = name.strip()
        if not sign or not _NAME.fullmatch(name):
            raise CimlError(f"{path}, line {number}: want name=value with a librdkafka property")
        if name in properties:
            raise CimlError(f"{path}, line {number}: {name} appears twice")
        properties[name] = value.strip()
    return properties


@dataclass(frozen=True)
class ReadOptions:
    """Options for reading a partition.

    Attributes:
      batch_messages: limit of messages per batch. 500 make the cost of a batch small compared with its messages, and
        keep 16 fetching threads busy.
      slice_s: how long one partition is read before the next, s: a runner reads them in turn.
      rest_s: the pause, in whole seconds, after a poll that found nothing; it doubles each time, up to ``idle_s``. Each
        pause permanently adds some KiB to the state of a job on Flink: see docs/kafka.md.
      idle_s: the longest pause, s: the maximum delay of a message after a quiet period.
      pause_at_end: whether to pause at the partition's end, as reported by the broker, like a poll that found nothing,
        but never longer than ``rest_s``. With a steady trickle of messages, a partition then does not wait for the full
        slices of the others, and many small messages make one batch.
      stall_s: how long a bounded read waits for a broker that does not answer, s.
      find_s: interval of checks for new partitions and for a recreated topic, s.
    """

    batch_messages: int = 500
    slice_s: float = 2.0
    rest_s: float = 5.0
    idle_s: float = 10.0
    pause_at_end: bool = False
    stall_s: float = 60.0
    find_s: float = 30.0
