"""The console scripts by their names in the talk (``ciml-build-dataset``, …), which take what is pasted from slides."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import click

from cli.main import run_script

# Slides and word processors make a dash of two hyphens, or of one.
_DASHES = re.compile(r"[‒–—―−]+-*(?=[A-Za-z])")


def undashed(arguments: Sequence[str]) -> list[str]:
    """The arguments, with the dashes that were meant: ``--dataset`` for ``—dataset``, ``-h`` for ``–h``."""
    out = []
    for argument in arguments:
        dashes = _DASHES.match(argument)
        name = argument[dashes.end() :] if dashes else ""
        out.append(argument if dashes is None else f"{'-' if len(name) == 1 else '--'}{name}")
    return out


def main(command: click.Command) -> NoReturn:
    """Runs a command as a console script of its own, and exits with the codes of ``ciml``."""
    run_script(command, Path(sys.argv[0]).name, undashed(sys.argv[1:]))


def cache_data() -> NoReturn:
    """The console script ``ciml-cache-data``: ``ciml backfill`` by its name in the talk."""
    from cli.commands.operate.backfill import command

    main(command)


def setup_experiment() -> NoReturn:
    """The console script ``ciml-setup-experiment``: ``ciml experiment define`` by its name in the talk."""
    from cli.commands.learn.experiment.define import setup

    main(setup)


def train_model() -> NoReturn:
    """The console script ``ciml-train-model``: ``ciml experiment train`` by its name in the talk."""
    from cli.commands.learn.experiment.train import train

    main(train)


def plot_data() -> NoReturn:
    """The console script ``ciml-plot-data``: ``ciml plot`` by its name in the talk."""
    from cli.commands.data.plot import command

    main(command)


def build_dataset() -> NoReturn:
    """The console script ``ciml-build-dataset``: ``ciml build-dataset``."""
    from cli.commands.data.dataset.build import command

    main(command)
