"""Local engines: a Kafka broker, Flink, an S3 endpoint, a log server, the model server, mosquitto and Gerrit.

`start` starts a choice of them and returns `Engines`, which is a context manager::

    with engines.start(["kafka", "flink"], home=folder) as running:
        running.kafka  # "127.0.0.1:41571"
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ciml.engines.base import Settings as Settings
    from ciml.engines.environment import s3_environment as s3_environment
    from ciml.engines.flink.cluster import cluster_parts as cluster_parts
    from ciml.engines.kafka import create_topics as create_topics
    from ciml.engines.launcher import ENGINES as ENGINES
    from ciml.engines.launcher import Engines as Engines
    from ciml.engines.launcher import start as start
    from ciml.engines.launcher import stop as stop
    from ciml.engines.state import EngineState as EngineState
    from ciml.engines.state import default_home as default_home
    from ciml.engines.state import read as read

#: The extra that installs the libraries of this room.
EXTRA = "local"
#: The names of each module, imported lazily: most commands only look for a running broker.
_NAMES = {
    "ciml.engines.base": ("Settings",),
    "ciml.engines.flink.cluster": ("cluster_parts",),
    "ciml.engines.environment": ("s3_environment",),
    "ciml.engines.kafka": ("create_topics",),
    "ciml.engines.launcher": ("ENGINES", "Engines", "start", "stop"),
    "ciml.engines.state": ("EngineState", "default_home", "read"),
}


def __getattr__(name: str) -> Any:
    for module, names in _NAMES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
