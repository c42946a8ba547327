"""Sources: their names come from configuration, and two sources never become one."""

from __future__ import annotations

import pytest

from ciml.errors import CimlError, RejectedInput
from ciml.events.cloudevents import decode_message
from ciml.events.run_id import source_name, source_names
from tests.ciml.events.test_cloudevents import RUN, UUID, bare


def test_a_source_that_is_a_name_stands_for_itself() -> None:
    for name in ("zuul", "7", "x" * 63, "zuul-example-org-t-main"):
        assert source_name(name) == decode_message(bare(RUN, source=name)).run_facts[0].source == name


@pytest.mark.parametrize(
    ("source", "proposal"),
    [
        ("//backfill/", "backfill"),
        ("https://zuul.example.org/t/main", "zuul-example-org-t-main"),
        ("x" * 80, "x" * 63),
        ("://", "NAME"),
        ("-zuul", "zuul"),
    ],
)
def test_no_two_sources_become_one(source: str, proposal: str) -> None:
    with pytest.raises(RejectedInput) as caught:
        decode_message(bare(RUN, source=source))
    assert caught.value.reason == "bad_field"
    quoted = f"{source!r:.80}"
    assert caught.value.detail == f"source: {quoted} has no configured name; add --source {quoted}={proposal}"
    assert decode_message(bare(RUN, source=source), {source: "ci"}).run_facts[0].source == "ci"


def test_a_topic_of_one_source_passes_over_what_messages_say() -> None:
    names = {"*": "zuul", "https://two.example.org": "two"}
    sources = ["github", "zuul", "https://zuul.example.org", "two", "https://two.example.org"]
    found = [decode_message(bare(RUN, source=source), names).run_facts[0].source for source in sources]
    assert found == ["zuul", "zuul", "zuul", "zuul", "two"]


def test_configured_source_names_are_not_for_others() -> None:
    names = {"https://zuul.example.org": "zuul"}
    (facts,) = decode_message(bare(RUN, source="https://zuul.example.org"), names).run_facts
    assert (facts.source, facts.run_id) == ("zuul", f"zuul~{UUID}~1")
    with pytest.raises(RejectedInput, match="source: zuul is the configured name of another source"):
        decode_message(bare(RUN, source="zuul"), names)


def test_no_event_has_the_source_of_erased_runs() -> None:
    """Its runs would be ignored as erased."""
    with pytest.raises(RejectedInput, match="source: erased is reserved for erased runs; add --source erased=NAME"):
        decode_message(bare(RUN, source="erased"))
    assert decode_message(bare(RUN, source="erased"), {"erased": "ci"}).run_facts[0].source == "ci"


def test_names_that_no_source_can_have_are_an_error() -> None:
    for pairs, message in (
        ([("a", "Zuul")], "'Zuul' is not a source name"),
        ([("a", "")], "'' is not a source name"),
        ([("a", "erased")], "'erased' is reserved for erased runs; choose another name"),
        ([("a", "x"), ("a", "y")], "'a' has two names, x and y"),
    ):
        with pytest.raises(CimlError, match=message):
            source_names(pairs)
