"""How to reach a Kafka broker, with librdkafka's properties for TLS, SASL and the rest; and how to read there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ciml.errors import CimlError

#: Properties that decide what is read, or where reading starts: nobody but ciml sets them.
OWN = (
    "allow.auto.create.topics", "auto.offset.reset", "bootstrap.servers", "enable.auto.commit",
    "enable.auto.offset.store", "enable.partition.eof", "isolation.level", "transactional.id",
)  # fmt: skip
_SECRET = re.compile(r"password|secret|token|jaas|\.pem$|\.key$|oauthbearer\.config")
#: Properties whose value, or whose file's content, only those who may use the broker have; `_SECRET` hides more.
_CREDENTIAL = re.compile(r"(password|passphrase|secret|key\.pem|oauthbearer\.config)$")
_CREDENTIAL_FILE = re.compile(r"(key\.location|keystore\.location|key\.file|keytab|assertion\.file)$")
_MAX_CREDENTIAL_BYTES = 1 << 20
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class KafkaOptions:
    """How to reach a broker.

    Attributes:
      bootstrap: ``host:port``, or several with commas.
      extra: further librdkafka properties for every client, such as those of TLS and SASL. They may hold a password,
        so they are never printed.
      timeout_s: how long the broker may take to answer a question, s.
      queue_kib: the most that a reader holds in advance for a partition, KiB. librdkafka's own default is 64 MiB.
    """

    bootstrap: str
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)
    queue_kib: int = 16 * 1024
    timeout_s: float = 15.0

    def __post_init__(self) -> None:
        for name in OWN:
            if name in self.extra:
                raise CimlError(
                    f"the Kafka property {name} is ciml's own: offsets are kept where the data is committed"
                    if name != "bootstrap.servers"
                    else "the Kafka property bootstrap.servers is given by --kafka"
                )

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
            "bootstrap.servers": self.bootstrap,
        }

    def consumer(self) -> dict[str, Any]:
        """Return the properties of a consumer: it commits no offset, and a lost offset is an error, never a reset."""
        return {
            "fetch.queue.backoff.ms": 10,  # a full queue is looked at again soon: by default only after a second
            "fetch.wait.max.ms": 100,
            "fetch.error.backoff.ms": 100,
            "max.poll.interval.ms": 86_400_000,  # a stage may take its time: there is no group to be thrown out of
            "queued.max.messages.kbytes": self.queue_kib,
            **self.common(),
            "group.id": "ciml",  # needed by librdkafka, never used: partitions are assigned
            "allow.auto.create.topics": False,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "error",
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
        }

    def hide(self, text: str) -> str:
        """``text`` without the values of properties that are secrets."""
        for name, value in self.extra.items():
            if _SECRET.search(name) and isinstance(value, str) and value:
                text = text.replace(value, "***")
        return text

    def credentials(self) -> dict[str, bytes]:
        """What only those who may use the broker know, by property: passwords, and the content of key files."""
        found: dict[str, bytes] = {}
        for name, value in self.extra.items():
            if _CREDENTIAL.search(name):
                found[name] = str(value).encode()
            elif _CREDENTIAL_FILE.search(name):
                try:
                    with open(str(value), "rb") as file:
                        found[name] = file.read(_MAX_CREDENTIAL_BYTES)
                except OSError:
                    found[name] = b""
        return found

    @classmethod
    def of(cls, bootstrap: str, properties: Iterable[tuple[str, str]] = (), file: str | None = None) -> KafkaOptions:
        """By the properties of a file (`read_properties`) and those given one by one, which win.

        Raises:
          CimlError: as `read_properties`, and for a property that is ciml's own.
        """
        return cls(bootstrap, {**(read_properties(file) if file else {}), **dict(properties)})

    def __hash__(self) -> int:
        return hash((self.bootstrap, tuple(sorted(self.extra.items())), self.queue_kib, self.timeout_s))


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How a partition is read.

    Attributes:
      batch_messages: the most messages of a batch. 500 make the cost of a batch small beside that of its messages, and
        16 fetching threads busy.
      slice_s: how long one partition is read before the next has its turn: a runner takes them in turn.
      rest_s: the pause, in whole seconds, after a look that found nothing more; it doubles with each, up to ``idle_s``.
        Each pause adds some KiB to the state of a job on Flink, for good: see docs/kafka.md.
      idle_s: the longest pause: what a message may wait for that comes after a long silence.
      pause_at_end: whether a look that has come to the partition's end, as the broker tells it, rests as one that found
        nothing does, but never for longer than ``rest_s``. Where messages trickle in all the time, a partition then
        does not wait for the whole slices of the others, and many small messages make one batch.
      stall_s: how long a bounded read waits for a broker that does not answer.
      slack_s: how long a message may take from its timestamp to the broker for the watermark to have waited for it.
      find_s: how often new partitions are looked for, and whether the topic is still the same.
      ends_s: how old what is known of a partition's end may be.
    """

    batch_messages: int = 500
    slice_s: float = 2.0
    rest_s: float = 5.0
    idle_s: float = 10.0
    pause_at_end: bool = False
    stall_s: float = 60.0
    slack_s: float = 120.0
    find_s: float = 30.0
    ends_s: float = 5.0


def read_properties(path: str | Path) -> dict[str, str]:
    """The properties of a file: a line ``name=value`` each; empty lines and those that begin with ``#`` say nothing.

    Raises:
      CimlError: the file cannot be read, or a line is no property. The message names the line and no value.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CimlError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or 'not UTF-8'}") from None
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, sign, value = line.partition("=")
        name = name.strip()
        if not sign or not _NAME.fullmatch(name):
            raise CimlError(f"{path}, line {number}: want name=value, a property of librdkafka")
        if name in found:
            raise CimlError(f"{path}, line {number}: {name} stands twice")
        found[name] = value.strip()
    return found
