"""The manifest of predictions: covered announcements, and a prediction for each run and version; its metrics."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ciml.digest import sha256_json
from ciml.errors import IntegrityError
from ciml.events.records import OffsetRange
from ciml.manifest.checkpoints import Checkpointed
from ciml.manifest.coverage import (
    Covered,
    NewCoverage,
    RangeSet,
    TopicState,
    coverage_json,
    coverage_of,
)
from ciml.manifest.id_index import IdTable, Rows, TableKind, fingerprint
from ciml.manifest.id_maps import IdSet
from ciml.manifest.log import Delta, ManifestLog
from ciml.metrics import Family, manifest_families, metric
from ciml.storage import Store

#: Bounds of the latency histogram, seconds. Checkpoints store counts by them: other bounds need another key.
LATENCIES_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)

#: By how much the clocks of those who predict and commit may differ, microseconds.
_CLOCKS_US = 3_600_000_000
#: The lists of a delta without predictions.
NO_PREDICTIONS: Mapping[str, Any] = {"predictions": [], "unpredictable": [], "repeats": []}

#: The latest versions of each model have series of their own; older ones are counted together.
_VERSIONS = 10
OLDER = "older"
#: The candidates of a model are counted together.
CANDIDATES = "candidate"
PREDICTIONS = metric("ciml_predictions_total")
LATENCY = metric("ciml_prediction_latency_seconds", LATENCIES_S)
UNPREDICTABLE = metric("ciml_unpredictable_total")
REPEATS = metric("ciml_prediction_repeats_total")
VERDICTS = metric("ciml_verdicts_total")
OUTSIDE = metric("ciml_verdicts_outside_total")


def candidate_stream(model: str) -> str:
    """Return the name of the stream of predictions by the candidates of a model, which no model can have."""
    return f"{model}/candidate"


def shadow_stream(model: str) -> str:
    """Return the name of the stream of predictions by the shadow of a model, which no model can have."""
    return f"{model}/shadow"


def stream_of(prediction: Mapping[str, Any]) -> str:
    """Return the stream of a prediction: the name of its model, or that of the model's candidates or shadow."""
    model: str = prediction["model"]
    if is_of_shadow(prediction):
        return shadow_stream(model)
    return candidate_stream(model) if is_of_candidate(prediction) else model


def is_of_shadow(prediction: Mapping[str, Any]) -> bool:
    """Return whether a prediction is one of a version that predicts next to the served one, and is not published."""
    return "shadow" in prediction


def is_served(prediction: Mapping[str, Any]) -> bool:
    """Return whether a prediction is the answer of a served version, and not of a candidate or a shadow."""
    return not is_of_candidate(prediction) and not is_of_shadow(prediction)


def is_of_candidate(prediction: Mapping[str, Any]) -> bool:
    """Return whether a prediction is one of a candidate, and not of a served version."""
    return "candidate" in prediction


def _key_of(prediction: Mapping[str, Any]) -> int | str:
    """Return the version of a prediction's model, or the id of its candidate."""
    key: int | str = prediction["candidate"]["id"] if is_of_candidate(prediction) else prediction["version"]
    return key


def prediction_id(run_id: str, model: str, version: int | str, reclaim: str = "") -> str:
    """Return a deterministic id for a row, model and version.

    Args:
      run_id: the encoded run id.
      model: the model's name.
      version: the version that answered, or the id of the candidate.
      reclaim: the row's digest if it is a reclaim, which is predicted again; else "".
    """
    return sha256_json([run_id, model, version, *([reclaim] if reclaim else [])])[:32]


def read_predictions(predictions: Store, since_us: int = 0) -> Iterator[dict[str, Any]]:
    """Yield the predictions of a data root, in the order of their commits.

    Args:
      predictions: the folder of the predictions.
      since_us: earlier predictions are left out, epoch microseconds.
    """
    log = ManifestLog(predictions)
    for _, delta in log.since(_version_before(log, since_us - _CLOCKS_US) if since_us else 0):
        yield from (
            prediction for prediction in delta["predictions"] if not since_us or prediction["time_us"] >= since_us
        )


def _version_before(log: ManifestLog, time_us: int) -> int:
    """Return the last version that was committed before a time; 0 for none. Few deltas are read."""
    return bisect_left(range(1, log.end() + 1), time_us, key=lambda version: log.read(version)["time_us"])


def predictions_of_run(predictions: Store, run_id: str) -> list[dict[str, Any]]:
    """Return the predictions of a run, in the order of their commits. The manifest is searched as bytes."""
    log = ManifestLog(predictions)
    needle = json.dumps(run_id, ensure_ascii=False).encode()
    deltas = (log.parse(version, data) for version, data in log.raw_since(0) if needle in data)
    return [prediction for delta in deltas for prediction in delta["predictions"] if prediction["run_id"] == run_id]


@dataclass
class Predicted:
    """The results of one range of announcements. Each record holds the ``offset`` of its announcement.

    Attributes:
      covers: the range, fully settled by these records (offsets without a record hold no message).
      predictions: records with ``id``, ``run_id``, ``model``, ``version``, ``class``, ``probabilities``, … The
        ``version`` of a candidate is None, and ``candidate`` names it.
      unpredictable: records with ``run_id``, ``reason`` and perhaps ``detail``.
    """

    covers: OffsetRange
    predictions: list[dict[str, Any]] = field(default_factory=list)
    unpredictable: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        covers = self.covers
        return {
            "covers": [covers.topic, covers.topic_id, covers.partition, covers.start, covers.end],
            "predictions": self.predictions,
            "unpredictable": self.unpredictable,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Predicted:
        return cls(OffsetRange(*value["covers"]), value["predictions"], value["unpredictable"])


class PredictionState(TopicState):
    """The state of the predictions' manifest after its deltas, for one stream, or for all.

    Several models predict into one manifest, each in a stream of its own (`stream_of`). The candidates of a model have
    another stream than its versions, so that neither covers the runs of the other, or counts for it. A delta names its
    stream as ``model``, and covers its offsets for that stream alone; the deltas of earlier versions name none, and
    cover theirs for every stream.

    Attributes:
      model: the stream whose offsets are covered, and whose announcements are counted; "" for all: any has covered
        them. Below, a model is the name of a stream too.
      predicted: predictions by (model, version); of candidates by their id.
      latencies: predictions by (model, bucket): the bucket is the index of the first of `LATENCIES_S` that is not less
        than the time from announcement to prediction; one more bucket for longer times.
      latency_us: the sum of those times by model, microseconds.
      verdicts: predictions with a verdict by (model, cause).
      outside: verdicts on runs unlike those that the model learned, by model.
    """

    counters = ("predicted", "latencies", "verdicts")
    mappings = ("latency_us",)

    def __init__(self, ids: IdSet | None = None, model: str = "") -> None:
        super().__init__()
        self.model = model
        self.predicted: Counter[tuple[str, int | str]] = Counter()
        self.latencies: Counter[tuple[str, int]] = Counter()
        self.latency_us: Counter[str] = Counter()
        self.verdicts: Counter[tuple[str, str]] = Counter()
        self.outside: Counter[str] = Counter()
        self._unpredictable: Counter[tuple[str, str]] = Counter()
        self._repeats: Counter[str] = Counter()
        self._covered_by_model: dict[str, Covered] = {}
        self._ids = ids or IdSet()

    @property
    def unpredictable(self) -> Counter[str]:
        """Announcements without a prediction, by reason."""
        counts = Counter[str]()
        for (model, reason), number in self._unpredictable.items():
            if self.includes(model):
                counts[reason] += number
        return counts

    @property
    def repeats(self) -> int:
        """The number of announcements of runs that the same version had already predicted."""
        return sum(number for model, number in self._repeats.items() if self.includes(model))

    def includes(self, model: str) -> bool:
        """Return whether this state covers a model; "" is a delta of an earlier version."""
        return not self.model or model in ("", self.model)

    def covered_of(self, generation: str, partition: int) -> RangeSet:
        covered = [share[generation, partition] for share in self._shares() if (generation, partition) in share]
        return covered[0] if len(covered) == 1 else RangeSet(part for ranges in covered for part in ranges)

    def partitions(self) -> Iterator[tuple[str, int, RangeSet]]:
        for generation, partition in sorted({key for share in self._shares() for key in share}):
            yield generation, partition, self.covered_of(generation, partition)

    def _shares(self) -> list[Covered]:
        """Return the coverage of the state's model, or of each model."""
        if self.model:
            return [self._covered_by_model.get(self.model, self._covered)]
        return [self._covered, *self._covered_by_model.values()]

    def has(self, identity: str) -> bool:
        """Return whether a prediction with that id exists."""
        return fingerprint(identity) in self._ids

    def prefetch(self, identities: Iterable[str]) -> None:
        """Look up the ids of the next calls of `has` in one batch."""
        self._ids.prefetch(fingerprint(identity) for identity in identities)

    def apply(self, version: int, delta: Delta) -> None:
        """Apply the next delta. Raises `IntegrityError` if it is not the next, or repeats a prediction."""
        if version != self.version + 1:
            raise IntegrityError(f"predictions manifest: version {version} follows {self.version}")
        self.prefetch(prediction["id"] for prediction in delta["predictions"])
        self.torn = True
        model: str = delta.get("model", "")
        self.cover(delta["offsets"], *self._coverages(model))
        for prediction in delta["predictions"]:
            if self.has(prediction["id"]):
                raise IntegrityError(f"predictions manifest: version {version} repeats prediction {prediction['id']}")
            self._ids.add(fingerprint(prediction["id"]))
            stream = stream_of(prediction)
            self.predicted[stream, _key_of(prediction)] += 1
            if (verdict := prediction.get("verdict")) is not None:
                self.verdicts[stream, verdict["cause"]] += 1
                self.outside[stream] += "outside" in verdict
            if (latency_ms := prediction.get("latency_ms")) is not None:
                self.latencies[stream, bisect_left(LATENCIES_S, latency_ms / 1000)] += 1
                self.latency_us[stream] += round(latency_ms * 1000)
        for prediction in delta["unpredictable"]:
            self._unpredictable[model, prediction["reason"]] += 1
        if delta["repeats"]:
            self._repeats[model] += len(delta["repeats"])
        self.records += len(delta["predictions"]) + len(delta["unpredictable"]) + len(delta["repeats"])
        self.torn = False
        self.version = version
        self.time_us = delta["time_us"]

    def _coverages(self, model: str) -> list[Covered]:
        """Return the coverages to which a delta of a model adds."""
        if not model:
            return [self._covered, *self._covered_by_model.values()]
        if model not in self._covered_by_model:
            self._covered_by_model[model] = {part: RangeSet(ranges) for part, ranges in self._covered.items()}
        return [self._covered_by_model[model]]

    def snapshot(self) -> dict[str, Any]:
        """Return the state as JSON, without the ids. It is the same for each model."""
        models = {
            model: {
                "covered": coverage_json(self._covered_by_model.get(model, {})),
                "unpredictable": self._reasons(model),
                "repeats": self._repeats[model],
            }
            for model in sorted(self._covered_by_model)
        }
        return {
            **self.coverage(),
            "unpredictable": self._reasons(""),
            "repeats": self._repeats[""],
            **({"outside": dict(sorted(self.outside.items()))} if self.outside else {}),
            **({"models": models} if models else {}),
        }

    def _reasons(self, model: str) -> dict[str, int]:
        return {reason: number for (name, reason), number in sorted(self._unpredictable.items()) if name == model}

    @classmethod
    def restored_from(
        cls, version: int, value: Mapping[str, Any], tables: Mapping[str, IdTable], model: str = ""
    ) -> PredictionState:
        """Return the state at a checkpoint; see `ciml.manifest.checkpoints.Checkpointed`."""
        state = cls(IdSet(tables["ids"]), model)
        state.restore_coverage(version, value)
        state.outside.update(value.get("outside", {}))
        models: Mapping[str, Any] = value.get("models", {})
        state._covered_by_model = {name: coverage_of(share["covered"]) for name, share in models.items()}
        for name, share in {"": value, **models}.items():
            state._unpredictable.update({(name, reason): n for reason, n in share.get("unpredictable", {}).items()})
            state._repeats[name] = share.get("repeats", 0)
        return state

    def recent(self) -> dict[str, Rows]:
        """Return the ids added since the checkpoint it was restored from."""
        return {"ids": self._ids.rows()}


def prediction_checkpoints(model: str = "") -> Checkpointed[PredictionState]:
    """Return the checkpoints of a predictions' manifest, for the state of one stream; "" for all."""
    return Checkpointed({"ids": TableKind()}, partial(PredictionState.restored_from, model=model))


def reconcile(state: PredictionState, ranges: Iterable[Predicted], time_us: int) -> Delta | None:
    """Return the delta that ``ranges`` add to ``state``, or None if they add nothing.

    Covered offsets are dropped (a replay); a run that the same version has predicted is a repeat.

    Raises:
      IntegrityError: for a record outside of its range, or a topic that was recreated.
    """
    offsets = NewCoverage(state)
    predictions: list[dict[str, Any]] = []
    unpredictable: list[dict[str, Any]] = []
    repeats: list[str] = []
    new: set[str] = set()
    ranges = list(ranges)
    state.prefetch(record["id"] for part in ranges for record in part.predictions)
    for part in sorted(ranges, key=lambda item: (item.covers.topic, item.covers.partition, item.covers.start)):
        covers = part.covers
        fresh = offsets.add(covers)
        for record in [*part.predictions, *part.unpredictable]:
            if not covers.start <= record["offset"] < covers.end:
                raise IntegrityError(f"{covers}: offset {record['offset']} is outside of this range")
        for record in part.predictions:
            if record["offset"] in fresh:
                if record["id"] in new or state.has(record["id"]):
                    repeats.append(record["run_id"])
                else:
                    new.add(record["id"])
                    predictions.append(record)
        unpredictable += [record for record in part.unpredictable if record["offset"] in fresh]
    covered = offsets.to_json()
    if not covered:
        return None
    return {
        "time_us": time_us,
        **({"model": state.model} if state.model else {}),
        "offsets": covered,
        "predictions": predictions,
        "unpredictable": unpredictable,
        "repeats": repeats,
    }


def prediction_families(state: PredictionState) -> Iterator[Family]:
    """Yield the metric families of a state: of its model, or of all models."""
    yield PREDICTIONS.of(_by_series(state))
    yield LATENCY.distribution(
        {
            (model,): ([state.latencies[model, bucket] for bucket in range(len(LATENCIES_S) + 1)], total_us / 1e6)
            for model, total_us in state.latency_us.items()
            if state.includes(model)
        }
    )
    yield UNPREDICTABLE.of({(reason,): number for reason, number in state.unpredictable.items()})
    yield REPEATS.single(state.repeats)
    yield VERDICTS.of({key: number for key, number in state.verdicts.items() if state.includes(key[0])})
    yield OUTSIDE.of({(model,): number for model, number in state.outside.items() if state.includes(model)})
    yield from manifest_families("predictions", state.version, state.time_us, state.restored)


def _by_series(state: PredictionState) -> Counter[tuple[str, ...]]:
    """Return predictions by model and name of the version. The number of names is bounded; ids have no order."""
    versions: dict[str, list[int | str]] = {}
    for model, version in sorted(filter(lambda key: state.includes(key[0]), state.predicted)):
        versions.setdefault(model, []).append(version)
    predicted: Counter[tuple[str, ...]] = Counter()
    for model, keys in versions.items():
        for key in keys:
            version_name = str(key) if key in keys[-_VERSIONS:] else OLDER
            name = CANDIDATES if isinstance(key, str) else version_name
            predicted[model, name] += state.predicted[model, key]
    return predicted
