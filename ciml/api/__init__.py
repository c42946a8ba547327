"""The public Python API, whose names `ciml` offers: a data root, its data sets and models, and logs.

It calls the functions of the commands, from all rooms but `ciml.cli`. Libraries are imported when they are used.
"""

from ciml.api.data import Data, open
from ciml.api.dataset import Dataset
from ciml.api.model import Model
from ciml.api.predictions import Client, Prediction
from ciml.api.telemetry import parse_log
from ciml.api.types import CrossValidation, DatasetKeys, ExperimentKeys, Figure, RefreshResult, TrainingResult
from ciml.api.verdicts import RunVerdict

__all__ = [
    "Client",
    "CrossValidation",
    "Data",
    "Dataset",
    "DatasetKeys",
    "ExperimentKeys",
    "Figure",
    "Model",
    "Prediction",
    "RefreshResult",
    "RunVerdict",
    "TrainingResult",
    "open",
    "parse_log",
]
