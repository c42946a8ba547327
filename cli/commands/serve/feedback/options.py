"""What the commands of feedback share."""

from __future__ import annotations

import click

#: ``--config``, as ``config``: an absolute path.
config_option = click.option(
    "--config",
    required=True,
    metavar="FILE",
    envvar="CIML_FEEDBACK",
    show_envvar=True,
    type=click.Path(exists=True, dir_okay=False, resolve_path=True),
    help="TOML file of the policy and its review systems.",
)
