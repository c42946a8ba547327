"""Fuzz tests: generated hostile input, and what has to hold for all of it.

A fuzz test is a hypothesis test under ``@fuzz``, which sets how many inputs it tries::

    from hypothesis import given
    from tests.fuzz.frame import fuzz

    @fuzz
    @given(events())
    def test_each_event_is_decoded_or_refused(event: bytes) -> None: ...

- ``make test`` tries 100 inputs of each test (``make check`` 25), always the same ones, after the seeds of
  ``tests/fuzz/seeds``.
- ``make fuzz`` tries 20,000 random ones (``CIML_FUZZ_EXAMPLES`` changes that; ``FUZZ="-k event"`` selects tests),
  keeps each input that fails in ``tests/fuzz/seeds``, to be committed with the fix, and adds a line a test to
  ``docs/fuzz-results.jsonl`` and to the table of ``docs/faults.md``.
- A test's seeds are found by its name and mean something only with its strategies: an input that must never be
  forgotten is also an ``@example``.
- A strategy stands in the module of its tests; one that others use, or that is long, in ``tests/fuzz/strategies``.
"""
