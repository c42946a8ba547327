"""Maintenance of the raw store: compaction into packs, garbage collection and verification.

Uses `ciml.raw` and `ciml.transforms.raw`. It adds no runs.
"""
