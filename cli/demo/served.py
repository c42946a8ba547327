"""The served models of the demo: the model server's versions and answers, against the registry and the Python API."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from ciml.cli.demo.checks import check_probabilities, check_served
from ciml.cli.demo.definitions import MODELS, trust_policy
from ciml.cli.demo.report.result import Check
from ciml.cli.demo.run import Demo


def check_answers(demo: Demo) -> list[Check]:
    """Check the server's versions, and its answers to the held-out examples against those of the Python API.

    The server is sent the examples of the data set. The API prepares the same runs from the raw store, and loads the
    champion in this process.
    """
    import numpy as np

    import ciml
    from ciml.serving.client import ModelClient
    from ciml.serving.registry import Registry

    data = ciml.open(demo.data.url)
    served: dict[str, dict[str, int | None]] = {}
    stable: dict[str, int | None] = {}
    apart: dict[str, tuple[int, float]] = {}
    for model in MODELS:
        champion = Registry(demo.data, model).state.champion
        if champion is None:
            continue  # every version was rejected, with a reason
        stable[model] = champion
        dataset = data.dataset(model, trust_policy=trust_policy())
        inputs = dataset.to_numpy("test")[0]
        n_windows = dataset.n_windows("test")
        loaded = data.model(model)
        predictions = loaded.predict(dataset.facts("test").column("run_id").to_pylist())
        wanted = [[one.probabilities[name] for name in loaded.classes] for one in predictions]
        loaded.close()
        with ModelClient(demo.engines.models["grpc"], model) as client:
            client.wait_until_served(champion)
            over_rest = _over_rest(demo.engines.models["rest"], model, inputs[:8], n_windows[:8])
            served[model] = {"gRPC": client.served_version(), "REST": over_rest.version}
            answers = client.predict(inputs, n_windows, version=champion).probabilities
        differences = [_apart(answers, wanted), _apart(over_rest.probabilities, wanted[:8])]
        mine = [one for one in demo.refreshes if one["model"] == model and one["version"]]
        differences += [one["metrics"]["disagreement"] for one in mine]
        apart[model] = (len(wanted), float(np.max(differences)))  # NaN if one is NaN
    return [check_served(served, stable), check_probabilities(apart)]


class _RestAnswer(NamedTuple):
    version: int | None
    probabilities: Any


def _over_rest(address: str, model: str, inputs: Any, n_windows: Any) -> _RestAnswer:
    """Query the stable version of a model by REST."""
    import httpx

    status = httpx.get(f"{address}/v1/models/{model}/labels/stable", trust_env=False).json()
    states = status.get("model_version_status", [])
    available = [int(one["version"]) for one in states if one["state"] == "AVAILABLE"]
    asked = {"inputs": {"inputs": inputs.tolist(), "n_windows": n_windows.tolist()}}
    answer = httpx.post(f"{address}/v1/models/{model}:predict", json=asked, trust_env=False).json()
    return _RestAnswer(available[0] if available else None, answer.get("outputs", math.nan))


def _apart(found: Any, wanted: Any) -> float:
    """Return the largest difference of two arrays of probabilities; NaN if one has no numbers."""
    import numpy as np

    return float(np.abs(np.array(found, np.float64) - np.array(wanted, np.float64)).max(initial=0.0))
