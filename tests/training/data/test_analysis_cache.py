from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from ciml.data_root import DataRoot
from ciml.storage import LocalStore
from ciml.training.data.analysis_cache import Analysis, AnalysisCache, analysis_key, cache_key
from ciml.training.data.examples import read_snapshot_examples
from ciml.training.data.materialise import materialise
from ciml.training.data.snapshot import ROLES, Snapshot, make_snapshot
from ciml.training.normalise import transform_digest
from ciml.trust import TrustPolicy
from tests.training.data.test_materialise import directly, of_split
from tests.training.records import excluding, written


@pytest.mark.whole
def test_the_cache_gives_the_same_and_holds_no_pickle(data: DataRoot, snapshot: Snapshot, tmp_path: Path):
    cache, dataset = AnalysisCache(data.trainer("m").child("analyses")), data.dataset("providers")
    name = cache_key(snapshot.resolved.features, snapshot.resolved.windows, transform_digest())
    spans = [
        analysis_key(span, snapshot.resolved.features, snapshot.resolved.windows, transform_digest())
        for span in snapshot.spans
    ]
    cache.write(name, Analysis({b"another": (b"[]",)}, tuple(spans)))  # of other analyzers: it is not used
    fewer = snapshot.replace(spans=snapshot.spans[:2])
    learned = next(run.run_id for run in snapshot.spans[1].runs if run.split == "train")
    changed = make_snapshot(dataset, TrustPolicy.load(), excluding({learned: "purged"}))
    snapshots = {"fewer": fewer, "one more": snapshot, "the same": snapshot, "changed": changed}
    made = {word: materialise(dataset.store, each, tmp_path / word, cache=cache) for word, each in snapshots.items()}
    assert [(each.analysed, each.cached) for each in made.values()] == [(2, 0), (1, 2), (0, 3), (3, 0)]
    for word, of in snapshots.items():
        _, raw = read_snapshot_examples(dataset.store, of)
        expected = directly(of_split(data, of, "train").inputs, raw.inputs)
        rows = [row for role in ROLES for row in written(made[word], role, of).items()]
        assert len(rows) == len(expected)
        for ordinal, (inputs, *_) in rows:
            np.testing.assert_allclose(inputs, expected[ordinal], rtol=0, atol=1e-6)
    (path,) = cache.store.list()
    assert path == f"{name}.json"
    assert set(json.loads(cache.store.read(path))) == {"key", "digest", "analysis"}


def test_an_analysis_in_too_many_parts_is_made_again(
    data: DataRoot, snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ciml.training.data import materialise_beam

    monkeypatch.setattr(materialise_beam, "_MOST_PARTS", 1)
    cache, dataset = AnalysisCache(data.trainer("m").child("analyses")), data.dataset("providers")
    counts = []
    for word, spans in (("one", 1), ("two", 2), ("again", 2)):
        made = materialise(dataset.store, snapshot.replace(spans=snapshot.spans[:spans]), tmp_path / word, cache=cache)
        counts.append((made.analysed, made.cached))
    assert counts == [(1, 0), (1, 1), (2, 0)]


def test_a_damaged_cache_counts_as_none(tmp_path: Path):
    cache, path = AnalysisCache(LocalStore(tmp_path)), tmp_path / "a.json"
    kept = Analysis({b"entry": (b"[1.0, 2.0]",)}, ("a span",))
    cache.write("a", kept)
    assert cache.read("a") == kept
    content = path.read_bytes()
    (tmp_path / "b.json").write_bytes(content)
    assert cache.read("b") is None
    pickled = b"cos\nsystem\n(S'touch %b'\ntR." % os.fsencode(tmp_path / "owned")
    for damaged in (content[:-3], content.replace(b"a span", b"b span"), pickled, b"{}"):
        path.write_bytes(damaged)
        assert cache.read("a") is None
    assert not (tmp_path / "owned").exists()


def test_the_key_of_an_analysis_changes_with_all_that_it_depends_on(snapshot: Snapshot):
    span, features = snapshot.spans[0], snapshot.resolved.features
    learned = next(run for run in span.runs if run.split == "train")
    shorter = span.replace(runs=tuple(run for run in span.runs if run != learned))
    no_test = span.replace(runs=tuple(run for run in span.runs if run.split == "train"))
    keys = [
        analysis_key(span, features, 4, "t"),
        analysis_key(span.replace(version=2), features, 4, "t"),
        analysis_key(span.replace(span=9), features, 4, "t"),
        analysis_key(shorter, features, 4, "t"),
        analysis_key(span, features[1:], 4, "t"),
        analysis_key(span, features, 5, "t"),
        analysis_key(span, features, 4, "u"),
    ]
    assert len(set(keys)) == len(keys)
    assert analysis_key(no_test, features, 4, "t") == keys[0]
