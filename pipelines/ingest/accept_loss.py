"""Records offsets that a topic lost before they were read as covered, on an operator's request."""

from __future__ import annotations

from ciml.events.records import OffsetRange
from ciml.kafka.options import KafkaOptions
from ciml.pipelines.ingest.committer import committer
from ciml.pipelines.kafka.broker import list_topic
from ciml.pipelines.kafka.plan import losses
from ciml.storage.open import Store


def accept_losses(raw: Store, kafka: KafkaOptions, topic: str, *, dry_run: bool = False) -> list[OffsetRange]:
    """Commit lost, never read offsets of a topic as covered without messages.

    Args:
      raw: the raw store.
      kafka: connection to the broker.
      topic: the topic.
      dry_run: return them without a commit.

    Returns:
      The lost offsets by partition; empty without losses.

    Raises:
      IntegrityError: if the topic was recreated, which is not a loss but another topic.
      EngineError: if the broker or the store does not answer.
    """
    committing, listing = committer(raw), list_topic(kafka, topic)
    with committing.state() as state:
        lost = losses(state, listing)
    if lost and not dry_run:
        committing.commit(lost)
    return [batch.covers for batch in lost if batch.covers]
