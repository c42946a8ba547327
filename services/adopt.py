"""Adopts a topic that was created again: every manifest of a data root that read it continues with the new one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from ciml.data_root import DataRoot
from ciml.events.records import lists_of
from ciml.kafka.options import KafkaOptions
from ciml.manifest.coverage import TopicState
from ciml.manifest.log import Delta, ManifestLog
from ciml.manifest.replica import LogReplica
from ciml.pipelines.kafka.broker import Listing, list_topic
from ciml.pipelines.kafka.plan import is_older
from ciml.runs.state import RAW
from ciml.services.files import now_us
from ciml.serving.predict.log import prediction_checkpoints
from ciml.verdicts.feedback.state import FEEDBACK


@dataclass(frozen=True)
class Adopted:
    """What a manifest had read of a topic when it adopted the new one.

    Attributes:
      manifest: ``raw``, ``predictions`` or ``feedback``.
      generation: the name under which the offsets of the new topic are stored.
      read: number of offsets of the old topic that were read, by partition.
    """

    manifest: str
    generation: str
    read: dict[int, int]


def adopt(data: DataRoot, kafka: KafkaOptions, topic: str, *, dry_run: bool = False) -> list[Adopted]:
    """Begin a new generation of a topic in each manifest that read another topic of this name.

    What was read stays. Unread messages of the old topic are lost. Messages that the new topic repeats are recognised
    by their ids.

    Args:
      data: the data root.
      kafka: connection to the broker.
      topic: the topic, as it is now.
      dry_run: return the result without a commit.

    Returns:
      One for each such manifest; empty if every manifest read this very topic, or none.

    Raises:
      EngineError: if broker or store do not answer, or there is no such topic.
    """
    newest = partial(list_topic, kafka, topic)
    newest()  # a missing topic is an error, whatever was read
    adoptions = []
    for name, replica, empty in _manifests(data):
        if not replica.log.end():
            continue
        with replica.state() as state:
            adopted = _adopted(name, state, newest)
        if adopted is None:
            continue
        adoptions.append(adopted)
        if not dry_run:
            replica.append(partial(_delta, newest=newest, empty=empty))
    return adoptions


def _manifests(data: DataRoot) -> list[tuple[str, LogReplica[Any], Callable[[], Delta]]]:
    """Return each kind of manifest that covers offsets, and how to make a delta of it without records."""
    return [
        ("raw", LogReplica(ManifestLog(data.raw), RAW), lambda: {**lists_of({}), "closes": []}),
        (
            "predictions",
            LogReplica(ManifestLog(data.predictions), prediction_checkpoints()),
            lambda: {"predictions": [], "unpredictable": [], "repeats": []},
        ),
        ("feedback", LogReplica(ManifestLog(data.feedback), FEEDBACK), dict),
    ]


def _adopted(name: str, state: TopicState, newest: Callable[[], Listing]) -> Adopted | None:
    listing = _recreated(state, newest)
    if listing is None:
        return None
    topic = listing.topic
    (generation,) = state.adopted(topic, listing.topic_id)
    read = {
        part: ranges.count()
        for topic_generation, part, ranges in state.partitions()
        if topic_generation == state.generation(topic)
    }
    return Adopted(name, generation, read)


def _recreated(state: TopicState, newest: Callable[[], Listing]) -> Listing | None:
    """Return the listing of a topic that is not the one that was read; None if it is that topic.

    The topic is listed after the state was read: what a running service reads and commits meanwhile would otherwise lie
    beyond the listing, as if the topic had been created again.
    """
    listing = newest()
    topic_id = state.topic_id(listing.topic)
    is_other = bool(topic_id and listing.topic_id and topic_id != listing.topic_id)
    return listing if is_other or is_older(listing, state) else None


def _delta(state: TopicState, newest: Callable[[], Listing], empty: Callable[[], Delta]) -> Delta | None:
    listing = _recreated(state, newest)
    if listing is None:
        return None  # another process was faster
    return {"time_us": now_us(), "offsets": state.adopted(listing.topic, listing.topic_id), **empty()}
