"""Connect GitHub: a webhook of workflow jobs and their reviews, a workflow that keeps telemetry, and feedback."""

from __future__ import annotations

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

API = "https://api.github.com"
#: A recorder that has a broker also reports the run of the webhook.
_ENVIRONMENT = """        env:
          CIML_RUN_ID: ${{ job.check_run_id }}
"""
_RIGHTS = "a fine-grained token with the permission Actions: read, of the repositories that send events"


def connect(name: str, url: str, api: str = API, *, internal: bool = False, ca_file: str = "") -> Connection:
    """Return the connection of GitHub.

    Args:
      name: name of the source.
      url: public address of the receiver.
      api: address of the REST API; a GitHub Enterprise Server has ``https://HOST/api/v3``.
      internal: whether its host name resolves to a private address.
      ca_file: CA certificates of the server.

    Raises:
      CimlError: an address is malformed.
    """
    host = parts_of(api, "--api", f"the address of the REST API, such as {API}", ("https",)).netloc
    is_enterprise = api.rstrip("/") != API
    secret = f"secrets/{name}"
    token = f"secrets/{name}-token"
    # A GitHub Enterprise Server does not tell a job its id, so a recorder that sends would report another run.
    workflow = paste(
        "github.workflow",
        artifact="ciml-${{ github.job }}" if is_enterprise else "ciml-${{ job.check_run_id }}",
        sends="--kafka '' " if is_enterprise else "",
        environment="" if is_enterprise else _ENVIRONMENT,
    )
    redirects = {} if is_enterprise else {"redirect_hosts": ("*.blob.core.windows.net",)}
    matrix = ("Name the values of a matrix in the artifact: ciml-JOB (VALUE, VALUE).",) if is_enterprise else ()
    return Connection(
        source={"receiver": "webhooks", "name": name, "adapter": "github", "secret_file": secret},
        trust="github",
        allowed={"private_hosts" if internal else "hosts": (host,), **redirects},
        ca_file=ca_file,
        credential={"host": host, "token_file": token},
        secret=SecretFile(secret),
        needed=(NeededFile(token, _RIGHTS),),
        pastes=(paste("github.webhook", url=posted_to(url, name), secret=secret), workflow),
        also=(
            BEHIND_PROXY,
            "GitHub does not send a failed delivery again: docs/webhooks.md has the commands that do.",
            *matrix,
        ),
    )


def feedback(connection: Connection, api: str, app: int = 0, ca_file: str = "") -> Connection:
    """Return the connection with feedback on pull requests.

    Args:
      connection: a connection of GitHub.
      api: address of the REST API; "" for that of github.com.
      app: id of the App that writes check runs; 0 for a token that writes comments.
      ca_file: CA certificates of the server.
    """
    secret = f"secrets/{connection.name}-feedback"
    if app:
        needed = NeededFile(secret, f"the private key that GitHub makes for the App {app}")
        text = paste("github.app", app=str(app), secret=secret)
    else:
        needed = NeededFile(secret, "a fine-grained token with the permission Pull requests: write")
        text = paste("github.token", secret=secret)
    return with_feedback(connection, "github", {"api": api, "app": app, "ca_file": ca_file}, needed, text)
