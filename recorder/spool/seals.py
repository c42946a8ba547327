"""Seals of unsent recordings, and the rights of a recording with and without a valid seal.

A leftover recording is untrusted input: an earlier job of this user may have created or changed it. So an unsent
recording is sealed with the credentials of its destinations. A process that can make the seal has them, and could have
sent the same without the spool. A sealed recording is therefore sent as it is. Any other gets no rights of the process
that sends it: `plan_for_recorder` and `plan_for_command` decide where to it is sent, and without the facts that a trust
policy may match. Destinations without credentials are open to everyone, so recordings for them have no seal.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import shlex
from collections.abc import Mapping
from dataclasses import asdict, replace

from ciml.errors import CimlError
from ciml.kafka import KafkaOptions
from ciml.limits import MAX_RECORDING_FILE_BYTES
from ciml.recorder import Settings
from ciml.recorder.spool.recording import (
    END,
    LOG,
    OUTPUT,
    RUN,
    SEAL,
    STARTS,
    Destination,
    Plan,
    Recording,
    max_bytes_of,
)

#: Facts that a trust policy may match, except the source, which is part of the run's id. `ciml.trust.FACTS` is the
#: same list, in a module that the recorder's oldest Python cannot import.
POLICY_FACTS = ("pipeline", "project", "branch", "event", "review", "fork", "auth", "owner", "adapter")
#: The label of a run that was sent without them.
UNSEALED = {"recording": "unsealed"}
_SEALED_FILES = (RUN, STARTS, END, LOG)
#: Environment variables of boto3 that contain a credential of S3, or name a file with one.
_S3_SECRETS = "AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN AWS_CONTAINER_AUTHORIZATION_TOKEN".split()
_S3_SECRET_FILES = (
    "AWS_SHARED_CREDENTIALS_FILE AWS_WEB_IDENTITY_TOKEN_FILE AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE".split()
)
_PIECE = 1 << 20
_NO_FILE = "-"


def plan_for_recorder(recording: Recording, own: Plan, settings: Settings) -> Plan | None:
    """Return the plan with which the recorder of another run sends a recording.

    A recording for another broker, or without a destination, is not sent. For all others:

    | its destination needs credentials | sealed with them | sent |
    |---|---|---|
    | yes | yes | unchanged |
    | yes | no | no: an error, so that a person decides by ``ciml record --send`` |
    | no | never | without facts, if destination and source are those of the recorder's own run |

    Args:
      recording: a leftover recording.
      own: the plan of the recorder's own run.
      settings: settings of the recorder.

    Returns:
      The plan; None if this recorder must not send it.

    Raises:
      CimlError: its destination needs credentials, and it is not sealed with them.
    """
    plan = recording.plan
    broker = settings.kafka.bootstrap if settings.kafka else ""
    if plan.kafka != broker or not plan.has_destination:
        return None
    secrets = secrets_of(settings.kafka, plan.log_dir)
    if is_sealed(recording, secrets):
        return plan
    if secrets:
        raise CimlError(f"{recording.folder.path} is not sealed with these credentials; use ciml record --send")
    has_own_destination = replace(plan, mention=own.mention) == own
    if plan.mention.source != own.mention.source or not has_own_destination:
        return None
    return _without_facts(plan)


def plan_for_command(
    recording: Recording, settings: Settings, destination: Destination
) -> tuple[Plan, KafkaOptions | None]:
    """Return the plan with which ``ciml record --send`` sends a recording, and its broker (`_broker`).

    | its destination needs credentials | sealed with them | destination | facts |
    |---|---|---|---|
    | yes | yes | its own | all |
    | yes | no | the one of the command line | without |
    | no | never | its own | without |

    In the second row, a recording with a place for its log requires one on the command line. In the other rows, a
    recording without a place for its log gets the one of the command line.

    Args:
      recording: a leftover recording.
      settings: with the broker of the command line.
      destination: the destination of the command line.

    Raises:
      CimlError: the command line must confirm the destination; the message has the options.
    """
    kafka = _broker(recording.plan, settings)
    plan = replace(recording.plan, kafka=kafka.bootstrap if kafka else "")
    secrets = secrets_of(kafka, plan.log_dir)
    sealed = is_sealed(recording, secrets)
    if kafka != settings.kafka and recording.has_seal and not sealed:
        raise CimlError(
            f"its recorder had credentials, which are not stored; give them again: {_option('kafka', plan.kafka)} with "
            "-X or --kafka-config"
        )
    if secrets and not sealed:
        if plan.log_dir and not destination.log_dir:
            raise CimlError(
                f"the place of its log is not sealed with these credentials; confirm it by "
                f"{_option('log-dir', plan.log_dir)}"
            )
        plan = replace(plan, **asdict(destination))
    elif not plan.log_dir:
        plan = replace(plan, log_dir=destination.log_dir, log_url=destination.log_url)
    if not plan.has_destination:
        raise CimlError("no destination; give --kafka HOST:PORT or --log-dir FOLDER")
    if not sealed:
        plan = _without_facts(plan)
    return plan, kafka


def lacks_facts(plan: Plan) -> bool:
    """Return whether a plan was made for a recording without a valid seal."""
    return UNSEALED.items() <= plan.mention.labels.items()


def _without_facts(plan: Plan) -> Plan:
    """Return the plan without the facts of a trust policy, and without subjects, by which updates would add them."""
    facts = plan.mention
    other_labels = {name: value for name, value in facts.labels.items() if name not in UNSEALED}
    labels = {**UNSEALED, **other_labels}  # first, since those beyond MAX_LABELS are dropped
    return replace(plan, mention=facts.replace(**dict.fromkeys(POLICY_FACTS, ""), subjects=(), labels=labels))


def _broker(plan: Plan, settings: Settings) -> KafkaOptions | None:
    """Return the broker of ``ciml record --send`` for a recording (`Settings.leftovers`).

    A recording may name any address: no Kafka property of the command line goes there unless ``--kafka`` confirms it.
    """
    broker = settings.kafka
    if settings.leftovers == "given" or not plan.kafka or (broker and broker.bootstrap == plan.kafka):
        return broker
    if settings.leftovers == "unconfirmed":
        raise CimlError(
            "its broker gets no Kafka property that --kafka does not confirm; add " + _option("kafka", plan.kafka)
        )
    return KafkaOptions(plan.kafka)


def _option(name: str, value: str) -> str:
    """Return an option, quoted for a shell: a recording that another job made may contain anything."""
    return f"--{name} {shlex.quote(value)}"


def secrets_of(kafka: KafkaOptions | None, log_dir: str, environment: Mapping[str, str] = os.environ) -> bytes:
    """Return the credentials of the destinations: b"" if these are open to everyone.

    Args:
      kafka: the broker of the recording; None for none.
      log_dir: the folder of its log.
      environment: contains the credentials of S3.
    """
    secrets = kafka.credentials() if kafka else {}
    if log_dir.startswith("s3://"):
        secrets |= {name: environment[name].encode() for name in _S3_SECRETS if name in environment}
        secrets |= {name: _content(environment[name]) for name in _S3_SECRET_FILES if environment.get(name)}
    lines = [f"{name} {hashlib.sha256(value).hexdigest()}\n" for name, value in sorted(secrets.items()) if value]
    return "".join(lines).encode()


def seal_recording(recording: Recording, secrets: bytes) -> None:
    """Seal a recording in its present state; not without secrets: anyone could make that seal. Raises `OSError`."""
    if not secrets:
        return
    salt = os.urandom(16)
    seal = {"salt": salt.hex(), "mac": _mac(recording, secrets, salt)}
    recording.folder.write(SEAL, json.dumps(seal).encode())


def is_sealed(recording: Recording, secrets: bytes) -> bool:
    """Return whether a process with the same secrets sealed it, and it is unchanged since. False without secrets."""
    if not secrets:
        return False
    try:
        seal = json.loads(recording.folder.read(SEAL, MAX_RECORDING_FILE_BYTES))
        mac = _mac(recording, secrets, bytes.fromhex(seal["salt"]))
        return hmac.compare_digest(seal["mac"].encode(), mac.encode())
    # The file may have any content.
    except (CimlError, OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return False


def _mac(recording: Recording, secrets: bytes, salt: bytes) -> str:
    # scrypt: the next job can read the file, and a password may be short.
    key = hashlib.scrypt(secrets, salt=salt, n=1 << 14, r=8, p=1, dklen=32)
    mac = hmac.new(key, digestmod="sha256")
    digests = {name: _digest(recording, name) for name in (*_SEALED_FILES, OUTPUT)}
    if digests[OUTPUT] == _NO_FILE:  # as in the seals of recorders that knew no output
        del digests[OUTPUT]
    for name, digest in digests.items():
        mac.update(f"{name} {digest}\n".encode())
    return mac.hexdigest()


def _digest(recording: Recording, name: str) -> str:
    """Return the hex sha256 of a file; `_NO_FILE` if it does not exist."""
    digest = hashlib.sha256()
    try:
        with os.fdopen(recording.folder.open(name), "rb") as file:
            while piece := file.read(_PIECE):
                digest.update(piece)
                if file.tell() > max_bytes_of(name):
                    raise CimlError(f"{recording.folder.path / name} is larger than {max_bytes_of(name)} bytes")
    except FileNotFoundError:
        return _NO_FILE
    return digest.hexdigest()


def _content(path: str) -> bytes:
    """Return the content of a file, up to the limit; b"" if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(MAX_RECORDING_FILE_BYTES)
    except OSError:
        return b""
