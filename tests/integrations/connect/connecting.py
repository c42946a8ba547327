"""A connection of each system, with the options that change its texts."""

from __future__ import annotations

from collections.abc import Mapping

from ciml.integrations import jenkins, tekton
from ciml.integrations.connect import Connection
from ciml.integrations.gerrit import connect as gerrit
from ciml.integrations.github import connect as github
from ciml.integrations.gitlab import connect as gitlab
from ciml.integrations.zuul import connect as zuul

URL = "https://ci.example.org"
ALL: Mapping[str, Connection] = {
    "github": github.connect("github", URL),
    "github-server": github.connect("ghes", URL, "https://git.example.org/api/v3"),
    "gitlab": gitlab.connect("gitlab", URL, "https://gitlab.example.org"),
    "gitlab-signed": gitlab.connect("gitlab", URL, "https://gl.example.org", signed=True, redirects=("s3.ex.org",)),
    "zuul": zuul.connect("zuul", "mqtts://mqtt.example.org", ("https://logs.example.org",)),
    "zuul-plain": zuul.connect(
        "zuul-two", "mqtt://10.0.0.1:1884", ("http://10.0.0.2:8080",), password_file="/run/password", pipelines=("own",)
    ),
    "gerrit": gerrit.connect("zuul", "ssh://ciml@review.example.org", rest="https://review.example.org"),
    "tekton": tekton.connect("tekton", URL, "s3://cilogs/tekton", "CN=tekton"),
    "tekton-unproved": tekton.connect("tekton", URL, "s3://cilogs/tekton"),
    "jenkins": jenkins.connect("jenkins", URL, "https://jenkins.example.org", "CN=jenkins"),
    "github-feedback": github.feedback(github.connect("github", URL), ""),
    "github-app": github.feedback(
        github.connect("ghes", URL, "https://git.example.org/api/v3"), "https://git.example.org/api/v3", 12345
    ),
    "gitlab-feedback": gitlab.feedback(
        gitlab.connect("gitlab", URL, "https://gitlab.example.org"), "https://gitlab.example.org"
    ),
    "gerrit-feedback": gerrit.feedback(
        gerrit.connect("zuul", "ssh://ciml@review.example.org:29419", rest="https://review.example.org"),
        "https://review.example.org",
    ),
}  # fmt: skip
