"""What passing runs of jobs print: bounded, without text, the same in any order."""

from __future__ import annotations

import json
import random

import pytest

from ciml.errors import CimlError
from ciml.transforms.logs import known
from ciml.transforms.logs.features import VOCABULARY, reason_of
from ciml.transforms.logs.known import KnownOutputs, KnownTemplates, known_outputs
from ciml.transforms.logs.profile import printed_templates, profile_of
from ciml.transforms.logs.ranking import scan

NOISY = "ValueError: expected by a test"
PLAIN = "collecting"


def test_a_job_of_few_passing_runs_has_the_templates_of_all_jobs() -> None:
    outputs = known_outputs([("often", ["OSError: often"])] * 5 + [("seldom", [NOISY])] * 4)
    assert set(outputs.jobs) == {"often"}
    assert (NOISY in outputs.of("often"), "OSError: often" in outputs.of("often")) == (False, True)
    assert NOISY in outputs.of("seldom")
    assert "OSError: often" in outputs.of("seldom")
    assert NOISY in outputs.of("unknown")


def test_only_templates_that_could_name_a_reason_are_kept() -> None:
    outputs = known_outputs([("unit", [NOISY, PLAIN])] * 5)
    assert len(outputs.of("unit").digests) == 1
    assert PLAIN not in outputs.of("unit")


def test_json_has_no_text_and_is_read_back() -> None:
    outputs = known_outputs([("unit", [NOISY])] * 5 + [("docs", ["MemoryError"])])
    text = json.dumps(outputs.to_json())
    assert "ValueError" not in text
    assert KnownOutputs.from_json(json.loads(text)).to_json() == outputs.to_json()


def test_the_vocabulary_is_that_of_the_version_that_made_them() -> None:
    outputs = known_outputs([("unit", [NOISY])] * 5)
    value = outputs.to_json()
    assert (value["vocabulary"], outputs.is_current) == (VOCABULARY, True)
    del value["vocabulary"]
    older = KnownOutputs.from_json(value)
    assert (older.is_current, older.to_json()) == (False, value)
    assert not KnownOutputs.from_json({**value, "vocabulary": "other"}).is_current


def test_the_order_of_runs_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known, "MAX_KNOWN_TEMPLATES", 7)
    letters = "abcdefghijklmnopqrst"
    runs = [(job, [f"ValueError: {letter}"]) for job in ("unit", "docs") for letter in letters]
    expected = known_outputs(runs).to_json()
    random.Random(0).shuffle(runs)
    assert known_outputs(runs).to_json() == expected
    assert len(known_outputs(runs).pooled.digests) == 7


@pytest.mark.parametrize(
    "value", [{}, {"jobs": {}, "pooled": "AAAA"}, {"jobs": [], "pooled": ""}, None, {"jobs": {}, "pooled": "?"}]
)
def test_malformed_json_is_rejected(value: object) -> None:
    with pytest.raises(CimlError, match="known outputs: malformed"):
        KnownOutputs.from_json(value)


def test_digests_and_a_whole_profile_lead_to_the_same_reason() -> None:
    passing = f"{NOISY}\ncollecting\n..... [ 50%]\n3 passed in 1s\n".encode()
    templates = printed_templates(scan(passing))
    profile = profile_of([templates] * 5)
    digests = known_outputs([("unit", templates)] * 5).of("unit")
    for failed in (b"", b"KeyError: 'a'\n", b"No space left on device\n", b".....F\n", b"exit code 3\n"):
        output = scan(passing + failed)
        assert reason_of(output, digests) == reason_of(output, profile)
    assert reason_of(scan(passing), KnownTemplates(frozenset())) == "program"
