"""Where live windows begin to read, and that they end where another topic begins."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from ciml.errors import IntegrityError
from ciml.kafka import KafkaOptions
from ciml.pipelines.kafka.broker import Listing
from ciml.pipelines.kafka.plan import PartitionRead
from ciml.services.live import LiveService, plan_live

#: Partition 1 has no message of the last seconds, 2 has nothing at all.
LISTING = Listing("samples", "T", {0: (3, 90), 1: (4, 80), 2: (0, 0)})
YOUNG = {0: 40, 1: -1, 2: -1}


@pytest.mark.parametrize(
    ("since_s", "bounded", "reads"),
    [
        (None, False, [(0, 3, None), (1, 4, None), (2, 0, None)]),
        (None, True, [(0, 3, 90), (1, 4, 80)]),
        (60.0, False, [(0, 40, None), (1, 80, None), (2, 0, None)]),
        (60.0, True, [(0, 40, 90)]),
    ],
)
def test_each_partition_is_read_from_its_first_message_of_the_last_seconds(
    since_s: float | None, bounded: bool, reads: list[tuple[int, int, int | None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ciml.services.live.offsets_of", lambda *_: YOUNG)
    config: Any = SimpleNamespace(kafka=KafkaOptions("none:1"), topic="samples")
    expected = [PartitionRead("samples", "T", *read) for read in reads]
    assert plan_live(config, LISTING, since_s, bounded=bounded) == expected


def test_a_topic_that_is_created_again_ends_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    """Live windows have no manifest that knows the topic."""
    config: Any = SimpleNamespace(kafka=KafkaOptions("none:1"), topic="samples")
    service = LiveService(config, None)
    monkeypatch.setattr("ciml.services.live.make_topics", lambda _: LISTING)
    monkeypatch.setattr("ciml.pipelines.kafka.broker.list_topic", lambda *_: replace(LISTING, topic_id="U"))
    service.open()
    with pytest.raises(IntegrityError, match=r"ciml topics adopt samples --data-path DATA$"):
        service.observe()
