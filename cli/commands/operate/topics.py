"""``ciml topics``: topics that services read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ciml.cli.options import data_path_option, home_option, kafka_options
from ciml.errors import CimlError

if TYPE_CHECKING:
    from ciml.kafka.options import KafkaOptions


@click.group("topics")
def command() -> None:
    """Continue with a topic that was created again.

    \b
    Example:
      ciml topics adopt ci-events --data-path data
      ciml topics adopt --service ingest
    """


@command.command("adopt")
@click.argument("topic", required=False)
@click.option("--service", metavar="NAME", help="Take topic, data and broker from this service.")
@data_path_option(required=False, home=False)
@kafka_options(required=False)
@click.option("--dry-run", is_flag=True, help="Report what would change; change nothing.")
@home_option
def adopt(
    topic: str | None,
    service: str | None,
    data_path: str | None,
    kafka: str | None,
    kafka_config: str | None,
    kafka_options: tuple[str, ...],
    dry_run: bool,
    home: Path,
) -> None:
    """Adopt a topic that was created again.

    A service stops if its topic was deleted and created again, or restored from an older copy. This command lets each
    manifest below the data root continue with the topic as it is now, from its first message. What was read stays.
    Messages of the old topic that were not read are lost; messages that were sent again are recognised by their ids.
    Then resume the services.

    \b
    Example:
      ciml topics adopt ci-events --data-path data --dry-run
      ciml topics adopt --service ingest && ciml service resume ingest
    """
    from ciml.kafka.options import KafkaOptions
    from ciml.services.files import ServiceFiles, in_place
    from ciml.services.options import TopicOptions
    from ciml.settings import pairs

    if service is None:
        if topic is None or data_path is None:
            raise click.UsageError("name TOPIC and --data-path, or --service")
        if kafka is None:
            raise CimlError("no Kafka broker: start one (ciml up kafka) or name one (--kafka HOST:PORT)")
        _adopt(topic, data_path, KafkaOptions.of(kafka, pairs("-X", kafka_options), kafka_config), dry_run)
        return
    options = ServiceFiles(home, service).options()
    of_service = options.service
    if not isinstance(of_service, TopicOptions):
        raise CimlError(f"the service {service} reads no topic into a data root; nothing to adopt")
    with in_place(home, options):
        _adopt(topic or of_service.subject, of_service.data_path, of_service.broker.connection(), dry_run)


def _adopt(topic: str, data_path: str, kafka: KafkaOptions, dry_run: bool) -> None:
    from ciml.data_root import DataRoot
    from ciml.services.adopt import adopt

    adopted = adopt(DataRoot.open(data_path), kafka, topic, dry_run=dry_run)
    for state in adopted:
        read = ", ".join(f"[{part}] {number:,}" for part, number in sorted(state.read.items())) or "nothing"
        verb = "would continue" if dry_run else "continues"
        click.echo(
            f"{topic}: the {state.manifest} manifest {verb} with the new topic as {state.generation}; read of the old "
            f"one: {read}. Its unread messages are lost"
        )
    if not adopted:
        click.echo(f"{topic}: every manifest below {data_path} that read it read this topic; nothing to adopt")
