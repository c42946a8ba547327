"""What the demo's trainer does when it is told to."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ciml.storage import Store, open_store
from training.experiment import Experiment

Say = Callable[[str], None]


def warm_up() -> None:
    """Imports what costs seconds, while nothing is asked for yet."""
    import training.export
    import training.materialise_beam
    import training.train  # noqa: F401
    from training.runtime import tensorflow

    tensorflow()


def do(data_root: str, task: dict[str, Any], say: Say) -> dict[str, Any]:
    """Does one task; what it returns is JSON."""
    data, model = open_store(data_root), str(task["model"])
    if task["task"] == "refresh":
        return _refresh(data, model, say)
    if task["task"] == "probabilities":
        return _probabilities(data, model)
    raise ValueError(f"no such task: {task['task']}")


def _refresh(data: Store, model: str, say: Say) -> dict[str, Any]:
    """Refreshes a model, and pushes what the gate blessed."""
    from serving.push import push
    from serving.registry import Registry, Verdict
    from training.champion import Champion
    from training.refresh import Skipped, refresh

    began = time.perf_counter()
    registry = Registry(data, model)
    state = registry.state
    champion = Champion(Path(registry.folder(state.champion).root), state.champion) if state.champion else None
    last = state.candidates[state.last_candidate].facts.get("refresh") if state.last_candidate else None
    done = refresh(data, model, Experiment(), model=model, champion=champion, last=last, progress=say)
    if isinstance(done, Skipped):
        return {"model": model, "skipped": done.reason}
    verdict = Verdict(done.verdict.blessed, done.verdict.reasons, done.verdict.metrics)
    told: dict[str, Any] = {
        "model": model,
        "snapshot": done.snapshot.digest,
        "metrics": done.metrics,
        "reasons": list(verdict.reasons),
        "version": None,
    }
    if verdict.blessed:
        say("push")
        told["version"] = push(data, model, open_store(done.folder), verdict, facts=done.facts()).version
    else:
        candidate = registry.record_candidate(open_store(done.folder), done.facts())
        registry.record_verdict(candidate.id, verdict)
    return {**told, "folder": str(done.folder), "took_s": time.perf_counter() - began}


def _probabilities(data: Store, model: str) -> dict[str, Any]:
    """The trainer's own copy of the champion, asked about its held-out runs.

    Returns:
      ``runs`` (ids), ``probabilities`` [n][C] as the exported model gives them from the examples of the data set, and
      ``disagreement``, the largest difference between that model and the one in the trainer's memory.
    """
    import json

    from serving.registry import Registry
    from training.examples import read_snapshot_examples
    from training.export import load_exported
    from training.snapshot import read_snapshot

    state = Registry(data, model).state
    if state.champion is None:
        return {"runs": [], "probabilities": [], "disagreement": None}
    candidate = state.candidates[state.versions[state.champion].candidate]
    trainer = data.child("trainer").child(model)
    metrics = json.loads(trainer.read(f"metrics/{candidate.facts['refresh']}.json"))
    runs, test = read_snapshot_examples(data, read_snapshot(trainer, candidate.facts["snapshot"]), "test")
    answers = load_exported(candidate.folder).predict(test.inputs, test.n_windows)
    return {
        "runs": [run.run_id for run in runs],
        "probabilities": answers.tolist(),
        "disagreement": metrics["disagreement"],
    }
