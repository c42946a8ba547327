"""``ciml experiment``: define, train and compare experiments."""

from __future__ import annotations

import click

from ciml.cli.commands.learn.experiment.compare import compare
from ciml.cli.commands.learn.experiment.define import define
from ciml.cli.commands.learn.experiment.report import report
from ciml.cli.commands.learn.experiment.show import show
from ciml.cli.commands.learn.experiment.sweep import sweep
from ciml.cli.commands.learn.experiment.train import train


@click.group("experiment", commands=[define, train, show, compare, report, sweep])
def command() -> None:
    """Define, train and compare experiments.

    An experiment is an estimator and its hyper-parameters under a name. To train a model for serving, see ciml refresh.

    \b
    Example:
      ciml experiment define dnn-5x100 --hidden-layers 100/100/100/100/100 --epochs 500 --data-path DATA
      ciml experiment train --experiment dnn-5x100 --dataset cpu-load --data-path DATA
      ciml experiment show dnn-5x100 --data-path DATA
      ciml experiment compare --dataset cpu-load --data-path DATA
      ciml experiment report dnn-5x100 --data-path DATA
      ciml experiment sweep examples/sweep.toml --data-path DATA
    """
