"""The configuration of an ingest, from the options it was started with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ciml.pairs import pairs

if TYPE_CHECKING:
    from pipelines.ingest.config import IngestConfig


def make_config(
    data_path: str,
    kafka: str,
    *,
    topic: str = "ci-events",
    runs_topic: str = "runs",
    dead_letters_topic: str = "",
    jobs: tuple[str, ...] = (),
    sources: tuple[str, ...] = (),
    hosts: tuple[str, ...] = (),
    roots: tuple[str, ...] = (),
    fetch_policy: str | None = None,
    delays: tuple[float, ...] = (),
    trust_policy: str | None = None,
    kafka_options: tuple[str, ...] = (),
    kafka_config: str | None = None,
) -> IngestConfig:
    """The configuration that the command's options mean.

    Raises:
      CimlError: a policy that cannot be read, an option that is no pair, a scheme that no store has.
    """
    from ciml.data_root import DataRoot
    from ciml.events.run_facts import source_names
    from pipelines.ingest.config import IngestConfig
    from pipelines.kafka.client import KafkaOptions
    from transforms.fetch.policy import FetchPolicy
    from transforms.ingest.decode import ALL_JOBS
    from transforms.ingest.trust import TrustPolicy

    fetch = FetchPolicy.load(fetch_policy, **({"delays_s": delays} if delays else {})).allowing(
        hosts=hosts, roots=roots
    )
    return IngestConfig(
        DataRoot.open(data_path).raw,
        KafkaOptions.of(kafka, pairs("-X", kafka_options), kafka_config),
        topic=topic,
        runs_topic=runs_topic,
        dead_letters_topic=dead_letters_topic,
        selection=tuple(jobs) or ALL_JOBS,
        names=source_names(pairs("--source", sources)),
        trust=TrustPolicy.load(trust_policy),
        fetch=fetch,
    )
