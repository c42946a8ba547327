"""Adopts a topic that was created again: the manifests of a data root that read the old one continue with the new one.

A manifest adopts a topic by a delta without records, which begins a new *generation* of the topic's offsets
(`ciml.manifest.coverage`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from ciml.data_root import DataRoot
from ciml.events.records import lists_of
from ciml.kafka import KafkaOptions
from ciml.manifest.coverage import TopicState
from ciml.manifest.log import Delta, ManifestLog
from ciml.manifest.replica import LogReplica
from ciml.pipelines.kafka.broker import Listing, list_topic
from ciml.pipelines.kafka.plan import is_older
from ciml.runs.state import RAW
from ciml.services.files import now_us
from ciml.serving.predict.log import NO_PREDICTIONS, prediction_checkpoints
from ciml.verdicts.feedback.state import FEEDBACK


@dataclass(frozen=True)
class Adoption:
    """A manifest's change from the old topic to the new one.

    Attributes:
      manifest: ``raw``, ``predictions`` or ``feedback``.
      generation: the name under which the offsets of the new topic are stored.
      read: number of offsets of the old topic that were read, by partition.
    """

    manifest: str
    generation: str
    read: dict[int, int]


def adopt(data: DataRoot, kafka: KafkaOptions, topic: str, *, dry_run: bool = False) -> list[Adoption]:
    """Begin a new generation of a topic in each manifest that read another topic of this name.

    What was read stays. Unread messages of the old topic are lost. Messages that the new topic repeats are recognised
    by their ids.

    Args:
      data: the data root.
      kafka: connection to the broker.
      topic: the topic, as it is now.
      dry_run: return the adoptions without committing them.

    Returns:
      The adoption of each such manifest; empty if no manifest read another topic of this name.

    Raises:
      EngineError: if broker or store do not answer, or there is no such topic.
    """
    list_present = partial(list_topic, kafka, topic)
    list_present()  # a missing topic is an error, even if no manifest has read it
    adoptions = []
    for name, replica, no_records in _manifests(data):
        if not replica.log.end():
            continue
        with replica.state() as state:
            adoption = _adoption(name, state, list_present)
        if adoption is None:
            continue
        adoptions.append(adoption)
        if not dry_run:
            replica.append(partial(_delta, list_present=list_present, no_records=no_records))
    return adoptions


def _manifests(data: DataRoot) -> list[tuple[str, LogReplica[Any], Mapping[str, Any]]]:
    """Return the manifests that cover offsets: name, replica, and the fields that each delta needs without records."""
    return [
        ("raw", LogReplica(ManifestLog(data.raw), RAW), {**lists_of({}), "closes": []}),
        ("predictions", LogReplica(ManifestLog(data.predictions), prediction_checkpoints()), NO_PREDICTIONS),
        ("feedback", LogReplica(ManifestLog(data.feedback), FEEDBACK), {}),
    ]


def _adoption(manifest: str, state: TopicState, list_present: Callable[[], Listing]) -> Adoption | None:
    listing = _other_topic(state, list_present)
    if listing is None:
        return None
    (new_generation,) = state.next_generation(listing.topic, listing.topic_id)
    old_generation = state.generation(listing.topic)
    read = {
        partition: ranges.count()
        for generation, partition, ranges in state.partitions()
        if generation == old_generation
    }
    return Adoption(manifest, new_generation, read)


def _delta(state: TopicState, list_present: Callable[[], Listing], no_records: Mapping[str, Any]) -> Delta | None:
    listing = _other_topic(state, list_present)
    if listing is None:
        return None  # another process adopted it meanwhile
    return {"time_us": now_us(), "offsets": state.next_generation(listing.topic, listing.topic_id), **no_records}


def _other_topic(state: TopicState, list_present: Callable[[], Listing]) -> Listing | None:
    """Return the present topic's listing if the state was read from another topic of its name; else None.

    The topic is listed after the state was read: what a running service reads and commits meanwhile would otherwise lie
    beyond the listing, as if the topic had been created again.
    """
    listing = list_present()
    topic_id = state.topic_id(listing.topic)
    has_other_id = bool(topic_id and listing.topic_id and topic_id != listing.topic_id)
    return listing if has_other_id or is_older(listing, state) else None
