"""GitLab: a webhook of jobs, pipelines and merge requests, and a job that keeps its telemetry."""

from __future__ import annotations

from ciml.errors import CimlError
from ciml.integrations.connect import (
    BEHIND_PROXY,
    Connection,
    NeededFile,
    Paste,
    SecretFile,
    filled_in,
    parts_of,
    posted_to,
)

_HOOK = """
Project or group: Settings > Webhooks > Add new webhook
  URL               @URL@
  @FIELD@ the content of @SECRET@
  Trigger           Job events, Pipeline events, Merge request events; clear Push events
  SSL verification  enabled
"""

_JOB = """
test:
  script:
    # ciml[record] is installed in the job's image
    - ciml record --log-dir telemetry -- make test
  artifacts:
    when: always
    paths: [telemetry/]
    expire_in: 1 week
"""

_RIGHTS = "a project or group access token with the scope read_api and the role Reporter"


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
      name: of the source.
      url: the public address of the receiver.
      server: the address of GitLab.
      signed: whether GitLab signs its webhooks; else it sends a secret token.
      redirects: hosts of the object store to which GitLab redirects downloads.
      internal: whether its name has a private address.
      ca_file: certificates that sign the server's.

    Raises:
      CimlError: an address is malformed.
    """
    want = "the address of GitLab, such as https://gitlab.example.org"
    host = parts_of(server, "--server", want, ("https",))
    if host.path.strip("/"):
        raise CimlError(f"--server {server!r:.120}: give {want}")
    secret = f"secrets/{name}"
    token = f"secrets/{name}-token"
    field = "Signing token    " if signed else "Secret token     "
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
        credential={"host": host.netloc, "header": "PRIVATE-TOKEN", "token_file": token},
        secret=SecretFile(secret, "whsec_" if signed else ""),
        needed=(NeededFile(token, _RIGHTS),),
        pastes=(
            Paste("GitLab, the webhook", filled_in(_HOOK, url=posted_to(url, name), field=field, secret=secret)),
            Paste("GitLab, each job (.gitlab-ci.yml)", filled_in(_JOB), "yaml"),
        ),
        also=(
            BEHIND_PROXY,
            *((f"If GitLab generates the signing token, store that one in {secret}.",) if signed else ()),
        ),
    )
