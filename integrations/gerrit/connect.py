"""Connect a Gerrit: its stream of events over SSH, its REST API, and feedback."""

from __future__ import annotations

import shlex
from dataclasses import replace
from urllib.parse import urlsplit

from ciml.integrations.connect import Connection, NeededFile, parts_of, paste, plain, with_feedback


def connect(
    name: str, ssh: str, *, rest: str = "", key_file: str = "", known_hosts_file: str = "", password_file: str = ""
) -> Connection:
    """Return the connection of the Gerrit whose changes a CI system tests.

    Args:
      name: name of the CI system's source.
      ssh: ``ssh://USER@HOST:29418``.
      rest: address of the REST API, which fills gaps of the stream; "" for none.
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
    host_keys = known_hosts_file or f"secrets/{name}-gerrit-hosts"
    optional = {"rest": rest, "secret_file": password_file}
    source = {
        "receiver": "gerrit",
        "name": name,
        "adapter": "gerrit",
        "ssh": ssh,
        "key_file": key,
        "known_hosts_file": host_keys,
        **{option: value for option, value in optional.items() if value},
    }
    host = str(address.hostname)
    port = str(address.port or 29418)
    account = paste(
        "gerrit.account",
        keygen="" if key_file else f"ssh-keygen -q -t ed25519 -N '' -f {shlex.quote(key)}\n",
        keyscan="" if known_hosts_file else f"ssh-keyscan -p {port} {host} > {shlex.quote(host_keys)}\n",
        public=shlex.quote(f"{key}.pub"),
        host=host,
        port=port,
        user=user,
    )
    return Connection(
        source=source,
        trust="zuul",
        needed=(
            NeededFile(key, "the private key of the account; the commands below make it"),
            NeededFile(host_keys, "the host keys of the server: compare their fingerprints with the administrator's"),
        ),
        pastes=(account, paste("gerrit.capability")),
    )


def feedback(connection: Connection, rest: str, password_file: str = "") -> Connection:
    """Return the connection with feedback on the changes of its Gerrit.

    Args:
      connection: a connection of Gerrit.
      rest: address of Gerrit.
      password_file: the HTTP password of the SSH user.
    """
    address = urlsplit(str(connection.source["ssh"]))
    user = address.username or ""
    secret = password_file or f"secrets/{connection.name}-gerrit-http"
    needed = NeededFile(secret, f"the HTTP password of the user {user}; the command below makes it")
    rights = (
        f"The user {user} comments without a vote: it must be able to read the changes, and needs no right to a label."
    )
    port = str(address.port or 29418)
    password = paste("gerrit.password", secret=secret, host=address.hostname or "", port=port, user=user)
    connection = replace(connection, also=(*connection.also, rights))
    pastes = () if password_file else (password,)
    return with_feedback(connection, "gerrit", {"url": rest, "user": user}, needed, *pastes)
