"""``ciml ingest accept-loss``: continue after a topic lost unread messages."""

from __future__ import annotations

import click

from ciml.cli.foreground import topic_options


@click.command("accept-loss")
@topic_options(creates=True)
@click.option("--topic", default="ci-events", help="Topic of CI events.")
@click.option("--dry-run", is_flag=True, help="List the lost offsets; accept nothing.")
def accept_loss(
    data_path: str,
    kafka: str,
    kafka_config: str | None,
    kafka_options: tuple[str, ...],
    topic: str,
    dry_run: bool,
) -> None:
    """Accept the loss of unread messages.

    An ingest stops when the broker's retention deletes messages that it has not read. This records their ranges of
    offsets in the manifest as lost, so that the ingest can continue.

    \b
    Example:
      ciml ingest accept-loss --data-path data --dry-run
      ciml ingest accept-loss --data-path data
    """
    from ciml.data_root import DataRoot
    from ciml.kafka.options import KafkaOptions
    from ciml.pipelines.ingest.committer import accept_losses
    from ciml.settings import pairs

    options = KafkaOptions.of(kafka, pairs("-X", kafka_options), kafka_config)
    lost = accept_losses(DataRoot.open(data_path).raw, options, topic, dry_run=dry_run)
    said = "lost" if dry_run else "accepted as lost"
    for each in lost:
        click.echo(
            f"{each.topic}[{each.partition}]: {each.end - each.start} offsets, {each.start} to {each.end}: {said}"
        )
    if not lost:
        click.echo(f"{topic}: nothing is lost")
