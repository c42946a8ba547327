"""Drift of a data set: the newest spans against earlier ones, another data set, or a model's training runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from ciml.data_root import DataRoot, StoredDataset
from ciml.datasets.definition import ResolvedDefinition
from ciml.datasets.state import DatasetState, SpanVersion
from ciml.errors import CimlError
from ciml.pipelines.datasets.statistics import Piece, kept_columns, kept_statistics
from ciml.training.data.snapshot import Snapshot, read_snapshot
from ciml.transforms.drift.compare import compare
from ciml.transforms.drift.detect import DriftPolicy
from ciml.transforms.drift.report import Report, Side
from ciml.transforms.drift.statistics import Statistics, merge

#: Called with (processed spans, spans to process).
Progress = Callable[[int, int], None]


def validate_dataset(
    data: DataRoot,
    name: str,
    *,
    last: int | None = None,
    against: str | None = None,
    model: str | None = None,
    policy: DriftPolicy | None = None,
    progress: Progress | None = None,
) -> Report:
    """Compare the newest spans of a data set with earlier ones, another data set, or a model's training runs.

    Args:
      data: the data root.
      name: name of the data set.
      last: number of newest spans: 1 by default; with ``model``, all spans it was not trained on.
      against: another data set to compare with, all spans of it.
      model: a model whose champion's snapshot is compared with.
      policy: thresholds of drift.
      progress: called after each span.

    Raises:
      CimlError: if there is no such data set or model, or nothing to compare with.
      IntegrityError: if the stored data are inconsistent.
    """
    dataset = base = data.dataset(name)
    state = dataset.state()
    spans = state.latest()
    resolved = _resolved(name, state)
    if model is not None:
        snapshot = champions_snapshot(data, model)
        if snapshot.dataset != name:
            raise CimlError(f"model {model!r} was trained on {snapshot.dataset!r}; use ciml drift {snapshot.dataset}")
        known = {span.span for span in snapshot.spans}
        newest = [span for span in spans if span.span > max(known, default=0)][-(last or len(spans)) :]
        if not newest:
            raise CimlError(f"data set {name!r} has no span that model {model!r} was not trained on")
        pieces = [Piece(s.span, s.version, s.files, tuple(run.run_id for run in s.runs)) for s in snapshot.spans]
        older = [span for span in spans if span.span in known]
        reference, label = snapshot.resolved, f"training runs of {model}"
    elif against is not None:
        base = data.dataset(against)
        other = base.state()
        newest, older = spans[-(last or 1) :], other.latest()
        pieces = [_piece(span) for span in older]
        reference, label = _resolved(against, other), against
        _check_alike(name, resolved, against, reference)
    else:
        last = last or 1
        newest, older = spans[-last:], spans[:-last]
        if not older:
            raise CimlError(
                f"data set {name!r} has {_count(spans)}, none before the last {last}; add runs, "
                "or name another data set with --against"
            )
        pieces = [_piece(span) for span in older]
        reference, label = resolved, f"{name}, {_spans(older)}"
    total = len(pieces) + len(newest)
    before = _side(base, reference, label, pieces, older, progress, 0, total)
    now = f"{name}, {_spans(newest)}"
    after = _side(dataset, resolved, now, [_piece(span) for span in newest], newest, progress, len(pieces), total)
    if before.columns is None or after.columns is None:
        before, after = replace(before, columns=None), replace(after, columns=None)
    return compare(before, after, policy)


def _resolved(name: str, state: DatasetState) -> ResolvedDefinition:
    if state.resolved is None or not state.spans:
        raise CimlError(f"data set {name!r} has no sealed span yet: ciml dataset update {name} --seal")
    return state.resolved


def _check_alike(name: str, one: ResolvedDefinition, against: str, other: ResolvedDefinition) -> None:
    """Raise `CimlError` if the features of two data sets are not comparable."""
    for key in ("sample_interval", "sample_statistic", "aggregation_functions", "count_first_sample"):
        mine, its = getattr(one.definition, key), getattr(other.definition, key)
        if mine != its:
            raise CimlError(
                f"{name!r} and {against!r} cannot be compared: {key} is {mine!r} in one, {its!r} in the other"
            )


def _spans(spans: Sequence[SpanVersion]) -> str:
    first, last = spans[0].span, spans[-1].span
    return f"span {first}" if first == last else f"spans {first} to {last}"


def _count(spans: Sequence[SpanVersion]) -> str:
    return "1 span" if len(spans) == 1 else f"{len(spans)} spans"


def _piece(span: SpanVersion) -> Piece:
    return Piece(span.span, span.version, span.files)


def champions_snapshot(data: DataRoot, model: str) -> Snapshot:
    """Return the champion's snapshot. Raises `CimlError` without a champion."""
    from ciml.serving.registry import Registry

    state = Registry(data, model).state
    if state.champion is None:
        raise CimlError(f"model {model!r} has no champion in {data.url}; train and push one, or omit --model")
    candidate = state.candidates[state.versions[state.champion].candidate]
    if not (digest := candidate.facts.get("snapshot")):
        raise CimlError(f"model {model!r}: its champion has no recorded snapshot")
    return read_snapshot(data.trainer(model), digest)


def _side(
    dataset: StoredDataset, resolved: ResolvedDefinition, label: str, pieces: Sequence[Piece],
    spans: Sequence[SpanVersion], progress: Progress | None, done: int, total: int,
) -> Side:  # fmt: skip
    def counted(found: Iterable[Statistics]) -> Iterator[Statistics]:
        for number, each in enumerate(found, done + 1):
            yield each
            if progress:
                progress(number, total)

    merged = merge(counted(kept_statistics(dataset.store, resolved, pieces)))
    columns = kept_columns(dataset.raw(), dataset.store, spans)
    excluded = Counter(each["reason"] for span in spans for each in span.excluded)
    return Side(label, merged, columns, dict(sorted(excluded.items())))
