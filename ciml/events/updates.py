"""Facts about a run that arrive in another event than its outcome, such as whether its change was merged."""

from __future__ import annotations

from collections.abc import Mapping

from ciml.errors import RejectedInput
from ciml.events.fields import identifier, needed_text
from ciml.events.records import Record

#: The fields of `RunFacts` that an update may set.
UPDATABLE = ("event", "pipeline", "project", "branch", "change", "patchset", "review", "fork", "owner")


class FactUpdate(Record, frozen=True, gc=False):
    """An update of the runs of one subject of a source.

    Attributes:
      source: the name of the source, as in run ids. An update never concerns runs of another source.
      subject: the runs concerned: those whose `RunFacts.subjects` hold it.
      facts: names of `UPDATABLE` -> text, checked.
    """

    source: str
    subject: str
    facts: Mapping[str, str]


def fact_update(source: str, subject: str, facts: Mapping[str, str]) -> FactUpdate:
    """Check an update.

    Raises:
      RejectedInput: ``bad_field`` or ``missing_field``.
    """
    checked = identifier({"subject": subject}, "subject")
    if not checked:
        raise RejectedInput("missing_field", "subject")
    for name in facts:
        if name not in UPDATABLE:
            raise RejectedInput("bad_field", f"{name}: not a fact of {', '.join(UPDATABLE)}")
    return FactUpdate(source, checked, {name: needed_text(facts, name) for name in facts})
