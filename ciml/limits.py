"""Limits on input: every bound that is checked before memory or time is spent, in one place.

docs/limits.md lists them with the reason for each; tests/house/test_limits.py compares the two. A limit that an operator may
change is the default of an option or of a policy's key, which its comment names.
"""

from __future__ import annotations

MIB = 1 << 20

# Messages of a topic: events, samples, announcements.

# Logs: bytes, columns, rows, restarts, time.

# Batches: what the logs of one batch may take together.

# Model server: connections, requests, tensors.

# Recorder: the spool.
