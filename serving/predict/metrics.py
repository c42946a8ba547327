"""Metrics of the predictions' manifest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from ciml.metrics import Family, Metric
from ciml.raw.metrics import manifest_families
from ciml.serving.predict.log import LATENCIES_S, PredictionState

#: The latest versions of each model have series of their own; older ones are counted together.
_VERSIONS = 10
OLDER = "older"

PREDICTIONS = Metric("ciml_predictions_total", "counter", "Committed predictions.", ("model", "version"))
LATENCY = Metric(
    "ciml_prediction_latency_seconds",
    "histogram",
    "Time from a run's announcement to its prediction.",
    ("model",),
    LATENCIES_S,
)
UNPREDICTABLE = Metric(
    "ciml_unpredictable_total", "counter", "Announcements without a prediction, by reason.", ("reason",)
)
REPEATS = Metric(
    "ciml_prediction_repeats_total", "counter", "Announcements of runs that the same version had already predicted."
)

VERDICTS = Metric(
    "ciml_verdicts_total", "counter", "Committed verdicts on failed runs, by cause; unknown among them.",
    ("model", "cause"),
)  # fmt: skip

OUTSIDE = Metric(
    "ciml_verdicts_outside_total", "counter", "Committed verdicts on runs unlike those that the model learned.",
    ("model",),
)  # fmt: skip

METRICS = (PREDICTIONS, LATENCY, UNPREDICTABLE, REPEATS, VERDICTS, OUTSIDE)


def prediction_families(state: PredictionState) -> Iterator[Family]:
    """Yield the metric families of a state: of its model, or of all models."""
    versions: dict[str, list[int]] = {}
    for model, version in sorted(filter(lambda key: state.counts(key[0]), state.predicted)):
        versions.setdefault(model, []).append(version)
    named = {(model, version) for model, found in versions.items() for version in found[-_VERSIONS:]}
    predicted: Counter[tuple[str, ...]] = Counter()
    for (model, version), number in state.predicted.items():
        if not state.counts(model):
            continue
        predicted[model, str(version) if (model, version) in named else OLDER] += number
    yield PREDICTIONS.of(predicted)
    yield LATENCY.distribution(
        {
            (model,): ([state.latencies[model, bucket] for bucket in range(len(LATENCIES_S) + 1)], total_us / 1e6)
            for model, total_us in state.latency_us.items()
            if state.counts(model)
        }
    )
    yield UNPREDICTABLE.of({(reason,): number for reason, number in state.unpredictable.items()})
    yield REPEATS.alone(state.repeats)
    yield VERDICTS.of({key: number for key, number in state.verdicts.items() if state.counts(key[0])})
    yield OUTSIDE.of({(model,): number for model, number in state.outside.items() if state.counts(model)})
    yield from manifest_families("predictions", state.version, state.time_us, state.restored)
