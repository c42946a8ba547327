"""A connection of each system, with the options that change its texts."""

from __future__ import annotations

from collections.abc import Mapping

from ciml.integrations.connect import Connection, gerrit, github, gitlab, jenkins, tekton, zuul

URL = "https://ci.example.org"
ALL: Mapping[str, Connection] = {
    "github": github("github", URL),
    "github-server": github("ghes", URL, "https://git.example.org/api/v3"),
    "gitlab": gitlab("gitlab", URL, "https://gitlab.example.org"),
    "gitlab-signed": gitlab("gitlab", URL, "https://gl.example.org", signed=True, redirects=("s3.ex.org",)),
    "zuul": zuul("zuul", "mqtts://mqtt.example.org", ("https://logs.example.org",)),
    "zuul-plain": zuul(
        "zuul-two", "mqtt://10.0.0.1:1884", ("http://10.0.0.2:8080",), password_file="/run/password", pipelines=("own",)
    ),
    "gerrit": gerrit("zuul", "ssh://ciml@review.example.org", rest="https://review.example.org"),
    "tekton": tekton("tekton", URL, "s3://cilogs/tekton", "CN=tekton"),
    "tekton-unproved": tekton("tekton", URL, "s3://cilogs/tekton"),
    "jenkins": jenkins("jenkins", URL, "https://jenkins.example.org", "CN=jenkins"),
    "github-feedback": github("github", URL, feedback=True),
    "github-app": github("ghes", URL, "https://git.example.org/api/v3", feedback=True, app=12345),
    "gitlab-feedback": gitlab("gitlab", URL, "https://gitlab.example.org", feedback=True),
    "gerrit-feedback": gerrit(
        "zuul", "ssh://ciml@review.example.org:29419", rest="https://review.example.org", feedback=True
    ),
}  # fmt: skip
