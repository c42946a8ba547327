"""Zuul: its MQTT reporter, and playbooks that record each job's machine. Its Gerrit: a stream of events."""

from __future__ import annotations

import json
import shlex

from ciml.errors import CimlError
from ciml.integrations.connect import Connection, NeededFile, Paste, SecretFile, filled_in, parts_of, places, plain

PIPELINES = ("check", "gate", "post")
#: The plugins of dool that ciml reads.
DOOL = "--epoch --cpu --load --mem --disk --io --net --page --sys --proc --bytes --noheaders --nocolor --noupdate"

_BROKER = """
# mosquitto's passwords
mosquitto_passwd -b /etc/mosquitto/passwd @USER@ "$(cat @SECRET@)"
# mosquitto's acl_file
cat >> /etc/mosquitto/acl <<'ACL'
user zuul
topic write @PREFIX@/#

user @USER@
topic read @PREFIX@/#
ACL
# both are read again
systemctl reload mosquitto
"""

_CONF = """
[connection mqtt]
driver=mqtt
server=@HOST@
port=@PORT@
user=zuul
password=PASSWORD-OF-ZUUL
"""

_PIPELINE = """- pipeline:
    name: @PIPELINE@
    success:
      mqtt: @REPORT@
    failure:
      mqtt: @REPORT@
    dequeue:
      mqtt: @REPORT@
"""

_REPORT = (
    '{topic: "@PREFIX@/{tenant}/{pipeline}/result/{project}/{branch}/{change}/{patchset}", qos: 1, '
    "include-returned-data: true}"
)

_PRE = """
- hosts: all
  tasks:
    - name: Record the machine's telemetry
      shell: |
        mkdir -p {{ ansible_user_dir }}/ciml
        cd {{ ansible_user_dir }}/ciml
        rm -f dstat-csv_log.txt*
        nohup dool @DOOL@ \\
          --output dstat-csv_log.txt 1 >/dev/null 2>&1 &
        echo $! > pid
"""

_POST = """
- hosts: all
  tasks:
    - name: End the recording
      shell: |
        cd {{ ansible_user_dir }}/ciml
        kill $(cat pid)
        gzip -f dstat-csv_log.txt
      failed_when: false
    - name: Fetch the telemetry
      fetch:
        src: "{{ ansible_user_dir }}/ciml/dstat-csv_log.txt.gz"
        dest: "{{ zuul.executor.log_root }}/{{ inventory_hostname }}/"
        flat: true
        fail_on_missing: false
      register: telemetry

- hosts: localhost
  tasks:
    - name: Name the telemetry
      zuul_return:
        data:
          zuul:
            artifacts:
              - name: telemetry
                url: "{{ groups['all'] | first }}/dstat-csv_log.txt.gz"
                metadata: {type: dstat_csv}
      when:
        - groups['all'] | length > 0
        - hostvars[groups['all'] | first].telemetry.changed | default(false)
"""

_JOB = """
- job:
    name: base
    pre-run:
      - playbooks/ciml/pre.yaml
    post-run:
      - playbooks/ciml/post.yaml
"""

_KEY = "ssh-keygen -q -t ed25519 -N '' -f @KEY@\n"
_HOSTS = "ssh-keyscan -p @PORT@ @HOST@ > @KNOWN@\n"
_ACCOUNT = """ssh -p @PORT@ ADMIN@@HOST@ gerrit create-account --full-name ciml --group "'Service Users'" \\
  --ssh-key - @USER@ < @PUBLIC@
"""

_CAPABILITY = """
[capability]
	streamEvents = group Service Users
"""


def connect_zuul(
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
      name: of the source.
      broker: ``mqtts://HOST[:PORT]``, or ``mqtt://`` without TLS.
      logs: places of the logs of builds; see `ciml.integrations.connect.places`.
      user: of ciml at the broker.
      password_file: its password; by default ciml makes one.
      ca_file: certificates that sign the broker's; those of the system by default.
      pipelines: whose builds ciml learns from.
      prefix: begins the topics.
      internal: whether the hosts of ``logs`` have private addresses.

    Raises:
      CimlError: an address is malformed.
    """
    want = "mqtts://HOST:8883, or mqtt://HOST:1883 without TLS"
    address = parts_of(broker, "--broker", want, ("mqtts", "mqtt"))
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
    port = str(address.port or (8883 if tls else 1883))
    conf = filled_in(_CONF, host=str(address.hostname), port=port)
    conf += f"ca_certs={ca_file or '/etc/ssl/certs/ca-certificates.crt'}\n" if tls else ""
    report = filled_in(_REPORT, prefix=prefix)
    reporters = "\n".join(
        filled_in(_PIPELINE, pipeline=json.dumps(plain(one, "--pipeline")), report=report) for one in pipelines
    )
    password = Paste("The MQTT broker", filled_in(_BROKER, user=user, secret=secret, prefix=prefix), "shell")
    return Connection(
        source=source,
        trust="zuul",
        allowed=places(logs, internal),
        secret=None if password_file else SecretFile(secret),
        pastes=(
            *(() if password_file else (password,)),
            Paste("zuul.conf of schedulers; restart them", conf, "ini"),
            Paste("Zuul, the pipelines: add these reporters to those that are there", reporters, "yaml"),
            Paste(
                "Zuul, playbooks/ciml/pre.yaml of a config project; dool is installed on the nodes",
                filled_in(_PRE, dool=DOOL),
                "yaml",
            ),
            Paste("Zuul, playbooks/ciml/post.yaml", filled_in(_POST), "yaml"),
            Paste("Zuul, the base job: post.yaml before the playbook that uploads logs", filled_in(_JOB), "yaml"),
        ),
        also=("Connect its Gerrit too, under the same name, so that reviews and merges count: ciml connect gerrit.",),
    )


def connect_gerrit(
    name: str, ssh: str, *, rest: str = "", key_file: str = "", known_hosts_file: str = "", password_file: str = ""
) -> Connection:
    """Return the connection of the Gerrit whose changes a CI system tests.

    Args:
      name: of the CI system's source.
      ssh: ``ssh://USER@HOST:29418``.
      rest: address of the REST API, which fills holes of the stream; "" for none.
      key_file, known_hosts_file: the user's private key, and the server's host keys.
      password_file: the user's HTTP password for ``rest``; anonymous by default.

    Raises:
      CimlError: an address is malformed.
    """
    address = parts_of(ssh, "--ssh", "ssh://USER@HOST:29418", ("ssh",), user=True)
    user = plain(address.username or "", "--ssh, its user")
    if rest:
        parts_of(rest, "--rest", "the address of Gerrit, such as https://review.example.org", ("https", "http"))
    key = key_file or f"secrets/{name}-gerrit"
    known = known_hosts_file or f"secrets/{name}-gerrit-hosts"
    source = (
        {
            "receiver": "gerrit",
            "name": name,
            "adapter": "gerrit",
            "ssh": ssh,
            "key_file": key,
            "known_hosts_file": known,
        }
        | ({"rest": rest} if rest else {})
        | ({"secret_file": password_file} if password_file else {})
    )
    commands = ("" if key_file else _KEY) + ("" if known_hosts_file else _HOSTS) + _ACCOUNT
    port = str(address.port or 29418)
    account = filled_in(
        commands,
        key=shlex.quote(key),
        public=shlex.quote(f"{key}.pub"),
        known=shlex.quote(known),
        host=str(address.hostname),
        port=port,
        user=user,
    )
    return Connection(
        source=source,
        trust="zuul",
        needed=(
            NeededFile(key, "the private key of the account; the commands below make it"),
            NeededFile(known, "the host keys of the server: compare their fingerprints with the administrator's"),
        ),
        pastes=(
            Paste("Gerrit, an account for ciml; run in the folder of receivers.toml", account, "shell"),
            Paste("Gerrit, project.config of All-Projects (refs/meta/config)", filled_in(_CAPABILITY), "ini"),
        ),
    )
