"""Tests that compute for two seconds each, and fail where the machine gives them no time."""

import time
import unittest

import totals

AMOUNTS = list(range(200000))


def check_for(seconds, is_right):
    """Repeat a check that takes a processor a tenth of a second, for so many seconds."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        began = time.monotonic()
        assert is_right()
        took = time.monotonic() - began
        if took > 2.5:
            raise TimeoutError(f"a tenth of a second took {took:.1f} s: the machine is too slow")


class Totals(unittest.TestCase):
    def test_a_sum(self):
        check_for(2, lambda: all(totals.total(AMOUNTS) == 19999900000 for _ in range(25)))

    def test_b_packing(self):
        check_for(2, lambda: totals.unpacked(totals.packed(AMOUNTS)) == AMOUNTS)

    def test_c_seal(self):
        check_for(2, lambda: totals.seal(b"ledger", 100000).startswith("7f7d9c"))

    def test_d_accounts(self):
        entries = [(f"account {number % 50}", number) for number in range(100000)]
        check_for(2, lambda: sum(totals.by_account(entries).values()) == 4999950000)
