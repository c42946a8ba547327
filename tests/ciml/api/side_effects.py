"""Calls the public API in a process of its own, and prints the changes of the process that each call leaves.

python -m tests.ciml.api.side_effects FOLDER
"""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

#: Prints the environment variables that TensorFlow sets for itself when a program imports it.
_IMPORT = "import os, json; before = {*os.environ}; import tensorflow; print(json.dumps([*{*os.environ} - before]))"


@cache
def variables_of_tensorflow() -> frozenset[str]:
    """Return the names of the variables that ``import tensorflow`` sets."""
    process = subprocess.run([sys.executable, "-c", _IMPORT], capture_output=True, text=True, check=True)
    return frozenset(json.loads(process.stdout.splitlines()[-1]))


#: Settings of a library before it is imported.
_DEFAULTS: dict[str, object] = {
    "inter-op threads": 0,
    "intra-op threads": 0,
    "deterministic operations": False,
    "TensorFlow seed": (87654321, 1),
}


def settings() -> dict[str, object]:
    """Return the settings of this process that belong to its owner."""
    loaded = sys.modules.get
    state: dict[str, object] = {
        "blocked modules": sorted(name for name, module in sys.modules.items() if module is None),
        "random": hash(random.getstate()),
        "standard error": os.fstat(2).st_ino,
        "signals": [str(signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)],
        "folder": os.getcwd(),
        "log handlers": list(map(str, logging.getLogger().handlers)),
        "log level": logging.getLogger().level,
        "warnings": [item[:3] for item in warnings.filters if "ciml" in str(item)],
    }
    names = os.environ.keys() - variables_of_tensorflow()
    state |= {f"variable {name}": os.environ[name] for name in names}
    if (numpy := loaded("numpy")) is not None:
        state["numpy random"] = str(numpy.random.get_state())
    if (threadpoolctl := loaded("threadpoolctl")) is not None:
        state |= {f"threads of {pool['filepath']}": pool["num_threads"] for pool in threadpoolctl.threadpool_info()}
    if (tensorflow := loaded("tensorflow")) is not None:
        state["inter-op threads"] = tensorflow.config.threading.get_inter_op_parallelism_threads()
        state["intra-op threads"] = tensorflow.config.threading.get_intra_op_parallelism_threads()
        state["deterministic operations"] = loaded("tensorflow.python.framework.config").is_op_determinism_enabled()  # type: ignore[union-attr]
        state["TensorFlow seed"] = tensorflow.compat.v1.get_seed(1)
    return state


def changes(call: Callable[[], object]) -> dict[str, Any]:
    """Call a function, and return the settings that it changed: before and after.

    A library that the call loaded has its defaults before, if they are known; else it is left out.
    """
    before = _DEFAULTS | settings()
    call()
    after = _DEFAULTS | settings()
    names = before.keys() | {name for name in after if name.startswith("variable ")}
    return {name: (before.get(name), after.get(name)) for name in names if before.get(name) != after.get(name)}


def main(folder: Path) -> None:
    import ciml

    logs = folder / "logs"
    log = logs / "unit-001.csv"
    data = ciml.open(folder / "data")
    network: ciml.ExperimentKeys = {"hidden_layers": [4], "epochs": 2}
    calls: dict[str, Callable[[], object]] = {
        "parse_log": lambda: ciml.parse_log(log),
        "open": lambda: ciml.open(folder / "data").datasets(),
        "runs": data.runs,
        "samples": lambda: data.samples("zuul~7~1"),
        "exclude": lambda: data.revert_exclusion(data.exclude("test", run="zuul~7~1")),
        "dataset": lambda: data.dataset("status").facts(),
        "to_numpy": lambda: data.dataset("status").to_numpy(),
        "to_pandas": lambda: data.dataset("status").to_pandas(),
        "define_dataset": lambda: data.define_dataset("load", sample_interval="2s", features_regex="1m"),
        "train a forest": lambda: data.train("status", "random_forest", parameters={"n_estimators": 10}),
        "cross-validate": lambda: data.cross_validate("status", "random_forest", parameters={"n_estimators": 10}),
        "train boosting": lambda: data.train("status", "boosted_summaries"),
        "sklearn": lambda: ciml.sklearn.Downsample("5s", "usr").fit_transform(sorted(logs.iterdir())[:4]),
        "to_tf": lambda: data.dataset("status").to_tf("test"),
        "train a network": lambda: data.train("status", "dnn", **network),
        "predict": lambda: data.model("status").predict(log),
        "compare": lambda: data.compare("status"),
        "refresh": lambda: data.refresh("status", "other", min_test_runs=20, **network),
    }
    results = {name: changes(call) for name, call in calls.items()}
    data.close()
    print(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
