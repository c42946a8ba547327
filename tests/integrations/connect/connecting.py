"""A connection of each system, with the options that change its texts."""

from __future__ import annotations

from collections.abc import Mapping

from ciml.integrations.connect import (
    Connection,
    GerritOptions,
    GithubOptions,
    GitlabOptions,
    JenkinsOptions,
    SystemOptions,
    TektonOptions,
    ZuulOptions,
)

URL = "https://ci.example.org"
_LOGS = ("https://logs.example.org",)
_SYSTEMS: Mapping[str, SystemOptions] = {
    "github": GithubOptions(url=URL),
    "github-server": GithubOptions(name="ghes", url=URL, api="https://git.example.org/api/v3"),
    "gitlab": GitlabOptions(url=URL, server="https://gitlab.example.org"),
    "gitlab-signed": GitlabOptions(url=URL, server="https://gl.example.org", signed=True, redirects=("s3.ex.org",)),
    "zuul": ZuulOptions(broker="mqtts://mqtt.example.org", logs=_LOGS),
    "zuul-plain": ZuulOptions(
        name="zuul-two", broker="mqtt://10.0.0.1:1884", logs=("http://10.0.0.2:8080",), password_file="/run/password",
        pipelines=("own",),
    ),
    "gerrit": GerritOptions(ssh="ssh://ciml@review.example.org", rest="https://review.example.org"),
    "tekton": TektonOptions(url=URL, logs="s3://cilogs/tekton", client="CN=tekton"),
    "tekton-unproved": TektonOptions(url=URL, logs="s3://cilogs/tekton"),
    "jenkins": JenkinsOptions(url=URL, server="https://jenkins.example.org", client="CN=jenkins"),
    "github-feedback": GithubOptions(url=URL, feedback=True),
    "github-app": GithubOptions(
        name="ghes", url=URL, api="https://git.example.org/api/v3", feedback=True, app=12345
    ),
    "gitlab-feedback": GitlabOptions(url=URL, server="https://gitlab.example.org", feedback=True),
    "gerrit-feedback": GerritOptions(
        ssh="ssh://ciml@review.example.org:29419", rest="https://review.example.org", feedback=True
    ),
}  # fmt: skip
ALL: Mapping[str, Connection] = {name: system.connection() for name, system in _SYSTEMS.items()}
