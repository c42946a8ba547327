"""``NAME=VALUE`` texts of options."""

from __future__ import annotations

from collections.abc import Iterable

from ciml.errors import CimlError


def pairs(option: str, texts: Iterable[str]) -> list[tuple[str, str]]:
    """Parse options of the form NAME=VALUE. The name of a ``--source`` may contain ``=``.

    Raises:
      CimlError: a text is not NAME=VALUE.
    """
    found = []
    for text in texts:
        name, sign, value = text.rpartition("=") if option == "--source" else text.partition("=")
        if not sign or not name:
            raise CimlError(f"{option} {name or text}: want NAME=VALUE")
        found.append((name, value))
    return found
