"""docs/adapters.md says what the adapters do."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest

from adapters import github, gitlab
from adapters.github import EVENT

PAGE = (Path(__file__).parents[2] / "docs" / "adapters.md").read_text()
SECTIONS = dict(re.findall(r"^## (.+)\n((?:(?!## ).*\n)*)", PAGE, re.M))


def rules(module: ModuleType) -> set[str]:
    """Return the rules of a module: its public constants that are sentences, and those in ``RULES``."""
    constants = {name: value for name, value in vars(module).items() if name.isupper() and not name.startswith("_")}
    return {text for text in constants.values() if isinstance(text, str) and " " in text} | {
        *constants.get("RULES", {}).values()
    }


@pytest.mark.parametrize(("name", "module"), [("GitHub", github), ("GitLab", gitlab)])
def test_the_rules_are_those_of_the_page(name: str, module: ModuleType) -> None:
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
