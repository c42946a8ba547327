"""The console scripts of the talk (``ciml-build-dataset``, …); they accept lines pasted from its slides."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import click

from ciml.cli.main import SETTINGS, is_debug, run
from ciml.logs import configure_logging

# Slides and word processors turn two hyphens, or one, into a dash.
_DASHES = re.compile(r"[‒–—―−]+-*(?=[A-Za-z])")


def undashed(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with hyphens for dashes: ``--dataset`` for ``—dataset``, ``-h`` for ``–h``."""
    out = []
    for argument in arguments:
        dashes = _DASHES.match(argument)
        name = argument[dashes.end() :] if dashes else ""
        out.append(argument if dashes is None else f"{'-' if len(name) == 1 else '--'}{name}")
    return out


def main(command: click.Command) -> NoReturn:
    """Run a command as a console script, with the logging and the exit codes of ``ciml``."""
    configure_logging(debug=is_debug())
    run(command, undashed(sys.argv[1:]), Path(sys.argv[0]).name, **SETTINGS)


def cache_data() -> NoReturn:
    """Run ``ciml-cache-data``: ``ciml backfill``."""
    from ciml.cli.commands.operate.backfill import command

    main(command)


def setup_experiment() -> NoReturn:
    """Run ``ciml-setup-experiment``: ``ciml experiment define`` with the options of the talk."""
    from ciml.cli.commands.learn.experiment import setup

    main(setup)


def train_model() -> NoReturn:
    """Run ``ciml-train-model``: ``ciml experiment train``."""
    from ciml.cli.commands.learn.experiment.train import train

    main(train)


def plot_data() -> NoReturn:
    """Run ``ciml-plot-data``: ``ciml plot``."""
    from ciml.cli.commands.data.plot import command

    main(command)


def build_dataset() -> NoReturn:
    """Run ``ciml-build-dataset``: ``ciml dataset build`` with 5500 s of windows by default."""
    from ciml.cli.commands.data.dataset.build import make_talk_command

    main(make_talk_command())
