"""docs/adapters.md says what the adapters do."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest

from ciml.events.outcomes import NEVER_RAN, TASK_RUN_REASONS, normal_word, outcome_of
from ciml.integrations import cloudevents, jenkins, tekton, zuul
from ciml.integrations.adapter import NOTHING
from ciml.integrations.gerrit import adapter as gerrit
from ciml.integrations.github import adapter as github
from ciml.integrations.github.adapter import EVENT
from ciml.integrations.gitlab import adapter as gitlab
from ciml.integrations.registry import adapters

PAGE_ROOT = Path(__file__).parents[2]
PAGE = (PAGE_ROOT / "docs" / "adapters.md").read_text()
MODULES = {
    "github": github,
    "gitlab": gitlab,
    "zuul": zuul,
    "gerrit": gerrit,
    "tekton": tekton,
    "cdevents": cloudevents,
    "jenkins": jenkins,
}
SECTIONS = dict(re.findall(r"^## (.+)\n((?:(?!## ).*\n)*)", PAGE, re.M))


def rules(module: ModuleType) -> set[str]:
    """Return the rules of a module: its public constants that are sentences, and those in ``RULES``."""
    constants = {name: value for name, value in vars(module).items() if name.isupper() and not name.startswith("_")}
    shared = {NOTHING} if hasattr(module, "reading") else set()
    return (
        {text for text in constants.values() if isinstance(text, str) and " " in text}
        | {*constants.get("RULES", {}).values()}
        | shared
    )


@pytest.mark.parametrize("name", ["GitHub", "GitLab", "Zuul", "Gerrit", "Tekton", "CDEvents", "Jenkins"])
def test_the_rules_are_those_of_the_page(name: str) -> None:
    module = MODULES[name.lower()]
    table = SECTIONS[name].partition("| ignored because |\n|---|\n")[2].splitlines()
    assert {line.strip("| ") for line in table if line.startswith("| ")} == rules(module)


def test_the_page_names_what_the_adapters_read() -> None:
    assert f"`{EVENT}`" in SECTIONS["GitHub"]
    named = set(re.findall(r"`([a-z_]+)`", SECTIONS["GitHub"]))
    assert set(github._READERS) | github.WITHOUT_JOBS | github._REVIEWS <= named
    named = set(re.findall(r"`([a-z_]+)`", SECTIONS["GitLab"]))
    assert {"job_execution_timeout", "runner_system_failure", "stuck_or_timeout_failure"} <= named & set(
        gitlab.OUTCOMES
    )
    assert set(gitlab._REVIEWS.values()) <= named


def test_every_adapter_has_a_section() -> None:
    assert {name.lower() for name in SECTIONS} >= set(adapters())


def test_the_example_of_the_page_is_the_program() -> None:
    (program,) = re.findall(r"```python\n(.*?)```", SECTIONS["Write an adapter"], re.S)
    assert program == (PAGE_ROOT / "examples" / "buildkite_adapter" / "ciml_buildkite.py").read_text()


def test_the_reasons_of_tekton() -> None:
    table = SECTIONS["Tekton"].partition("| reason | outcome |")[2].partition("\n\n")[0].splitlines()
    found = {
        reason: outcome
        for reasons, outcome in (line.strip("| ").split(" | ", 1) for line in table if line.startswith("| `"))
        for reason in re.findall(r"`([A-Za-z]+)`", reasons)
    }
    assert {reason: outcome_of(reason) for reason in found} == {
        reason: outcome.split("`")[1] for reason, outcome in found.items()
    }
    assert set(found) == {*TASK_RUN_REASONS, "Succeeded", "Failed"}
    ignored = {reason for reason, outcome in found.items() if "never_started" in outcome}
    assert {normal_word(reason) for reason in ignored} == {
        word for word in NEVER_RAN if word in set(map(normal_word, TASK_RUN_REASONS))
    }


def test_the_page_names_what_the_other_adapters_read() -> None:
    assert f"`{tekton.LOG}`" in SECTIONS["Tekton"]
    named = {name: set(re.findall(r"`([a-z_-]+)`", SECTIONS[name])) for name in ("Gerrit", "CDEvents", "Jenkins")}
    assert {"comment-added", "vote-deleted", "change-merged", "patchset-created", "approved", "dismissed"} <= named[
        "Gerrit"
    ]
    assert {*cloudevents._JOBS, *cloudevents._PHASES, *cloudevents._REVIEWS} <= named["CDEvents"]
    assert set(jenkins._PHASES) - {"finalzed"} <= named["Jenkins"]
