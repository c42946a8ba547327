"""The tasks of the demo's trainer."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ciml.data_root import DataRoot

Progress = Callable[[str], None]


def warm_up() -> None:
    """Import the libraries that take seconds, before the first request."""
    from training.runtime import tensorflow

    tensorflow()  # set up before anything else imports it
    import pipelines.training.trainer  # noqa: F401
    import training.data.materialise_beam
    import training.export
    import training.train  # noqa: F401


def do(data_root: str, task: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Run one task; the result is JSON."""
    data, model = DataRoot.open(data_root), str(task["model"])
    if task["task"] == "refresh":
        return _refresh(data, model, progress)
    if task["task"] == "probabilities":
        return _probabilities(data, model)
    raise ValueError(f"no such task: {task['task']}")


def _refresh(data: DataRoot, model: str, progress: Progress) -> dict[str, Any]:
    """Refresh a model from the data set of the same name once, as ``ciml refresh`` does."""
    from pipelines.training.trainer import TrainConfig, run_once

    began = time.perf_counter()
    done = run_once(TrainConfig(data, model, model), progress=progress)
    if done.outcome == "nothing_new":
        return {"model": model, "skipped": "; ".join(done.reasons)}
    return {
        "model": model,
        "version": done.version,
        "reasons": list(done.reasons),
        "snapshot": done.metrics["snapshot"]["digest"],
        "metrics": done.metrics,
        "took_s": time.perf_counter() - began,
    }


def _probabilities(data: DataRoot, model: str) -> dict[str, Any]:
    """Predict the held-out runs by the trainer's own copy of the champion.

    Returns:
      ``runs`` (ids), ``probabilities`` [n][C] as the exported model gives them from the examples of the data set, and
      ``disagreement``, the largest difference between that model and the one in the trainer's memory.
    """
    import json

    from serving.registry import Registry
    from training.data.examples import read_snapshot_examples
    from training.data.snapshot import read_snapshot
    from training.export import load_exported

    state = Registry(data, model).state
    if state.champion is None:
        return {"runs": [], "probabilities": [], "disagreement": None}
    candidate = state.candidates[state.versions[state.champion].candidate]
    trainer = data.trainer(model)
    metrics = json.loads(trainer.read(f"metrics/{candidate.facts['refresh']}.json"))
    snapshot = read_snapshot(trainer, candidate.facts["snapshot"])
    runs, test = read_snapshot_examples(data.dataset(snapshot.dataset).store, snapshot, "test")
    answers = load_exported(candidate.folder).predict(test.inputs, test.n_windows)
    return {
        "runs": [run.run_id for run in runs],
        "probabilities": answers.tolist(),
        "disagreement": metrics["disagreement"],
    }
