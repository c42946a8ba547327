"""Exceptions pass between processes: each one is the same after pickle, however often."""

from __future__ import annotations

import inspect
import pickle

import pytest

from ciml import errors
from ciml.errors import CimlError, RejectedInput

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, Exception)]


@pytest.mark.parametrize("kind", KINDS)
def test_an_exception_is_the_same_in_another_process(kind: type[CimlError | RejectedInput]) -> None:
    error = again = kind("train")
    for _ in range(3):
        again = pickle.loads(pickle.dumps(again))
        assert type(again) is kind
        assert (str(again), vars(again)) == (str(error), vars(error))
