"""What the steps of a refresh read and write, as their lineage describes it (`ciml.lineage.steps`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ciml.data_root import DataRoot, StoredDataset
from ciml.decision import Decision
from ciml.digest import sha256_json
from ciml.lineage.description import Data, Description
from ciml.training.data.snapshot import Snapshot
from ciml.training.evaluation.champion import Champion
from ciml.training.experiment import Experiment

#: Spans that a description lists, the latest; the version of the data set covers all.
_MOST_SPANS = 100
#: Figures of `ciml.training.evaluation.metrics.evaluate` that lineage reports.
_FIGURES = ("runs", "trained_on", "accuracy", "base_rate", "log_loss")


def snapshot_inputs(dataset: StoredDataset) -> Description:
    """Describe what a snapshot will be made from."""
    return Description((Data(dataset.store.url()),))


def snapshot_made(dataset: StoredDataset, snapshot: Snapshot, model: str) -> Description:
    """Describe a snapshot: the raw store (or listing), the span versions, and the selected runs by role and class."""
    state = dataset.state()
    if state.listing is not None:
        source = Data(state.listing["url"], state.listing["digest"])
    else:
        source = Data(dataset.raw(state).url(), str(state.cursor[0]))
    return Description((source, _examples(dataset, snapshot)), (_selected(dataset.root, snapshot, model),))


def training_inputs(dataset: StoredDataset, snapshot: Snapshot, model: str, champion: Champion | None) -> Description:
    """Describe what a candidate is trained on and compared with."""
    inputs = [_examples(dataset, snapshot), _selected(dataset.root, snapshot, model)]
    if champion is not None:
        inputs.append(Data(dataset.root.models.child(model).url(), str(champion.version)))
    return Description(tuple(inputs))


def candidate_made(
    learned: Callable[[], Description],
    candidate: Data,
    experiment: Experiment,
    metrics: Mapping[str, Any],
    decision: Decision,
    seconds: Mapping[str, float],
) -> Description:
    """Describe a candidate: experiment, figures with their intervals, the gate's decision, seconds by step."""
    figures = {name: metrics["evaluation"][name] for name in _FIGURES}
    figures["calibration_error"] = metrics["evaluation"]["calibration"]["ece"]
    facts: Mapping[str, Any] = {
        "evaluation": figures,
        "champion": metrics.get("champion"),
        "blessed": decision.blessed,
        "reasons": list(decision.reasons),
        "seconds": {name: round(each, 3) for name, each in seconds.items()},
    }
    checks = tuple((reason, decision.blessed) for reason in decision.reasons)
    return Description(learned().inputs, (candidate,), experiment.to_json(), checks, facts)


def _examples(dataset: StoredDataset, snapshot: Snapshot) -> Data:
    """Describe the span versions of a data set; their files' digests are its version."""
    resolved = snapshot.resolved
    spans = [
        [
            span.span,
            span.version,
            sha256_json([file.digest for _, files in sorted(span.files.items()) for file in files]),
        ]
        for span in snapshot.spans
    ]
    columns = [(name, f"float32[{resolved.windows}]") for name in resolved.features]
    facts = {"definition": resolved.digest, "classes": list(resolved.classes), "spans": spans[-_MOST_SPANS:]}
    return Data(
        dataset.store.url(), sha256_json(spans), (*columns, (resolved.definition.class_label, "string")), facts=facts
    )


def _selected(data: DataRoot, snapshot: Snapshot, model: str) -> Data:
    facts = {
        "policy": snapshot.policy,
        "counts": snapshot.counts(),
        "untrusted": dict(snapshot.untrusted),
        "excluded": dict(snapshot.excluded),
    }
    rows = sum(1 for _ in snapshot.runs())
    return Data(data.trainer(model).url("snapshots"), snapshot.digest, rows=rows, facts=facts)
