"""Judgements of predictions: each message counts once, and a store that does not answer is no silence."""

from __future__ import annotations

import logging
from typing import Any

import orjson
import pytest

from ciml.errors import EngineError
from ciml.events.records import Message, OffsetRange
from ciml.pipelines import feedback as module
from ciml.pipelines.feedback import Judge, Judged, delta_of_judgements, judge_by_history
from ciml.verdicts.feedback.config import Policy
from ciml.verdicts.feedback.judgement import Judgement, Silence
from ciml.verdicts.feedback.standing import Share, Standing, Standings
from ciml.verdicts.feedback.state import FeedbackState
from tests.verdicts.feedback.reviews import NOW_S, feedback, prediction

SILENT = Judgement(None, Silence("passed"))


def judged(start: int, end: int) -> Judged:
    return Judged(OffsetRange("t", "T", 0, start, end), [(offset, SILENT) for offset in range(start, end)])


def test_a_message_that_comes_again_is_judged_once() -> None:
    """Ranges overlap where a reader or a process began again."""
    state = FeedbackState()
    covered = 0
    for version, results in enumerate([[judged(0, 4)], [judged(2, 6), judged(5, 8)]], 1):
        delta = delta_of_judgements(state, results, Policy(), 1)
        assert delta is not None
        state.apply(version, {**delta, "version": version})
        covered += delta["silent"]["passed"]
    assert covered == 8
    assert delta_of_judgements(state, [judged(0, 8)], Policy(), 1) is None


def test_an_unexpected_error_affects_its_message_and_an_engine_all(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object) -> Judgement:
        raise error

    monkeypatch.setattr(module, "decide_feedback", fails)
    error: Exception = KeyError("verdict")
    judge = Judge(feedback())
    with caplog.at_level(logging.ERROR):
        assert judge.judge(Message(7, b"{}"), (), 1).silence == Silence("bad_record")
    assert "the prediction at offset 7 cannot be used" in caplog.text
    error = EngineError("away")
    with pytest.raises(EngineError, match="away"):
        judge.judge(Message(8, b"{}"), (), 1)


@pytest.mark.parametrize("mode", ["active", "shadow", "precision"])
def test_only_an_active_model_is_heard(mode: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config = feedback()
    judgement = Judge(config).judge(Message(0, orjson.dumps(prediction())), (), int(NOW_S * 1e6))
    standing = Standing(mode, "why", Share(9, 10), Share(1, 2), Share(3, 4))
    monkeypatch.setattr(Standings, "of", lambda *_: standing)
    item, silence = judge_by_history(judgement, Standings([], config.policy, 0))
    if mode == "active":
        assert item is not None
        assert (item.right, item.settled, item.passed, item.reruns, silence) == (9, 10, 3, 4, None)
    else:
        assert (item, silence) == (None, Silence(mode, "why"))
