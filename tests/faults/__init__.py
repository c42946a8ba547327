"""Faults: what has to hold whatever dies, shown by real processes that are really killed. See docs/faults.md."""
