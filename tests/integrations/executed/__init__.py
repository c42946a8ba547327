"""Scenarios of what was executed and who reviewed it, a module for each CI system.

A module has a mapping ``SCENARIOS``: what happened -> who sent what. The deliveries pass the real adapter, decode, the
accounting and a trust policy, in several orders. Only a scenario in which everything that was executed was reviewed may
be trusted. An event that is ignored as a whole is a row of `tests.integrations.test_adapters` and no scenario.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ciml.integrations.adapter import Delivery


class Sent(NamedTuple):
    """A delivery as a receiver passes it on; without adapter and auth, those of the scenario's source."""

    delivery: Delivery
    adapter: str = ""
    auth: str | None = None


@dataclass(frozen=True)
class Source:
    """A source of deliveries; the policy is a file of the repository, or the text of a policy."""

    adapter: str
    auth: str
    policy: str
    name: str

    def good(self, *sent: Delivery | Sent) -> Scenario:
        """Return a scenario whose only run executed nothing that was not reviewed."""
        return Scenario(self, sent, True)

    def bad(self, *sent: Delivery | Sent) -> Scenario:
        """Return a scenario whose only run may have executed something that was not reviewed."""
        return Scenario(self, sent, False)


class Scenario(NamedTuple):
    source: Source
    sent: Sequence[Delivery | Sent]
    trusted: bool
