"""A library leaves a caller's process as it was, also if it fails."""

from __future__ import annotations

import logging
import os
import random

import pytest

from ciml.tensorflow import keep_settings


@pytest.mark.parametrize("fails", [False, True])
def test_what_a_block_changes_in_its_process_is_restored(monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    for name in ("CIML_KEPT", "CIML_REMOVED"):
        monkeypatch.setenv(name, "old")
    monkeypatch.delenv("CIML_NEW", raising=False)
    environment, state, handlers = dict(os.environ), random.getstate(), logging.root.handlers[:]
    tensorflow = logging.getLogger("tensorflow")
    filters = tensorflow.filters[:]
    try:
        with keep_settings():
            os.environ.update(CIML_NEW="new", CIML_KEPT="new")
            del os.environ["CIML_REMOVED"]
            random.seed(1)
            logging.root.addHandler(logging.NullHandler())
            records = [tensorflow.makeRecord("tensorflow", level, "", 0, "", (), None) for level in (30, 40)]
            assert [bool(tensorflow.filter(record)) for record in records] == [False, True]
            if fails:
                raise ZeroDivisionError
    except ZeroDivisionError:
        assert fails
    assert (dict(os.environ), random.getstate(), logging.root.handlers) == (environment, state, handlers)
    assert tensorflow.filters == filters
