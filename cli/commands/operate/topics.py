"""``ciml topics``: topics that services read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ciml.cli.command import make_command
from ciml.errors import CimlError
from ciml.options import BrokerOptions, argument, flag, option

if TYPE_CHECKING:
    from ciml.kafka.options import KafkaOptions


class AdoptOptions(BrokerOptions):
    """Options of ``ciml topics adopt``.

    Attributes:
      service: Take topic, data and broker from this service.
      dry_run: Report what would change; change nothing.
    """

    topic: str | None = argument(required=False)
    service: str | None = option(metavar="NAME")
    data_path: str | None = option(kind="data")
    dry_run: bool = flag()
    home: Path = option(kind="home")


@make_command("adopt")
def adopt(options: AdoptOptions) -> None:
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
    from ciml.services.files import ServiceFiles, in_place
    from ciml.services.options import TopicOptions

    if options.service is None:
        if options.topic is None or options.data_path is None:
            raise click.UsageError("name TOPIC and --data-path, or --service")
        _adopt(options.topic, options.data_path, options.connection(), options.dry_run)
        return
    start = ServiceFiles(options.home, options.service).options()
    service = start.service
    if not isinstance(service, TopicOptions):
        raise CimlError(f"the service {options.service} reads no topic into a data root; nothing to adopt")
    with in_place(options.home, start):
        _adopt(options.topic or service.subject, service.data_path, service.connection(), options.dry_run)


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


@click.group("topics", commands=[adopt])
def command() -> None:
    """Continue with a topic that was created again.

    \b
    Example:
      ciml topics adopt ci-events --data-path data
      ciml topics adopt --service ingest
    """
