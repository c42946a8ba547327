"""The error channel: what is kept for people, and of which job."""

from __future__ import annotations

import pytest

from ciml.errors import CimlError, EngineError, IntegrityError
from ciml.transforms.guard import keep_error, kept_error


def fail(error: CimlError) -> None:
    with pytest.raises(CimlError), keep_error():
        raise error


def test_the_first_error_that_no_further_try_can_fix_is_returned() -> None:
    kept_error(clear=True)
    fail(EngineError("no answer"))
    assert str(kept_error()) == "no answer"
    fail(IntegrityError("lost"))
    fail(IntegrityError("lost again"))
    assert str(kept_error(clear=True)) == "lost"
    assert kept_error() is None


def test_an_error_of_a_call_that_began_before_the_next_job_is_not_kept() -> None:
    @keep_error()
    def call() -> None:
        kept_error(clear=True)  # a job begins, while this call of the one before it still waits
        raise IntegrityError("of the earlier job")

    with pytest.raises(IntegrityError):
        call()
    assert kept_error() is None
