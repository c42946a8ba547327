"""GitHub: a webhook of workflow jobs and what concerns them, and a workflow that keeps its telemetry."""

from __future__ import annotations

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

API = "https://api.github.com"

_HOOK = """
Repository, organisation or app: Settings > Webhooks > Add webhook
  Payload URL       @URL@
  Content type      application/json
  Secret            the content of @SECRET@
  SSL verification  enabled
  Events            Let me select individual events:
                    Workflow jobs, Workflow runs, Pushes, Pull requests, Pull request
                    reviews, and Merge groups for a merge queue
Repository: Settings > Rules, for the branches that the trust policy names
  Require a pull request, with approval of the most recent reviewable push;
  dismiss stale approvals; restrict who may create tags of the same names
"""

_WORKFLOW = """
jobs:
  test:
    runs-on: ubuntu-latest
    steps:
      - uses: actions/checkout@v4
      # ciml[record] is installed in the runner's image, or here
      - run: ciml record @SENDS@--log-dir telemetry -- make test
@ENVIRONMENT@      - uses: actions/upload-artifact@v4
        if: always()
        with:
          name: @ARTIFACT@
          path: telemetry
"""

# A recorder that has a broker reports the run of the webhook, too.
_ENVIRONMENT = """        env:
          CIML_RUN_ID: ${{ job.check_run_id }}
"""

_RIGHTS = "a fine-grained token with the permission Actions: read, of the repositories that send events"


def connect(name: str, url: str, api: str = API, *, internal: bool = False, ca_file: str = "") -> Connection:
    """Return the connection of GitHub.

    Args:
      name: of the source.
      url: the public address of the receiver.
      api: the address of the REST API; a GitHub Enterprise Server has ``https://HOST/api/v3``.
      internal: whether its name has a private address.
      ca_file: certificates that sign the server's.

    Raises:
      CimlError: an address is malformed.
    """
    host = parts_of(api, "--api", f"the address of the REST API, such as {API}", ("https",))
    own = api.rstrip("/") != API
    secret = f"secrets/{name}"
    token = f"secrets/{name}-token"
    # GitHub Enterprise Server does not tell a job its id: a recorder that sends would report another run.
    workflow = filled_in(
        _WORKFLOW,
        artifact="ciml-${{ github.job }}" if own else "ciml-${{ job.check_run_id }}",
        sends="--kafka '' " if own else "",
        environment="" if own else _ENVIRONMENT,
    )
    return Connection(
        source={"receiver": "webhooks", "name": name, "adapter": "github", "secret_file": secret},
        trust="github",
        allowed={"private_hosts" if internal else "hosts": (host.netloc,)}
        | ({} if own else {"redirect_hosts": ("*.blob.core.windows.net",)}),
        ca_file=ca_file,
        credential={"host": host.netloc, "token_file": token},
        secret=SecretFile(secret),
        needed=(NeededFile(token, _RIGHTS),),
        pastes=(
            Paste("GitHub, the webhook", filled_in(_HOOK, url=posted_to(url, name), secret=secret)),
            Paste("GitHub, each workflow (.github/workflows)", workflow, "yaml"),
        ),
        also=(
            BEHIND_PROXY,
            "GitHub does not send a failed delivery again: docs/webhooks.md has the commands that do.",
            *(("Name the values of a matrix in the artifact: ciml-JOB (VALUE, VALUE).",) if own else ()),
        ),
    )
