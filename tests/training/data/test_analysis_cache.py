from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from ciml.data_root import DataRoot
from ciml.storage import LocalStore
from ciml.training.data.analysis_cache import AnalysisCache, SpanAnalysis, analysis_key
from ciml.training.data.materialise import Materialised, materialise
from ciml.training.data.snapshot import ROLES, Snapshot, make_snapshot
from ciml.training.normalise import transform_digest
from ciml.trust import TrustPolicy
from tests.training.records import excluding, written


@pytest.mark.whole
def test_the_cache_by_span_gives_the_same_and_holds_no_pickle(
    data: DataRoot, snapshot: Snapshot, materialised: Materialised, tmp_path: Path
):
    cache = AnalysisCache(data.trainer("m").child("analyses"))
    for span in snapshot.spans:  # of other analyzers: these are not used
        key = analysis_key(span, snapshot.resolved.features, snapshot.resolved.windows, transform_digest())
        cache.write(key, SpanAnalysis({b"another": (b"[]",)}, 1))
    first = materialise(data.dataset("providers").store, snapshot, tmp_path / "first", cache=cache)
    second = materialise(data.dataset("providers").store, snapshot, tmp_path / "second", cache=cache)
    one = next(run.run_id for run in snapshot.spans[1].runs if run.split == "train")
    changed = make_snapshot(data.dataset("providers"), TrustPolicy.load(), excluding({one: "purged"}))
    third = materialise(data.dataset("providers").store, changed, tmp_path / "third", cache=cache)
    afresh = materialise(data.dataset("providers").store, changed, tmp_path / "afresh")

    assert (first.analysed, first.cached) == (3, 0)
    assert (second.analysed, second.cached) == (0, 3)
    assert (third.analysed, third.cached) == (1, 2)
    for one_way, other in ((materialised, first), (first, second), (third, afresh)):
        for role in ROLES:
            values = [written(made, role, snapshot) for made in (one_way, other)]
            assert values[0].keys() == values[1].keys()
            for ordinal, (inputs, *scalars) in values[0].items():
                np.testing.assert_allclose(inputs, values[1][ordinal][0], rtol=0, atol=1e-7)
                assert scalars == list(values[1][ordinal][1:])
    paths = cache.store.list()
    assert len(paths) == 4
    for path in paths:
        assert set(json.loads(cache.store.read(path))) == {"key", "digest", "analysis"}


@pytest.mark.parametrize("damage", ["cut", "flip", "swap", "pickle", "empty"])
def test_a_damaged_cache_counts_as_none(damage: str, tmp_path: Path):
    cache = AnalysisCache(LocalStore(tmp_path))
    kept = SpanAnalysis({b"entry": (b"[1.0, 2.0]",)}, 7)
    cache.write("a", kept)
    assert cache.read("a") == kept
    path, other = tmp_path / "a.json", tmp_path / "b.json"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-3])
    elif damage == "flip":
        path.write_bytes(path.read_bytes().replace(b'"size":7', b'"size":8'))
    elif damage == "swap":
        other.write_bytes(path.read_bytes())
    elif damage == "pickle":
        path.write_bytes(b"cos\nsystem\n(S'touch %b'\ntR." % os.fsencode(tmp_path / "owned"))
    else:
        path.write_bytes(b"{}")
    assert cache.read("b" if damage == "swap" else "a") is None
    assert not (tmp_path / "owned").exists()


def test_the_key_of_an_analysis_changes_with_all_that_it_depends_on(snapshot: Snapshot):
    span, features = snapshot.spans[0], snapshot.resolved.features
    shorter = span.replace(
        runs=tuple(run for run in span.runs if run != next(r for r in span.runs if r.split == "train"))
    )
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
