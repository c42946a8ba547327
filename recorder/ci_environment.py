"""The facts of a run from the environment variables of its CI system."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ciml.events.fields import is_clean
from ciml.events.run_id import bounded_id, path_safe
from ciml.limits import MAX_JOB_PATH_CHARACTERS, MAX_TEXT_CHARACTERS

#: Facts of an event that ``CIML_…`` variables and ``--label`` may set.
SETTABLE_FACTS = tuple("pipeline project branch change patchset event review provider region flavour".split())
_NO_SLUG = re.compile(r"[^a-z0-9]+")


@dataclass(frozen=True)
class EnvironmentRun:
    """A run as its environment describes it.

    Attributes:
      source: the CI system.
      native_id: the run's id in it.
      attempt: number of the attempt, from 1.
      job: the kind of job.
      facts: the facts of `SETTABLE_FACTS` that are set.
      labels: further metadata.
    """

    source: str
    native_id: str
    job: str = ""
    attempt: int = 1
    facts: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)


Environment = Mapping[str, str]


def run_of(environment: Environment) -> EnvironmentRun:
    """Read the facts from the environment: ``CIML_…`` variables first, then the variables of a CI system.

    The environment is not trusted: values that are invalid in an event are shortened or left out.
    """
    run = _run_of_system(environment) or EnvironmentRun("record", str(uuid.uuid4()))
    facts = dict(run.facts)
    for name in SETTABLE_FACTS:
        facts[name] = environment.get(f"CIML_{name.upper()}") or facts.get(name, "")
    attempt = environment.get("CIML_ATTEMPT", "")
    return EnvironmentRun(
        source=_NO_SLUG.sub("-", environment.get("CIML_SOURCE", "").lower())[:63].strip("-") or run.source,
        native_id=bounded_id(_clean(environment.get("CIML_RUN_ID") or run.native_id)),
        job=_shorten_job(_clean(environment.get("CIML_JOB") or run.job)),
        attempt=_attempt(attempt) if attempt else run.attempt,
        facts=_clean_values(facts),
        labels=_clean_values(run.labels),
    )


def missing_id(environment: Environment) -> str:
    """Return a line of advice for a job of GitHub Actions that does not set its id; "" for all other runs.

    A GitHub Enterprise Server does not give a job its id, so there is no advice for it.
    """
    server = environment.get("GITHUB_SERVER_URL", "https://github.com").rstrip("/")
    run = _run_of_system(environment)
    if run is None or run.source != "github" or server != "https://github.com" or environment.get("CIML_RUN_ID"):
        return ""
    return (
        "GitHub's webhook reports this job as another run; to make them one, set this variable for the step: "
        "CIML_RUN_ID: ${{ job.check_run_id }}"
    )


def _github(env: Environment) -> EnvironmentRun | None:
    """Read GitHub Actions' variables. Jobs of a matrix share a name, so the runner's job id is part of the id.

    No variable has the id that GitHub's webhooks have: a workflow sets ``CIML_RUN_ID: ${{ job.check_run_id }}``.
    """
    run = env.get("GITHUB_RUN_ID")
    if env.get("GITHUB_ACTIONS") != "true" or not run:
        return None
    job = env.get("GITHUB_JOB", "")
    runner_job = env.get("RUNNER_TRACKING_ID", "").removeprefix("github_") or str(uuid.uuid4())
    change = re.fullmatch(r"refs/pull/(\d+)/\w+", env.get("GITHUB_REF", ""))
    return EnvironmentRun(
        "github",
        f"{run}/{job}/{runner_job}",
        job,
        _attempt(env.get("GITHUB_RUN_ATTEMPT", "")),
        {
            "pipeline": env.get("GITHUB_WORKFLOW", ""),
            "event": env.get("GITHUB_EVENT_NAME", ""),
            "project": env.get("GITHUB_REPOSITORY", ""),
            "branch": env.get("GITHUB_BASE_REF") or env.get("GITHUB_REF_NAME", ""),
            "change": change[1] if change else env.get("GITHUB_SHA", ""),
            "patchset": env.get("GITHUB_SHA", ""),
            "provider": env.get("RUNNER_ENVIRONMENT", ""),
            "flavour": "-".join(filter(None, [env.get("RUNNER_OS"), env.get("RUNNER_ARCH")])),
        },
        {"runner": env.get("RUNNER_NAME", "")},
    )


def _gitlab(env: Environment) -> EnvironmentRun | None:
    """Read GitLab CI's variables. A retried job has another id."""
    run = env.get("CI_JOB_ID")
    if env.get("GITLAB_CI") != "true" or not run:
        return None
    return EnvironmentRun(
        "gitlab",
        run,
        env.get("CI_JOB_NAME", ""),
        facts={
            "pipeline": env.get("CI_PIPELINE_SOURCE", ""),
            "event": env.get("CI_PIPELINE_SOURCE", ""),
            "project": env.get("CI_PROJECT_PATH", ""),
            "branch": env.get("CI_MERGE_REQUEST_TARGET_BRANCH_NAME") or env.get("CI_COMMIT_REF_NAME", ""),
            "change": env.get("CI_MERGE_REQUEST_IID") or env.get("CI_COMMIT_SHA", ""),
            "patchset": env.get("CI_COMMIT_SHA", ""),
        },
        labels={"runner": env.get("CI_RUNNER_DESCRIPTION", "")},
    )


def _zuul(env: Environment) -> EnvironmentRun | None:
    """Read Zuul's variables, where a job passes them to the command (docs/record.md), or has the legacy ones."""
    run = env.get("ZUUL_BUILD") or env.get("ZUUL_UUID")
    if not run:
        return None
    names = ("pipeline", "project", "branch", "change", "patchset")
    facts = {name: env.get(f"ZUUL_{name.upper()}", "") for name in names}
    return EnvironmentRun("zuul", run, env.get("ZUUL_JOB") or env.get("JOB_NAME", ""), facts=facts)


def _jenkins(env: Environment) -> EnvironmentRun | None:
    """Read Jenkins' variables. ``BUILD_TAG`` has dashes for slashes, so ``a-b/c`` and ``a/b-c`` share it."""
    name = env.get("JOB_NAME", "")
    number = env.get("BUILD_NUMBER")
    run = f"jenkins-{name}-{number}" if name and number else env.get("BUILD_TAG")
    if not env.get("JENKINS_URL") or not run:
        return None
    project = name
    job = env.get("JOB_BASE_NAME") or name
    # The address of a job ends with job/NAME/, that of a matrix' configuration with job/NAME/AXIS=VALUE/.
    address = env.get("JOB_URL", "").rstrip("/").split("/")
    is_matrix = len(address) > 1 and address[-2] != "job"
    if is_matrix and name.endswith(f"/{job}"):
        project = name.removesuffix(f"/{job}")
        job = f"{project.rpartition('/')[2]}/{job}"
    return EnvironmentRun(
        "jenkins",
        run,
        job,
        facts={
            "project": project,
            "branch": env.get("CHANGE_TARGET") or env.get("BRANCH_NAME", ""),
            "change": env.get("CHANGE_ID") or env.get("GIT_COMMIT", ""),
            "patchset": env.get("GIT_COMMIT", ""),
        },
        labels={"runner": env.get("NODE_NAME", "")},
    )


_SYSTEMS: tuple[Callable[[Environment], EnvironmentRun | None], ...] = (_zuul, _github, _gitlab, _jenkins)


def _run_of_system(environment: Environment) -> EnvironmentRun | None:
    """Return the run of the first CI system whose variables are set; None outside of a CI system."""
    return next(filter(None, (read(environment) for read in _SYSTEMS)), None)


def _shorten_job(job: str) -> str:
    """Shorten a job's name to the limit of a path, in which it is percent-encoded."""
    while len(path_safe(job)) > MAX_JOB_PATH_CHARACTERS:
        job = job[:-1]
    return job


def _clean_values(values: Mapping[str, str]) -> dict[str, str]:
    return {name: text for name, value in values.items() if (text := _clean(value))}


def _clean(value: str) -> str:
    """Shorten a text, and drop its characters that an event may not contain."""
    return "".join(character for character in value if is_clean(character))[:MAX_TEXT_CHARACTERS].strip()


def _attempt(value: str) -> int:
    return int(value) if re.fullmatch(r"[1-9][0-9]{0,8}", value) else 1
