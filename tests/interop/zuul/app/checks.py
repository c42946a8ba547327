"""Tests that compute for a second and a half each, and fail where a tenth of a second of work takes much longer."""

import os
import tempfile
import time
import unittest

import ledger_format
import totals

AMOUNTS = list(range(200000))
SECONDS = 1.5


def check_for(seconds, is_right):
    """Repeat a check that takes a processor a tenth of a second, for so many seconds."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        began = time.monotonic()
        assert is_right()
        took = time.monotonic() - began
        if took > 2.5:
            raise TimeoutError(f"a check took {took:.1f} s, at most 2.5 s")


class Totals(unittest.TestCase):
    def test_a_sum(self):
        check_for(SECONDS, lambda: all(totals.total(AMOUNTS) == 19999900000 for _ in range(25)))

    def test_b_packing(self):
        check_for(SECONDS, lambda: totals.unpacked(totals.packed(AMOUNTS)) == AMOUNTS)

    def test_c_seal(self):
        check_for(SECONDS, lambda: totals.seal(b"ledger", 100000).startswith("7f7d9c"))

    def test_d_accounts(self):
        entries = [(f"account {number % 50}", number) for number in range(100000)]
        check_for(SECONDS, lambda: sum(totals.by_account(entries).values()) == 4999950000)

    def test_e_saving(self):
        with tempfile.TemporaryDirectory(dir=os.environ["SCRATCH"]) as folder:
            check_for(SECONDS, lambda: totals.saved(AMOUNTS, folder) == AMOUNTS)

    def test_f_format(self):
        assert ledger_format.shown(totals.total(AMOUNTS)) == "19,999,900,000"
