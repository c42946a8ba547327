"""The demo's data sets of the sample runs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from ciml.cli.demo import corpus
from ciml.cli.demo.corpus import CAUSE, balanced_salt, definitions, read_corpus
from ciml.datasets.definition import DEFAULT_SALT, SPLITS
from ciml.errors import CimlError
from ciml.transforms.examples.prepare import split_of
from tests.corpus import CORPUS


def test_each_split_of_the_causes_has_its_share_of_each_cause() -> None:
    samples = read_corpus(CORPUS)
    (cause,) = (definition for definition in definitions(60, samples, causes=True) if definition.name == CAUSE)
    weights = cause.tdt_split

    def splits(salt: str) -> Counter[tuple[str, str]]:
        failed = [sample.facts for sample in samples if "cause" in sample.facts.labels]
        return Counter(
            (split_of(facts.project, facts.change, facts.run_id, salt, weights), facts.labels["cause"])
            for facts in failed
        )

    def farthest(salt: str) -> float:
        runs = splits(salt)
        all_runs = Counter(name for _, name in runs.elements())
        return max(
            abs(runs[split, name] / number - weight / sum(weights))
            for name, number in all_runs.items()
            for split, weight in zip(SPLITS, weights, strict=True)
        )

    assert farthest(cause.salt) < 0.09
    assert farthest(DEFAULT_SALT) > 0.16


def test_the_salt_depends_on_causes_alone() -> None:
    samples = read_corpus(CORPUS)
    weights = (1, 1, 1)
    failed = [sample for sample in samples if "cause" in sample.facts.labels]
    assert balanced_salt(failed, weights) == balanced_salt(samples, weights)
    assert balanced_salt(samples, weights) != balanced_salt(samples[::2], weights)
    assert balanced_salt([], weights) == "demo 0"
    with pytest.raises(ValueError, match="at least one must be above 0"):
        balanced_salt(samples, (0, 0, 0))


def test_the_examples_are_those_of_the_checkout_or_of_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = corpus.examples()
    monkeypatch.setattr(corpus, "__file__", str(tmp_path / "site-packages/ciml/cli/demo/corpus.py"))
    monkeypatch.chdir(ours.parent)
    assert corpus.examples() == ours
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CimlError, match="run ciml demo in a checkout"):
        corpus.examples()
