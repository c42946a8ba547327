"""What a topic lost before it was read: accepted by a person, and then on record as covered."""

from __future__ import annotations

from ciml.events.records import OffsetRange
from ciml.storage.open import Store
from pipelines.ingest.committer import committer
from pipelines.kafka.client import KafkaOptions, list_topic
from pipelines.kafka.plan import losses


def accept_losses(raw: Store, kafka: KafkaOptions, topic: str, *, dry_run: bool = False) -> list[OffsetRange]:
    """Commit the offsets that a topic no longer holds, and that were never read, as covered by nothing.

    Args:
      raw: the raw store.
      kafka: how to reach the broker.
      topic: whose losses.
      dry_run: only tells them.

    Returns:
      The offsets, partition by partition; none where nothing was lost.

    Raises:
      IntegrityError: the topic was made anew: that is not a loss, it is another topic.
      EngineError: the broker or the store does not answer.
    """
    committing, listing = committer(raw), list_topic(kafka, topic)
    with committing.state() as state:
        lost = losses(state, listing)
    if lost and not dry_run:
        committing.commit(lost)
    return [batch.covers for batch in lost if batch.covers]
