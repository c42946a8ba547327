"""Options that receivers share."""

from __future__ import annotations

import click

from cli.options import engines_home_option, kafka_options, stacked

#: ``--config``, as ``config``: an absolute path; `kafka_options`; and ``--topic``. ``--home`` passes no argument.
receiver_options = stacked(
    click.option(
        "--config",
        required=True,
        metavar="FILE",
        envvar="CIML_RECEIVERS",
        show_envvar=True,
        type=click.Path(exists=True, dir_okay=False, resolve_path=True),
        help="TOML file of the receivers and their sources.",
    ),
    engines_home_option,
    kafka_options(),
    click.option("--topic", default="ci-events", metavar="TOPIC", help="Topic that ciml ingest reads."),
)
