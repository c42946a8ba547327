"""Scenarios of what was executed and who reviewed it, a module for each CI system.

A module has a list ``SCENARIOS``. `tests.integrations.test_executed_and_reviewed` runs all of them: the deliveries pass
the real adapter, decode, the accounting and a trust policy, in several orders. Only a scenario in which everything that
was executed was reviewed may be trusted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ciml.integrations.adapter import Delivery


@dataclass(frozen=True)
class Sent:
    """A delivery as a receiver passes it on.

    Attributes:
      delivery: of the CI system.
      adapter: its name; "" for the scenario's.
      auth: how the sender was proved, "" for not at all; None for the scenario's.
    """

    delivery: Delivery
    adapter: str = ""
    auth: str | None = None


@dataclass(frozen=True)
class Scenario:
    """Deliveries about one run, and whether it may be trusted.

    Attributes:
      name: what happens, in a sentence.
      sent: the deliveries; exactly one of them reports a run, unless ``run`` names it.
      executed: what the run executed: head and base.
      reviewed: who reviewed what.
      trusted: whether everything that was executed was reviewed, as far as the events prove it.
      policy: the file of the policy in ``transforms/ingest``, or the text of a policy.
      adapter, auth, source: of the deliveries.
      run: the native id of the run; "" for the only one.
    """

    name: str
    sent: Sequence[Delivery | Sent]
    executed: str
    reviewed: str
    trusted: bool
    policy: str
    adapter: str
    auth: str
    source: str
    run: str = ""
