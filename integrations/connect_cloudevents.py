"""Tekton and Jenkins: CloudEvents without a signature, which a proxy with client certificates proves."""

from __future__ import annotations

from typing import Any

from ciml.errors import CimlError
from ciml.integrations.connect import Connection, Paste, filled_in, parts_of, places, posted_to

HEADER = "X-Client-Subject"

_PROXY = """
ssl_verify_client on;
ssl_client_certificate /etc/nginx/ci-senders.pem;
location /hooks/ {
    proxy_pass http://127.0.0.1:8470;
    proxy_http_version 1.1;
    proxy_request_buffering on;
    client_max_body_size 1m;
    proxy_set_header Connection close;
    proxy_set_header @HEADER@ $ssl_client_s_dn;
}
"""

_EVENTS = """
apiVersion: v1
kind: ConfigMap
metadata:
  name: config-events
  namespace: tekton-pipelines
data:
  formats: tektonv1
  sink: @URL@
"""

_PIPELINE_RUN = """
apiVersion: tekton.dev/v1
kind: PipelineRun
metadata:
  generateName: test-
  annotations:
    ciml.dev/log-url: @LOGS@/run/@NAME@~{uid}~1/dstat-csv_log.txt.gz
spec:
  pipelineSpec:
    tasks:
      - name: test
        taskSpec:
          steps:
            - name: test
              image: registry.example.org/ci:latest
              env:
                - {name: CIML_LOG_DIR, value: "@LOGS@"}
                - {name: CIML_SOURCE, value: "@NAME@"}
                - {name: CIML_JOB, value: "run"}
                - {name: CIML_RUN_ID, value: "$(context.taskRun.uid)"}
              command: [ciml, record, --]
              args: [make, test]
"""

_JENKINS = """
Manage Jenkins > System > CloudEvents Plugin
  Sink type    HTTP
  Sink URL     @URL@
  Events       Job: started, completed, finalized, failed
"""

_JENKINSFILE = """
stage('test') {
  steps { sh 'ciml record --log-dir telemetry -- make test' }
  post {
    always {
      sh 'find telemetry -name dstat-csv_log.txt.gz -exec cp {} . ";"'
      archiveArtifacts 'dstat-csv_log.txt.gz'
    }
  }
}
"""

_UNPROVED = (
    "Nothing proves who sends these events: anybody who reaches the receiver can claim any run. They are predicted, "
    "and the policy trusts none. Give --client once a proxy verifies client certificates."
)


def connect_tekton(name: str, url: str, logs: str, client: str = "", *, internal: bool = False) -> Connection:
    """Return the connection of Tekton.

    Args:
      name: of the source.
      url: the address of the receiver, or of the proxy in front of it.
      logs: the ``s3://`` prefix, or address of a folder, at which steps store their telemetry.
      client: the subject of the sender's certificate; "" for no proof.
      internal: whether the host of ``logs`` has a private address.

    Raises:
      CimlError: an address is malformed.
    """
    if not logs.startswith("s3://"):
        raise CimlError(f"--logs {logs!r:.120}: give the s3:// prefix at which steps store their telemetry")
    allowed = places((logs,), internal)
    run = filled_in(_PIPELINE_RUN, logs=logs.rstrip("/"), name=name)
    pastes = (
        Paste("Tekton, kubectl apply", filled_in(_EVENTS, url=posted_to(url, name)), "yaml"),
        Paste("Tekton, each pipeline run", run, "yaml"),
    )
    return _connection(name, "tekton", allowed, client, pastes)


def connect_jenkins(name: str, url: str, server: str, client: str = "", *, internal: bool = False) -> Connection:
    """Return the connection of Jenkins; ``server`` is its address, below which builds archive their telemetry.

    The other arguments are those of `connect_tekton`.
    """
    parts_of(server, "--server", "the address of Jenkins, such as https://jenkins.example.org", ("https", "http"))
    pastes = (
        Paste("Jenkins, the CloudEvents plugin", filled_in(_JENKINS, url=posted_to(url, name))),
        Paste("Jenkins, each Jenkinsfile", filled_in(_JENKINSFILE)),
    )
    return _connection(name, "jenkins", places((server,), internal), client, pastes)


def _connection(
    name: str, adapter: str, allowed: dict[str, tuple[str, ...]], client: str, pastes: tuple[Paste, ...]
) -> Connection:
    source: dict[str, Any] = {"receiver": "webhooks", "name": name, "adapter": adapter}
    if not client:
        return Connection(source | {"auth": "none"}, "mtls", allowed, pastes=pastes, also=(_UNPROVED,))
    proxy = Paste("nginx, in front of the receiver", filled_in(_PROXY, header=HEADER))
    return Connection(
        source | {"auth": "mtls", "client_header": HEADER, "clients": [client]},
        "mtls",
        allowed,
        webhooks={"proxies": ["127.0.0.1"]},
        pastes=(*pastes, proxy),
    )
