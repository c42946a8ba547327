"""Connect Zuul: its MQTT reporter, and playbooks that record the machine of each job."""

from __future__ import annotations

import json
from dataclasses import replace

from ciml.errors import CimlError
from ciml.integrations.connect import Connection, SecretFile, parts_of, paste, places, plain

PIPELINES = ("check", "gate", "post")
#: The plugins of dool that ciml reads.
DOOL = "--epoch --cpu --load --mem --disk --io --net --page --sys --proc --bytes --noheaders --nocolor --noupdate"


def connect(
    name: str,
    broker: str,
    logs: tuple[str, ...],
    *,
    user: str = "ciml",
    password_file: str = "",
    ca_file: str = "",
    pipelines: tuple[str, ...] = PIPELINES,
    prefix: str = "zuul",
    internal: bool = False,
) -> Connection:
    """Return the connection of Zuul.

    Args:
      name: name of the source.
      broker: ``mqtts://HOST[:PORT]``, or ``mqtt://`` without TLS.
      logs: places of build logs; see `ciml.integrations.connect.places`.
      user: user of ciml at the broker.
      password_file: file of its password; by default ciml creates a password.
      ca_file: CA certificates of the broker; those of the system by default.
      pipelines: pipelines whose builds ciml learns from; at least one.
      prefix: first level of the topics.
      internal: whether the hosts of ``logs`` have private addresses.

    Raises:
      CimlError: an address is malformed.
    """
    example = "mqtts://HOST:8883, or mqtt://HOST:1883 without TLS"
    address = parts_of(broker, "--broker", example, ("mqtts", "mqtt"))
    plain(user, "--user")
    plain(prefix, "--prefix")
    if not ca_file.isprintable():
        raise CimlError(f"--ca-file {ca_file!r:.120}: has an unprintable character; rename it")
    tls = address.scheme == "mqtts"
    secret = password_file or f"secrets/{name}"
    source = {
        "receiver": "mqtt",
        "name": name,
        "adapter": "zuul",
        "broker": broker,
        "topics": [f"{prefix}/#"],
        "user": user,
        "secret_file": secret,
    } | ({"ca_file": ca_file} if ca_file else {})
    reporters = [
        paste("zuul.reporters", pipeline=json.dumps(plain(pipeline, "--pipeline")), prefix=prefix)
        for pipeline in pipelines
    ]
    password = paste("zuul.broker", user=user, secret=secret, prefix=prefix)
    connection = paste(
        "zuul.connection",
        host=str(address.hostname),
        port=str(address.port or (8883 if tls else 1883)),
        ca_certs=f"ca_certs={ca_file or '/etc/ssl/certs/ca-certificates.crt'}\n" if tls else "",
    )
    return Connection(
        source=source,
        trust="zuul",
        allowed=places(logs, internal),
        secret=None if password_file else SecretFile(secret),
        pastes=(
            *(() if password_file else (password,)),
            connection,
            replace(reporters[0], text="\n".join(reporter.text for reporter in reporters)),
            paste("zuul.pre", dool=DOOL),
            paste("zuul.post"),
            paste("zuul.job"),
        ),
        also=("Connect its Gerrit too, under the same name, so that reviews and merges count: ciml connect gerrit.",),
    )
