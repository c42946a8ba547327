"""``ciml dataset``: data sets, their spans and files."""

from __future__ import annotations

import click

from ciml.cli.commands.data.dataset.build import command as build
from ciml.cli.commands.data.dataset.manage import create, records, show, update
from ciml.cli.commands.data.dataset.spans import spans, verify


@click.group("dataset", commands=[build, create, update, show, spans, verify, records])
def command() -> None:
    """Build, update, show and verify data sets.

    A data set is a definition and its examples, one a run, sealed in spans. It covers all runs of the raw store, also
    those older than the definition. `build` makes one from options; `create` and `update` follow a stream of runs.

    \b
    Example:
      ciml dataset create cpu-load --definition cpu-load.toml --data-path DATA
      ciml dataset update cpu-load --data-path DATA
      ciml dataset build --dataset cpu --features-regex "(usr|1min)" --data-path DATA
    """
