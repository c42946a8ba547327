"""The configuration of review systems: the table ``[[system]]`` of a feedback configuration.

Each kind of review system has a subclass of `System` in ``integrations/SYSTEM/review.py``, next to its client.
"""

from __future__ import annotations

import ssl
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from ciml.errors import CimlError
from ciml.events.run_id import check_source_name
from ciml.globs import matches_any
from ciml.http.outgoing import tls_context
from ciml.integrations.http import Secret
from ciml.integrations.review import ReviewClient
from ciml.integrations.secrets import NamedSettings, Secrets
from ciml.settings import as_value_error, check_range


class System(NamedSettings, frozen=True, kw_only=True):
    """A review system.

    Attributes:
      name: name of the system, also in metrics and messages, and of its outbox.
      sources: names of the sources, as in run ids, whose runs test changes of this system.
      projects: globs of the projects reviewed on this system; if several systems match, the first one gets the run.
      gap_s: least time between two requests that change something, seconds.
      secret_file, secret_env: one file, or one environment variable, with the secret (token, password or private key).
      ca_file: certificates that sign the server's certificate; by default the operating system's.
    """

    title: ClassVar[str] = "system"
    #: The value of the key ``kind``.
    kind: ClassVar[str]
    lists: ClassVar[tuple[str, ...]] = (*NamedSettings.lists, "sources", "projects")
    sources: tuple[str, ...]
    projects: tuple[str, ...] = ("*",)
    gap_s: float = 1.0
    ca_file: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sources:
            raise ValueError("sources: name a source of runs, as in run ids")
        for source in self.sources:
            with as_value_error("sources: "):
                check_source_name(source)
        check_range("gap_s", self.gap_s, 0, 600)

    def takes(self, source: str, project: str) -> bool:
        """Return whether runs of a source and project test changes of this system."""
        return source in self.sources and matches_any(self.projects, project)

    def tls(self, folder: Path) -> ssl.SSLContext:
        """Return the settings for https; ``folder`` is the folder of the configuration. Raises `CimlError`."""
        return tls_context(str(folder / self.ca_file) if self.ca_file else "")

    def secret_reader(self, where: str, folder: Path, content: str, check: Callable[[bytes], bytes]) -> Secret:
        """Return a function that reads the present secret of the system; a changed file is read again.

        Args:
          where, folder: see `client`.
          content: kind of the secret, for people, such as "a token".
          check: returns a valid secret; raises `ValueError`, whose message describes a valid one.

        Raises:
          CimlError: if there is no secret or more than one, or it is invalid.
        """
        if len(self.secret_file) + len(self.secret_env) != 1:
            raise CimlError(f"{where}: secret_file: name one file, or one variable in secret_env, with {content}")
        secrets = Secrets(where, self, folder, check)
        return lambda: secrets.keys()[0]

    @abstractmethod
    def client(self, where: str, folder: Path) -> ReviewClient:
        """Return a client. It sends nothing before its first call.

        Args:
          where: file and system of the configuration, for messages.
          folder: folder of the configuration; relative paths of files are below it.

        Raises:
          CimlError: a secret or a file is missing or invalid.
        """
