"""The features of an output: the reason that its prominent new lines name."""

from __future__ import annotations

import numpy as np
import pytest

from ciml.datasets.definition import LOG_FEATURES, LOG_PREFIX
from ciml.events.records import RunFacts
from ciml.training.calibration.sets import learned_ranges
from ciml.transforms.logs.features import NO_REASONS, REASONS, UNAVAILABLE, output_features, reason_of
from ciml.transforms.logs.profile import printed_templates, profile_of
from ciml.transforms.logs.ranking import scan
from ciml.transforms.logs.signals import KINDS
from ciml.verdict_rules import LearnedRanges

PASSING = b"collecting\n........ [ 50%]\n........ [100%]\n16 passed in 3.2s\n"


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        ("resource", "ImportError: /a/b/x.so: failed to map segment from shared object"),
        ("resource", "curl: (22) The requested URL returned error: 503"),
        ("resource", "##[error]Process completed with exit code 137."),
        ("dependency", "curl: (22) The requested URL returned error: 404"),
        ("crash", "Fatal Python error: Segmentation fault"),
        ("program", "src/main.rs:3:5: error[E0308]: mismatched types"),
        ("other", "server answered: HTTP 403"),
        ("other", "PermissionError: [Errno 13] Permission denied: '/x'"),
        ("other", "##[error]Process completed with exit code 1."),
        ("silent", "........ [ 50%]"),
        ("silent", ""),
    ],
)
def test_an_output_names_a_reason(reason: str, text: str) -> None:
    """Words that no output of `test_tool_outputs` has."""
    assert reason_of(scan(text.encode())) == reason


def test_exactly_one_feature_is_set() -> None:
    features = output_features(scan(b"FAILED a/b.py::test_x\nNo space left on device\n"))
    assert dict(zip(LOG_FEATURES, features, strict=True)) == {
        "log:resource": 1.0,
        "log:dependency": 0.0,
        "log:crash": 0.0,
        "log:program": 0.0,
        "log:other": 0.0,
        "log:silent": 0.0,
        "log:unavailable": 0.0,
    }


def test_an_unavailable_output_names_no_reason() -> None:
    features = dict(zip(LOG_FEATURES, output_features(None), strict=True))
    assert features.pop("log:unavailable") == 10.0
    assert set(features.values()) == {0.0}


def test_what_passing_runs_print_names_no_reason() -> None:
    text = b"ValueError: expected by this test\n" + PASSING
    assert reason_of(scan(text)) == "program"
    assert reason_of(scan(text), profile_of([printed_templates(scan(text))])) == "silent"


def test_an_output_that_was_cut_off_is_silent() -> None:
    profile = profile_of([printed_templates(scan(PASSING))])
    assert reason_of(scan(PASSING[:30]), profile) == "silent"


def test_a_line_far_below_the_best_names_no_reason() -> None:
    cleanup = b"Post job cleanup.\nconnection timed out while the cache was saved\n"
    cause = b"E       AssertionError: assert 1 == 2\ntest_x.py:3: AssertionError\nFAILED a/test_x.py::test_x - no\n"
    assert reason_of(scan(cleanup)) == "resource"
    assert reason_of(scan(cause + cleanup)) == "program"


def test_lines_of_tools_that_work_name_no_reason() -> None:
    assert reason_of(scan(b"warning: connection reset, trying again\n0 failed, 3 passed\n")) == "silent"


def test_further_lines_of_passing_runs_change_nothing() -> None:
    cause = b"E   OSError: [Errno 28] No space left on device\n"
    profile = profile_of([printed_templates(scan(PASSING))])
    expected = output_features(scan(cause), profile)
    assert output_features(scan(PASSING + cause), profile) == expected
    assert output_features(scan(PASSING * 200_000 + cause), profile) == expected


def test_reasons_have_kinds_of_signals() -> None:
    assert {kind for reason in REASONS for kind in reason.kinds} <= set(KINDS)


def test_each_reason_has_its_feature() -> None:
    names = (*(reason.name for reason in REASONS), *NO_REASONS, UNAVAILABLE)
    assert tuple(LOG_PREFIX + name for name in names) == LOG_FEATURES


def ranges_of(texts: list[bytes]) -> LearnedRanges:
    means = np.array([output_features(scan(text)) for text in texts])
    runs = [RunFacts(str(number), "", change=str(number)) for number in range(len(means))]
    ranges = learned_ranges(means, runs, LOG_FEATURES)
    assert ranges is not None
    assert all(ranges.outside(mean) is None for mean in means)
    return ranges


def test_a_run_without_output_is_unlike_runs_with_one() -> None:
    texts = [b"MemoryError\n"] * 10 + [b"KeyError: 'a'\n"] * 10 + [b"core dumped\n", b"Unable to locate package x\n"]
    outside = ranges_of(texts).outside(np.array(output_features(None)))
    assert outside is not None
    assert outside.feature == "log:unavailable"


def test_a_run_whose_output_names_what_no_learned_run_named_is_unlike_them() -> None:
    ranges = ranges_of([b"MemoryError\n"] * 10 + [b"KeyError: 'a'\n"] * 10)
    outside = ranges.outside(np.array(output_features(scan(b"core dumped\n"))))
    assert outside is not None
    assert outside.feature == "log:crash"
