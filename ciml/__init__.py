"""Machine learning for continuous integration: the public Python API. Each name is imported on its first use.

The packages of `ciml` itself are the core: events, stores, manifests, definitions. All rooms import the core, and it
imports none of them. `ciml.api` and `ciml.sklearn` are the exceptions: they are above all rooms except `ciml.cli`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ciml.errors import CimlError, EngineError, IntegrityError
from ciml.version import __version__

if TYPE_CHECKING:
    from ciml import sklearn
    from ciml.api import Data, Dataset, Figure, Model, Prediction, RefreshResult, TrainingResult, open, parse_log

__all__ = [
    "CimlError",
    "Data",
    "Dataset",
    "EngineError",
    "Figure",
    "IntegrityError",
    "Model",
    "Prediction",
    "RefreshResult",
    "TrainingResult",
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

    value = import_module("ciml.sklearn") if name == "sklearn" else getattr(import_module("ciml.api"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
