"""Connect GitLab: a webhook of jobs, pipelines and merge requests, a job that keeps its telemetry, and feedback."""

from __future__ import annotations

from ciml.errors import CimlError
from ciml.integrations.connect import (
    BEHIND_PROXY,
    Connection,
    NeededFile,
    SecretFile,
    parts_of,
    paste,
    posted_to,
    with_feedback,
)


def connect(
    name: str,
    url: str,
    server: str,
    *,
    signed: bool = False,
    redirects: tuple[str, ...] = (),
    internal: bool = False,
    ca_file: str = "",
) -> Connection:
    """Return the connection of GitLab.

    Args:
      name: name of the source.
      url: public address of the receiver.
      server: address of GitLab.
      signed: whether GitLab signs its webhooks; otherwise it sends a secret token.
      redirects: hosts of the object store that GitLab redirects downloads to.
      internal: whether the host name of GitLab resolves to a private address.
      ca_file: CA certificates of the server.

    Raises:
      CimlError: an address is malformed.
    """
    example = "the address of GitLab, such as https://gitlab.example.org"
    host = parts_of(server, "--server", example, ("https",))
    if host.path.strip("/"):
        raise CimlError(f"--server {server!r:.120}: give {example}")
    secret = f"secrets/{name}"
    token = NeededFile(
        f"secrets/{name}-token", "a project or group access token with the scope read_api and the role Reporter"
    )
    field = "Signing token    " if signed else "Secret token     "
    generated = (f"If GitLab generates the signing token, store that one in {secret}.",) if signed else ()
    return Connection(
        source={
            "receiver": "webhooks",
            "name": name,
            "adapter": "gitlab",
            "auth": "standard-webhooks" if signed else "gitlab-token",
            "secret_file": secret,
        },
        trust="gitlab",
        allowed={"private_hosts" if internal else "hosts": (host.netloc,)}
        | ({"redirect_hosts": redirects} if redirects else {}),
        ca_file=ca_file,
        credential={"host": host.netloc, "header": "PRIVATE-TOKEN", "token_file": token.path},
        secret=SecretFile(secret, "whsec_" if signed else ""),
        needed=(token,),
        pastes=(
            paste("gitlab.webhook", url=posted_to(url, name), field=field, secret=secret),
            paste("gitlab.job"),
        ),
        also=(BEHIND_PROXY, *generated),
    )


def feedback(connection: Connection, server: str, ca_file: str = "") -> Connection:
    """Return the connection with feedback on merge requests; ``server`` is the address of GitLab."""
    secret = f"secrets/{connection.name}-feedback"
    needed = NeededFile(secret, "a project or group access token with the scope api and the role Reporter")
    keys = {"server": server, "ca_file": ca_file}
    return with_feedback(connection, "gitlab", keys, needed, paste("gitlab.token", secret=secret))
