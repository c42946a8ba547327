"""Machine learning on the telemetry of CI jobs: the public Python API. Each name is imported on its first use.

The packages of `ciml` itself are the core: events, stores, manifests, definitions. All rooms import the core, and it
imports none of them. `ciml.api` and `ciml.sklearn` are the exceptions: they are above all rooms except `ciml.cli`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ciml.errors import (
    CimlError,
    EngineError,
    IntegrityError,
    InvalidSettingError,
    MissingExtraError,
    NoDataError,
    NotFoundError,
    NoTrainingDataError,
    UnknownDatasetError,
    UnknownEstimatorError,
    UnknownExclusionError,
    UnknownExperimentError,
    UnknownModelError,
    UnknownRunError,
    UnusableRunError,
)
from ciml.version import __version__

if TYPE_CHECKING:
    from ciml import sklearn
    from ciml.api import (
        Client,
        CrossValidation,
        Data,
        Dataset,
        DatasetKeys,
        ExperimentKeys,
        Figure,
        Model,
        Prediction,
        RefreshResult,
        RunVerdict,
        TrainingResult,
        open,
        parse_log,
    )
    from ciml.datasets.definition import DatasetDefinition
    from ciml.pipelines.backfill.load_report import LoadReport
    from ciml.progress import Progress
    from ciml.serving.registry import CandidateNotice
    from ciml.verdict_rules import Verdict
    from ciml.verdicts.evidence import Evidence
    from ciml.verdicts.evidence.output import OutputEvidence
    from ciml.verdicts.signatures.failures import FailedRuns

#: The modules of the names that are imported on their first use.
_MODULES = {
    **dict.fromkeys(("Data", "open"), "ciml.api.data"),
    **dict.fromkeys(("DatasetKeys", "ExperimentKeys"), "ciml.api.types"),
    **dict.fromkeys(("CrossValidation", "Figure", "RefreshResult", "TrainingResult"), "ciml.api.types"),
    "CandidateNotice": "ciml.serving.registry",
    "Evidence": "ciml.verdicts.evidence",
    "FailedRuns": "ciml.verdicts.signatures.failures",
    "Model": "ciml.api.model",
    **dict.fromkeys(("Client", "Prediction"), "ciml.api.predictions"),
    "Dataset": "ciml.api.dataset",
    "DatasetDefinition": "ciml.datasets.definition",
    "LoadReport": "ciml.pipelines.backfill.load_report",
    "OutputEvidence": "ciml.verdicts.evidence.output",
    "Progress": "ciml.progress",
    "RunVerdict": "ciml.api.verdicts",
    "Verdict": "ciml.verdict_rules",
    "parse_log": "ciml.api.telemetry",
}

__all__ = [
    "CandidateNotice",
    "CimlError",
    "Client",
    "CrossValidation",
    "Data",
    "Dataset",
    "DatasetDefinition",
    "DatasetKeys",
    "EngineError",
    "Evidence",
    "ExperimentKeys",
    "FailedRuns",
    "Figure",
    "IntegrityError",
    "InvalidSettingError",
    "LoadReport",
    "MissingExtraError",
    "Model",
    "NoDataError",
    "NoTrainingDataError",
    "NotFoundError",
    "OutputEvidence",
    "Prediction",
    "Progress",
    "RefreshResult",
    "RunVerdict",
    "TrainingResult",
    "UnknownDatasetError",
    "UnknownEstimatorError",
    "UnknownExclusionError",
    "UnknownExperimentError",
    "UnknownModelError",
    "UnknownRunError",
    "UnusableRunError",
    "Verdict",
    "__version__",
    "open",
    "parse_log",
    "sklearn",
]


def __getattr__(name: str) -> Any:
    """Import a public name on its first use."""
    if name not in __all__:
        raise AttributeError(f"module 'ciml' has no attribute {name!r}")
    from importlib import import_module

    from ciml.extras import require_python

    require_python("the Python API of ciml")
    value = import_module("ciml.sklearn") if name == "sklearn" else getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names, without the rooms and modules below."""
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
