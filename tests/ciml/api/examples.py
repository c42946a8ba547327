"""Runs the examples of the public API in a process of its own; prints their faults and their changes of the process.

python -m tests.ciml.api.examples FOLDER URL
"""

from __future__ import annotations

import doctest
import json
import logging
import os
import random
import signal
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from tests.project.api_reference import documented
from tests.tier import QUICK

#: Calls that no docstring shows, and that use libraries of their own.
FURTHER = {
    "to_tf": ">>> len(dataset.to_tf('test')) == len(dataset.facts('test'))\nTrue\n",
    "boosting": ">>> data.train('status', 'boosted_summaries').new\nTrue\n",
}
#: Those that import TensorFlow here.
SLOW = {"to_tf", "ciml.Data.refresh"}
#: Settings of a library before it is imported.
_DEFAULTS: dict[str, object] = {
    "inter-op threads": 0,
    "intra-op threads": 0,
    "deterministic operations": False,
    "TensorFlow seed": (87654321, 1),
}


def examples() -> Iterator[tuple[str, list[doctest.Example]]]:
    """Yield a name, and the examples of the docstring or of the further call."""
    texts = {**FURTHER, **{name: value.__doc__ or "" for name, value in documented()}}
    for name, text in texts.items():
        if found := doctest.DocTestParser().get_examples(text):
            yield name, found


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
    state |= {f"variable {name}": value for name, value in os.environ.items()}
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


def changes(before: dict[str, object], after: dict[str, object]) -> dict[str, Any]:
    """Return the settings that differ: before and after.

    A library that was loaded between has its defaults before, if they are known; else it is left out.
    """
    before, after = _DEFAULTS | before, _DEFAULTS | after
    names = before.keys() | {name for name in after if name.startswith("variable ")}
    return {name: (before.get(name), after.get(name)) for name in names if before.get(name) != after.get(name)}


def main(folder: str, url: str) -> None:
    import ciml
    from ciml.training.evaluation import metrics as scoring

    scoring.RESAMPLES = 20
    os.chdir(folder)
    data = ciml.open("data")
    results = {}
    for name, found in examples():
        if QUICK and name in SLOW:
            continue
        for example in found:
            example.source = example.source.replace("http://127.0.0.1:8501", url)
        names: dict[str, object] = {"ciml": ciml, "data": data, "dataset": data.dataset("status")}
        if name.startswith(("ciml.Model", "ciml.Client")):
            names["model"] = ciml.Client(url) if name.startswith("ciml.Client") else data.model("status")
        out: list[str] = []
        before = settings()
        test = doctest.DocTest(found, names, name, None, None, None)
        doctest.DocTestRunner(verbose=False).run(test, out=out.append)
        results[name] = {"faults": "".join(out), "changes": changes(before, settings())}
    print(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
