from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np

from ciml.data_root import DataRoot
from ciml.digest import canonical_json, sha256_json
from ciml.storage import LocalStore
from ciml.training.data.analysis import Analysis, AnalysisCache, SpanAnalysis, analyse, analysis_key, cache_key
from ciml.training.data.examples import read_snapshot_examples
from ciml.training.data.snapshot import Snapshot, make_snapshot
from ciml.training.normalise import Normalisation
from ciml.trust import TrustPolicy
from tests.training.records import excluding


def same(analysis: Analysis, other: Analysis) -> None:
    np.testing.assert_array_equal(analysis.normalisation.mean, other.normalisation.mean)
    np.testing.assert_array_equal(analysis.normalisation.width, other.normalisation.width)


def test_only_new_and_changed_spans_are_analysed_and_the_result_is_the_same_to_the_last_bit(
    data: DataRoot, snapshot: Snapshot
):
    cache, dataset = AnalysisCache(data.trainer("m").child("analyses")), data.dataset("providers")
    learned = next(run.run_id for run in snapshot.spans[1].runs if run.split == "train")
    changed = make_snapshot(dataset, TrustPolicy.load(), excluding({learned: "purged"}))
    snapshots = [snapshot.replace(spans=snapshot.spans[:2]), snapshot, snapshot, changed, snapshot]
    snapshots.append(snapshot.replace(spans=snapshot.spans[1:]))  # as a window that moves on
    made = [analyse(dataset.store, chosen, cache) for chosen in snapshots]
    assert [(analysis.analysed, analysis.cached) for analysis in made] == [
        (2, 0),
        (1, 2),
        (0, 3),
        (1, 2),
        (1, 2),
        (0, 2),
    ]
    for chosen, analysis in zip(snapshots, made, strict=True):
        same(analysis, analyse(dataset.store, chosen))
        runs, examples = read_snapshot_examples(dataset.store, chosen)
        directly = Normalisation.of(examples.inputs[[run.split == "train" for run in runs]])
        np.testing.assert_allclose(analysis.normalisation.mean, directly.mean, rtol=1e-13)
        np.testing.assert_array_equal(analysis.normalisation.width, directly.width)
    assert cache.store.list() == [f"{cache_key(snapshot.resolved)}.json"]


def test_a_cache_of_other_arrays_counts_as_none(data: DataRoot, snapshot: Snapshot):
    cache, dataset = AnalysisCache(data.trainer("m").child("analyses")), data.dataset("providers")
    expected = analyse(dataset.store, snapshot, cache)
    (path,) = cache.store.list()
    name = path.removesuffix(".json")
    keys = [analysis_key(span, snapshot.resolved) for span in snapshot.spans]
    of_older_version = {"entries": {"a2V5": ["dmFsdWU="]}, "spans": keys}
    for value in (of_older_version, {keys[0]: {"count": 1, "total": "AAAA", "low": "AAAA", "high": "AAAA"}}, [], None):
        content = {"key": name, "digest": sha256_json(value), "analysis": value}
        cache.store.replace(path, canonical_json(content))
        assert cache.is_whole(name) == (value is not None)
        again = analyse(dataset.store, snapshot, cache)
        assert again.analysed == 3
        same(again, expected)


def test_a_damaged_cache_counts_as_none_and_nothing_of_it_runs(tmp_path: Path, snapshot: Snapshot):
    cache, path = AnalysisCache(LocalStore(tmp_path)), tmp_path / "a.json"
    shape = (snapshot.resolved.windows, len(snapshot.resolved.features))
    kept = {"a span": SpanAnalysis.of([np.ones((2, *shape), np.float32)], *shape)}
    cache.write("a", kept)
    assert cache.read("a", snapshot.resolved) == kept
    assert set(json.loads(path.read_bytes())) == {"key", "digest", "analysis"}
    content = path.read_bytes()
    (tmp_path / "b.json").write_bytes(content)
    assert cache.read("b", snapshot.resolved) == {}
    pickled = b"cos\nsystem\n(S'touch %b'\ntR." % os.fsencode(tmp_path / "owned")
    for damaged in (content[:-3], content.replace(b"a span", b"b span"), pickled, b"{}", b"[]"):
        path.write_bytes(damaged)
        assert cache.read("a", snapshot.resolved) == {}
        assert not cache.is_whole("a")
    assert not (tmp_path / "owned").exists()


def test_files_without_rows_of_a_snapshot_change_nothing():
    inputs = np.array([[[1.0, -5.0]], [[3.0, 7.0]]], np.float32)
    none = inputs[:0]
    assert SpanAnalysis.of([none, inputs, none], 1, 2) == SpanAnalysis.of([inputs[:1], inputs[1:]], 1, 2)


def test_the_key_of_an_analysis_changes_with_all_that_it_depends_on(snapshot: Snapshot):
    span, resolved = snapshot.spans[0], snapshot.resolved
    learned = next(run for run in span.runs if run.split == "train")
    shorter = span.replace(runs=tuple(run for run in span.runs if run != learned))
    no_test = span.replace(runs=tuple(run for run in span.runs if run.split == "train"))
    fewer = resolved.replace(columns=resolved.columns[1:], features=resolved.features[1:])
    longer = resolved.replace(windows=resolved.windows + 1)
    keys = [
        analysis_key(span, resolved),
        analysis_key(span.replace(version=2), resolved),
        analysis_key(span.replace(span=9), resolved),
        analysis_key(shorter, resolved),
        analysis_key(span, fewer),
        analysis_key(span, longer),
    ]
    assert len(set(keys)) == len(keys)
    assert analysis_key(no_test, resolved) == keys[0]
    assert len({cache_key(resolved), cache_key(fewer), cache_key(longer)}) == 3
