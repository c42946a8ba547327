"""A range of a partition is read to its end, which may move, or a broker that stalls is reported."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ciml.engines.processes import free_ports
from ciml.errors import EngineError
from ciml.kafka import KafkaOptions, ReadOptions
from ciml.pipelines.kafka.plan import PartitionRead
from ciml.pipelines.kafka.reader import read_range
from tests.pipelines.kafka.kafka_topics import send_starts

READ = PartitionRead("t", "", 0, 3, 9)


def test_a_broker_that_does_not_answer_is_an_error_that_says_where() -> None:
    options = KafkaOptions(f"127.0.0.1:{free_ports(1)[0]}", timeout_s=1.0)
    with pytest.raises(EngineError) as caught:
        list(read_range(options, READ, 3, lambda: 9, ReadOptions(stall_s=1.0)))
    assert str(caught.value) == "t[0] 3: no message within 1 s, although it ends at 9"


def test_nothing_is_read_of_an_empty_range() -> None:
    options = KafkaOptions("127.0.0.1:1")
    assert list(read_range(options, READ, 9, lambda: 9, ReadOptions(stall_s=1.0))) == []


@pytest.mark.engines
def test_the_parts_of_a_range_follow_each_other_up_to_an_end_that_moves(kafka: str, topic: Callable[..., str]) -> None:
    name, ends = topic(), [20]
    send_starts(kafka, name, 0, 20)
    found = []
    read = PartitionRead(name, "", 0, 2, 20)
    for part in read_range(KafkaOptions(kafka), read, 2, lambda: ends[0], ReadOptions(batch_messages=5)):
        found.append(part)
        if part.end > 9:
            ends[0] = 12
    assert found[0].start == 2
    assert [part.start for part in found[1:]] == [part.end for part in found[:-1]]
    assert found[-1].end >= 12 > found[-1].start
    offsets = [message.offset for part in found for message in part.messages]
    assert offsets == list(range(2, offsets[-1] + 1))
    assert offsets[-1] < 20
