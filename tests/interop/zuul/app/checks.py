"""Tests that compute for three seconds each, and fail where the machine gives them no time."""

import time
import unittest

import totals

AMOUNTS = list(range(20000))


def check_for(seconds, is_right):
    """Repeat a check of some ten milliseconds for so many seconds."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        began = time.monotonic()
        assert is_right()
        took = time.monotonic() - began
        if took > 1.5:
            raise TimeoutError(f"one repetition took {took:.1f} s: the machine is too slow")


class Totals(unittest.TestCase):
    def test_a_sum(self):
        check_for(3, lambda: totals.total(AMOUNTS) == 199990000)

    def test_b_packing(self):
        check_for(3, lambda: totals.unpacked(totals.packed(AMOUNTS)) == AMOUNTS)

    def test_c_seal(self):
        check_for(3, lambda: totals.seal(b"ledger", 50000).startswith("5a72eb"))

    def test_d_accounts(self):
        entries = [(f"account {number % 50}", number) for number in range(20000)]
        check_for(3, lambda: sum(totals.by_account(entries).values()) == 199990000)
