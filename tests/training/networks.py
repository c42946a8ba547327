from __future__ import annotations

from typing import Any

from ciml.training.estimators import estimator_of
from ciml.training.estimators.networks import Network
from ciml.training.experiment import Experiment


def build_model(experiment: Experiment, windows: int, features: int, classes: int) -> Any:
    """Return a new Keras model of an experiment."""
    network = estimator_of(experiment)
    assert isinstance(network, Network)
    return network.new_model(experiment, windows, features, classes)
