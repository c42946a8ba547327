"""The tables ``[[system]]`` of a feedback configuration: the keys that all kinds of review systems share.

A module of `ciml.services.feedback.clients` has a subclass of `System` for its kind; its module `kinds` lists them.
"""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import ClassVar

from ciml.events.run_facts import check_source_name
from ciml.globs import glob_pattern
from ciml.services.feedback.client import ReviewClient
from ciml.settings import Settings, checked


class System(Settings, frozen=True, kw_only=True):
    """A review system.

    Attributes:
      name: of the system: of its outbox, in metrics and messages.
      sources: names of the sources, as in run ids, whose runs test its changes.
      projects: globs of the projects whose changes are there; of several systems, the first that matches takes a run.
      gap_s: least time between two requests that change something, seconds.
      secret_file, secret_env: the file or the environment variable of its secret (token, password, or private key).
    """

    what: ClassVar[str] = "system"
    #: The value of the key ``kind``.
    kind: ClassVar[str]
    lists: ClassVar[tuple[str, ...]] = ("sources", "projects", "secret_file", "secret_env")
    name: str
    sources: tuple[str, ...]
    projects: tuple[str, ...] = ("*",)
    gap_s: float = 1.0
    secret_file: tuple[str, ...] = ()
    secret_env: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        checked("name: ", check_source_name, self.name)
        if not self.sources:
            raise ValueError("sources: name a source of runs, as in run ids")
        for source in self.sources:
            checked("sources: ", check_source_name, source)
        if not 0.0 <= self.gap_s <= 600.0:  # nor NaN, which TOML has
            raise ValueError(f"gap_s: {self.gap_s} is not between 0 and 600")

    def takes(self, source: str, project: str) -> bool:
        """Return whether runs of a source and project test changes of this system."""
        return source in self.sources and glob_pattern(self.projects).fullmatch(project) is not None

    @abstractmethod
    def client(self, where: str, folder: Path) -> ReviewClient:
        """Return a client. It sends nothing before its first call.

        Args:
          where: of the configuration, for messages: file and system.
          folder: of the configuration; relative paths of files are below it.

        Raises:
          CimlError: a secret or a file is missing or invalid.
        """
