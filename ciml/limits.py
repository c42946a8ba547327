"""Limits on input: every bound that is checked before memory or time is spent, in one place.

docs/limits.md lists them with the reason for each; tests/house/test_limits.py compares the two. A limit that an
operator may change is the default of an option or of a policy's key, which its comment names.
"""

from __future__ import annotations

MIB = 1 << 20

# Messages of a topic: events, samples, announcements.

# Logs: bytes, columns, rows, restarts, time.

# Instants that a sample may have, µs UTC: 2000 to 2099. A clock that was never set says 1970. Checked as whole numbers
# before a zone or a calendar is applied, which know the years 1 to 9999 only.
EARLIEST_US = 946_684_800_000_000
LATEST_US = 4_102_444_800_000_000

# Batches: what the logs of one batch may take together.

# Model server: connections, requests, tensors.

# Recorder: the spool.
