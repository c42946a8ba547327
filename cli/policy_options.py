"""Options of policies: trust, fetch, and runs excluded from training."""

from __future__ import annotations

import click

from ciml.cli.options import Option, stacked


def _file_option(name: str, text: str) -> Option:
    return click.option(name, type=click.Path(exists=True, dir_okay=False), metavar="FILE", help=text)


#: ``--trust-policy``, as ``trust_policy``: a path, or None.
trust_policy_option = _file_option(
    "--trust-policy",
    "TOML file of the trust policy.  [default: $CIML_TRUST_POLICY, else proved work of Zuul, and backfills]",
)

#: ``--fetch-policy``, as ``fetch_policy``: a path, or None.
fetch_policy_option = _file_option(
    "--fetch-policy", "TOML file of allowed hosts and roots, and limits of logs; options add to it."
)

#: ``--allow-host``, ``--allow-root`` and ``--fetch-policy``, as ``hosts``, ``roots`` and ``fetch_policy``.
fetch_options = stacked(
    click.option(
        "--allow-host",
        "hosts",
        multiple=True,
        metavar="[http://]HOST[:PORT]",
        help="Allowed host of logs, by https unless http:// is given; may be repeated.",
    ),
    click.option(
        "--allow-root",
        "roots",
        multiple=True,
        metavar="FOLDER|s3://PREFIX",
        help="Allowed root of log files or objects; may be repeated.",
    ),
    fetch_policy_option,
)

#: ``--source``, as ``sources``: a tuple of ``EVENT-SOURCE=NAME``.
sources_option = click.option(
    "--source",
    "sources",
    multiple=True,
    metavar="EVENT-SOURCE=NAME",
    help="Name of an event source in run ids and policies, '*' for all others; may be repeated.",
)

#: ``--trust-policy`` and ``--exclude``, as ``trust_policy`` and ``exclude``: paths, or None.
learn_from_options = stacked(
    trust_policy_option,
    _file_option(
        "--exclude",
        "File of runs excluded from training: one run id a line, optionally with a blank and a reason.",
    ),
)
