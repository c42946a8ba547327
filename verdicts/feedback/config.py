"""The configuration of feedback: the policy, and one table ``[[system]]`` for each review system."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, get_args
from urllib.parse import urlsplit

from ciml.errors import CimlError
from ciml.events.redaction import shown
from ciml.globs import matches_any
from ciml.integrations.markup import inert
from ciml.integrations.registry import kinds
from ciml.integrations.systems import System
from ciml.settings import Settings, check_range, pop_tables, read_toml

#: The causes of a failure that a verdict names.
Cause = Literal["code", "machine"]
CAUSES: tuple[Cause, ...] = get_args(Cause)


class Policy(Settings, frozen=True, kw_only=True):
    """The conditions of messages, and their form. The defaults send no message: they are a dry run.

    Attributes:
      dry_run: whether messages are only printed. No system is called, and no secret is read.
      models: globs of the models whose verdicts count.
      causes: verdicts that may be sent; ``unknown`` never is.
      min_probability: least probability of a verdict to send. It must be above the base rate of its cause, too.
      min_passing_runs: least number of passing runs of the same job to compare a run with; 0 for messages without a
        comparison.
      same_place: whether ``min_passing_runs`` of them must be of the run's provider, region and flavour.
      min_settled: number of settled verdicts of a cause up to which its model is in shadow.
      min_precision: share of the settled verdicts that must be right.
      settled_window: number of settled verdicts that count, the last ones.
      settled_days: greatest age of settled verdicts that count, and of a run whose verdict is recorded, days.
      settle_untrusted: whether reruns of untrusted runs settle a verdict. Everybody who may propose a change can send
        some.
      min_reruns: number of verdicts settled by reruns from which on a message has a line about them.
      active_models: globs of models that need no settled verdicts.
      shadow_models: globs of models that are always in shadow.
      projects, branches, pipelines, jobs: globs of the runs that get messages.
      muted_projects: globs of projects that get none; ``ciml feedback mute`` adds more at run time.
      mute_word: word in the title of a change, or label of a change, that stops its messages; upper and lower case are
        equal.
      settle_s: pause after the last verdict on a patch set before its message, so that several become one, seconds.
      settle_most_s: longest such pause after the first verdict, seconds.
      max_age_s: greatest age of a run's end at which its verdict is sent, seconds.
      max_jobs: number of jobs with a line of their own in a message.
      max_bytes: greatest size of a message.
      base_url: public address of the data root's folder of predictions, for links to pictures; "" for no links.
      link_hosts: globs of the hosts to which messages link, for the output of a run whose event was proved.
      reviewers: accounts, ``SYSTEM:ACCOUNT``, whose reactions correct labels. Reactions of others are only counted.
    """

    title: ClassVar[str] = "feedback"
    lists: ClassVar[tuple[str, ...]] = tuple(
        "models causes projects muted_projects branches pipelines jobs reviewers active_models shadow_models "
        "link_hosts".split()
    )
    dry_run: bool = True
    models: tuple[str, ...] = ("*",)
    causes: tuple[Cause, ...] = CAUSES
    min_probability: float = 0.5
    min_passing_runs: int = 5
    same_place: bool = True
    min_settled: int = 20
    min_precision: float = 0.7
    settled_window: int = 100
    settled_days: int = 90
    settle_untrusted: bool = False
    min_reruns: int = 10
    active_models: tuple[str, ...] = ()
    shadow_models: tuple[str, ...] = ()
    projects: tuple[str, ...] = ("*",)
    muted_projects: tuple[str, ...] = ()
    branches: tuple[str, ...] = ("*",)
    pipelines: tuple[str, ...] = ("*",)
    jobs: tuple[str, ...] = ("*",)
    mute_word: str = "ciml-quiet"
    settle_s: float = 30.0
    settle_most_s: float = 300.0
    max_age_s: float = 6 * 3600.0
    max_jobs: int = 5
    max_bytes: int = 4000
    base_url: str = ""
    link_hosts: tuple[str, ...] = ()
    reviewers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_range("min_probability", self.min_probability, 0.0, 1.0)
        check_range("min_passing_runs", self.min_passing_runs, 0, 1000)
        check_range("min_settled", self.min_settled, 1, 1000)
        check_range("min_precision", self.min_precision, 0.0, 1.0)
        check_range("settled_window", self.settled_window, self.min_settled, 1000)
        check_range("settled_days", self.settled_days, 1, 3650)
        check_range("min_reruns", self.min_reruns, 1, 1000)
        check_range("settle_s", self.settle_s, 0.0, 3600.0)
        check_range("settle_most_s", self.settle_most_s, self.settle_s, 86400.0)
        check_range("max_age_s", self.max_age_s, 60.0, 30 * 86400.0)
        check_range("max_jobs", self.max_jobs, 1, 50)
        check_range("max_bytes", self.max_bytes, 1000, 16_000)
        # Messages show the word for people to copy, so it must need no escapes in any markup.
        if not 3 <= len(self.mute_word) <= 60 or inert(self.mute_word, 60) != self.mute_word:
            raise ValueError(f"mute_word: {self.mute_word!r:.120} is not a word such as ciml-quiet")
        if self.base_url:
            _check_base_url(self.base_url)
        for reviewer in self.reviewers:
            if not all(reviewer.partition(":")[::2]):
                raise ValueError(f"reviewers: {reviewer!r:.120} is not SYSTEM:ACCOUNT")

    def selects(self, *, model: str, project: str, branch: str, pipeline: str, job: str) -> bool:
        """Return whether the globs select a run and the model of its verdict."""
        pairs = (
            (self.models, model),
            (self.projects, project),
            (self.branches, branch),
            (self.pipelines, pipeline),
            (self.jobs, job),
        )
        return all(matches_any(globs, text) for globs, text in pairs)


def _check_base_url(url: str) -> None:
    if not plain_host(url) or urlsplit(url).fragment:
        raise ValueError(f"base_url: {shown(url)} is not an address such as https://ci.example.org/p")


def plain_host(url: str) -> str:
    """Return the host of an address that cannot end a link of any markup; "" for another one, or one with a query."""
    try:
        parts = urlsplit(url)
        has_more = any((parts.query, parts.username, parts.password))
    except ValueError:
        return ""
    is_plain = url.isascii() and url.isprintable() and not set(url) & set(" <>()[]\"'`\\|*")
    return parts.hostname or "" if parts.scheme in ("https", "http") and is_plain and not has_more else ""


@dataclass(frozen=True)
class Feedback:
    """A configuration.

    Attributes:
      file: its path.
      policy: of all systems.
      systems: the review systems, in the order of the file: a run belongs to the first that takes it.
    """

    file: Path
    policy: Policy
    systems: tuple[System, ...]

    def system_of(self, source: str, project: str) -> System | None:
        """Return the system that reviews the changes of a source's project."""
        return next((system for system in self.systems if system.takes(source, project)), None)

    def where(self, system: System) -> str:
        """Return the place of a system for messages."""
        return f"{self.file}, system {system.name}"


def load_feedback(path: str | Path) -> Feedback:
    """Load a configuration.

    Raises:
      CimlError: one line that names the file, the system, the key and its value.
    """
    value = read_toml(path)
    systems = pop_tables(value, "system", "kind", kinds(), path)
    policy = Policy.from_json(value, str(path))
    if not systems:
        raise CimlError(f"{path}: no [[system]]; add one (docs/feedback.md)")
    for position, system in enumerate(systems):
        if any(system.name == earlier.name for earlier in systems[:position]):
            raise CimlError(f"{path}: two systems have the name {system.name}; rename one")
    names = [system.name for system in systems]
    for reviewer in policy.reviewers:
        if reviewer.partition(":")[0] not in names:
            raise CimlError(f"{path}: reviewers: {reviewer!r:.120} is of no [[system]]; choose from {', '.join(names)}")
    return Feedback(Path(path), policy, systems)
