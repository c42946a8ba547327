"""Folders of logs: the usual paths below one are tried in their order."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ciml.transforms.fetch.addresses import Address
from ciml.transforms.fetch.errors import LogUnavailableError


def first_found(addresses: Iterable[Address], fetch: Callable[[Address], bytes]) -> bytes:
    """Return what can be fetched first. Stop at anything but an absent log; some stores call it forbidden.

    Raises:
      RejectedInput, LogUnavailableError: of ``fetch``; ``log_not_found``, or ``log_forbidden``, where none exists.
    """
    answers: list[LogUnavailableError] = []
    for address in addresses:
        try:
            return fetch(address)
        except LogUnavailableError as absent:
            if absent.reason not in ("log_not_found", "log_forbidden"):
                raise
            answers.append(absent)
    forbidden = next((each for each in answers if each.reason == "log_forbidden"), None)
    reason, detail = (forbidden.reason, f": {forbidden.detail}") if forbidden else ("log_not_found", "")
    raise LogUnavailableError(reason, f"at none of {len(answers)} paths below the folder{detail}")
